"""What leaves the cluster in a report, without what may be a secret. Pure.

Secrets are never read. What people wrote into a podTemplate (values of variables, commands of sidecars, annotations) is
left out altogether; in all other text what looks like a credential is.
"""

from __future__ import annotations

import re
from typing import Any, Final

from requeue_operator.api import GROUP
from requeue_operator.children.pod import WORKER
from requeue_operator.drains.job import CONTAINER as DRAIN

REDACTED: Final = "<redacted>"
_OURS: Final = (WORKER, DRAIN, "operator")
_PATTERNS: Final = (
    (re.compile(r"(?<=://)[^/\s\"'@,]+@"), f"{REDACTED}@"),
    (re.compile(r"\bS[ANCOUX][A-Z2-7]{56}\b"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?"), REDACTED),
    (re.compile(r"-----BEGIN [^-]*(?:KEY|JWT|SEED)[^-]*-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (
        re.compile(r"(?i)([\w-]*(?:passw(?:or)?d|secret|token|api[-_]?key|credential)s?[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;}]+)"),
        rf"\1{REDACTED}",
    ),
)  # fmt: skip


def text(said: str) -> str:
    """A text without what looks like a credential."""
    for pattern, instead in _PATTERNS:
        said = pattern.sub(instead, said)
    return said


def document(live: Any) -> Any:
    """An object of Kubernetes without what people may have put a secret into."""
    if isinstance(live, dict):
        return {key: _value(live, key, value) for key, value in live.items() if key != "managedFields"}
    if isinstance(live, list):
        return [document(each) for each in live]
    return text(live) if isinstance(live, str) else live


def _value(parent: dict[str, Any], key: str, value: Any) -> Any:
    if key == "annotations" and isinstance(value, dict):
        return {name: text(str(each)) for name, each in value.items() if name.startswith(f"{GROUP}/")}
    if key == "env" and isinstance(value, list):
        return [_variable(each) for each in value]
    if key in ("command", "args") and parent.get("name") not in _OURS:
        return REDACTED
    if key in ("httpHeaders", "volumeAttributes", "stringData"):
        return REDACTED
    return document(value)


def _variable(each: Any) -> Any:
    if isinstance(each, dict) and "value" in each:
        return {**document(each), "value": REDACTED}
    return document(each)
