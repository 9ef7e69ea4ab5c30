"""`requeue dead ...` as users run it, on two real workers: counted, asked, redriven, watched, cancelled."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import Message, RequeueClient
from requeue_client.cli import main

from tests.integration.client.test_admin_commands import shown
from tests.integration.client.test_command import run
from tests.servers import NatsServer, WorkerFactory, WorkerProcess, settle, until

DEAD = 40


@pytest.fixture
async def workers(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> list[WorkerProcess]:
    """Two workers with DEAD dead letters in `mail` between them, some on each, and one in `orders`."""
    config = tmp_path / "worker.yaml"
    config.write_text("reconnect_grace: 0s")
    started = [
        await asyncio.to_thread(
            worker_factory, nats_server, "--instance-id", instance, "--config", str(config)
        )
        for instance in ("worker-0", "worker.1")
    ]
    messages = [
        Message("mail.out", b"%d" % number, queue="mail", retries=1, msg_id=f"m{number}")
        for number in range(DEAD)
    ]
    async with RequeueClient(nc) as client:
        assert all([outcome.ok async for outcome in client.publish_many(messages)])
        await client.publish("orders.new", b"order", queue="orders", retries=1)
    while await _all_dead(nc) <= DEAD:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return started


async def _all_dead(nc: Client) -> int:
    subjects = [f"_requeue.admin.instances.{name}" for name in ("worker-0", "worker%2E1")]
    answers = [await nc.request(subject, b"", timeout=20) for subject in subjects]
    return sum(json.loads(answer.data)["dead"] for answer in answers)


class Handled:
    """What handlers get, and settle."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    @classmethod
    async def listen(cls, nc: Client, subject: str) -> Handled:
        handled = cls()
        await nc.subscribe(subject, cb=handled.on_message)
        await settle(nc)
        return handled

    async def on_message(self, msg: Msg) -> None:
        self.payloads.append(msg.data)
        await msg.ack()


