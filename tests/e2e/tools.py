"""The programs of a node that are not in the control plane's: built once from their Go modules, or Debian's packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from requeue_client.local import LocalProcessError, find_executable

from tests.cluster.build import SOURCES, Say, control_plane_binary

_CONTAINERD: Final = "github.com/containerd/containerd/v2/cmd"
_MODULES: Final = {
    "containerd": f"{_CONTAINERD}/containerd@v2.4.2",
    "containerd-shim-runc-v2": f"{_CONTAINERD}/containerd-shim-runc-v2@v2.4.2",
    "ctr": f"{_CONTAINERD}/ctr@v2.4.2",
    "coredns": "github.com/coredns/coredns@v1.15.0",
}
_PACKAGES: Final = {
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mkfs.xfs": "xfsprogs",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
CNI_PLUGINS: Final = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins lie."""
SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Tools:
    """Paths of programs."""

    control_plane: Path
    pause: Path
    containerd: Path
    ctr: Path
    coredns: Path
    nats_server: Path


def tools(say: Say) -> Tools:
    """All of them, built and installed now if need be. Skips where there can be no node of one's own, and says why."""
    if not sys.platform.startswith("linux"):
        pytest.skip(f"no node of one's own on {sys.platform}: set KUBECONFIG to a cluster that is there")
    if os.geteuid() != 0:
        pytest.skip("a node of one's own needs root: use sudo, or set KUBECONFIG to a cluster that is there")
    _install_packages(say)
    control_plane = control_plane_binary(say)
    directory = (
        control_plane.parent / f"node-{'-'.join(sorted({m.rpartition('@')[2] for m in _MODULES.values()}))}"
    )
    directory.mkdir(exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, module in _MODULES.items():
            if not (directory / name).exists():
                say(f"building {name} for the tests' node (once, some minutes) ...")
                _go(["install", "-trimpath", "-ldflags", "-s -w", module], directory, Path("/"))
        if not (directory / "pause").exists():
            _go(
                ["build", "-trimpath", "-ldflags", "-s -w", "-o", str(directory / "pause"), "./pause"],
                directory,
                SOURCES,
            )
    return Tools(
        control_plane,
        *(directory / name for name in ("pause", "containerd", "ctr", "coredns")),
        find_executable("nats-server", "make install"),
    )


def _go(args: list[str], directory: Path, where: Path) -> None:
    go = find_executable("go", "install Go >= 1.26, or `.venv/bin/pip install -e .[clients]`")
    environ = {**os.environ, "GOBIN": str(directory), "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(
        [str(go), *args], cwd=where, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LocalProcessError(f"go {' '.join(args)}: {done.stderr[-3000:]}")


def _install_packages(say: Say) -> None:
    missing = [
        package for program, package in _PACKAGES.items() if not shutil.which(program, path=SYSTEM_PATH)
    ]
    if not (CNI_PLUGINS / "bridge").exists():
        missing.append("containernetworking-plugins")
    if not missing:
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"the node needs {', '.join(missing)} (names of Debian's packages)")
    say(f"installing {', '.join(missing)} ...")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *argv], env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"apt-get {argv[0]}: {done.stderr[-1000:]}")
