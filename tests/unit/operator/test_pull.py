"""How nodes get the image: as the operator says when a fleet is made, in workers and drains alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from requeue_operator.children import Manifest, Pull, children
from requeue_operator.children.pull import PULL
from requeue_operator.drains.claim import Claim
from requeue_operator.drains.job import drain_job
from requeue_operator.plan import Observed, plan

from tests.unit.operator.specs import OWNER, read

_ALWAYS = Pull("Always", ("registry", "mirror"))


def _set(*live: Manifest, default: Pull = _ALWAYS, **spec: Any) -> Manifest:
    metadata = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid, "generation": 1}
    least = {"nats": {"servers": ["nats"]}, "storage": {"size": "1Gi"}}
    seen = {(each["kind"], each["metadata"]["name"]): each for each in live}
    observed = Observed({"metadata": metadata, "spec": {**least, **spec}}, seen, ())
    planned = plan(observed, "requeue:1", datetime(2026, 1, 2, tzinfo=UTC), default)
    return next(each for each in planned.apply if each["kind"] == "StatefulSet")


def _pulls(pod: Manifest) -> tuple[str | None, list[str]]:
    secrets = [each["name"] for each in pod.get("imagePullSecrets", [])]
    return pod["containers"][0].get("imagePullPolicy"), secrets


def _of(stateful_set: Manifest) -> tuple[str | None, list[str]]:
    return _pulls(stateful_set["spec"]["template"]["spec"])


def test_a_new_fleet_gets_the_operators_policy_and_secrets() -> None:
    assert _of(_set()) == ("Always", ["registry", "mirror"])
    assert _of(_set(default=Pull())) == (None, [])


def test_another_default_restarts_no_fleet_that_runs() -> None:
    made = _set()
    assert _set(made, default=Pull("Never")) == made
    assert _set(made, default=Pull()) == made
    of_an_older_operator = _set(default=Pull())
    assert _set(of_an_older_operator) == of_an_older_operator


def test_the_pod_template_goes_over_it_and_leaves_no_trace() -> None:
    worker = {"containers": [{"name": "worker", "imagePullPolicy": "Never"}]}
    made = _set()
    changed = _set(made, podTemplate={"spec": worker})
    assert _of(changed) == ("Never", ["registry", "mirror"])
    assert _of(_set(changed)) == ("Always", ["registry", "mirror"])


def test_drains_get_the_image_as_workers_do() -> None:
    claim = Claim({"metadata": {"name": "data-orders-1", "uid": "claim-1"}}, 1)
    job = drain_job(OWNER, read(), "requeue:1", claim, "nonce", OWNER.uid, _ALWAYS)
    assert _pulls(job["spec"]["template"]["spec"]) == ("Always", ["registry", "mirror"])


def test_a_note_that_somebody_spoilt_says_nothing() -> None:
    for spoilt in ("{", "[]", '{"secrets": 3}'):
        made = _set()
        made["metadata"]["annotations"][PULL] = spoilt
        assert _of(_set(made)) == (None, [])


def test_the_note_of_an_emptied_fleet_stays_beside_the_other() -> None:
    (made,) = [
        each
        for each in children(OWNER, read(), image="requeue:1", pull=_ALWAYS, is_emptied=True)
        if each["kind"] == "StatefulSet"
    ]
    assert set(made["metadata"]["annotations"]) == {PULL, "requeue.dev/emptied"}