async def test_dead_letters_are_listed_and_shown_and_counted_before_anybody_says_yes(
    nats_server: NatsServer, workers: list[WorkerProcess]
) -> None:
    rows = await shown(nats_server, "dead", "list", "mail", "--reason", "exhausted", "--limit", "0")
    assert {row["client_id"] for row in rows} == {f"m{number}" for number in range(DEAD)}
    assert {row["state"] for row in rows} == {"dead"}
    assert len(await shown(nats_server, "dead", "list", "--limit", "3")) == 3
    [detail] = await shown(nats_server, "dead", "show", "m7")
    assert (detail["state"], detail["history"][0]["error"]) == ("dead", "no responders")

    rows = await shown(nats_server, "dead", "redrive", "mail", "--dry-run")
    assert [row["instance"] for row in rows] == ["worker-0", "worker.1"]
    assert sum(row["messages"] for row in rows) == DEAD
    done = await run("dead", "redrive", "mail", "--server", nats_server.url)
    assert done.returncode == 2
    assert b"Redrive 40 dead letters? Say --yes" in done.stderr
    assert len(await shown(nats_server, "dead", "list", "mail")) == DEAD


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 0), (b"", DEAD)])
async def test_on_a_terminal_it_asks(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client, answer: bytes, left: int
) -> None:
    handled = await Handled.listen(nc, "mail.out")
    terminal, theirs = pty.openpty()
    process = _start(nats_server, "dead", "redrive", "mail", stdin=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"Redrive 40 dead letters?" not in seen:
        seen += await asyncio.to_thread(os.read, terminal, 1000)
    os.write(terminal, answer) if answer else process.send_signal(signal.SIGINT)
    await asyncio.to_thread(process.communicate, None, 30)
    os.close(terminal)
    assert len(await shown(nats_server, "dead", "list", "mail")) == left
    await until(lambda: len(handled.payloads) == DEAD - left)


async def test_all_workers_redrive_what_is_meant_to_another_subject(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client
) -> None:
    handled = await Handled.listen(nc, "mail.again")
    rows = await shown(nats_server, "dead", "redrive", "mail", "--to-subject", "mail.again", "--yes")
    assert [(row["instance"], row["state"]) for row in rows] == [("worker-0", "done"), ("worker.1", "done")]
    assert sum(row["redriven"] for row in rows) == DEAD
    await until(lambda: len(handled.payloads) == DEAD)
    assert sorted(handled.payloads) == sorted(b"%d" % number for number in range(DEAD))
    assert [row["subject"] for row in await shown(nats_server, "dead", "list")] == ["orders.new"]
    told = await shown(nats_server, "dead", "jobs", rows[0]["job"])
    assert [row["redriven"] for row in told] == [row["redriven"] for row in rows]


async def test_ctrl_c_ends_it_on_all_workers_and_each_message_is_dead_or_redriven(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client
) -> None:
    handled = await Handled.listen(nc, "mail.out")
    process = _start(nats_server, "dead", "redrive", "mail", "--rate", "10/s", "--yes", "-o", "json")
    await until(lambda: len(handled.payloads) > 3)
    process.send_signal(signal.SIGINT)
    out, errors = await asyncio.to_thread(process.communicate, None, 30)
    assert process.returncode == 130
    assert b"what was redriven stays so" in errors
    rows = json.loads(out)
    assert {row["state"] for row in rows} == {"cancelled"}
    redriven = sum(row["redriven"] for row in rows)
    assert 3 < redriven < DEAD
    await until(lambda: len(handled.payloads) == redriven)
    left = await shown(nats_server, "dead", "list", "mail")
    everywhere = [int(payload) for payload in handled.payloads] + [int(row["client_id"][1:]) for row in left]
    assert sorted(everywhere) == list(range(DEAD))


async def test_a_job_is_cancelled_by_its_name_and_its_command_says_so(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client
) -> None:
    handled = await Handled.listen(nc, "mail.out")
    process = _start(nats_server, "dead", "redrive", "mail", "--rate", "60/m", "--yes", "-o", "json")
    await until(lambda: handled.payloads)
    running = await shown(nats_server, "dead", "jobs")
    assert {row["state"] for row in running} == {"running"}
    [name] = {row["job"] for row in running}
    ended = await shown(nats_server, "dead", "cancel", name)
    assert {row["state"] for row in ended} == {"cancelled"}
    out, _ = await asyncio.to_thread(process.communicate, None, 30)
    assert process.returncode == 4
    assert json.loads(out) == ended


@pytest.mark.slow
async def test_a_worker_that_is_killed_leaves_its_rest_dead_and_the_command_says_so(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client
) -> None:
    handled = await Handled.listen(nc, "mail.out")
    process = _start(nats_server, "dead", "redrive", "mail", "--rate", "10/s", "--yes", "-o", "json")
    await until(lambda: len(handled.payloads) > 3)
    workers[0].kill()
    out, _ = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 3
    by_instance = {row["instance"]: row for row in json.loads(out)}
    assert (by_instance["worker-0"]["state"], by_instance["worker.1"]["state"]) == ("gone", "done")
    await asyncio.to_thread(workers[0].start)
    again = await shown(nats_server, "dead", "redrive", "mail", "--yes")
    assert [row["instance"] for row in again] == ["worker-0"]
    await until(lambda: len(set(handled.payloads)) == DEAD)
    assert await shown(nats_server, "dead", "list", "mail") == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("redrive --rate fast", "write it like 100/s"),
        ("redrive --to-subject a.*", "wildcard"),
        ("redrive --older soon", "older"),
        ("jobs a/b", "job"),
        (f"delete --export {__file__}", "name a new file"),
    ],
)
def test_usage_that_makes_no_sense_says_so_and_asks_nobody(line: str, text: str) -> None:
    done = CliRunner().invoke(main, ["dead", *line.split(), "--server", "nats://127.0.0.1:1"])
    assert (done.exit_code, text in done.output) == (2, True), done.output


async def test_mistakes_have_their_exit_codes_and_say_what_is_wrong(
    nats_server: NatsServer, workers: list[WorkerProcess]
) -> None:
    for line, code, text in (
        ("redrive nothing --yes", 6, b"no dead letters are meant"),
        ("redrive --yes --to-subject _INBOX.a", 1, b"not allowed"),
        ("cancel nothing", 6, b""),
    ):
        done = await run("dead", *line.split(), "--server", nats_server.url)
        assert (done.returncode, text in done.stderr) == (code, True), done


def _start(server: NatsServer, *args: str, **pipes: Any) -> subprocess.Popen[bytes]:
    command = str(Path(sys.executable).parent / "requeue")
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "start_new_session": True,
        **pipes,
    }
    return subprocess.Popen([command, *args, "--server", server.url], **pipes)


# -- delete, export, import ----------------------------------------------------------------------------------------


