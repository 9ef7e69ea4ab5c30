"""What goes into the image is locked, and fits what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[2]
_LOCKS = sorted((_ROOT / "worker/image").glob("*.lock"))
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_EXTRAS = _PROJECT["optional-dependencies"]
_ASKED = [*_PROJECT["dependencies"], *_EXTRAS["worker"], *_EXTRAS["operator"]]
_PIN = re.compile(
    r"^(?P<pin>[a-z0-9][^\\#]*?) *\\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


def _locked(lock: Path) -> dict[str, str]:
    pins = (Requirement(found["pin"]) for found in _PIN.finditer(lock.read_text(encoding="utf-8")))
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}


@pytest.mark.parametrize("lock", _LOCKS, ids=lambda lock: lock.name)
def test_every_line_is_one_version_with_hashes(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    rest = _PIN.sub("", text)
    assert [line for line in rest.splitlines() if line and not line.lstrip().startswith("#")] == []
    assert len(_locked(lock)) > 5
    assert "://" not in text, "the lock names no index: it is the builder's own"


@pytest.mark.parametrize("asked", _ASKED)
def test_what_the_project_asks_for_is_locked(asked: str) -> None:
    requirement = Requirement(asked)
    locked = _locked(_ROOT / "worker/image/requirements.lock")
    assert requirement.specifier.contains(locked[requirement.name.lower()]), "`make lock` makes it anew"


def test_build_system_is_locked() -> None:
    system = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    locked = _locked(_ROOT / "worker/image/build.lock")
    for requirement in map(Requirement, system["requires"]):
        assert requirement.specifier.contains(locked[requirement.name])
