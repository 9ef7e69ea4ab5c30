"""Writes the golden data directory of the present format. To be run once for a format, before it is released:

    python -m tests.formats.make_golden v2

A real worker is given some of everything, on a real nats-server, and then killed (`crashed.tar.gz`: records still stand in
the write-ahead log) and stopped (`stopped.tar.gz`: everything is in tables). `expected.json` says what has to be read from
both. A golden directory is never written again: later releases have to read what this one left.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client.local import NatsServer, WorkerProcess
from requeue_protocol.envelope import Backoff, build_envelope
from requeue_worker.storage.directory import data_files

from tests.formats.contents import contents

INSTANCE = "golden"
CONFIG = """
defaults: {dead_letter_retention: 2000000h, min_backoff: 300000h, max_backoff: 300000h, jitter: 0}
queues: [{name: published, dead_letter_subject: dead.letters}]
"""
#: nobody may publish there, so that the mark of an unpublished dead letter stays
SERVER = """
authorization { users: [{user: u, password: p, permissions: {publish: {deny: "dead.>"}}}] }
no_auth_user: u
"""
YEARS = "300000h"  # what is not due at once is due in 34 years


async def publish(nc: Client) -> None:
    """Some of everything that is stored."""

    async def intake(payload: bytes, headers: dict[str, str] | None = None) -> None:
        await nc.request("requeue.x", payload, headers=headers, timeout=10)

    later = {"Requeue-Delay": YEARS}
    for number in range(3):
        headers = {
            **later,
            "Requeue-Subject": "jobs.plain",
            "Requeue-Queue": "mail",
            "Nats-Msg-Id": f"id-{number}",
        }
        await intake(b"plain %d" % number, headers)
    await intake(
        b"same id", {**later, "Requeue-Subject": "jobs.plain", "Requeue-Queue": "b", "Nats-Msg-Id": "id-9"}
    )
    await intake(
        b"first",
        {**later, "Requeue-Subject": "jobs.urgent", "Requeue-Queue": "mail", "Requeue-Priority": "0"},
    )
    await intake(
        b"own policy",
        {
            **later,
            "Requeue-Subject": "jobs.policy",
            "Requeue-Backoff": "1s,5s,1m",
            "Requeue-Ack-Timeout": "3s",
            "Requeue-Min-Backoff": "2s",
            "Requeue-Max-Backoff": "9s",
            "Requeue-TTL": "400000h",
            "Requeue-Retries": "unlimited",
            "X-Trace": "travels",
        },
    )
    year_ns = 365 * 24 * 3600 * 10**9
    envelope = build_envelope(
        subject="jobs.envelope",
        payload=bytes(range(256)),
        retries=7,
        ttl_ns=50 * year_ns,
        delay_ns=40 * year_ns,
        backoff=Backoff.EXPONENTIAL,
        queue="queue.with.dots",
    )
    await intake(envelope)
    await intake(b"fails and waits", {"Requeue-Subject": "jobs.nak", "Requeue-Retries": "5"})
    await intake(b"terminated", {"Requeue-Subject": "jobs.term", "Requeue-Queue": "mail"})
    await intake(
        b"exhausted", {"Requeue-Subject": "jobs.nak", "Requeue-Queue": "published", "Requeue-Retries": "1"}
    )
    await intake(b"no envelope")
    await intake(b"", {"Requeue-Subject": "not allowed.>"})


async def answer(msg: Msg) -> None:
    await msg.respond(b"-NAK" if msg.subject == "jobs.nak" else b"+TERM no such customer")


async def write(directory: Path, target: Path) -> None:
    server = await asyncio.to_thread(NatsServer(directory / "nats", config=SERVER).start)
    config = directory / "worker.yaml"
    config.write_text(CONFIG)
    args = ["--config", str(config), "--instance-id", INSTANCE]
    worker = WorkerProcess(server.url, directory / "data", args=args)
    try:
        await asyncio.to_thread(worker.start)
        nc = await nats.connect(server.url)
        await nc.subscribe("jobs.nak", cb=answer)
        await nc.subscribe("jobs.term", cb=answer)
        await publish(nc)
        await asyncio.sleep(3)  # a command, not a test: until the answers are on disk
        worker.kill()
        await nc.close()
        path = directory / "data" / INSTANCE
        pack(path, target / "crashed.tar.gz")
        crashed = contents(path)
        await asyncio.to_thread(worker.start)
        worker.stop()
        pack(path, target / "stopped.tar.gz")
        assert contents(path) == crashed
        (target / "expected.json").write_text(json.dumps(crashed, indent=1) + "\n")
    finally:
        worker.stop()
        server.stop()


def pack(path: Path, archive: Path) -> None:
    """The database's files, without dates, owners, logs and locks."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(data_files(path)):
            tar.add(file, f"{INSTANCE}/{file.name}", filter=anonymous)


if __name__ == "__main__":
    golden = Path(__file__).parent / sys.argv[1]
    golden.mkdir(exist_ok=True)
    if any(golden.iterdir()):
        sys.exit(f"{golden} is there already, and stays as it is")
    with tempfile.TemporaryDirectory(prefix="requeue-golden-") as scratch:
        asyncio.run(write(Path(scratch), golden))
