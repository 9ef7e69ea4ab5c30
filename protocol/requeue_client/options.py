"""Connection options of the `requeue` command, named as `requeue-worker run` names them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from requeue_client.client import DEFAULT_INTAKE, DEFAULT_SERVER, RequeueClient
from requeue_client.contexts import Context, read_context

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach NATS."""

    server: tuple[str, ...]
    user: str | None
    password_file: Path | None
    token_file: Path | None
    creds: Path | None
    nkey: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    context: str | None = None

    async def open(
        self, *, intake: str, timeout_s: float, on_error: Callable[[Exception], None] | None = None
    ) -> RequeueClient:
        """Connect: options go before the context; `on_error` as in `RequeueClient.connect`.

        Raises NotConnected, and ContextError.
        """
        said = Context() if self.context is None else read_context(self.context)
        own_login = any((self.user, self.token_file, self.creds, self.nkey))
        login = Context() if own_login else said
        return await RequeueClient.connect(
            list(self.server or said.servers or (DEFAULT_SERVER,)),
            intake=intake,
            name="requeue",
            user=self.user or login.user,
            password=_secret(self.password_file) or login.password,
            token=_secret(self.token_file) or login.token,
            creds_file=self.creds or login.creds,
            nkey_file=self.nkey or login.nkey,
            tls=_tls(self.tls_ca or said.ca, self.tls_cert or said.cert, self.tls_key or said.key),
            timeout=f"{timeout_s:.3f}s",
            on_error=on_error,
        )


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca is None and cert is None:
        return None
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def _secret(file: Path | None) -> str | None:
    return None if file is None else file.read_text().strip()


_OPTIONS = (
    click.option(
        "--server",
        multiple=True,
        show_default=DEFAULT_SERVER,
        envvar=["REQUEUE_NATS_SERVERS", "NATS_URL"],
        help="NATS server; give it again for more of one cluster.",
    ),
    click.option("--user", envvar="REQUEUE_NATS_USER", help="User name."),
    click.option("--password-file", type=_FILE, envvar="REQUEUE_NATS_PASSWORD_FILE", help="Its password."),
    click.option("--token-file", type=_FILE, envvar="REQUEUE_NATS_TOKEN_FILE", help="Token."),
    click.option("--creds", type=_FILE, envvar="REQUEUE_NATS_CREDS_FILE", help="Credentials file (JWT)."),
    click.option("--nkey", type=_FILE, envvar="REQUEUE_NATS_NKEY_FILE", help="Seed file of an nkey."),
    click.option("--tls-ca", type=_FILE, envvar="REQUEUE_NATS_TLS_CA_FILE", help="Authority to trust."),
    click.option("--tls-cert", type=_FILE, envvar="REQUEUE_NATS_TLS_CERT_FILE", help="Client certificate."),
    click.option("--tls-key", type=_FILE, envvar="REQUEUE_NATS_TLS_KEY_FILE", help="Its private key."),
    click.option(
        "--context", envvar="NATS_CONTEXT", help="Context of the nats command; options go before it."
    ),
)


def connection_options(command: _F) -> _F:
    """Add the options; the command gets them as its keyword arguments, for `Connection(**...)`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def intake_option(command: _F) -> _F:
    """Add `--intake`."""
    return click.option(
        "--intake",
        default=DEFAULT_INTAKE,
        show_default=True,
        help="Subject to publish to: any that the workers subscribe to.",
    )(command)
