"""How a worker reaches NATS and who it is there: servers, TLS, and one way to log in."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from requeue_protocol.durations import NS_PER_S
from requeue_protocol.policy import Duration
from requeue_worker.setting_types import FilePath, PositiveDuration, Section, read_list

_DEFAULT_PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}


class TlsSettings(Section):
    """TLS towards NATS. Needed only for a private CA, a client certificate, or an odd host name."""

    ca_file: FilePath | None = Field(
        default=None, description="PEM file of the CAs to trust instead of the system's."
    )
    cert_file: FilePath | None = Field(default=None, description="PEM file of the client certificate (mTLS).")
    key_file: FilePath | None = Field(
        default=None, description="PEM file of its key; not needed if cert_file holds it."
    )
    hostname: str | None = Field(default=None, description="Name that the server's certificate must have.")
    handshake_first: bool = Field(
        default=False, description="TLS before the server's INFO, if the server is set so."
    )

    @property
    def in_use(self) -> bool:
        """Whether anything of it was asked for."""
        return self != TlsSettings()

    @model_validator(mode="after")
    def _key_needs_cert(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is given without cert_file; name the certificate too")
        return self


class NatsSettings(Section):
    """The connection. One way to log in is used: creds_file, else nkey_file, else token, else user.

    A secret may stand in a file of its own: that is read again at each connect, and wins over the value.
    """

    servers: Annotated[tuple[str, ...], BeforeValidator(read_list)] = Field(
        default=("nats://127.0.0.1:4222",), description="URLs of servers of one cluster; any of them is used."
    )
    name: str = Field(default="requeue-nats", description="Client name that the server shows.")
    user: str | None = Field(default=None, description="User name.")
    user_file: FilePath | None = Field(default=None, description="File that holds the user name.")
    password: SecretStr | None = Field(default=None, description="Password.")
    password_file: FilePath | None = Field(default=None, description="File that holds the password.")
    token: SecretStr | None = Field(default=None, description="Token.")
    token_file: FilePath | None = Field(default=None, description="File that holds the token.")
    nkey_file: FilePath | None = Field(
        default=None, description="File that holds the seed of a user nkey (SU...)."
    )
    creds_file: FilePath | None = Field(default=None, description="Credentials file: user JWT and nkey seed.")
    tls: TlsSettings = Field(default_factory=TlsSettings)
    connect_timeout_ns: PositiveDuration = Field(
        default=2 * NS_PER_S, description="For one attempt at one server."
    )
    reconnect_wait_ns: Duration = Field(
        default=2 * NS_PER_S, description="Between two attempts at the same server."
    )
    ping_interval_ns: PositiveDuration = Field(
        default=10 * NS_PER_S, description="Between two PINGs; a dead connection is found within three."
    )

    @field_validator("servers")
    @classmethod
    def _check_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        if not servers:
            raise ValueError("is empty; name one server at least, like nats://127.0.0.1:4222")
        urls = tuple(_server_url(server) for server in servers)
        if len({url.startswith("ws") for url in urls}) > 1:
            raise ValueError("mix websocket (ws, wss) and plain NATS URLs; use one kind")
        return urls

    @model_validator(mode="after")
    def _password_needs_user(self) -> Self:
        user, password = (self.user, self.user_file), (self.password, self.password_file)
        if any(part is not None for part in password) and all(part is None for part in user):
            raise ValueError("a password is given without a user; name the user too")
        return self

    @property
    def redacted_servers(self) -> tuple[str, ...]:
        """The URLs as they may be shown: without user, password or token."""
        return tuple(_redacted(url) for url in self.servers)

    def __repr_args__(self):  # type: ignore[no-untyped-def]  # pydantic's own is untyped for callers
        for name, value in super().__repr_args__():
            yield name, self.redacted_servers if name == "servers" else value


def _server_url(server: str) -> str:
    """`server` with scheme and port. A bare `host` or `host:port` means `nats://`."""
    text = server.strip()
    url = urlsplit(text if "://" in text else f"nats://{text}")
    shown = _redacted(text)
    if url.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{shown!r} has the scheme {url.scheme!r}; it is nats, tls, ws or wss")
    try:
        port = url.port
    except ValueError:
        raise ValueError(f"{shown!r} has a port that is none; write it like nats://127.0.0.1:4222") from None
    if not url.hostname or any(char.isspace() for char in text):
        raise ValueError(f"{shown!r} is no server URL; write it like nats://127.0.0.1:4222")
    netloc = url.netloc if port is not None else f"{url.netloc.rstrip(':')}:{_DEFAULT_PORTS[url.scheme]}"
    return url._replace(netloc=netloc).geturl()


def _redacted(server: str) -> str:
    head, at, host = server.rpartition("@")
    return f"{head.split('://')[0]}://***@{host}" if at and "://" in head else f"***@{host}" if at else server
