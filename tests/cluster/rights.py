"""The operator's rights: the rules that the Helm chart ships, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

_RULES: Final = yaml.safe_load(
    (Path(__file__).parents[2] / "charts/nats-requeue/files/rules.yaml").read_text(encoding="utf-8")
)
_API: Final = "rbac.authorization.k8s.io"

IN_A_NAMESPACE: Final[list[dict[str, Any]]] = _RULES["namespaced"]
"""What it needs in each namespace that it looks after."""
IN_ALL: Final[list[dict[str, Any]]] = [*IN_A_NAMESPACE, *_RULES["cluster"]]
"""What it needs to look after all namespaces."""
PLUGIN: Final[list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parents[2] / "examples/kubectl-requeue.yaml").read_text(encoding="utf-8")
)["rules"]
"""What `kubectl requeue` needs."""


def cluster_rights(user: str, rules: list[dict[str, Any]] = IN_ALL) -> str:
    """A ClusterRole with all these rules, the operator's by default, bound to a user: YAML."""
    role = {"kind": "ClusterRole", "apiVersion": f"{_API}/v1", "metadata": {"name": user}, "rules": rules}
    binding = {
        "kind": "ClusterRoleBinding",
        "apiVersion": f"{_API}/v1",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": _API, "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": _API, "kind": "User", "name": user}],
    }
    return yaml.safe_dump_all([role, binding])
