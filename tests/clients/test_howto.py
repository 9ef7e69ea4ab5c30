"""Every how-to runs, from every language, in a directory of its own against a real nats-server and worker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.toolchains import go_environment, nats_command, node_modules
from tests.documents import HOWTO, JETSTREAM, Shell, blocks_in, blocks_of, relative, run_blocks

LANGUAGES = ("Go", "Python", "Node", "The nats command")
_HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)


def parts_of(page: Path) -> dict[str, str]:
    """What stands before the first heading, under `""`, and what under each of the others."""
    before, *rest = _HEADING.split(page.read_text())
    return {"": before, **dict(zip(rest[::2], rest[1::2], strict=True))}


@pytest.fixture
def shell(language: str, tmp_path: Path, say: Callable[[str], None]) -> Iterator[Shell]:
    """A shell in which the commands of a language are there; skips where its toolchain is not."""
    path: list[Path] = []
    environ: dict[str, str] = {}
    if language == "Go":
        environ = go_environment(tmp_path)
        path = [Path(entry) for entry in environ.pop("PATH").split(":")[:1]]
    elif language == "Node":
        node, packages = node_modules(say)
        path = [node.parent]
        (tmp_path / "node_modules").symlink_to(packages)
    elif language == "The nats command":
        path = [nats_command(say).parent]
    shell = Shell(tmp_path, path, environ)
    yield shell
    shell.end()


def test_there_is_a_page_for_each_of_the_four_uses() -> None:
    assert [page.stem for page in HOWTO] == ["buffer", "dead-letter-queue", "delayed-messages", "retry-queue"]


@pytest.mark.parametrize("page", HOWTO, ids=relative)
def test_page_shows_every_language_and_no_block_stands_elsewhere(page: Path) -> None:
    parts = parts_of(page)
    assert [name for name in parts if name in LANGUAGES] == list(LANGUAGES)
    run = [block for name in ("", *LANGUAGES) for block in blocks_in(parts[name])]
    assert [block for block in blocks_of(page) if block not in run] == []
    for name in LANGUAGES:
        console = "".join(block.text for block in blocks_in(parts[name]) if block.language == "console")
        for block in blocks_in(parts[name]):
            assert block.language == "console" or (block.file_name and block.file_name in console), block


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", HOWTO, ids=relative)
def test_page_holds(page: Path, language: str, shell: Shell) -> None:
    parts = parts_of(page)
    run_blocks(shell, [*blocks_in(parts[""]), *blocks_in(parts[language])])


@pytest.mark.parametrize("language", ["The nats command"])
def test_page_of_the_jetstream_bridge_holds(shell: Shell) -> None:
    run_blocks(shell, blocks_of(JETSTREAM))
