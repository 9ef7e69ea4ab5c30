"""Every way to log in to NATS, with the flags of `requeue-worker run`, on servers that demand it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import nkeys
import pytest

from tests.servers import LocalProcessError, NatsServerFactory, WorkerFactory, WorkerProcess

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


def secret_file(directory: Path, content: str) -> str:
    path = directory / "secret"
    path.write_text(content)
    return str(path)


def works(worker: WorkerProcess, *secrets: str) -> None:
    """It became ready, and its log gives nothing away."""
    assert worker.stop() == 0
    assert not [secret for secret in secrets if secret in worker.log]


@pytest.mark.parametrize(
    ("config", "args"),
    [
        ('authorization { user: me, password: "hush" }', ("--user", "me", "--password-file", "{secret}")),
        ('authorization { token: "hush" }', ("--token-file", "{secret}")),
    ],
)
def test_with_password_or_token_from_a_file(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    tmp_path: Path,
    config: str,
    args: tuple[str, ...],
) -> None:
    secret = secret_file(tmp_path, "hush\n")
    server = nats_server_factory(config=config)
    works(worker_factory(server, *(arg.format(secret=secret) for arg in args)), "hush")


def test_with_user_and_password_in_the_url(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory
) -> None:
    server = nats_server_factory(config='authorization { user: me, password: "hush" }')
    works(worker_factory(server.url.replace("://", "://me:hush@")), "hush")


# -- nkeys and credentials ------------------------------------------------------------------------------


def key_pair(kind: int) -> nkeys.KeyPair:
    seed = nkeys.encode_seed(os.urandom(32), kind)  # type: ignore[no-untyped-call]
    pair: nkeys.KeyPair = nkeys.from_seed(seed)  # type: ignore[no-untyped-call]
    return pair


def public(pair: nkeys.KeyPair) -> str:
    return bytes(pair.public_key).decode()


def jwt(subject: nkeys.KeyPair, issuer: nkeys.KeyPair, nats: dict[str, object]) -> str:
    """A NATS JWT (version 2), as nsc makes them."""

    def coded(value: dict[str, object]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = {"iat": 1, "iss": public(issuer), "sub": public(subject), "name": "x", "nats": nats}
    claims["jti"] = hashlib.sha256(json.dumps(claims).encode()).hexdigest()
    signed = coded({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + coded(claims)
    signature = base64.urlsafe_b64encode(issuer.sign(signed))  # type: ignore[no-untyped-call]
    return (signed + b"." + signature.rstrip(b"=")).decode()


def test_with_an_nkey(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    user = key_pair(nkeys.PREFIX_BYTE_USER)
    seed = bytes(user.seed).decode()
    server = nats_server_factory(config=f"authorization {{ users: [{{ nkey: {public(user)} }}] }}")
    works(worker_factory(server, "--nkey", secret_file(tmp_path, seed + "\n")), seed)


def test_with_a_credentials_file(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    user = key_pair(nkeys.PREFIX_BYTE_USER)
    unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
    operator_jwt = jwt(operator, operator, {"type": "operator", "version": 2})
    account_jwt = jwt(account, operator, {"type": "account", "version": 2, "limits": unlimited})
    user_jwt = jwt(user, account, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1})
    server = nats_server_factory(
        config=f"operator: {operator_jwt}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {public(account)}: {account_jwt} }}\n"
    )
    seed = bytes(user.seed).decode()
    creds = (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    works(worker_factory(server, "--creds", secret_file(tmp_path, creds)), seed, user_jwt)


# -- TLS ------------------------------------------------------------------------------------------------


def openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem and client.pem that it signed, each with its .key."""
    directory = tmp_path_factory.mktemp("tls")

    def at(name: str) -> str:
        return str(directory / name)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl(*new, "-x509", "-subj", "/CN=ca", *ca, "-keyout", at("ca.key"), "-out", at("ca.pem"))
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", at(f"{name}.key"), "-out", at(f"{name}.csr"))
        sign = ("x509", "-req", "-in", at(f"{name}.csr"), "-CA", at("ca.pem"), "-CAkey", at("ca.key"))
        openssl(*sign, "-CAcreateserial", "-extfile", str(extensions), "-out", at(f"{name}.pem"))
    return directory


def tls_config(certificates: Path, verify: bool) -> str:
    files = f'cert_file: "{certificates}/server.pem", key_file: "{certificates}/server.key"'
    client = f', ca_file: "{certificates}/ca.pem", verify: true' if verify else ""
    return f"tls {{ {files}{client} }}"


@needs_openssl
def test_over_tls_with_a_private_ca(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, certificates: Path
) -> None:
    server = nats_server_factory(config=tls_config(certificates, verify=False))
    works(worker_factory(server, "--tls-ca", f"{certificates}/ca.pem"))
    works(worker_factory(server.url.replace("nats://", "tls://"), "--tls-ca", f"{certificates}/ca.pem"))


@needs_openssl
def test_over_tls_with_a_client_certificate(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, certificates: Path
) -> None:
    server = nats_server_factory(config=tls_config(certificates, verify=True))
    pair = ("--tls-cert", f"{certificates}/client.pem", "--tls-key", f"{certificates}/client.key")
    works(worker_factory(server, "--tls-ca", f"{certificates}/ca.pem", *pair))


@needs_openssl
def test_a_server_of_another_ca_is_not_trusted(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, certificates: Path
) -> None:
    server = nats_server_factory(config=tls_config(certificates, verify=False))
    worker = worker_factory(server, start=False)
    with pytest.raises(LocalProcessError):
        worker.start(timeout_s=5)
    assert "certificate verify failed" in worker.log


@needs_openssl
def test_a_server_without_tls_is_not_used_when_tls_was_asked_for(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, certificates: Path
) -> None:
    worker = worker_factory(nats_server_factory(), "--tls-ca", f"{certificates}/ca.pem", start=False)
    with pytest.raises(LocalProcessError):
        worker.start(timeout_s=5)
