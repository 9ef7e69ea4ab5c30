"""The workers' configuration file, as `requeue-worker run --config` reads it (docs/configuration.md).

Queue policy is taken over by running workers; a change of anything else changes `restart_hash`, which stands in the
pod template, so that the pods are replaced one after the other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import yaml
from requeue_protocol.durations import format_duration

from requeue_operator.api import ClientCertificate, Nats, RequeueQueueSpec, SecretKey
from requeue_operator.children.naming import Owner

FILE: Final = "worker.yaml"
CONFIG_DIR: Final = "/etc/requeue/config"
CREDENTIALS_DIR: Final = "/etc/requeue/credentials"
DATA_DIR: Final = "/var/lib/requeue"
HTTP_PORT: Final = 8080
WEB: Final = "127.0.0.1:8081"  #: nobody but a port-forward, which asks who comes, reaches it
_LIVE: Final = ("defaults", "queues")


def worker_config(owner: Owner, spec: RequeueQueueSpec) -> dict[str, Any]:
    """Settings by key. Secrets are named by the files that they are mounted as."""
    return {
        "data_dir": DATA_DIR,
        "fleet": owner.uid,
        # Left out where it is the default: whoever has no shards is not restarted for them.
        **({"shards": spec.shards} if spec.shards > 1 else {}),
        "subject": spec.subject,
        "queue_group": spec.queue_group,
        "http": f":{HTTP_PORT}",
        **({"web": {"listen": WEB, "changes": spec.web.changes}} if spec.web is not None else {}),
        "log_format": "json",
        "shutdown_grace": format_duration(spec.shutdown_grace_ns),
        "nats": _nats(spec.nats),
        "defaults": spec.defaults.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "queues": [queue.model_dump(mode="json", by_alias=True, exclude_unset=True) for queue in spec.queues],
    }


def config_text(owner: Owner, spec: RequeueQueueSpec) -> str:
    """The file's content."""
    return yaml.safe_dump(worker_config(owner, spec), sort_keys=False, allow_unicode=True)


def restart_hash(owner: Owner, spec: RequeueQueueSpec) -> str:
    """Changes when the workers have to be restarted for their configuration."""
    fixed = {key: value for key, value in worker_config(owner, spec).items() if key not in _LIVE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def secret_files(nats: Nats) -> dict[str, SecretKey]:
    """Which key of which Secret is mounted as which file of `CREDENTIALS_DIR`."""
    files: dict[str, SecretKey | None] = {}
    if nats.credentials is not None:
        given = nats.credentials
        files |= {"user.creds": given.creds, "user.nkey": given.nkey, "token": given.token}
        if given.user_password is not None:
            secret, login = given.user_password.secret_name, given.user_password
            files["user"] = SecretKey(secret_name=secret, key=login.user_key)
            files["password"] = SecretKey(secret_name=secret, key=login.password_key)
    if nats.tls is not None:
        files["ca.crt"] = nats.tls.ca
        files |= _certificate_files(nats.tls.client_certificate)
    return {name: key for name, key in files.items() if key is not None}


def _certificate_files(certificate: ClientCertificate | None) -> dict[str, SecretKey]:
    if certificate is None:
        return {}
    secret = certificate.secret_name
    return {
        "tls.crt": SecretKey(secret_name=secret, key=certificate.cert_key),
        "tls.key": SecretKey(secret_name=secret, key=certificate.key_key),
    }


_LOGIN_KEYS: Final = {
    "user.creds": "creds_file",
    "user.nkey": "nkey_file",
    "token": "token_file",
    "user": "user_file",
    "password": "password_file",
}
_TLS_KEYS: Final = {"ca.crt": "ca_file", "tls.crt": "cert_file", "tls.key": "key_file"}


def _nats(nats: Nats) -> dict[str, Any]:
    files = secret_files(nats)

    def named(keys: dict[str, str]) -> dict[str, Any]:
        return {key: f"{CREDENTIALS_DIR}/{file}" for file, key in keys.items() if file in files}

    tls = named(_TLS_KEYS)
    if nats.tls is not None:
        tls |= {"hostname": nats.tls.hostname} if nats.tls.hostname is not None else {}
        tls |= {"handshake_first": True} if nats.tls.handshake_first else {}
    return {"servers": list(nats.servers), **named(_LOGIN_KEYS), **({"tls": tls} if tls else {})}
