"""`podTemplate` over the operator's pod: what is merged, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from requeue_operator.validation import InvalidSpec

from tests.unit.operator.specs import OWNER, pod


def _worker(**keys: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "worker", **keys}]}}


def test_containers_volumes_and_variables_are_merged_by_name() -> None:
    template = pod(
        podTemplate={
            "metadata": {"labels": {"team": "shop"}, "annotations": {"note": "x"}},
            "spec": {
                "nodeSelector": {"disk": "ssd"},
                "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
                "containers": [
                    {
                        "name": "worker",
                        "env": [{"name": "TZ", "value": "UTC"}],
                        "resources": {"limits": {"memory": "2Gi"}},
                        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
                    },
                    {"name": "sidecar", "image": "sidecar:1"},
                ],
            },
        }
    )
    worker, sidecar = template["spec"]["containers"]
    assert worker["image"] == "requeue:1"
    assert worker["resources"] == {
        "requests": {"cpu": "250m", "memory": "256Mi"},
        "limits": {"memory": "2Gi"},
    }
    assert [mount["name"] for mount in worker["volumeMounts"]] == ["data", "config", "tmp", "ca"]
    assert [volume["name"] for volume in template["spec"]["volumes"]] == ["config", "tmp", "ca"]
    assert sidecar["securityContext"]["allowPrivilegeEscalation"] is False
    assert template["metadata"]["labels"] == {"team": "shop", **OWNER.labels}
    assert template["spec"]["nodeSelector"] == {"disk": "ssd"}


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}},
            "metadata.labels: app.kubernetes.io/name is the",
        ),
        (
            {"metadata": {"annotations": {"requeue.dev/config-hash": "x"}}},
            "metadata.annotations: requeue.dev/config-",
        ),
        (
            {"spec": {"terminationGracePeriodSeconds": 1}},
            "spec.terminationGracePeriodSeconds can't be overridden",
        ),
        ({"spec": {"hostNetwork": True}}, "spec.hostNetwork can't be overridden"),
        (
            {"spec": {"hostname": "x"}},
            "spec.hostname can't be overridden: it is the name of the data's directory",
        ),
        (
            {"spec": {"automountServiceAccountToken": True}},
            "spec.automountServiceAccountToken can't be overridden",
        ),
        ({"spec": {"securityContext": {"runAsNonRoot": False}}}, "spec.securityContext.runAsNonRoot can't"),
        ({"spec": {"securityContext": {"runAsUser": 0}}}, "spec.securityContext.runAsUser is 0"),
        (
            {"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}},
            "spec.volumes: data is the operator's own",
        ),
        ({"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}, "spec.volumes: x is a hostPath"),
        (_worker(image="x"), "spec.containers[worker].image can't be overridden: write spec.image"),
        (_worker(command=["sh"]), "spec.containers[worker].command can't be overridden"),
        (_worker(securityContext={}), "spec.containers[worker].securityContext can't be overridden"),
        (
            _worker(env=[{"name": "REQUEUE_SUBJECT", "value": "x"}]),
            "REQUEUE_SUBJECT would go over the configuration",
        ),
        (
            _worker(volumeMounts=[{"name": "data", "mountPath": "/x"}]),
            "data is the operator's own; leave it out",
        ),
        (
            {"spec": {"containers": [{"name": "s", "securityContext": {"privileged": True}}]}},
            "spec.containers[s].securityContext.privileged can't be overridden",
        ),
        (
            {
                "spec": {
                    "initContainers": [{"name": "s", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]
                }
            },
            "spec.initContainers[s].volumeMounts: data and credentials are for the worker alone",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_overridden_is_refused_with_a_sentence(
    template: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidSpec) as wrong:
        pod(podTemplate=template)
    (said,) = wrong.value.sentences
    assert said.startswith("spec.podTemplate.")
    assert sentence in said
