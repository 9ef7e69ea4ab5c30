"""What tests do with a cluster of real pods: kubectl, helm, waiting, the traffic of a client outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from requeue_client.local import HOST, find_executable

from tests.cluster.specs import requeue_queue
from tests.helm import CHART, helm_at

WAIT_S: Final = 180.0
RELEASE: Final = "rq"
OPERATOR: Final = "requeue-system"
"""Namespace of the operator that looks after all namespaces."""
_FORWARDED: Final = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class Cluster:
    """A cluster with the project's image in it. `kill` ends a worker with SIGKILL."""

    def __init__(
        self,
        kubectl: list[str],
        kubeconfig: Path,
        images: tuple[str, str, str],
        kill: Callable[[str, str], None],
        home: Path,
    ) -> None:
        self._kubectl = kubectl
        self.kubeconfig = kubeconfig
        self.image, self.newer_image, self.nats_image = images
        self.kill = kill
        self._helm = helm_at(home)

    def kubectl(
        self, *args: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl. Raises AssertionError with what it said."""
        argv = [*self._kubectl, f"--kubeconfig={self.kubeconfig}", *args]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=400)
        assert not check or done.returncode == 0, f"kubectl {' '.join(args)}: {done.stdout}{done.stderr}"
        return done

    @property
    def kubectl_argv(self) -> list[str]:
        """The real kubectl, for whoever brings a kubeconfig."""
        return list(self._kubectl)

    def helm(self, *args: str) -> str:
        """Run the real helm. Raises AssertionError with what it said."""
        done = self._helm(*args, f"--kubeconfig={self.kubeconfig}")
        assert done.returncode == 0, f"helm {' '.join(args)}: {done.stdout}{done.stderr}"
        return done.stdout

    def install(self, namespace: str, *flags: str, action: str = "install") -> str:
        """The chart as it is here, with the image under test; the bundled NATS server where `flags` say so."""
        repository, _, tag = self.image.rpartition(":")
        sets = [f"image.repository={repository}", f"image.tag={tag}", f"trialNats.image={self.nats_image}"]
        words = [word for each in sets for word in ("--set", each)]
        return self.helm(action, RELEASE, str(CHART), "--namespace", namespace, "--wait", *words, *flags)

    def shell(self, script: str, directory: Path) -> str:
        """Run a script by bash at the project's root, with the test's kubectl and helm. Raises AssertionError."""
        directory.mkdir(exist_ok=True)
        kubectl = directory / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {shlex.join(self._kubectl)} "$@"\n')
        kubectl.chmod(0o755)
        (directory / "helm").symlink_to(find_executable("helm", "make helm"))
        environ = {
            "PATH": f"{directory}:{os.environ['PATH']}",
            "HOME": str(directory),
            "KUBECONFIG": str(self.kubeconfig),
        }
        argv = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            argv, cwd=CHART.parents[1], env=environ, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start_nats(self, namespace: str) -> None:
        """A NATS server `nats`, rendered from the chart's own for trial."""
        settings = f"image.repository=unused,trialNats.enabled=true,trialNats.image={self.nats_image}"
        objects = self.helm(
            *("template", "trial", str(CHART), "--namespace", namespace, "--set", settings),
            *("--show-only", "templates/trial-nats.yaml"),
        )
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=objects)
        self.kubectl("rollout", "status", "-n", namespace, "deployment/nats", "--timeout=120s")

    def get(self, kind: str, namespace: str, name: str) -> Any | None:
        """One object; None when there is none."""
        done = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def names(self, kind: str, namespace: str, selector: str = "") -> list[str]:
        """What there is of a kind, sorted."""
        done = self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "name")
        return sorted(line.partition("/")[2] for line in done.stdout.split())

    def apply(self, namespace: str, *objects: dict[str, Any]) -> None:
        """Server-side, as GitOps tools do."""
        self.kubectl(
            *("apply", "-n", namespace, "--server-side", "--force-conflicts", "-f", "-"),
            stdin=yaml.safe_dump_all(objects),
        )

    def create_queue(self, namespace: str, **spec: Any) -> None:
        """A RequeueQueue `orders` that is Ready."""
        self.apply(namespace, requeue_queue(**{"replicas": 1, "storage": {"size": "300Mi"}} | spec))
        self.until_ready(namespace)

    def patch(self, namespace: str, **spec: Any) -> None:
        """Merge into the spec of `orders`."""
        body = json.dumps({"spec": spec})
        self.kubectl("patch", "rq", "orders", "-n", namespace, "--type=merge", "-p", body)

    def until_ready(self, namespace: str) -> None:
        """`orders` is Ready for the generation that is there now."""
        self.until(f"orders of {namespace} is Ready", lambda: self.condition(namespace, "Ready") == "True")

    def condition(self, namespace: str, kind: str) -> str:
        """Its status, once the operator has seen what is there now; else nothing."""
        queue = self.get("rq", namespace, "orders") or {"metadata": {}, "status": {}}
        if queue["status"].get("observedGeneration") != queue["metadata"].get("generation"):
            return ""
        found = (each for each in queue["status"].get("conditions", []) if each["type"] == kind)
        return next((each["status"] for each in found), "")

    def workers(self, namespace: str) -> list[dict[str, Any]]:
        """The pods of `orders`."""
        done = self.kubectl(
            *("get", "pods", "-n", namespace, "-o", "json"),
            *("-l", "app.kubernetes.io/name=nats-requeue,app.kubernetes.io/instance=orders"),
        )
        return sorted(json.loads(done.stdout)["items"], key=lambda pod: str(pod["metadata"]["name"]))

    def lives(self, namespace: str) -> dict[str, tuple[str, int]]:
        """UID and restarts of each worker: the same as before when none was restarted."""
        return {
            pod["metadata"]["name"]: (
                pod["metadata"]["uid"],
                sum(each["restartCount"] for each in pod["status"].get("containerStatuses", [])),
            )
            for pod in self.workers(namespace)
        }

    def evict(self, namespace: str, pod: str) -> None:
        """As `kubectl drain` does: asked again while the disruption budget says no."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        where = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"

        def is_evicted() -> bool:
            done = self.kubectl("create", "--raw", where, "-f", "-", stdin=json.dumps(body), check=False)
            assert done.returncode == 0 or "disruption budget" in done.stderr, done.stderr
            return done.returncode == 0

        self.until(f"{pod} may be evicted", is_evicted)

    def until(self, what: str, condition: Callable[[], object], wait_s: float = WAIT_S) -> None:
        """Wait for something; a failure shows what there is."""
        deadline_s = time.monotonic() + wait_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: not so within {wait_s:g} s"
            time.sleep(0.3)

    @contextlib.contextmanager
    def forwarded(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to one of the cluster, for clients outside."""
        argv = [
            *self._kubectl,
            f"--kubeconfig={self.kubeconfig}",
            "port-forward",
            "-n",
            namespace,
            target,
            f":{port}",
        ]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
            try:
                assert child.stdout is not None
                line = child.stdout.readline()
                found = _FORWARDED.search(line)
                assert found, line
                yield int(found[1])
            finally:
                child.kill()

    @contextlib.contextmanager
    def nats(self, namespace: str) -> Iterator[str]:
        """URL of the NATS server `nats` of a namespace, for clients outside."""
        with self.forwarded(namespace, "service/nats", 4222) as port:
            yield f"nats://{HOST}:{port}"

    def story(self, namespace: str) -> str:
        """What there is in a namespace, and what its pods said, for a failed test."""
        asked = [
            ["get", "rq,sts,job,pod,pvc", "-n", namespace, "-o", "wide"],
            ["get", "rq", "-n", namespace, "-o", "yaml"],
            ["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"],
            *(
                ["logs", "-n", namespace, "--tail=40", "--prefix", name]
                for name in self.names("pods", namespace)
            ),
        ]
        return "\n".join((done := self.kubectl(*each, check=False)).stdout + done.stderr for each in asked)
