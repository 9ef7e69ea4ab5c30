"""The Kubernetes API as the operator uses it: plain documents, server-side apply. Alone imports the client library.

Every call ends within `_TIMEOUT_S`. What is not there is None; every other refusal is a `KubeError`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from requeue_operator.children.naming import MANAGER, Manifest

_TIMEOUT_S: Final = 30
_SERVED_FOR_S: Final = 15.0
_MOST_REMEMBERED: Final = 50_000
_THROTTLED_TIMES: Final = 4
_LONGEST_RETRY_AFTER_S: Final = 15.0
_PLURALS: Final = {
    "RequeueQueue": "requeuequeues",
    "ServiceAccount": "serviceaccounts",
    "ConfigMap": "configmaps",
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "StatefulSet": "statefulsets",
    "PodMonitor": "podmonitors",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "Job": "jobs",
    "Event": "events",
    "Deployment": "deployments",
}
_MERGE: Final = "application/merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"


Note = Callable[[str, int], None]
"""Takes note of an answer: method and status, 0 when there was none."""


class KubeError(Exception):
    """The API server refused, or could not be reached (status 0). Worth trying again later."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class NoLogin(KubeError):
    """There is no kubeconfig, or it can't be used."""


class Forbidden(KubeError):
    """RBAC does not allow it: needs somebody's hand."""


class NamespaceGoes(KubeError):
    """Nothing can be made any more: the namespace is being deleted, and all that is in it."""


class Rejected(KubeError):
    """The API server takes no such object: needs another spec, or a quota."""


