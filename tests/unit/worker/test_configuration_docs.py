"""The documentation and the sample configuration keep step with the models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from requeue_worker.setting_keys import Key, keys_of
from requeue_worker.settings import Settings, load

ROOT = Path(__file__).parents[3]
KEYS = {key.dotted: key for key in keys_of(Settings)}
ROWS = {
    cells[0].strip("`"): cells
    for line in (ROOT / "docs/configuration.md").read_text().splitlines()
    if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}
IN_WORDS = {"required", "none", "off", "unlimited", "all", "the host name", "the system's CAs"}
IN_WORDS |= {"in `cert_file`", "the URL's"}


def written_defaults() -> dict[str, object]:
    """The defaults as `model_dump` writes them for people: durations in Go's notation."""
    dumped = Settings(data_dir=Path("d")).model_dump(mode="json", by_alias=True)
    found: dict[str, object] = {}
    for key in KEYS.values():
        value: object = dumped
        for part in key.path:
            assert isinstance(value, dict)
            value = value[part]
        found[key.dotted] = value
    return found


def test_every_setting_is_documented_and_nothing_else() -> None:
    assert set(ROWS) == set(KEYS)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_setting_is_documented_with_its_variable_flag_and_meaning(key: Key) -> None:
    row = ROWS[key.dotted]
    assert f"`{key.env}`" in row
    flags = re.findall(r"`(--[a-z-]+)`", " ".join(row[:-1]))
    assert flags == ([key.flag] if key.flag else [])
    assert row[-1].endswith((".", ").")), row


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_setting_is_documented_with_its_default(key: Key) -> None:
    default = ROWS[key.dotted][1]
    value = written_defaults()[key.dotted]
    if default in IN_WORDS:
        assert value in (None, [], "d") or key.dotted == "instance_id"
    elif key.dotted.endswith("_bytes"):
        assert default == f"`{int(str(value)) >> 20}MiB`"
    else:
        text = ",".join(value) if isinstance(value, list) else str(value)
        assert default.lower() == f"`{text.lower()}`"


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_setting_is_documented_with_its_unit(key: Key) -> None:
    value, meaning = str(written_defaults()[key.dotted]), ROWS[key.dotted][-1]
    assert ("Duration" in meaning) == bool(re.fullmatch(r"([0-9.]+[hms]+)+", value))
    assert meaning.startswith("Size") == key.dotted.endswith("_bytes")


def test_the_sample_configuration_is_right_and_says_nothing_odd() -> None:
    loaded = load(ROOT / "examples/worker.yaml", {}, environ={})
    assert loaded.warnings == ()
    assert {queue.name for queue in loaded.settings.queues} == {"emails", "payments", "telemetry"}
    assert loaded.settings.defaults == Settings(data_dir=Path("d")).defaults


def test_what_the_sample_shows_commented_is_right_too() -> None:
    text = (ROOT / "examples/worker.yaml").read_text()
    shown = re.sub(r"^(\s*)# (\s*[a-z_]+: )|^(\s*)# (tls:$)", r"\1\3\2\4", text, flags=re.MULTILINE)
    assert len(yaml.safe_load(shown)["nats"]) > len(yaml.safe_load(text)["nats"])
    path = ROOT / "examples/worker.yaml"
    settings = load(path, {}, environ={}, content=shown.encode(), look_into_files=False).settings
    assert settings.instance_id == "orders-0"
    assert settings.nats.creds_file is not None
    assert settings.shutdown_grace_ns == Settings(data_dir=Path("d")).shutdown_grace_ns
