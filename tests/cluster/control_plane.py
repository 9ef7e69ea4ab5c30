"""A Kubernetes control plane of one's own on loopback, without root: etcd, API server, controllers, scheduler.

All controllers are the real ones. There is no kubelet: pods are made and bound to nothing, and never run; tests that
need a pod's readiness play it (`status` of the pod). State lies in a temporary directory and ends with the process.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from ssl import SSLContext, create_default_context
from typing import Any

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from requeue_client.local import HOST, LocalProcess, free_port

START_TIMEOUT_S = 120.0
CONTROLLERS = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"
SERVICES = "10.252.0.0/16"
SERVICE_ADDRESS = "10.252.0.1"
"""Of the API server inside the cluster: the first of SERVICES."""
SERVICE_NAMES = tuple(
    f"kubernetes{each}" for each in ("", ".default", ".default.svc", ".default.svc.cluster.local")
)


class Part(LocalProcess):
    """One process of the control plane."""

    def start(self, argv: Sequence[str]) -> None:
        """Start; whether it is of use is asked at the API server."""
        self.argv = argv
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class ControlPlane:
    """`start` it, then use `kubectl`, or `kubeconfig(user)` with any client. RBAC is on; `admin` may do all."""

    def __init__(self, binary: Path, directory: Path, address: str = HOST) -> None:
        self._binary = binary
        self._directory = directory
        self._address = address
        self._etcd_port, self._etcd_peer_port, self._port = free_port(), free_port(), free_port()
        self._tokens: dict[str, tuple[str, str]] = {}
        self._parts: list[Part] = []
        self._ca = trustme.CA()
        self._tls: SSLContext

    def start(self, crds: Path | None = None) -> None:
        """Start all parts and wait until the API server is ready and the controllers have made service accounts.

        `crds` are applied before the controllers start: the garbage collector finds later ones after 30 s only.
        """
        self._write_keys()
        for user, groups in (("admin", "system:masters"), (CONTROLLERS, ""), (SCHEDULER, "")):
            self.add_user(user, groups)
        self._start("etcd", *self._etcd_flags())
        self._start("kube-apiserver", *self._api_server_flags())
        self.until("the API server is ready", lambda: self.get("/readyz") is not None)
        if crds is not None:
            self.kubectl("apply", "-f", str(crds))
            self.kubectl("wait", "--for=condition=Established", "-f", str(crds), "--timeout=60s")
        controllers, scheduler = self.kubeconfig(CONTROLLERS), self.kubeconfig(SCHEDULER)
        self._start("kube-controller-manager", f"--kubeconfig={controllers}", *self._controller_flags())
        self._start("kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0")
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.until("the controllers work", lambda: self.get(account) is not None)

    def stop(self) -> None:
        """Stop all parts at once; nothing of them is kept."""
        for part in reversed(self._parts):
            part.kill()

    def restart_api_server(self) -> None:
        """SIGKILL, start it again, and wait until it is ready."""
        (part,) = [each for each in self._parts if each.name == "kube-apiserver"]
        part.kill()
        part.start(part.argv)
        self.until("the API server is ready again", lambda: self.get("/readyz") is not None)

    @property
    def log(self) -> str:
        """The last lines of every part, for a failed test."""
        return "\n".join(f"--- {part.name}\n{part.log[-2000:]}" for part in self._parts)

    @property
    def url(self) -> str:
        """Of the API server."""
        return f"https://{self._address}:{self._port}"

    def kubeconfig(self, user: str = "admin") -> Path:
        """A kubeconfig for a user that was there at the start, or a service account's token (`token:...`)."""
        path = self._directory / f"{user.replace(':', '-')}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "own",
                    "cluster": {"server": self.url, "certificate-authority": str(self._file("ca.pem"))},
                }
            ],
            "users": [{"name": user, "user": {"token": self._tokens[user][0]}}],
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": user}}],
            "current-context": "own",
        }
        path.write_text(yaml.safe_dump(document))
        path.chmod(0o600)
        return path

    @property
    def kubectl_argv(self) -> list[str]:
        """The real kubectl, for whoever brings a kubeconfig."""
        return [str(self._binary), "kubectl"]

    def add_user(self, user: str, groups: str) -> None:
        """Before the start: a user with a token of its own."""
        self._tokens[user] = (secrets.token_hex(16), groups)

    def kubectl(
        self, *args: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl as admin."""
        argv = [*self.kubectl_argv, f"--kubeconfig={self.kubeconfig()}", *args]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr}")
        return done

    def watch(self, kind: str, log: Path) -> LocalProcess:
        """Write every event about a kind, of all namespaces, to `log`, until that is stopped."""
        flags = (kind, "--all-namespaces", "--watch", "--output-watch-events", "-o", "json")
        part = Part(f"watch of {kind}", log)
        part.start([str(self._binary), "kubectl", f"--kubeconfig={self.kubeconfig()}", "get", *flags])
        return part

    def get(self, path: str) -> Any | None:
        """What the API server has at `path` (JSON, or text); None when that is nothing, or nobody answers yet."""
        status, body = self.request("GET", path)
        return body if status == 200 else None

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """One request as admin: status and decoded body. Status 0 when nobody answers."""
        headers = {"Authorization": f"Bearer {self._tokens['admin'][0]}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        except OSError:
            return 0, None
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()

    def _write_keys(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        server = self._ca.issue_cert(self._address, HOST, "localhost", *SERVICE_NAMES, SERVICE_ADDRESS)
        self._ca.cert_pem.write_to_path(self._file("ca.pem"))
        server.private_key_and_cert_chain_pem.write_to_path(self._file("server.pem"))
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._file("accounts.pem").write_bytes(pem)
        self._tls = create_default_context(cafile=str(self._file("ca.pem")))

    def _file(self, name: str) -> Path:
        return self._directory / name

    def _etcd_flags(self) -> list[str]:
        client, peer = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{self._etcd_peer_port}"
        return [
            f"--data-dir={self._file('etcd')}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _api_server_flags(self) -> list[str]:
        tokens = self._file("tokens.csv")
        lines = (f'{token},{user},{user},"{groups}"' for user, (token, groups) in self._tokens.items())
        tokens.write_text("\n".join(lines) + "\n")
        tokens.chmod(0o600)
        return [
            f"--etcd-servers=http://{HOST}:{self._etcd_port}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            f"--secure-port={self._port}",
            f"--cert-dir={self._file('certs')}",
            f"--tls-cert-file={self._file('server.pem')}",
            f"--tls-private-key-file={self._file('server.pem')}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self._file('accounts.pem')}",
            f"--service-account-signing-key-file={self._file('accounts.pem')}",
            f"--token-auth-file={tokens}",
            f"--service-cluster-ip-range={SERVICES}",
            *self._more_api_server_flags(),
        ]

    def _more_api_server_flags(self) -> list[str]:
        # An endpoint may not be a loopback address.
        return ["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]

    def _controller_flags(self) -> list[str]:
        return [
            "--secure-port=0",
            f"--service-account-private-key-file={self._file('accounts.pem')}",
            f"--root-ca-file={self._file('ca.pem')}",
            "--use-service-account-credentials=true",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            "--leader-elect=false",
            "--allocate-node-cidrs=false",
            "--controllers=*,-node-ipam-controller",
        ]

    def _start(self, name: str, *flags: str) -> None:
        part = Part(name, self._file(f"{name}.log"))
        self._parts.append(part)
        part.start([str(self._binary), name, *flags])

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something that nothing signals; a part that ends meanwhile is told."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            ended = [part.name for part in self._parts if not part.running]
            if ended or time.monotonic() > deadline_s:
                why = f"{', '.join(ended)} ended" if ended else f"not so within {START_TIMEOUT_S:g} s"
                raise AssertionError(f"{what}: {why}\n{self.log}")
            time.sleep(0.05)

    def until_quiet(self, look: Callable[[], object], for_s: float) -> None:
        """Wait until what one sees has not changed for so long."""
        seen, since_s = look(), time.monotonic()

        def is_quiet() -> bool:
            nonlocal seen, since_s
            now = look()
            if now != seen:
                seen, since_s = now, time.monotonic()
            return time.monotonic() - since_s > for_s

        self.until("all is quiet", is_quiet)
