"""What can go wrong when the cluster is asked, with the exit code of each, and what to do about it."""

from __future__ import annotations

import re
from typing import Final

from requeue_operator.kube import Forbidden, KubeError, NoLogin

NEEDS_A_HAND, USAGE, UNREACHABLE, DENIED, NOT_FOUND = 1, 2, 3, 4, 5
_DENIED: Final = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)


class PluginError(Exception):
    """Worth a sentence and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


def told(error: KubeError) -> PluginError:
    """The same for a person."""
    if isinstance(error, Forbidden):
        return PluginError(DENIED, denied(error))
    if isinstance(error, NoLogin):
        text = f"{error}; --kubeconfig or KUBECONFIG names the file, --context one of its contexts"
        return PluginError(UNREACHABLE, text)
    if error.status == 401:
        return PluginError(UNREACHABLE, f"the API server does not know you: {error}; log in again")
    return PluginError(UNREACHABLE, str(error))


def denied(error: Forbidden) -> str:
    """Which rule is missing, as it would stand in a Role or ClusterRole."""
    found = _DENIED.search(str(error))
    if found is None:
        return f"you lack a right: {error}"
    place = found["namespace"]
    where = f"a Role in the namespace {place}" if place else "a ClusterRole"
    group = found["group"] or '""'
    rule = f"{{apiGroups: [{group}], resources: [{found['resource']}], verbs: [{found['verb']}]}}"
    return f"you lack a right; {where} that is bound to you has to say {rule} (docs/kubectl.md has all rules)"
