"""The images of the tests, as archives: the project's from its own Dockerfile, on a stand-in for the official base.

Nothing is pulled. buildah builds in a chroot, so no engine is needed; Debian's own Python, by debootstrap, stands in for
`python:3.11-slim`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.cluster.build import Say
from tests.e2e.tools import SYSTEM_PATH, Tools

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "registry.example/nats-requeue:e2e"
NEWER: Final = "registry.example/nats-requeue:e2e-newer"
"""The same under another name, for upgrades."""
NATS: Final = "registry.example/nats:e2e"
PAUSE: Final = "registry.example/pause:e2e"
BASE: Final = "docker.io/library/python:3.11-slim"
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGES: Final = "python3,python3-venv,python3-pip,ca-certificates"
_EPOCH: Final = "1700000000"
"""What every file's time is, so that the same sources give the same image."""


class Images:
    """Builds into `directory`, which is kept from run to run: the base alone takes a minute."""

    def __init__(self, directory: Path, tools: Tools, say: Say) -> None:
        self._directory = directory
        self._tools = tools
        self._say = say
        directory.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Path]:
        """Archives of the images that the node gets."""
        project = self.project(PROJECT)
        self.buildah("tag", PROJECT, NEWER)
        return [
            project,
            self._archive(NEWER),
            self._of_program(PAUSE, self._tools.pause),
            self._of_program(NATS, self._tools.nats_server),
        ]

    def project(self, name: str, *, cached: bool = True) -> Path:
        """Built from the Dockerfile and what git would commit."""
        self._base()
        self._say(f"building {name} from the Dockerfile ...")
        flags = ["--layers"] if cached else ["--no-cache"]
        mounts = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"] if _CERTIFICATES.exists() else []
        for local in os.environ.get("PIP_FIND_LINKS", "").split():
            mounts += ["--volume", f"{local}:{local}:ro"] if Path(local).is_dir() else []
        self.buildah(
            *("bud", "--quiet", "--isolation", "chroot", "--pull-never", "--timestamp", _EPOCH),
            *(*flags, *mounts, "--tag", name, str(ROOT)),
        )
        return self._archive(name)

    def buildah(self, *args: str) -> str:
        """Run it on a store of our own. Raises AssertionError with what it said."""
        store = ["--root", str(self._directory / "store"), "--runroot", str(self._directory / "run")]
        return _run("buildah", *store, "--storage-driver", "overlay", *args)

    def _base(self) -> None:
        if BASE in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return
        self._say("building the base image by debootstrap (once, a minute) ...")
        root = self._directory / "base"
        shutil.rmtree(root, ignore_errors=True)
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root), *_mirror())
        for each in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
            shutil.rmtree(root / each, ignore_errors=True)
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
        container = self.buildah("from", "scratch").strip()
        self.buildah("copy", "--quiet", container, str(root), "/")
        self.buildah("config", "--env", f"PATH=/usr/local/bin:{SYSTEM_PATH}", "--cmd", "python3", container)
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)

    def _of_program(self, name: str, program: Path) -> Path:
        path = f"/usr/local/bin/{program.name}"
        container = self.buildah("from", "scratch").strip()
        self.buildah("copy", "--quiet", "--chmod", "755", container, str(program), path)
        self.buildah("config", "--entrypoint", f'["{path}"]', "--user", "65532:65532", container)
        self.buildah("config", "--env", "PATH=/usr/local/bin", container)
        self.buildah("commit", "--quiet", "--rm", container, name)
        return self._archive(name)

    def _archive(self, name: str) -> Path:
        archive = self._directory / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.tar"
        archive.unlink(missing_ok=True)
        self.buildah("push", "--quiet", name, f"oci-archive:{archive}:{name}")
        return archive


def _mirror() -> Sequence[str]:
    # The machine's own mirror, where it says one.
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.split()[:1]


def _run(*argv: str) -> str:
    environ = {**os.environ, "PATH": SYSTEM_PATH}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