class Kube:
    """A connection. `async with await Kube.connect() as kube`."""

    def __init__(self, client: ApiClient, note: Note = lambda _method, _status: None) -> None:
        self._client = client
        self._note = note
        self._applied: dict[str, tuple[str, int]] = {}
        self._served: dict[str, tuple[float, bool]] = {}
        #: the one that the kubeconfig's context names
        self.namespace = "default"

    @classmethod
    async def connect(
        cls,
        note: Note = lambda _method, _status: None,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
    ) -> Self:
        """Log in by `kubeconfig` or KUBECONFIG, else as the pod's service account, else by `~/.kube/config`.

        Raises NoLogin.
        """
        try:
            return await cls._log_in(note, kubeconfig, context)
        except (config.ConfigException, yaml.YAMLError, OSError) as error:
            raise NoLogin(0, f"no login to a cluster: {error}") from error

    @classmethod
    async def _log_in(cls, note: Note, kubeconfig: str | None, context: str | None) -> Self:
        configuration = Configuration()
        file = kubeconfig or os.environ.get("KUBECONFIG")
        if "KUBERNETES_SERVICE_HOST" in os.environ and file is None and context is None:
            config.load_incluster_config(client_configuration=configuration)
            return cls(ApiClient(configuration), note)
        file = file or str(Path.home() / ".kube" / "config")
        if not any(os.path.exists(each) for each in file.split(os.pathsep)):  # noqa: PTH110, ASYNC240
            raise NoLogin(0, f"no login to a cluster: there is no file {file}")
        await config.load_kube_config(file, context, client_configuration=configuration)
        kube = cls(ApiClient(configuration), note)
        known, current = config.list_kube_config_contexts(file)
        chosen = next((each for each in known if each["name"] == context), current)
        kube.namespace = chosen["context"].get("namespace") or kube.namespace
        return kube

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Manifest | None:
        """The live object."""
        return await self._call("GET", _path(api_version, kind, namespace, name))

    async def list(
        self, api_version: str, kind: str, namespace: str, labels: dict[str, str]
    ) -> list[Manifest]:
        """The live objects that have these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        answer = await self._call("GET", _path(api_version, kind, namespace), {"labelSelector": selector})
        items: list[Manifest] = (answer or {}).get("items") or []
        # In a list the API server leaves out what all of them are.
        return [{"apiVersion": api_version, "kind": kind, **each} for each in items]

    async def serves(self, api_version: str, kind: str) -> bool:
        """Whether there are objects of this kind, as of `_SERVED_FOR_S` ago at most: their CRD may come and go."""
        known, now_s = self._served.get(f"{api_version} {kind}"), time.monotonic()
        if known is not None and now_s - known[0] < _SERVED_FOR_S:
            return known[1]
        answer = await self._call("GET", f"/apis/{api_version}")
        is_served = any(each.get("kind") == kind for each in (answer or {}).get("resources") or [])
        self._served[f"{api_version} {kind}"] = (now_s, is_served)
        return is_served

    async def warnings(self, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Warning events about the object with this UID."""
        selector = {"fieldSelector": f"involvedObject.uid={uid},type=Warning"}
        answer = await self._call("GET", f"/api/v1/namespaces/{namespace}/events", selector)
        return tuple((answer or {}).get("items") or ())

    async def list_all(
        self, api_version: str, kind: str, namespaces: tuple[str, ...]
    ) -> tuple[Manifest, ...]:
        """All live objects in these namespaces, or in the cluster when none is named."""
        found: tuple[Manifest, ...] = ()
        for namespace in namespaces or ("",):
            answer = await self._call("GET", _path(api_version, kind, namespace))
            found += tuple((answer or {}).get("items") or ())
        return found

    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> Manifest:
        """Server-side apply as the one field manager. Writes nothing when nothing differs.

        `live`: the object as it was read; when that is as this very manifest left it, nobody is asked.
        """
        path = _path_of(manifest)
        content = hash(json.dumps(manifest, sort_keys=True))
        if live is not None and self._applied.get(path) == (_version(live), content):
            return live
        query = {"fieldManager": MANAGER, "force": "true"}
        answer = await self._call("PATCH", path, query, manifest, _APPLY) or {}
        if len(self._applied) > _MOST_REMEMBERED:
            self._applied.clear()
        self._applied[path] = (_version(answer), content)
        return answer

    async def annotate(self, live: Manifest, annotations: dict[str, str | None]) -> None:
        """Write annotations (None: take away) if `live` is as it was read; KubeError with status 409 otherwise."""
        await self._patch_unchanged(live, {"annotations": annotations})

    async def expand(self, claim: Manifest, size: str) -> None:
        """Have a PersistentVolumeClaim ask for `size`, if it is as it was read; KubeError with status 409 otherwise."""
        await self._patch_unchanged(claim, {}, {"spec": {"resources": {"requests": {"storage": size}}}})

    async def set_finalizers(self, live: Manifest, finalizers: Sequence[str]) -> Manifest:
        """The object after it, if it was as it was read; KubeError with status 409 otherwise."""
        return await self._patch_unchanged(live, {"finalizers": [*finalizers]}) or live

    async def _patch_unchanged(
        self, live: Manifest, metadata: Manifest, rest: Manifest | None = None
    ) -> Manifest | None:
        as_read = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {"metadata": {**as_read, **metadata}, **(rest or {})}
        return await self._call("PATCH", _path_of(live), body=body, content_type=_MERGE)

    async def namespace_goes(self, name: str) -> bool:
        """Whether the namespace is being deleted."""
        namespace = await self._call("GET", f"/api/v1/namespaces/{name}")
        return namespace is None or "deletionTimestamp" in namespace["metadata"]

    async def delete(self, live: Manifest, *, unchanged: bool = False) -> None:
        """Delete this very object; one that was made anew under its name stays. `unchanged`: if it is as it was read."""
        metadata = live["metadata"]
        conditions = {"uid": metadata["uid"]}
        conditions |= {"resourceVersion": metadata["resourceVersion"]} if unchanged else {}
        options = {"preconditions": conditions, "propagationPolicy": "Background"}
        await self._call("DELETE", _path_of(live), body=options)

    async def patch_status(self, live: Manifest, status: Manifest) -> None:
        """Merge `status` into the status of `live`."""
        await self._call("PATCH", f"{_path_of(live)}/status", body={"status": status}, content_type=_MERGE)

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest | None:
        for _ in range(_THROTTLED_TIMES):
            status, content, retry_after_s = await self._send(method, path, query, body, content_type)
            self._note(method, status)
            if status != 429:
                break
            # Whoever waits here holds a slot of the fleet: so all of it becomes slower.
            await asyncio.sleep(retry_after_s * random.uniform(1.0, 1.5))
        return _decoded(status, content)

    async def _send(
        self, method: str, path: str, query: dict[str, str] | None, body: Manifest | None, content_type: str
    ) -> tuple[int, bytes, float]:
        """Status, content, and the seconds to wait if it was throttled."""
        try:
            headers = {"Content-Type": content_type, "Accept": "application/json"}
            response = await self._request(method, path, query, body, headers, _TIMEOUT_S)
            content = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._note(method, 0)
            raise KubeError(0, f"the API server cannot be reached: {error}") from error
        return response.status, content, _retry_after_s(response.headers.get("Retry-After"))

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Manifest | None,
        headers: dict[str, str],
        timeout_s: float | aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        client = self._client
        _, url, headers, sent, _ = await client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await client.rest_client.request(
            method, url, headers=headers, body=sent, _request_timeout=timeout_s
        )
        response: aiohttp.ClientResponse = answer.response
        return response

    async def stream(self, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        """The text at this path in parts, as long as it goes on; each takes `_TIMEOUT_S` at most unless it is followed.

        Raises KubeError, with status 404 for what is not there.
        """
        part_s = None if "follow" in query else _TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=part_s)
        try:
            async with await self._request("GET", path, query, None, {"Accept": "*/*"}, timeout) as response:
                if response.status == 204:
                    raise KubeError(204, "there is nothing yet: it does not run")
                if response.status != 200:
                    _decoded(response.status, await response.read())
                    raise KubeError(response.status, f"nothing at {path}")
                async for part in response.content.iter_any():
                    yield part
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubeError(0, f"the API server cannot be reached: {error}") from error


def _retry_after_s(header: str | None) -> float:
    seconds = float(header) if header is not None and header.isdecimal() else 1.0
    return min(seconds, _LONGEST_RETRY_AFTER_S)


def _decoded(status: int, content: bytes) -> Manifest | None:
    try:
        document: Any = json.loads(content)
    except ValueError:
        document = {"message": content[:200].decode(errors="replace")}
    if status in (200, 201, 202):
        found: Manifest = document
        return found
    message = str(document.get("message") or document)
    if status == 404:
        return None
    if status == 403 and "because it is being terminated" in message:
        raise NamespaceGoes(status, message)
    if status == 403:
        # A quota that is used up is refused with the same status.
        raise (Rejected if "exceeded quota" in message else Forbidden)(status, message)
    if status in (400, 422):
        raise Rejected(status, message)
    raise KubeError(status, message)


def _version(live: Manifest) -> str:
    return str((live.get("metadata") or {}).get("resourceVersion"))


def _path(api_version: str, kind: str, namespace: str, name: str = "") -> str:
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{_PLURALS[kind]}" + (f"/{name}" if name else "")


def _path_of(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return _path(manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"])
