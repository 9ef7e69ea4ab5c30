"""The file that the operator writes is one that a worker starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from requeue_operator.children.worker_config import config_text, restart_hash, secret_files
from requeue_worker.cli import main
from requeue_worker.settings import Settings, load

from tests.unit.operator.specs import OWNER, read

_KEY = {"secretName": "nats", "key": "k"}
_LOGINS: list[dict[str, Any]] = [
    {},
    {"credentials": {"creds": _KEY}},
    {"credentials": {"nkey": _KEY}},
    {"credentials": {"token": _KEY}},
    {"credentials": {"userPassword": {"secretName": "nats"}}},
    {
        "tls": {
            "ca": _KEY,
            "clientCertificate": {"secretName": "tls"},
            "hostname": "nats.example",
            "handshakeFirst": True,
        }
    },
]
_RICH: dict[str, Any] = {
    "defaults": {"retries": "unlimited", "maxBackoff": "2h", "maxRate": 0.5},
    "queues": [
        {"name": "emails", "backoff": "list", "backoffList": ["1s", "1d"], "ttl": "2d", "maxBytes": "2GiB"},
        {"name": "drop.all", "onExpire": "drop", "allowSubjects": ["a.>"], "countNoResponders": False},
    ],
    "shutdownGrace": "1m30s",
}


def _loaded(tmp_path: Path, **given: Any) -> Settings:
    file = tmp_path / "worker.yaml"
    file.write_text(config_text(OWNER, read(**given)), encoding="utf-8")
    return load(file, {}, environ={}, look_into_files=False).settings


@pytest.mark.parametrize("nats", _LOGINS, ids=str)
def test_check_config_accepts_what_the_operator_writes(tmp_path: Path, nats: dict[str, Any]) -> None:
    file = tmp_path / "worker.yaml"
    spec = read(**_RICH, nats={"servers": ["tls://nats:4222"], **nats})
    file.write_text(config_text(OWNER, spec), encoding="utf-8")
    result = CliRunner().invoke(main, ["check-config", str(file)])
    assert (result.exit_code, result.stderr) == (0, "")
    policies = yaml.safe_load(result.stdout)
    assert policies["queues"][0] == {
        "name": "emails",
        **spec.queues[0].over(spec.defaults).model_dump(mode="json", by_alias=True),
    }


def test_worker_reads_the_policies_of_the_spec(tmp_path: Path) -> None:
    spec, settings = read(**_RICH), _loaded(tmp_path, **_RICH)
    assert settings.defaults == spec.defaults
    for queue in spec.queues:
        assert settings.policy_for(queue.name) == queue.over(spec.defaults)
    assert (settings.shutdown_grace_ns, settings.fleet) == (90_000_000_000, OWNER.uid)


def test_a_web_view_is_for_the_pod_itself_and_only_shows_unless_told(tmp_path: Path) -> None:
    assert _loaded(tmp_path).web.listen is None
    shows, changes = _loaded(tmp_path, web={}).web, _loaded(tmp_path, web={"changes": True}).web
    assert (shows.listen, shows.changes) == ("127.0.0.1:8081", False)
    assert (changes.listen, changes.changes) == ("127.0.0.1:8081", True)
    assert restart_hash(OWNER, read(web={})) != restart_hash(OWNER, read())


def test_every_login_is_by_files_out_of_secrets(tmp_path: Path) -> None:
    nats = _loaded(
        tmp_path, nats={"servers": ["nats"], "credentials": {"userPassword": {"secretName": "nats"}}}
    ).nats
    assert (str(nats.user_file), str(nats.password_file)) == (
        "/etc/requeue/credentials/user",
        "/etc/requeue/credentials/password",
    )
    mtls = _loaded(tmp_path, nats={"servers": ["nats"], **_LOGINS[5]}).nats.tls
    assert (mtls.hostname, mtls.handshake_first) == ("nats.example", True)
    assert str(mtls.key_file) == "/etc/requeue/credentials/tls.key"


def test_a_change_of_policy_restarts_nothing_and_another_one_does() -> None:
    before = restart_hash(OWNER, read())
    assert restart_hash(OWNER, read(**{**_RICH, "shutdownGrace": "15s"})) == before
    assert restart_hash(OWNER, read(subject="jobs.>")) != before


def test_secrets_are_named_and_never_read() -> None:
    files = secret_files(read(nats={"servers": ["nats"], "credentials": {"creds": _KEY}}).nats)
    assert {name: (key.secret_name, key.key) for name, key in files.items()} == {"user.creds": ("nats", "k")}
