"""The connection: is the server reached, does it let us in, is it new enough, and what does it forbid?

A nats-server tells errors by text alone; what it says is read here and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Coroutine
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from requeue_protocol.subjects import ADMIN_PREFIX

from requeue_client.check import SUBJECT
from requeue_client.doctor.findings import Finding, fail, ok

_T = TypeVar("_T")
_OLDEST = (2, 2)  # headers, without which there is neither plain intake nor a reason for a refusal
_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)
_PERMISSIONS = "docs/operations.md, NATS permissions, has what each role needs"


class Denied(Exception):
    """The server forbids this user what was tried. `subject` is in small letters: nats-py makes it so."""

    def __init__(self, action: str, subject: str) -> None:
        super().__init__(f"this user may not {action} {subject}")
        self.action = action
        self.subject = subject


class Ears:
    """All that the connection complains of."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._denied: asyncio.Queue[Denied] = asyncio.Queue()

    def hear(self, error: Exception) -> None:
        """Take a complaint."""
        self.errors.append(error)
        if found := _DENIED.search(str(error)):
            action = "publish to" if found[1].lower() == "publish" else "subscribe to"
            self._denied.put_nowait(Denied(action, found[2]))

    def raise_denied(self) -> None:
        """Raise Denied where something was."""
        if not self._denied.empty():
            raise self._denied.get_nowait()

    async def during(self, doing: Coroutine[Any, Any, _T]) -> _T:
        """Do it. Raises Denied as soon as the server forbids a part of it, and whatever it raises itself.

        Not for a bare flush: nats-py stumbles over the answer to one that was cancelled.
        """
        task = asyncio.ensure_future(doing)
        denial = asyncio.ensure_future(self._denied.get())
        try:
            await asyncio.wait({task, denial}, return_when=asyncio.FIRST_COMPLETED)
            if denial.done():
                raise denial.result()
            return task.result()
        finally:
            task.cancel()
            denial.cancel()
            await asyncio.gather(task, denial, return_exceptions=True)


def refused_to_connect(errors: list[Exception], text: str) -> Finding:
    """Why there is no connection."""
    for error in errors:
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return fail("tls", str(error), "check --tls-ca, and --tls-cert with --tls-key for mTLS")
        if isinstance(error, nats.errors.SecureConnWantedError):
            return fail("tls", str(error), "the server has no TLS: write nats:// and leave --tls-* out")
        if (
            isinstance(error, nats.errors.AuthorizationError)
            or "authorization violation" in str(error).lower()
        ):
            return fail(
                "login",
                f"the server refuses the login: {error}",
                "check --user and --password-file, --token-file, --creds, --nkey, or the --context",
            )
    return fail("nats", text, "check --server and the network, and that nats-server runs there")


async def examine(nc: Client) -> list[Finding]:
    """What can be said of the server that we are connected to."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await nc.flush()
    took_ms = (loop.time() - began_s) * 1e3
    url, known = nc.connected_url, nc.connected_server_version
    version = f"{known.major}.{known.minor}.{known.patch}"
    where = "" if url is None else f"{url.hostname}:{url.port}"
    found = [ok("nats", f"nats-server {version} at {where} answers in {took_ms:.1f} ms")]
    if (known.major, known.minor) < _OLDEST:
        found = [fail("nats", f"nats-server {version} at {where} knows no headers", "use 2.2 or later")]
    return found


def denied(denial: Denied) -> Finding:
    """What follows from a denial."""
    if denial.subject.startswith(f"{ADMIN_PREFIX}."):
        loss = "workers can't be asked"
    elif denial.subject.lower().startswith("_inbox."):
        loss = "no acknowledgement arrives"
    elif denial.subject.startswith(f"{SUBJECT}."):
        loss = "the probe can't come back; leave it out with --no-probe"
    else:
        loss = "nothing can be published"
    return fail("permissions", f"{denial}: {loss}", f"allow it to this user: {_PERMISSIONS}")
