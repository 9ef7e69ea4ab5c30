"""What is made from the chart and committed: its README, and the one-file manifest for `kubectl apply`.

    python charts/generate.py readme       # from the comments of values.yaml
    python charts/generate.py manifest     # by helm, which `make helm` builds

tests/chart compares both with what is committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from requeue_client.local import find_executable

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts/nats-requeue"
README = CHART / "README.md"
MANIFEST = ROOT / "examples/install.yaml"
NAMESPACE = "requeue-system"
IMAGE = "registry.example/nats-requeue"
"""Stands for the image that a user builds; docs and examples name it so, too."""

VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z]+):(?: (?P<value>\S.*?))??(?: +# (?P<text>.*))?$")
# What helm writes for itself, and would be wrong of objects that kubectl applies.
_OF_HELM = re.compile(
    r"^(# Source: .*| *app\.kubernetes\.io/managed-by: \"?Helm\"?| *helm\.sh/chart: .*| *)\n", re.MULTILINE
)


def readme(values: str, chart: dict[str, str]) -> str:
    """The chart's README, with a row for each value."""
    rows = "\n".join(
        f"| `{path}` | `{default}` | {text} |" if path else f"| | | *{text}* |"
        for path, default, text in table(values)
    )
    return f"""<!-- Generated from values.yaml and Chart.yaml by `make generate`; do not edit. -->
# {chart["name"]}

{chart["description"]}.

```sh
helm install rq charts/nats-requeue --namespace shop --create-namespace \\
  --set image.repository={IMAGE} --set-string image.tag={chart["appVersion"]}
```

[docs/operator.md](../../docs/operator.md#with-helm) says how it is installed, upgraded and removed, and
[docs/gitops.md](../../docs/gitops.md) how with Argo CD and Flux. Kubernetes {chart["kubeVersion"].removesuffix("-0")}.

## Values

A name that is not in this table is refused.

| value | default | |
|---|---|---|
{rows}
"""


def table(values: str) -> Iterator[tuple[str, str, str]]:
    """Of each value: its path, its default, what is said of it; a text of its own without a path. Raises ValueError."""
    path: list[str] = []
    said: list[str] = []
    for line in values.splitlines():
        if line.startswith("#"):
            said.append(line[2:])
            continue
        if said:
            yield "", "", " ".join(said)
            said = []
        found = _LINE.match(line)
        if found is None:
            if line.strip():
                raise ValueError(f"values.yaml: no value and no comment: {line!r}")
            continue
        del path[len(found["indent"]) // 2 :]
        path.append(found["key"])
        if found["value"] is not None:
            yield ".".join(path), found["value"], found["text"] or ""


def manifest(helm: Path) -> str:
    """All of an operator for the whole cluster, in a namespace of its own, as one file."""
    settings = {
        "image.repository": IMAGE,
        "watchAllNamespaces": "true",
        "crds.keep": "false",  # that is an annotation for helm
    }
    sets = [word for each in settings.items() for word in ("--set", "=".join(each))]
    argv = [
        str(helm),
        "template",
        "nats-requeue",
        str(CHART),
        "--namespace",
        NAMESPACE,
        "--skip-tests",
        *sets,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"helm template: {done.stderr}")
    return _HEAD + _OF_HELM.sub("", done.stdout)


_HEAD = f"""\
# Generated from charts/nats-requeue by `make manifests`; do not edit.
#
# The operator for all namespaces of a cluster. Put your image in, and apply it server-side:
#
#   sed 's#{IMAGE}:{VERSION}#YOUR/IMAGE:TAG#' examples/install.yaml | kubectl apply --server-side -f -
#
# `kubectl delete -f` of this file deletes the CRD, and with it all RequeueQueues. To remove the operator alone:
# `kubectl delete namespace {NAMESPACE}`, and its ClusterRoles and ClusterRoleBinding.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def main(what: str) -> None:
    """Write one of the two."""
    if what == "readme":
        values = (CHART / "values.yaml").read_text(encoding="utf-8")
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
        README.write_text(readme(values, chart), encoding="utf-8")
    else:
        helm = find_executable("helm", "`make helm` builds it, with Go")
        MANIFEST.write_text(manifest(helm), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
