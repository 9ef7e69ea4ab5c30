"""What is decided about claims, from live objects alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from requeue_operator.children import Manifest
from requeue_operator.drains import JOB_LABELS, Drains, Scene, decide, report
from requeue_operator.drains.actions import Action, Begin, Cancel, Clear, Note, Remove, Run, State
from requeue_operator.drains.claim import BEGAN, NONCE, SET, VOLUME, Claim
from requeue_operator.drains.job import drain_job
from requeue_worker.drain.proof import Proof, Remains

from tests.unit.operator.specs import OWNER, read

_BEGAN = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
_NONCE = "claim-1.abc"
_ID = "0d7e6f0e"


def _set(replicas: int, generation: int = 7, seen: int = 7, uid: str = "set") -> Manifest:
    metadata = {"uid": uid, "generation": generation}
    return {"metadata": metadata, "spec": {"replicas": replicas}, "status": {"observedGeneration": seen}}


def _claim(ordinal: int = 1, going: bool = False, **marks: str) -> Manifest:
    metadata: Manifest = {"name": f"data-orders-{ordinal}", "uid": f"claim-{ordinal}", "annotations": marks}
    if going:
        metadata["deletionTimestamp"] = "2026-01-02T03:00:00Z"
    return {"metadata": metadata}


def _begun(nonce: str = _NONCE, of: str = "set.7", **marks: str) -> Manifest:
    return _claim(**{NONCE: nonce, SET: of, BEGAN: "2026-01-02T03:00:00Z", **marks})


def _job(
    nonce: str = _NONCE, *, name: str = "orders-drain-1", finished: str = "", going: bool = False
) -> Manifest:
    job = drain_job(OWNER, read(), "requeue:1", Claim(_claim(), 1), nonce, OWNER.uid)
    job["metadata"] |= {"uid": "job", "name": name, "creationTimestamp": "2026-01-02T03:00:00Z"}
    if going:
        job["metadata"]["deletionTimestamp"] = "2026-01-02T03:00:00Z"
    if finished:
        at = {
            "lastTransitionTime": "2026-01-02T03:00:20Z",
            "reason": "DeadlineExceeded",
            "message": "too long",
        }
        job["status"] = {"conditions": [{"type": finished, "status": "True", **at}]}
    return job


def _pod(
    said: str | None = None, code: int = 0, *, phase: str = "", of: str = "job", drain: bool = True
) -> Manifest:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data-orders-1"}}]
    status: Manifest = {"phase": phase or ("Pending" if said is None else "Failed" if code else "Succeeded")}
    if said is not None:
        ended = {"exitCode": code, "message": said, "finishedAt": "2026-01-02T03:00:20Z"}
        status["containerStatuses"] = [{"name": "drain", "state": {"terminated": ended}}]
    metadata = {
        "name": "orders-drain-1-x",
        "labels": JOB_LABELS if drain else {},
        "ownerReferences": [{"uid": of, "controller": True}],
        "creationTimestamp": "2026-01-02T03:00:00Z",
    }
    return {"metadata": metadata, "spec": {"volumes": volumes}, "status": status}


def _proof(**other: Any) -> str:
    return Proof(**{"volume": _ID, "nonce": _NONCE, "fleet": OWNER.uid, "dry_run": False, **other}).encode()


def _decide(
    *claims: Manifest,
    replicas: int = 1,
    live: Manifest | str | None = "as asked for",
    jobs: tuple[Manifest, ...] = (),
    pods: tuple[Manifest, ...] = (),
    after_s: float = 21,
    **storage: str,
) -> Drains:
    spec = read(replicas=replicas, storage={"size": "1Gi", **storage})
    live_set = _set(replicas) if isinstance(live, str) else live
    now = _BEGAN + timedelta(seconds=after_s)
    return decide(Scene(OWNER, spec, "requeue:1", live_set, claims, jobs, pods, now))


def _kinds(drains: Drains) -> list[type[Action]]:
    return [type(action) for action in drains.actions]


def test_a_drain_goes_one_write_at_a_time() -> None:
    assert _kinds(_decide(_claim(0), _claim(1))) == [Begin]
    assert _kinds(_decide(_claim(0), _begun())) == [Run]
    assert _kinds(_decide(_begun(), jobs=(_job(),), pods=(_pod(),))) == []
    assert _kinds(_decide(_begun(), jobs=(_job(),), pods=(_pod(_proof()),))) == [Remove]
    assert _kinds(_decide(_claim(going=True), jobs=(_job(),), pods=(_pod(_proof()),))) == [Cancel]
    assert _kinds(_decide(jobs=(_job(),))) == [Cancel]
    assert _kinds(_decide(_claim(0))) == []


@pytest.mark.parametrize(
    ("live", "why"),
    [
        (None, "there is no StatefulSet"),
        (_set(2), "the StatefulSet has not shrunk yet"),
        (_set(1, seen=6), "its controller has not seen that it has"),
    ],
    ids=str,
)
def test_nothing_is_done_with_a_claim_that_a_pod_may_still_come_for(live: Manifest | None, why: str) -> None:
    assert _kinds(_decide(_claim(), live=live)) == [], why
    assert _kinds(_decide(_begun(), live=live, jobs=(_job(),), pods=(_pod(_proof()),))) == [], why


def test_nothing_is_done_with_a_claim_that_somebody_uses() -> None:
    user = _pod(drain=False, phase="Running")
    assert _kinds(_decide(_claim(), pods=(user,))) == []
    drains = _decide(_begun(), jobs=(_job(),), pods=(_pod(_proof()), user))
    assert _kinds(drains) == []
    assert report(drains).message.endswith("waits for whoever uses it to end: orders-drain-1-x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "claim-1.old"},
        {"nonce": None},
        {"fleet": "another"},
        {"volume": None},
        {"volume": ""},
        {"dry_run": True},
        {"remains": [Remains("orders-1", "damaged", "a bad block", None)]},
    ],
    ids=str,
)
def test_a_proof_counts_only_as_a_whole(wrong: dict[str, Any]) -> None:
    said = _proof(**wrong)
    drains = _decide(_begun(**{VOLUME: _ID}), jobs=(_job(),), pods=(_pod(said),))
    assert _kinds(drains) == []
    assert [each.state for each in drains.progress] == [State.FAILED]


@pytest.mark.parametrize(
    ("said", "code"), [("", 0), ("[]", 0), ("{", 0), (_proof(), 1), (_proof(), 4), (_proof(), 137)]
)
def test_nothing_but_a_proof_with_exit_code_0_is_one(said: str, code: int) -> None:
    assert Remove not in _kinds(_decide(_begun(), jobs=(_job(),), pods=(_pod(said, code),)))


def test_a_proof_of_another_claim_of_this_name_does_not_count() -> None:
    copied = _begun("claim-of-old.abc")
    pods = (_pod(_proof(nonce="claim-of-old.abc")),)
    assert _kinds(_decide(copied, jobs=(_job("claim-of-old.abc"),), pods=pods)) == [Cancel]
    assert _kinds(_decide(copied)) == [Begin]


def test_a_proof_that_pods_may_have_come_after_does_not_count() -> None:
    ended = (_pod(_proof()),)
    for other in (_set(1, 9, 9), _set(1, uid="made anew")):
        assert _kinds(_decide(_begun(), live=other, jobs=(_job(),), pods=ended)) == [Cancel]
        assert _kinds(_decide(_begun(), live=other)) == [Begin]
        assert _kinds(_decide(_begun(), live=other, jobs=(_job(),), pods=(_pod(),))) == []


def test_only_a_pod_of_this_very_job_is_listened_to() -> None:
    assert _kinds(_decide(_begun(), jobs=(_job(),), pods=(_pod(_proof(), of="earlier job"),))) == []


def test_the_volume_has_to_be_the_one_that_the_drain_began_on() -> None:
    failed = _proof(remains=[Remains("orders-1", "target-full", "no room", 3)])
    (note,) = _decide(_begun(), jobs=(_job(),), pods=(_pod(failed, 4),)).actions
    assert isinstance(note, Note)
    assert note.volume == _ID
    another = _decide(_begun(**{VOLUME: "another"}), jobs=(_job(),), pods=(_pod(_proof()),))
    assert (_kinds(another), report(another).reason) == ([], "WrongProof")


def test_failures_are_told_and_tried_again_after_ever_longer_waits() -> None:
    nobody = _proof(remains=[Remains("orders-1", "no-survivor", "nobody answers", 3)], nobody=True)
    claim, pods = _begun(**{VOLUME: _ID}), (_pod(nobody, 5),)

    def at(after_s: float) -> Drains:
        return _decide(claim, jobs=(_job(),), pods=pods, after_s=after_s)

    told = report(at(39))
    assert (told.reason, told.status) == ("NoSurvivor", False)
    assert "start a worker of this fleet" in told.message
    assert told.message.endswith("tried again at 2026-01-02T03:00:40Z")
    assert (_kinds(at(39)), at(39).again_s) == ([], 1)
    assert _kinds(at(41)) == [Cancel]
    assert _kinds(_decide(claim, jobs=(_job(going=True),), pods=pods, after_s=42)) == []
    assert _kinds(_decide(claim, pods=pods, after_s=43)) == []
    assert _kinds(_decide(claim, after_s=44)) == [Run]


def test_a_job_that_ends_without_a_word_is_told() -> None:
    drains = _decide(_begun(), jobs=(_job(finished="Failed"),))
    assert report(drains).message.startswith(
        "data-orders-1: its Job ended without a word (DeadlineExceeded: too long)"
    )
    assert _kinds(drains) == []


def test_a_pod_that_does_not_begin_is_told() -> None:
    pod = _pod()
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    pod["status"]["containerStatuses"] = [{"name": "drain", "state": {"waiting": waiting}}]
    soon, late = (_decide(_begun(), jobs=(_job(),), pods=(pod,), after_s=after_s) for after_s in (10, 130))
    assert (report(soon).reason, soon.again_s) == ("Draining", 110)
    assert report(late).reason == "DrainStuck"
    assert "ErrImagePull: no such image" in report(late).message


@pytest.mark.parametrize("case", [{"replicas": 2}, {"replicas": 0}, {"onScaleDown": "Retain"}], ids=str)
def test_a_drain_is_taken_back_job_first_then_its_pod_then_the_nonce(case: dict[str, Any]) -> None:
    claim = _begun(**{VOLUME: _ID})
    assert _kinds(_decide(claim, jobs=(_job(),), pods=(_pod(_proof()),), **case)) == [Cancel]
    assert _kinds(_decide(claim, jobs=(_job(going=True),), pods=(_pod(),), **case)) == []
    assert _kinds(_decide(claim, pods=(_pod(),), **case)) == []
    assert _kinds(_decide(claim, **case)) == [Clear]
    assert _kinds(_decide(_claim(), **case)) == []


def test_a_stateful_set_grows_up_to_the_first_claim_that_is_let_go_of() -> None:
    live = _set(1)
    for claim, jobs, pods in (
        (_begun(), (), ()),
        (_claim(going=True), (), ()),
        (_claim(), (_job(),), ()),
        (_claim(), (), (_pod(),)),
    ):
        drains = _decide(claim, replicas=3, live=live, jobs=jobs, pods=pods)
        assert drains.replicas(3, live) == 1
    for left in (
        _decide(replicas=3, live=live, jobs=(_job(),)),
        _decide(replicas=3, live=live, pods=(_pod(),)),
    ):
        assert left.replicas(3, live) == 1
    assert _decide(_claim(1), _claim(2), replicas=3, live=live).replicas(3, live) == 3
    second = _decide(_claim(2, going=True), replicas=3, live=live)
    assert (second.replicas(3, live), second.replicas(3, None), second.replicas(3, _set(3))) == (2, 2, 3)


def test_no_more_than_eight_are_drained_at_a_time() -> None:
    claims = [_claim(n, **{NONCE: f"claim-{n}.x", SET: "set.7"}) for n in range(1, 12)]
    assert _kinds(_decide(*claims)) == [Run] * 8


def test_claims_and_jobs_of_others_are_left_alone() -> None:
    for name in ("data-orders-01", "data-orders-x", "data-orders-eu-3", "mine-orders-3"):
        claim = _claim()
        claim["metadata"]["name"] = name
        assert _decide(claim) == Drains()
    job = _job()
    job["metadata"]["ownerReferences"] = []
    assert _kinds(_decide(jobs=(job,))) == []
    assert report(_decide(_begun(), jobs=(job,))).reason == "NameTaken"


def test_the_job_is_the_workers_pod_with_a_drain_in_it() -> None:
    spec = read(
        podTemplate={
            "spec": {
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "containers": [
                    {"name": "sidecar", "image": "s:1"},
                    {"name": "worker", "env": [{"name": "A"}]},
                ],
            }
        }
    )
    template = drain_job(OWNER, spec, "requeue:1", Claim(_claim(), 1), _NONCE, OWNER.uid)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["args"][:1] == ["drain"]
    assert container["args"][-6:] == [
        *("--fleet", OWNER.uid, "--nonce", _NONCE, "--proof-file", container["terminationMessagePath"])
    ]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "livenessProbe" not in container
    assert template["spec"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert template["spec"]["volumes"][-1]["persistentVolumeClaim"] == {"claimName": "data-orders-1"}
    assert not OWNER.selector.items() <= template["metadata"]["labels"].items()


def test_requeue_worker_takes_the_command(tmp_path: Any) -> None:
    from click.testing import CliRunner
    from requeue_operator.children.worker_config import FILE, config_text
    from requeue_worker.cli import main

    (tmp_path / FILE).write_text(config_text(OWNER, read()), encoding="utf-8")
    job = drain_job(OWNER, read(), "requeue:1", Claim(_claim(), 1), _NONCE, OWNER.uid)
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    places = {
        "/etc/requeue/config/worker.yaml": str(tmp_path / FILE),
        "/var/lib/requeue": str(tmp_path / "none"),
    }
    said = CliRunner().invoke(main, [places.get(word, word) for word in args])
    assert (said.exit_code, "can't be read" in said.output) == (3, True), said.output
