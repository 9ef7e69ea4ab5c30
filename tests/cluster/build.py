"""The control plane's program: built once from `controlplane/`, and kept outside the tree by the hash of its sources.

Go is taken from beside this Python (the extra `clients` puts it there) or from PATH. A cold build takes five to
twenty minutes on two cores, and a gigabyte of modules; after that it is a look at the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from requeue_client.local import LocalProcessError, find_executable

SOURCES: Final = Path(__file__).parent / "controlplane"
KUBERNETES: Final = "v1.37.2"
BUILD_TIMEOUT_S: Final = 2400
_VERSION: Final = "k8s.io/component-base/version"
_FLAGS: Final = (
    "-mod=readonly",
    "-trimpath",
    "-buildvcs=false",
    "-ldflags",
    f"-s -w -X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37",
)
#: what Go says when nobody answers; anything else that goes wrong is ours
_UNREACHABLE: Final = re.compile(
    r"no such host|dial tcp|i/o timeout|connection refused|connection reset|TLS handshake|network is unreachable"
)

Say = Callable[[str], None]


def control_plane_binary(say: Say) -> Path:
    """The program, built now if need be. Skips the test where there is no Go or nothing can be fetched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nats-requeue"
    binary = cache / f"controlplane-{_digest()}"
    if binary.exists():
        return binary
    try:
        go = find_executable("go", "install Go >= 1.26, or `.venv/bin/pip install -e .[clients]`")
    except LocalProcessError as missing:
        pytest.skip(f"no control plane: {missing}")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "controlplane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs: one builds, the other waits and finds it
        if not binary.exists():
            _build(go, binary, say)
    return binary


def _digest() -> str:
    sources = [*sorted(SOURCES.glob("*.go")), SOURCES / "go.mod", SOURCES / "go.sum"]
    content = b"\0".join([*(source.read_bytes() for source in sources), *(flag.encode() for flag in _FLAGS)])
    return hashlib.sha256(content).hexdigest()[:16]


def _build(go: Path, binary: Path, say: Say) -> None:
    unfinished = binary.with_suffix(".unfinished")
    environ = {**os.environ, "GOWORK": "off", "CGO_ENABLED": "0", "GOFLAGS": ""}
    started_s = time.monotonic()
    say("building a Kubernetes control plane for the tests (once; five to twenty minutes) ...")
    with subprocess.Popen(
        [str(go), "build", *_FLAGS, "-o", str(unfinished), "."],
        cwd=SOURCES,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        said = _wait(build, started_s, say)
    if build.returncode != 0:
        why = next((line for line in said.splitlines() if _UNREACHABLE.search(line)), None)
        if why is not None:
            pytest.skip(f"no control plane: `go build` could not reach its registry: {why[:300]}")
        pytest.fail(f"the control plane does not build:\n{said[-4000:]}", pytrace=False)
    unfinished.rename(binary)


def _wait(build: subprocess.Popen[str], started_s: float, say: Say) -> str:
    while True:
        try:
            return build.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            passed_s = time.monotonic() - started_s
            if passed_s > BUILD_TIMEOUT_S:
                build.kill()
            say(f"... still building the control plane, {passed_s / 60:.0f} min so far")
