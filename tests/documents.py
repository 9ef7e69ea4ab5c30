"""Documents that are run: fenced blocks as files and commands in one shell, on a real nats-server.

```python   whose first line is `# name.py`      is saved under that name (so are ```yaml, ```go and ```js)
```console  lines with `$ `                      are typed into one shell; what follows is the expected output,
                                                 with `...` for anything
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from requeue_client.local import find_executable, free_port

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
HOWTO = sorted((ROOT / "docs/howto").glob("[a-z]*.md"))
JETSTREAM = ROOT / "docs/jetstream.md"
NEED_TOOLS = [*HOWTO, JETSTREAM]  # run by tests/clients/test_howto.py
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND_S = 60.0


class Block(NamedTuple):
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        found = re.match(r"(?:#|//) ([\w.-]+\.(?:py|yaml|go|mjs))\n", self.text)
        return found[1] if found else None


def blocks_in(text: str) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(text)]


def blocks_of(document: Path) -> list[Block]:
    return blocks_in(document.read_text())


def prose_of(document: Path) -> str:
    """A document without its blocks."""
    return _FENCE.sub("", document.read_text())


def relative(document: Path) -> str:
    return str(document.relative_to(ROOT))


class Shell:
    """One bash in a directory of its own; everything it started is gone at the end."""

    def __init__(
        self, directory: Path, path: Iterable[Path] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        ports = {"4222": free_port(), "8080": free_port(), "8081": free_port()}
        self._ports = {f"127.0.0.1:{said}": f"127.0.0.1:{used}" for said, used in ports.items()}
        tools = directory / ".tools"
        tools.mkdir()
        server = tools / "nats-server"
        server.write_text(
            f'#!/bin/sh\nexec {find_executable("nats-server", "")} -a 127.0.0.1 -p {ports["4222"]} "$@"\n'
        )
        server.chmod(0o755)
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("REQUEUE_", "NATS_"))
        }
        path = os.pathsep.join((str(tools), *map(str, path), str(Path(sys.executable).parent), clean["PATH"]))
        self._child = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={
                **clean,
                "PATH": path,
                "HOME": str(directory),
                "REQUEUE_NATS_SERVERS": f"nats://127.0.0.1:{ports['4222']}",  # instead of the default port
                "no_proxy": "*",
                **(environ or {}),
            },
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.rstrip("\n"))

    def save(self, name: str, text: str) -> None:
        (self.directory / name).write_text(self._with_ports(text))

    def run(self, command: str) -> tuple[int, list[str]]:
        """Exit code and output, both streams. What goes on in the background prints to files."""
        assert self._child.stdin is not None
        self._child.stdin.write(self._with_ports(command) + '\necho "--done-- $?"\n')
        self._child.stdin.flush()
        lines: list[str] = []
        deadline_s = time.monotonic() + _COMMAND_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{command!r} still runs; its output: {lines}\n{self.logs()}") from None
            done = re.fullmatch(r"(.*)--done-- (\d+)", line)
            if done is None:
                lines.append(line)
                continue
            return int(done[2]), [*lines, done[1]] if done[1] else lines

    def await_logs(self, command: str) -> None:
        """Wait for the files that a command in the background writes to: nobody types the next one faster."""
        if command.endswith("&"):
            for name in re.findall(r">\s*([\w./-]+)", command):
                while not (self.directory / name).exists():
                    time.sleep(0.01)

    def logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in self.directory.glob("*.log"))

    def end(self) -> None:
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _with_ports(self, text: str) -> str:
        for said, used in self._ports.items():
            text = text.replace(said, used)
        return text


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block with the lines said to follow it."""
    command, output = "", []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], []
        else:
            output.append(line)
    yield command, output


def as_pattern(lines: list[str]) -> str:
    return re.escape("\n".join(lines)).replace(re.escape("..."), ".*")


def run_blocks(shell: Shell, blocks: Iterable[Block]) -> None:
    """Save the files, run the commands, and compare what they print with what is said to follow."""
    for block in blocks:
        if block.file_name is not None:
            shell.save(block.file_name, block.text)
        if block.language != "console":
            continue
        for command, expected in commands_in(block.text):
            code, printed = shell.run(command)
            shell.await_logs(command)
            assert code == 0, f"{command}\n{printed}\n{shell.logs()}"
            assert re.fullmatch(as_pattern(expected), "\n".join(printed), re.DOTALL), (
                f"{command}\n{printed}\nis not\n{expected}\n{shell.logs()}"
            )