async def test_what_is_deleted_with_an_export_comes_back_by_an_import_once(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client, tmp_path: Path
) -> None:
    file = tmp_path / "mail.jsonl"
    before = await shown(nats_server, "dead", "list", "mail")
    counted = await shown(nats_server, "dead", "delete", "mail", "--dry-run")
    assert sum(row["messages"] for row in counted) == DEAD
    asked = await run("dead", "delete", "mail", "--server", nats_server.url)
    assert (asked.returncode, b"Delete 40 dead letters for good? Say --yes" in asked.stderr) == (2, True)
    rows = await shown(nats_server, "dead", "delete", "mail", "--export", str(file), "--yes")
    assert [row["instance"] for row in rows] == ["worker-0", "worker.1"]
    assert sum(row["deleted"] for row in rows) == DEAD
    assert [row["subject"] for row in await shown(nats_server, "dead", "list")] == ["orders.new"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {row["id"] for row in before}

    assert await shown(nats_server, "dead", "import", str(file)) == [
        {"imported": DEAD, "known": 0, "refused": 0}
    ]
    assert await shown(nats_server, "dead", "import", str(file)) == [
        {"imported": 0, "known": DEAD, "refused": 0}
    ]
    await shown(nats_server, "dead", "import", str(file), "--instance", "worker.1")
    after = {row["id"]: row for row in await shown(nats_server, "dead", "list", "mail", "--limit", "0")}
    assert after.keys() == {row["id"] for row in before}
    handled = await Handled.listen(nc, "mail.out")
    await shown(nats_server, "dead", "redrive", "mail", "--yes")
    await until(lambda: len(handled.payloads) == DEAD)
    assert sorted(handled.payloads) == sorted(b"%d" % number for number in range(DEAD))


async def test_what_was_redriven_and_is_pending_on_any_worker_is_known_to_an_import(
    nats_server: NatsServer, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "mail.jsonl"
    await run("dead", "export", "mail", "--to", str(file), "--server", nats_server.url)
    await run("pause", "mail", "--server", nats_server.url)
    await shown(nats_server, "dead", "redrive", "mail", "--yes")
    said = {"imported": 0, "known": DEAD, "refused": 0}
    for args in ([], ["--instance", "worker-0"], ["--instance", "worker.1"]):
        assert await shown(nats_server, "dead", "import", str(file), *args) == [said]


async def test_refused_messages_are_not_redriven_and_it_is_said_what_to_do(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client
) -> None:
    await nc.request("requeue.x", b"order", headers={"Requeue-Subject": "_INBOX.a"}, timeout=20)
    advice = (
        b"can't be redriven: export them (requeue dead export '$invalid'), "
        b"and publish them mended (requeue publish --file)"
    )
    done = await run("dead", "redrive", "$invalid", "--yes", "--server", nats_server.url)
    assert (done.returncode, advice in done.stderr) == (1, True)
    noted = await run("dead", "redrive", "--dry-run", "--server", nats_server.url)
    assert (noted.returncode, b"1 refused messages " + advice in noted.stderr) == (0, True)


async def test_whole_pages_of_a_queue_with_the_longest_name_are_deleted_and_imported(
    nats_server: NatsServer, workers: list[WorkerProcess], nc: Client, tmp_path: Path
) -> None:
    queue, file = "q" * 128, tmp_path / "long.jsonl"
    many = [Message("mail.out", b"", queue=queue, retries=1) for _ in range(600)]
    async with RequeueClient(nc) as client:
        assert all([outcome.ok async for outcome in client.publish_many(many)])
    while await _all_dead(nc) <= DEAD + 600:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    rows = await shown(nats_server, "dead", "delete", queue, "--export", str(file), "--yes")
    assert sum(row["deleted"] for row in rows) == 600
    for said in ({"imported": 600, "known": 0, "refused": 0}, {"imported": 0, "known": 600, "refused": 0}):
        assert await shown(nats_server, "dead", "import", str(file)) == [said]


async def test_a_file_with_bad_lines_is_told_line_by_line_and_the_others_are_imported(
    nats_server: NatsServer, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "mail.jsonl"
    done = await run("dead", "export", "mail", "--to", str(file), "--server", nats_server.url)
    assert (done.returncode, done.stderr) == (0, b"exported: 40\n")
    printed = await run("dead", "export", "mail", "--server", nats_server.url)
    assert sorted(printed.stdout.splitlines()) == sorted(file.read_bytes().splitlines())
    again = await run("dead", "export", "mail", "--to", str(file), "--server", nats_server.url)
    assert (again.returncode, b"there already" in again.stderr) == (2, True)
    [row] = await shown(nats_server, "dead", "import", str(file))
    assert row == {"imported": 0, "known": DEAD, "refused": 0}, "what is dead on either worker stays there"
    assert len(await shown(nats_server, "dead", "list", "mail")) == DEAD
    await shown(nats_server, "dead", "delete", "mail", "--yes")

    lines = file.read_text().splitlines()
    lines[3] = "no JSON"
    lines[7] = lines[7].replace('"subject":"mail.out"', '"subject":"_INBOX.a"')
    lines[-1] = lines[-1][:100]
    lines.insert(5, "")
    file.write_text("\n".join(lines))
    done = await run("dead", "import", str(file), "-o", "json", "--server", nats_server.url)
    assert done.returncode == 1
    assert json.loads(done.stdout) == [{"imported": DEAD - 3, "known": 0, "refused": 3}]
    told = done.stderr.decode().splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in told] == ["line 4", "line 9", "line 41"]
    assert "Invalid JSON" in told[0]
    assert "_INBOX.> is denied" in told[1]
