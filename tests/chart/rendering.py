"""What helm makes of the chart, as objects."""

from __future__ import annotations

from typing import Any

import yaml

from tests.helm import CHART, Helm

IMAGE = "image.repository=registry.example/nats-requeue"
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")
"""Flags: as in a cluster that knows the kinds of the Prometheus operator."""


def render(
    helm: Helm, *settings: str, flags: tuple[str, ...] = (), namespace: str = "ops"
) -> dict[str, dict[str, Any]]:
    """The objects by kind, namespace and name; cluster-wide ones as kind//name."""
    sets = [word for each in (IMAGE, *settings) for word in ("--set", each)]
    done = helm("template", "rq", str(CHART), "--namespace", namespace, *flags, *sets)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    found = {f"{o['kind']}/{o['metadata'].get('namespace', '')}/{o['metadata']['name']}": o for o in objects}
    assert len(found) == len(objects)
    return found


def refusal(helm: Helm, *settings: str) -> str:
    """What helm says when it refuses these values."""
    sets = [word for each in settings for word in ("--set", each)]
    done = helm("template", "rq", str(CHART), "--namespace", "ops", *sets)
    assert done.returncode != 0, done.stdout
    return done.stderr
