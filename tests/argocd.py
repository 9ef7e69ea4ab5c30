"""Argo CD's view of an object: the health check of examples/gitops, run by a Lua 5.1 (Argo CD's own is one of 5.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lupa.lua51 import LuaRuntime

_FILE = Path(__file__).parents[1] / "examples/gitops/argocd-health.yaml"
_KEY = "resource.customizations.health.requeue.dev_RequeueQueue"


def health(queue: dict[str, Any]) -> tuple[str, str]:
    """Status (Healthy, Progressing, Degraded) and message."""
    script = yaml.safe_load(_FILE.read_text(encoding="utf-8"))["data"][_KEY]
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    # As Argo CD does: a global `obj`, and none of the libraries that reach outside.
    for library in ("io", "os", "package", "debug", "require", "dofile", "loadfile", "python"):
        lua.globals()[library] = None
    lua.globals()["obj"] = lua.table_from(queue, recursive=True)
    answer = lua.execute(script)
    return str(answer["status"]), str(answer["message"])
