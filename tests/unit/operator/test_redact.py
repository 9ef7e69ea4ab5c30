"""What a support bundle leaves out."""

from __future__ import annotations

import pytest
from requeue_operator.plugin import redact

HIDDEN = "hunter2hunter2"
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
JWT = "eyJ0eXAiOiJKV1QifQ.eyJqdGkiOiJBQkNERUYifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "said",
    [
        f"connecting to nats://alice:{HIDDEN}@nats:4222, then to tls://{HIDDEN}@other:4222",
        f"password={HIDDEN}",
        f'{{"password": "{HIDDEN}"}}',
        f"NATS_TOKEN: '{HIDDEN}'",
        f"api-key={HIDDEN}; next",
        f"Authorization: Bearer {HIDDEN}",
        f"-----BEGIN PRIVATE KEY-----\n{HIDDEN}\n-----END PRIVATE KEY-----\n",
        f"-----BEGIN NATS USER JWT-----\n{HIDDEN}",
    ],
)
def test_what_looks_like_a_credential_is_left_out(said: str) -> None:
    assert HIDDEN not in redact.text(said)
    assert redact.REDACTED in redact.text(said)


@pytest.mark.parametrize("hidden", [SEED, JWT])
def test_seeds_and_tokens_are_known_by_their_form(hidden: str) -> None:
    assert redact.text(f"it is {hidden}, say the logs") == f"it is {redact.REDACTED}, say the logs"


@pytest.mark.parametrize(
    "said",
    [
        "https://nats:4222/varz",
        "password_file: /etc/requeue/credentials/password",
        'Secret "creds" not found',
        "ready subject=requeue.> instance=orders-0",
        "a@b and c://d",
    ],
)
def test_what_is_none_stays_as_it_is(said: str) -> None:
    assert redact.text(said) == said


def test_of_objects_all_that_people_write_freely_is_left_out() -> None:
    container = {
        "name": "worker",
        "args": ["run", "--config", "worker.yaml"],
        "env": [
            {"name": "PLAIN", "value": HIDDEN},
            {"name": "REFERENCE", "valueFrom": {"secretKeyRef": {"name": "creds", "key": "token"}}},
        ],
        "livenessProbe": {"httpGet": {"path": "/livez", "httpHeaders": [{"name": "X", "value": HIDDEN}]}},
        "lifecycle": {"preStop": {"exec": {"command": ["curl", HIDDEN]}}},
    }
    sidecar = {"name": "proxy", "args": [f"--key={HIDDEN}"], "command": ["sh", "-c", HIDDEN]}
    live = {
        "metadata": {
            "name": "orders-0",
            "managedFields": [{"manager": HIDDEN}],
            "annotations": {"requeue.dev/config-hash": "abc", "kubectl.kubernetes.io/last-applied": HIDDEN},
        },
        "spec": {
            "containers": [container, sidecar],
            "volumes": [{"csi": {"volumeAttributes": {"a": HIDDEN}}}],
        },
    }
    told = redact.document(live)
    assert HIDDEN not in str(told)
    assert told["metadata"] == {"name": "orders-0", "annotations": {"requeue.dev/config-hash": "abc"}}
    worker = told["spec"]["containers"][0]
    assert worker["args"] == container["args"]
    assert [each["name"] for each in worker["env"]] == ["PLAIN", "REFERENCE"]
    assert worker["env"][1] == container["env"][1]  # type: ignore[index]
