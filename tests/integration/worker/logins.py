"""The ways to log in to NATS: for each a server's configuration, and what worker and client say to be let in."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.worker.secured import Certificates, Operator, user_key
from tests.servers import NatsServer, free_port


@dataclass
class Login:
    """A server's configuration, and what worker and client say to be let in."""

    config: str
    settings: dict[str, Any]
    client: dict[str, Any]
    #: the worker's secret files, as they have to be
    files: dict[Path, str] = field(default_factory=dict)
    #: as above, well-formed and not valid there
    wrong: dict[Path, str] = field(default_factory=dict)
    url: Callable[[NatsServer], str] = lambda server: server.url


Make = Callable[[Path], Login]


def inline_password(_: Path) -> Login:
    config = 'authorization { users: [{user: worker, password: "p#1 ü"}] }'
    return Login(config, {"user": "worker", "password": "p#1 ü"}, {"user": "worker", "password": "p#1 ü"})


def url_password(_: Path) -> Login:
    config = "authorization { users: [{user: worker, password: secret}] }"
    login = Login(config, {}, {"user": "worker", "password": "secret"})
    login.url = lambda server: server.url.replace("nats://", "nats://worker:secret@")
    return login


def password_files(path: Path) -> Login:
    config = "authorization { users: [{user: worker, password: secret}] }"
    user, password = path / "user", path / "password"
    return Login(
        config,
        {"user_file": user, "password_file": password},
        {"user": "worker", "password": "secret"},
        files={user: "worker\n", password: "secret\n"},
        wrong={user: "worker", password: "before"},
    )


def inline_token(_: Path) -> Login:
    return Login("authorization { token: T0 }", {"token": "T0"}, {"token": "T0"})


def token_file(path: Path) -> Login:
    token = path / "token"
    return Login(
        "authorization { token: T0 }",
        {"token_file": token},
        {"token": "T0"},
        files={token: "T0\n"},
        wrong={token: "T1"},
    )


def nkey_file(path: Path) -> Login:
    key, other, client, seed = user_key(), user_key(), user_key(), path / "seed"
    return Login(
        f"authorization {{ users: [{{nkey: {key.public}}}, {{nkey: {client.public}}}] }}",
        {"nkey_file": seed},
        {"nkeys_seed_str": client.seed},
        files={seed: key.seed + "\n"},
        wrong={seed: other.seed},
    )


def creds_file(path: Path) -> Login:
    operator, creds, client = Operator(), path / "worker.creds", path / "client.creds"
    client.write_text(operator.creds())
    return Login(
        operator.config,
        {"creds_file": creds},
        {"user_credentials": str(client)},
        files={creds: operator.creds()},
        wrong={creds: Operator().creds()},
    )


def tls(path: Path) -> Login:
    certificates, ca = Certificates(path / "pki"), path / "ca.pem"
    return Login(
        certificates.config(),
        {"tls": {"ca_file": ca}},
        {"tls": trusting(certificates.ca_file)},
        files={ca: certificates.ca_file.read_text()},
        wrong={ca: Certificates(path / "other").ca_file.read_text()},
    )


def handshake_first(path: Path) -> Login:
    login = tls(path)
    login.config = login.config.replace("}", "handshake_first: true }")
    login.settings["tls"]["handshake_first"] = True
    login.client["tls_handshake_first"] = True
    return login


def mutual_tls(path: Path) -> Login:
    certificates, others = Certificates(path / "pki"), Certificates(path / "other")
    cert, key = path / "worker.pem", path / "worker-key.pem"
    sides = []
    for issuer in (certificates, others):
        issuer.client(cert, key)
        sides.append({cert: cert.read_text(), key: key.read_text()})
    client_cert, client_key = path / "client.pem", path / "client-key.pem"
    certificates.client(client_cert, client_key)
    context = trusting(certificates.ca_file)
    context.load_cert_chain(client_cert, client_key)
    return Login(
        certificates.config("verify: true"),
        {"tls": {"ca_file": certificates.ca_file, "cert_file": cert, "key_file": key}},
        {"tls": context},
        files=sides[0],
        wrong=sides[1],
    )


def mutual_tls_as_user(path: Path) -> Login:
    """The certificate names the user, as `verify_and_map` has it."""
    login = mutual_tls(path)
    login.config = login.config.replace("verify:", "verify_and_map:")
    login.config += "authorization { users: [{user: worker@requeue.test}] }"
    return login


def websocket(_: Path) -> Login:
    port = free_port()
    config = (
        f"websocket {{ host: 127.0.0.1, port: {port}, no_tls: true }}\n"
        "authorization { users: [{user: worker, password: secret}] }"
    )
    login = {"user": "worker", "password": "secret"}
    return Login(config, login, login, url=lambda _: f"ws://127.0.0.1:{port}")


def websocket_over_tls(path: Path) -> Login:
    login, certificates = websocket(path), Certificates(path / "pki")
    login.config = login.config.replace("no_tls: true", certificates.config().strip())
    login.settings = {**login.settings, "tls": {"ca_file": certificates.ca_file}}
    url = login.url
    login.url = lambda server: url(server).replace("ws:", "wss:")
    return login


def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


IN_FILES = [password_files, token_file, nkey_file, creds_file, tls, mutual_tls]
ALL = [
    websocket,
    websocket_over_tls,
    inline_password,
    url_password,
    inline_token,
    handshake_first,
    mutual_tls_as_user,
    *IN_FILES,
]
