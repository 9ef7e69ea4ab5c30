"""The chart on an API server: what helm installs is taken, is enough for an operator, and leaves what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import render
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import Operator, children, create_queue, has_condition
from tests.cluster.specs import path
from tests.helm import CHART, helm_at

_CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/requeuequeues.requeue.dev"
_IMAGE = "image.repository=registry.example/nats-requeue"
_SWITCHES = tuple(
    f"{each}.enabled=true" for each in ("networkPolicy", "podDisruptionBudget", "dashboard", "trialNats")
)
_RICH = (
    "imagePullSecrets[0].name=registry",
    "tolerations[0].operator=Exists",
    "topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=zone",
    "topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
    "topologySpreadConstraints[0].labelSelector.matchLabels.team=a",
    "env[0].name=TZ,env[0].value=UTC",
    "nodeSelector.disk=ssd,labels.team=a,annotations.b=c,podLabels.d=e,podAnnotations.f=g",
    "crds.enabled=false",  # tests/cluster/test_gitops.py has it
    "test.secretName=login,test.args={--creds,/etc/requeue/credentials/user.creds}",
)


def kubeconfig_of_account(cluster: ControlPlane, namespace: str, account: str, directory: Path) -> Path:
    """A kubeconfig with a token of a service account."""
    token = cluster.kubectl("create", "token", account, "-n", namespace).stdout.strip()
    document = yaml.safe_load(cluster.kubeconfig().read_text())
    document["users"][0]["user"] = {"token": token}
    file = directory / "account.kubeconfig"
    file.write_text(yaml.safe_dump(document))
    file.chmod(0o600)
    return file


def test_install_serve_upgrade_uninstall(cluster: ControlPlane, namespace: str, tmp_path: Path) -> None:
    helm = helm_at(tmp_path)
    there = (f"--kubeconfig={cluster.kubeconfig()}", "--namespace", namespace)
    # The CRD is there already, as after `kubectl apply -f crds/`.
    done = helm("install", "rq", str(CHART), *there, "--set", _IMAGE, "--take-ownership")
    assert done.returncode == 0, done.stderr
    assert f"in namespace {namespace}, and in no other" in done.stdout

    # Restricted Pod Security is enforced in the namespace.
    pods = f"/api/v1/namespaces/{namespace}/pods?labelSelector=app.kubernetes.io/instance=rq"
    cluster.until("the operator's pod is let in", lambda: len(cluster.get(pods)["items"]) == 1)

    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(kubeconfig_of_account(cluster, namespace, "rq-nats-requeue", tmp_path), namespace)
    with operator:
        create_queue(cluster, namespace, networkPolicy={"enabled": True})
        cluster.until("it is reconciled", lambda: has_condition(cluster, namespace, "Reconciling", "True"))
        assert "statefulsets/orders" in children(cluster, namespace)
        fleet = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/orders"
        before = cluster.get(fleet)["metadata"]["uid"], cluster.get(fleet)["spec"]

        sets = [word for each in (_IMAGE, *_SWITCHES, "image.tag=0.2.0") for word in ("--set", each)]
        done = helm("upgrade", "rq", str(CHART), *there, *sets)
        assert done.returncode == 0, done.stderr
        nats = f"/api/v1/namespaces/{namespace}/pods?labelSelector=app.kubernetes.io/component=trial-nats"
        cluster.until("the pod of NATS is let in", lambda: len(cluster.get(nats)["items"]) == 1)
        assert (cluster.get(fleet)["metadata"]["uid"], cluster.get(fleet)["spec"]) == before
    installed = [each for each in yaml.safe_load_all(helm("get", "manifest", "rq", *there).stdout) if each]
    # But for the CRD: this kubectl would write its own annotation anew, for `kubectl apply` came first.
    ours = yaml.safe_dump_all(each for each in installed if each["kind"] != "CustomResourceDefinition")
    drift = cluster.kubectl("diff", "--server-side", "--force-conflicts", "-f", "-", stdin=ours, check=False)
    assert drift.returncode == 0, drift.stdout[-4000:] + drift.stderr

    done = helm("uninstall", "rq", *there)
    assert done.returncode == 0, done.stderr
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/rq-nats-requeue"
    cluster.until("the operator is gone", lambda: cluster.get(deployment) is None)
    assert "deletionTimestamp" not in cluster.get(_CRD)["metadata"]
    assert "deletionTimestamp" not in cluster.get(path(namespace, "orders"))["metadata"]
    assert cluster.get(fleet)["metadata"]["uid"] == before[0]
    done = helm("install", "rq", str(CHART), *there, "--set", _IMAGE)
    assert done.returncode == 0, f"it does not take up what it left: {done.stderr}"
    assert helm("uninstall", "rq", *there).returncode == 0


@pytest.mark.parametrize("scope", ["watchAllNamespaces=false", "watchAllNamespaces=true"])
def test_all_that_it_can_make_fits_the_schemas_of_the_api_server(
    cluster: ControlPlane, namespace: str, tmp_path: Path, scope: str
) -> None:
    objects = render(helm_at(tmp_path), *_SWITCHES, *_RICH, scope, namespace=namespace)
    assert {"Pod", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"} <= {
        each["kind"] for each in objects.values()
    }
    flags = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    said = cluster.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump_all(objects.values()))
    assert said.stderr == "", "a warning of Pod Security, or of a field that nobody knows"
    assert said.stdout.count("serverside-applied (server dry run)") == len(objects)
