"""One node of one's own beside the control plane: containerd, kubelet, kube-proxy, CoreDNS and volumes; pods run.

It needs root on Linux. All that it makes lies in one directory, or is named after BRIDGE; `clear` removes that, of this
run or of one that was killed. There is one node at a time, since kube-proxy's tables have a fixed name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

from tests.cluster.control_plane import SERVICES, ControlPlane, Part
from tests.e2e.images import PAUSE
from tests.e2e.manifests import BOOTSTRAP, CNI, CONTAINERD, COREFILE, KUBE_PROXY, KUBELET
from tests.e2e.tools import CNI_PLUGINS, SYSTEM_PATH, Tools

DIRECTORY: Final = Path("/tmp/requeue-e2e")
"""Short, for the path of a Unix socket is bounded."""
BRIDGE: Final = "requeue-e2e"
NET: Final = "10.251.0"
ADDRESS: Final = f"{NET}.1"
NODE: Final = "node-0"
_SYSCTLS: Final = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_USERS: Final = {"kubelet": (f"system:node:{NODE}", "system:nodes"), "kube-proxy": ("system:kube-proxy", "")}
_OWN_USERS: Final = ("coredns", "provisioner")


class Node(ControlPlane):
    """`start` it, and there is a cluster of one node, which is Ready."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools.control_plane, DIRECTORY / "keys", ADDRESS)
        self._tools = tools
        self._lock = os.open(f"{DIRECTORY}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def start_node(self, images: Iterable[Path]) -> None:
        """Everything, with these images in the node's store."""
        clear(self._tools)
        DIRECTORY.mkdir(mode=0o755)
        self._make_bridge()
        for user, groups in (*_USERS.values(), *((f"e2e:{each}", "") for each in _OWN_USERS)):
            self.add_user(user, groups)
        socket = DIRECTORY / "containerd.sock"
        self._write("containerd.toml", CONTAINERD.format(**self._names(), socket=socket))
        self._write("cni/10-bridge.conflist", CNI.format(**self._names()))
        self._run_part(
            "containerd", str(self._tools.containerd), "--config", str(DIRECTORY / "containerd.toml")
        )
        self.start()
        self.kubectl("apply", "-f", "-", stdin=BOOTSTRAP)
        self.until("containerd answers", lambda: self._ctr("version").returncode == 0)
        for image in images:
            done = self._ctr("--namespace", "k8s.io", "images", "import", "--local", str(image))
            assert done.returncode == 0, done.stderr
        self._start_node_parts(socket)
        self.kubectl("wait", "--for=create", f"node/{NODE}", "--timeout=60s")
        self.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=120s")

    def stop(self) -> None:
        """Remove everything; the logs of the parts stay in `last-logs` beside it, until the next run."""
        logs = Path(f"{DIRECTORY}-logs")
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        for log in (*DIRECTORY.glob("*.log"), *(DIRECTORY / "keys").glob("*.log")):
            shutil.copy(log, logs)
        clear(self._tools)
        os.close(self._lock)

    def import_image(self, archive: Path) -> None:
        """Put one more image into the node's store."""
        done = self._ctr("--namespace", "k8s.io", "images", "import", "--local", str(archive))
        assert done.returncode == 0, done.stderr

    def kill_in_pod(self, namespace: str, pod: str, program: str) -> None:
        """SIGKILL the first process of a pod's container: the kubelet finds it dead, and starts it again."""
        status = json.loads(self.kubectl("get", "pod", "-n", namespace, pod, "-o", "json").stdout)["status"]
        container = status["containerStatuses"][0]["containerID"].rpartition("/")[2]
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error, OSError):
                in_pod = container in Path(f"/proc/{process.pid}/cgroup").read_text()
                if in_pod and any(program in word for word in process.info["cmdline"]):
                    process.send_signal(signal.SIGKILL)
                    return
        raise AssertionError(f"no {program} runs in {pod}")

    def _start_node_parts(self, socket: Path) -> None:
        program = str(self._tools.control_plane)
        accounts = {part: str(self.kubeconfig(user)) for part, (user, _) in _USERS.items()}
        accounts |= {part: str(self.kubeconfig(f"e2e:{part}")) for part in _OWN_USERS}
        names = {**self._names(), "socket": socket}
        self._write("resolv.conf", f"nameserver {ADDRESS}\n")
        self._write(
            "kubelet.yaml", KUBELET.format(**names, ca=self._file("ca.pem"), key=self._file("server.pem"))
        )
        self._write("kube-proxy.yaml", KUBE_PROXY.format(**names, kubeconfig=accounts["kube-proxy"]))
        reverse = ".".join(reversed(NET.split(".")))
        self._write("Corefile", COREFILE.format(**names, reverse=reverse, kubeconfig=accounts["coredns"]))
        volumes = DIRECTORY / "volumes"
        volumes.mkdir()
        self._run_part(
            *("kubelet", program, "kubelet", f"--config={DIRECTORY / 'kubelet.yaml'}"),
            *(f"--kubeconfig={accounts['kubelet']}", f"--root-dir={DIRECTORY / 'kubelet'}"),
            *(
                f"--cert-dir={DIRECTORY / 'kubelet-pki'}",
                f"--hostname-override={NODE}",
                f"--node-ip={ADDRESS}",
            ),
        )
        self._run_part("kube-proxy", program, "kube-proxy", f"--config={DIRECTORY / 'kube-proxy.yaml'}")
        self._run_part("coredns", str(self._tools.coredns), "-conf", str(DIRECTORY / "Corefile"))
        self._run_part(
            *("provisioner", program, "provisioner", f"--kubeconfig={accounts['provisioner']}"),
            *(f"--dir={volumes}", f"--node={NODE}"),
        )

    def _more_api_server_flags(self) -> list[str]:
        return [
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--client-ca-file={self._file('ca.pem')}",
            f"--kubelet-client-certificate={self._file('client.pem')}",
            f"--kubelet-client-key={self._file('client.pem')}",
            f"--kubelet-certificate-authority={self._file('ca.pem')}",
        ]

    def _write_keys(self) -> None:
        super()._write_keys()
        client = self._ca.issue_cert(
            "client", common_name="kube-apiserver-kubelet-client", organization_name="system:masters"
        )
        client.private_key_and_cert_chain_pem.write_to_path(self._file("client.pem"))

    def _names(self) -> dict[str, str]:
        return {
            "directory": str(DIRECTORY),
            "address": ADDRESS,
            "net": NET,
            "bridge": BRIDGE,
            "plugins": str(CNI_PLUGINS),
            "pause": PAUSE,
            "node": NODE,
            "services": SERVICES,
            "runc": shutil.which("runc", path=SYSTEM_PATH) or "runc",
        }

    def _make_bridge(self) -> None:
        for argv in (
            ("link", "add", BRIDGE, "address", "02:00:0a:fb:00:01", "type", "bridge"),
            ("addr", "add", f"{ADDRESS}/24", "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
        ):
            _run("ip", *argv)
        before = {}
        for name in _SYSCTLS:
            file = Path("/proc/sys") / name
            if file.exists() and (was := file.read_text().strip()) != "1":
                before[name] = was
                file.write_text("1")
        self._write("sysctls.json", json.dumps(before))

    def _run_part(self, name: str, *argv: str) -> None:
        part = Part(name, DIRECTORY / f"{name}.log")
        self._parts.append(part)
        environ_path = f"{self._tools.containerd.parent}:{SYSTEM_PATH}"
        part.start(["/usr/bin/env", f"PATH={environ_path}", *argv])

    def _ctr(self, *args: str) -> subprocess.CompletedProcess[str]:
        argv = [str(self._tools.ctr), "--address", str(DIRECTORY / "containerd.sock"), *args]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)

    def _write(self, name: str, text: str) -> None:
        file = DIRECTORY / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def clear(tools: Tools) -> None:
    """Remove what a node has left: processes, pods, mounts, tables, the bridge, files. Nothing there: nothing done."""
    if DIRECTORY.exists():
        _kill(_processes(lambda words: "containerd" not in words[0] and "containerd" not in words[-1]))
        _remove_pods(tools)
        _kill(_processes(lambda words: True))
        for _ in range(3):  # a mount may lie on another one
            for mounted in _mounts():
                subprocess.run(["umount", mounted], check=False, capture_output=True)
        with contextlib.suppress(OSError, ValueError):
            for name, was in json.loads((DIRECTORY / "sysctls.json").read_text()).items():
                (Path("/proc/sys") / name).write_text(was)
        assert not _mounts(), f"still mounted: {_mounts()}"
        shutil.rmtree(DIRECTORY)
    environ = {**os.environ, "PATH": SYSTEM_PATH}
    for argv in (
        ["nft", "delete", "table", "ip", "kube-proxy"],
        ["nft", "delete", "table", "ip6", "kube-proxy"],
        ["ip", "link", "del", BRIDGE],
    ):
        subprocess.run(argv, env=environ, check=False, capture_output=True)


