"""Whose children they are: names, labels, and the reference to the owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from requeue_operator.api import GROUP, KIND, VERSION

MANAGER: Final = "requeue-operator"
"""Field manager of server-side apply, and the label `app.kubernetes.io/managed-by`. Never changes."""
EMPTIED: Final = "requeue.dev/emptied"
"""On the StatefulSet of a RequeueQueue that is being deleted: its workers had nothing left, and stay away."""
OWN_LABELS: Final = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """The RequeueQueue that a child belongs to."""

    name: str
    namespace: str
    uid: str

    @classmethod
    def of(cls, queue: Manifest) -> Owner:
        """Of a live RequeueQueue."""
        metadata = queue["metadata"]
        return cls(metadata["name"], metadata["namespace"], metadata["uid"])

    @property
    def selector(self) -> dict[str, str]:
        """What finds its pods. Immutable in a StatefulSet: never changes."""
        return {"app.kubernetes.io/name": "nats-requeue", "app.kubernetes.io/instance": self.name}

    @property
    def labels(self) -> dict[str, str]:
        """Of every child. None are copied from the RequeueQueue: those of GitOps tools would prune volumes."""
        return {**self.selector, "app.kubernetes.io/managed-by": MANAGER}

    @property
    def service_account(self) -> str:
        """Name of the pods' ServiceAccount."""
        return f"{self.name}-worker"

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap with the workers' configuration."""
        return f"{self.name}-config"

    @property
    def shared_claim(self) -> str:
        """The one volume of all pods, with storage mode Shared. No pod's own has a name like that."""
        return f"{self.name}-shared"

    def child(self, api_version: str, kind: str, name: str, **content: Any) -> Manifest:
        """A child's manifest: kept by the garbage collector as long as the RequeueQueue is there."""
        reference = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels,
            "ownerReferences": [reference],
        }
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
