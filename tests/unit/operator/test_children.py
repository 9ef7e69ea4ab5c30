"""The children of a RequeueQueue, as pure manifests."""

from __future__ import annotations

import pytest
from requeue_operator.children import children

from tests.unit.operator.specs import OWNER, built, pod, read


def test_what_a_pod_needs_is_applied_before_it() -> None:
    kinds = [
        each["kind"] for each in children(OWNER, read(networkPolicy={"enabled": True}), image="requeue:1")
    ]
    assert kinds == [
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "Service",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "StatefulSet",
    ]


def test_every_child_goes_with_its_owner_and_volumes_do_not() -> None:
    for child in children(OWNER, read(), image="requeue:1"):
        assert child["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid
    (stateful_set,) = built("StatefulSet")
    assert "ownerReferences" not in stateful_set["spec"]["volumeClaimTemplates"][0]["metadata"]
    assert stateful_set["spec"]["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }


def test_volumes_go_when_that_is_asked_for() -> None:
    (stateful_set,) = built("StatefulSet", storage={"size": "1Gi", "onDelete": "Delete"})
    assert stateful_set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"


@pytest.mark.parametrize(("grace", "seconds"), [("0", 15), ("15s", 30), ("1500ms", 17), ("2m", 135)])
def test_pod_is_given_longer_than_the_worker_takes(grace: str, seconds: int) -> None:
    assert pod(shutdownGrace=grace)["spec"]["terminationGracePeriodSeconds"] == seconds


def test_secrets_are_mounted_as_files_that_follow_them() -> None:
    nats = {"servers": ["nats"], "credentials": {"userPassword": {"secretName": "login", "userKey": "name"}}}
    spec = pod(nats=nats)["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "credentials"]
    assert [source["secret"] for source in volume["projected"]["sources"]] == [
        {"name": "login", "items": [{"key": "name", "path": "user"}]},
        {"name": "login", "items": [{"key": "password", "path": "password"}]},
    ]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "credentials"]
    assert "subPath" not in mount


def test_one_worker_at_a_time_is_evicted_and_an_unready_one_at_any_time() -> None:
    (budget,) = built("PodDisruptionBudget")
    assert (budget["spec"]["maxUnavailable"], budget["spec"]["unhealthyPodEvictionPolicy"]) == (
        1,
        "AlwaysAllow",
    )


def test_network_policy_lets_out_to_the_ports_of_the_servers() -> None:
    servers = ["tls://a:4333", "b", "nats://[::1]:4444"]
    (policy,) = built("NetworkPolicy", nats={"servers": servers}, networkPolicy={"enabled": True})
    assert [each["port"] for each in policy["spec"]["egress"][0]["ports"]] == [53, 53, 4222, 4333, 4444]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    assert built("NetworkPolicy") == []
