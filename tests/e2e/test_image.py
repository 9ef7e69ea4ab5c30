"""The image that the Dockerfile makes: its size, its user, what is in it, and that it is the same each time."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.images import BASE, PROJECT, Images

_MOST_BYTES: Final = 200 * 1000 * 1000


def _inspected(images: Images, name: str) -> dict[str, Any]:
    return dict(json.loads(images.buildah("inspect", "--type", "image", name)))


def _layers(archive: Path) -> dict[str, bytes]:
    """Compressed layers by digest, of an OCI archive."""
    with tarfile.open(archive) as tar:

        def read(digest: str) -> bytes:
            member = tar.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert member is not None
            return member.read()

        index = tar.extractfile("index.json")
        assert index is not None
        manifest = json.loads(read(json.loads(index.read())["manifests"][0]["digest"]))
        return {layer["digest"]: read(layer["digest"]) for layer in manifest["layers"]}


@pytest.fixture(scope="module")
def archive(images: Images) -> Path:
    return images.project(PROJECT)


def test_it_is_small(archive: Path) -> None:
    compressed = sum(
        len(layer) if layer[:2] == b"\x1f\x8b" else len(gzip.compress(layer))
        for layer in _layers(archive).values()
    )
    print(f"{compressed / 1e6:.0f} MB compressed, with the base")
    assert compressed < _MOST_BYTES


def test_it_runs_as_nobody_in_particular_and_says_what_it_is(archive: Path, images: Images) -> None:
    config = _inspected(images, PROJECT)["OCIv1"]["config"]
    assert config["User"] == "65532:65532"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "nats-requeue"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"]


def test_built_again_without_a_cache_it_is_the_same(archive: Path, images: Images) -> None:
    again = images.project(f"{PROJECT}-again", cached=False)
    assert _layers(archive).keys() == _layers(again).keys()
    assert (
        _inspected(images, PROJECT)["OCIv1"]["rootfs"]["diff_ids"][0]
        == (_inspected(images, BASE)["OCIv1"]["rootfs"]["diff_ids"][0])
    )


def test_it_tells_its_parts_and_its_three_programs_run(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace)
    (pod,) = cluster.lives(namespace)

    def said(*argv: str) -> str:
        return cluster.kubectl("exec", "-n", namespace, pod, "--", *argv).stdout

    parts = {
        each["name"]: each["version"]
        for each in json.loads(said("cat", "/opt/requeue/sbom.cdx.json"))["components"]
    }
    assert {"nats-py", "rocksdict", "kopf", "kubernetes"} <= parts.keys()
    for program, words in (("requeue", "publish"), ("requeue-worker", "drain"), ("requeue-operator", "run")):
        assert words in said(program, "--help")
    assert (
        "Read-only file system"
        in cluster.kubectl("exec", "-n", namespace, pod, "--", "touch", "/opt/requeue/x", check=False).stderr
    )