def _remove_pods(tools: Tools) -> None:
    config, socket = DIRECTORY / "containerd.toml", DIRECTORY / "containerd.sock"
    if not config.exists():
        return
    _kill(_processes(lambda words: words[0] == str(tools.containerd)))
    environ = {**os.environ, "PATH": f"{tools.containerd.parent}:{SYSTEM_PATH}"}
    argv = [str(tools.containerd), "--config", str(config)]
    with subprocess.Popen(
        argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as containerd:
        try:
            for _ in range(100):
                removing = [str(tools.control_plane), "remove-pods", str(socket)]
                if subprocess.run(removing, check=False, capture_output=True).returncode == 0:
                    return
                time.sleep(0.1)
        finally:
            containerd.kill()


def _processes(is_one: Callable[[list[str]], bool]) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(f"{DIRECTORY}/" in word for word in process.info["cmdline"] or [])
        and is_one(process.info["cmdline"])
        and process.pid != os.getpid()
    ]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _mounts() -> list[str]:
    with Path("/proc/self/mounts").open() as mounts:
        found = [line.split()[1] for line in mounts]
    return sorted((each for each in found if each.startswith(f"{DIRECTORY}/")), reverse=True)


def _run(*argv: str) -> None:
    environ = {**os.environ, "PATH": SYSTEM_PATH}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
