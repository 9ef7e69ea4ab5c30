"""Go and Node, and what the drivers need of their registries.

Toolchains are taken from beside this Python (the extra `clients` puts them there) or from PATH.
Dependencies are those of the committed go.sum and package-lock.json, checked against their checksums, fetched by `go`
and `npm` themselves, and kept outside the tree: Go's in its own module and build caches, Node's under
`$XDG_CACHE_HOME/nats-requeue` (`~/.cache` where that is not set). A toolchain that is not there, or a registry that
cannot be reached, skips the tests with the reason; a wrong checksum or a driver that does not build fails them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from requeue_client.local import LocalProcessError, find_executable

HERE = Path(__file__).parent
FETCH_TIMEOUT_S = 240
MIN_NODE = 20
NATS_COMMAND = "github.com/nats-io/natscli/nats@v0.5.1"

#: What Go, npm and the resolver say when nobody answers; anything else that goes wrong is ours.
_UNREACHABLE = re.compile(
    r"no such host|dial tcp|i/o timeout|connection refused|connection reset|TLS handshake|network is unreachable"
    r"|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET_TIMEOUT|network request"
    r"|proxyconnect|deadline exceeded|50[234] ",
    re.IGNORECASE,
)

Say = Callable[[str], None]


def go_driver(directory: Path, say: Say) -> list[str]:
    """Build the driver for Go under `directory`; give the command that runs it."""
    go = _toolchain("go", "install Go, or `.venv/bin/pip install -e .[clients]`")
    environ = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off", "CGO_ENABLED": "0"}
    say("the driver for Go: fetching and building what is not cached yet ...")
    _fetch([go, "mod", "download"], HERE / "go", environ)
    binary = directory / "go-driver"
    built = _run([go, "build", "-o", str(binary), "."], HERE / "go", environ)
    if built.returncode != 0:
        pytest.fail(f"the driver for Go does not build:\n{built.stderr}", pytrace=False)
    return [str(binary)]


def node_driver(say: Say) -> list[str]:
    """Fetch the packages that the driver for Node needs; give the command that runs it."""
    node = _toolchain("node", "install Node, or `.venv/bin/pip install -e .[clients]`")
    version = _run([node, "--version"], HERE).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < MIN_NODE:
        pytest.skip(f"Node {version} is too old for the NATS library: {MIN_NODE} or later is needed")
    return [node, str(HERE / "node" / "driver.mjs"), str(_node_packages(node, say))]


def nats_command(say: Say) -> Path:
    """The nats command, built once from its Go module."""
    go = _toolchain("go", "install Go, or `.venv/bin/pip install -e .[clients]`")
    binary = _cache() / NATS_COMMAND.rpartition("@")[2] / "nats"
    if not binary.exists():
        say("the nats command: fetching and building it (once, a minute) ...")
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as made:
            environ = {**os.environ, "GOBIN": made, "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0"}
            _fetch([go, "install", "-trimpath", NATS_COMMAND], HERE, environ)
            (Path(made) / "nats").replace(binary)
    return binary


def go_environment(directory: Path) -> dict[str, str]:
    """What `go run FILE` needs in `directory` under another home: the modules of the driver, and Go's own caches."""
    go = _toolchain("go", "install Go, or `.venv/bin/pip install -e .[clients]`")
    for name in ("go.mod", "go.sum"):
        shutil.copy(HERE / "go" / name, directory)
    _fetch([go, "mod", "download"], directory, {**os.environ, "GOWORK": "off"})
    names = ("GOCACHE", "GOMODCACHE", "GOENV", "GOPROXY", "GOSUMDB")
    said = _run([go, "env", *names], directory).stdout.splitlines()
    path = f"{Path(go).parent}{os.pathsep}{os.environ['PATH']}"
    return {**dict(zip(names, said, strict=True)), "GOWORK": "off", "GOFLAGS": "-mod=readonly", "PATH": path}


def node_modules(say: Say) -> tuple[Path, Path]:
    """Node, and the directory of the driver's packages, `node_modules` itself."""
    node, _, packages = node_driver(say)
    return Path(node), Path(packages) / "node_modules"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nats-requeue"


def _node_packages(node: str, say: Say) -> Path:
    sources = [HERE / "node" / name for name in ("package.json", "package-lock.json", ".npmrc")]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    cache = _cache()
    packages = cache / f"node-{digest[:16]}"
    if packages.exists():
        return packages
    npm = _toolchain("npm", "install npm, or `.venv/bin/pip install -e .[clients]`")
    say("the driver for Node: fetching its packages (once) ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for source in sources:
            shutil.copy(source, whole)
        environ = {**os.environ, "PATH": f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        _fetch([npm, "ci", "--ignore-scripts", "--no-progress"], whole, environ)
        try:
            whole.rename(packages)
        except OSError:
            if not packages.exists():  # else: another run was faster, with the same packages
                raise
    return packages


def _toolchain(name: str, hint: str) -> str:
    try:
        return str(find_executable(name, hint))
    except LocalProcessError as missing:
        pytest.skip(str(missing))


def _fetch(argv: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> None:
    try:
        done = _run(argv, cwd, environ, timeout_s=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"`{_shown(argv)}` had fetched nothing whole after {FETCH_TIMEOUT_S} s")
    if done.returncode == 0:
        return
    said = f"{done.stdout}\n{done.stderr}".strip()
    why = next((line for line in said.splitlines() if _UNREACHABLE.search(line)), None)
    if why is not None and not re.search("checksum mismatch|SECURITY ERROR|EINTEGRITY", said):
        pytest.skip(f"`{_shown(argv)}` could not reach its registry: {why[:300]}")
    pytest.fail(f"`{_shown(argv)}` failed:\n{said}", pytrace=False)


def _run(
    argv: Sequence[str], cwd: Path, environ: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=cwd, env=environ, timeout=timeout_s, capture_output=True, text=True, check=False
    )


def _shown(argv: Sequence[str]) -> str:
    return " ".join([Path(argv[0]).name, *argv[1:]])
