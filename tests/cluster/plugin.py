"""`kubectl requeue` as a person runs it: by the real kubectl, with the rights that its page names and no others."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import yaml
from requeue_client.local import find_executable

from tests.cluster.control_plane import ControlPlane

PERSON, VIEWER = "somebody", "viewer"
"""Users that it logs in as: with the rights of its page, and with none until a test gives some."""


class Plugin:
    """`kubectl requeue ...` with a home of its own, whose context is one namespace."""

    @classmethod
    def at(cls, cluster: ControlPlane, namespace: str, directory: Path, user: str = PERSON) -> Plugin:
        """On the control plane."""
        config = yaml.safe_load(cluster.kubeconfig(user).read_text())
        return cls(cluster.kubectl_argv, config, namespace, directory)

    def __init__(self, kubectl_argv: list[str], config: Any, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        directory.mkdir(exist_ok=True)
        self.kubeconfig = directory / "kubeconfig"
        config["contexts"][0]["context"]["namespace"] = namespace
        self.kubeconfig.write_text(yaml.safe_dump(config))
        kubectl = directory / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {shlex.join(kubectl_argv)} "$@"\n')
        kubectl.chmod(0o755)
        own = find_executable("kubectl-requeue", "make install").parent
        self.directory = directory
        self.environ = {
            "PATH": f"{directory}:{own}:{os.environ['PATH']}",
            "HOME": str(directory),
            "KUBECONFIG": str(self.kubeconfig),
        }

    def __call__(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run it; it ends with this exit code."""
        return self.shell(shlex.join(["kubectl", "requeue", *args]), code)

    def shell(self, command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """The same, as it is typed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *args: str, code: int = 0) -> Any:
        """What it says as JSON."""
        return json.loads(self(*args, "-o", "json", code=code).stdout)


def unpacked(file: Path) -> dict[str, str]:
    """What is in a report, by the path below its one directory."""
    found = {}
    with tarfile.open(file) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            top, _, path = entry.name.partition("/")
            assert top == file.name.removesuffix(".tar.gz")
            found[path] = content.read().decode()
    return found
