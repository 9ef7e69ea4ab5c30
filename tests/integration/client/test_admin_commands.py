"""`requeue instances|queues|stats|list|peek|show` as users run them, with real workers; contexts; exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from nats.aio.client import Client
from requeue_client import Message, RequeueClient
from requeue_client.cli import main

from tests.integration.client.test_command import run
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory

LATER = 40


async def shown(server: NatsServer, *args: str, code: int = 0, says: bytes = b"") -> Any:
    """What a command prints as JSON; it ends with this code and says this on standard error, and nothing else.

    In this process, since a start of Python costs half a second: `run` shows that each command is one.
    """
    done = await asyncio.to_thread(CliRunner().invoke, main, [*args, "-o", "json", "--server", server.url])
    said = done.stderr_bytes or b""
    assert (done.exit_code, says in said, bool(said)) == (code, True, bool(says)), (done, done.output)
    return json.loads(done.stdout)


@pytest.fixture
async def two_workers(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    """Two workers that hold LATER messages in `mail` and a dead letter in `lost` between them."""
    config = tmp_path / "worker.yaml"
    config.write_text("reconnect_grace: 0s")
    for instance in ("worker-0", "worker.1"):
        args = ("--instance-id", instance, "--config", str(config))
        await asyncio.to_thread(worker_factory, nats_server, *args)
    async with RequeueClient(nc) as client:
        messages = [
            Message("mail.out", b"payload %d" % n, queue="mail", delay="1h", msg_id=f"m{n}")
            for n in range(LATER)
        ]
        assert all([outcome.ok async for outcome in client.publish_many(messages)])
        await client.publish("nobody.here", b"\xff\x00", queue="lost", retries=1, headers={"Trace": "t1"})
    while not await shown(nats_server, "list", "--state", "dead"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_instances_and_queues_are_summed_over_all_workers_and_shown_for_each(
    nats_server: NatsServer, two_workers: None
) -> None:
    instances = await shown(nats_server, "instances")
    assert [row["instance"] for row in instances] == ["worker-0", "worker.1"]
    assert sum(row["pending"] for row in instances) == LATER
    lost, mail = await shown(nats_server, "queues")
    assert (mail["name"], mail["pending"], mail["dead"]) == ("mail", LATER, 0)
    assert (lost["name"], lost["pending"], lost["dead"]) == ("lost", 0, 1)
    each = await shown(nats_server, "queues", "mail", "--each")
    assert [row["instance"] for row in each] == ["worker-0", "worker.1"]
    assert sum(row["pending"] for row in each) == LATER
    [alone] = await shown(nats_server, "queues", "mail", "--instance", "worker.1")
    assert alone["pending"] == each[1]["pending"]


async def test_stats_tell_totals_and_watching_tells_rates(nats_server: NatsServer, two_workers: None) -> None:
    totals = await shown(nats_server, "stats")
    assert (totals["instances"], totals["intake_messages"]) == (2, LATER + 1)
    [lost] = [queue for queue in totals["queues"] if queue["name"] == "lost"]
    assert [queue["accepted"] for queue in totals["queues"]] == [1, LATER]
    assert (lost["replays"] - lost["held"], lost["dead"], lost["dead_by_reason"]) == (1, 1, {"exhausted": 1})
    args = ["stats", "--watch", "--interval", "50ms", "--times", "2"]
    done = await run(*args, "-o", "json", "--server", nats_server.url)
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [look["instances"] for look in looks] == [2, 2]
    assert all(queue["accepted"] == queue["replays"] == 0 for look in looks for queue in look["queues"])
    drawn = await run(*args, "--server", nats_server.url)
    assert drawn.returncode == 0
    assert b"ACCEPTED/s" in drawn.stdout


async def test_all_messages_of_all_workers_are_listed_and_limits_hold(
    nats_server: NatsServer, two_workers: None
) -> None:
    rows = await shown(nats_server, "list", "--limit", "0")
    assert {row["client_id"] for row in rows} == {f"m{n}" for n in range(LATER)}
    assert [row["due_ns"] for row in rows] == sorted(row["due_ns"] for row in rows)
    assert await shown(nats_server, "list", "mail", "--limit", "3") == rows[:3]
    assert await shown(nats_server, "list", "--older", "1h") == []
    assert len(await shown(nats_server, "list", "--newer", "1h", "--subject", "mail.*")) == LATER
    [dead] = await shown(nats_server, "list", "lost", "--state", "dead", "--reason", "exhausted")
    assert dead["subject"] == "nobody.here"


async def test_no_more_pages_are_asked_for_than_the_limit_needs(
    nats_server: NatsServer, two_workers: None, nc: Client
) -> None:
    assert len(await shown(nats_server, "list", "mail", "--limit", "2")) == 2
    stats = json.loads((await nc.request("$SRV.STATS.requeue.worker-0", timeout=20)).data)
    [followed] = [each for each in stats["endpoints"] if each["name"] == "list-one"]
    assert followed["num_requests"] == 0


async def test_a_message_is_peeked_and_shown_for_people(nats_server: NatsServer, two_workers: None) -> None:
    peeked = await run("peek", "mail", "--limit", "2", "--server", nats_server.url)
    assert peeked.stdout.count(b"  payload ") == 2
    [dead] = await shown(nats_server, "peek", "lost", "--state", "dead")
    done = await run("show", dead["id"], "--server", nats_server.url)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert f"instance:    {dead['instance']}" in text
    assert "payload:     2 bytes: ff 00" in text
    assert "  Trace: t1" in text
    assert "no responders" in text.partition("history:")[2]
    [detail] = await shown(nats_server, "show", "m7")
    assert (detail["client_id"], detail["state"]) == ("m7", "pending")


async def test_tables_and_yaml_say_the_same(nats_server: NatsServer, two_workers: None) -> None:
    table = (await run("queues", "--server", nats_server.url)).stdout.decode()
    assert [line.split()[:2] for line in table.splitlines() if line.split()[:1] in (["lost"], ["mail"])] == [
        ["lost", "0"],
        ["mail", str(LATER)],
    ]
    done = await run("queues", "-o", "yaml", "--server", nats_server.url)
    assert [row["name"] for row in yaml.safe_load(done.stdout)] == ["lost", "mail"]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["show", "nothing"], 6, b"no message has the id nothing"),
        (["peek", "nothing"], 6, b""),
        (["queues", "nothing"], 6, b""),
        (["list", "--older", "soon"], 2, b"older"),
        (["list", "--subject", "a..b"], 2, b"not a subject pattern"),
        (["queues", "--instance", "nobody"], 3, b"_requeue.admin.queues.nobody"),
        (["queues", "--context", "nothing"], 2, b"no context 'nothing'"),
    ],
)
async def test_exit_codes_are_those_of_the_page(
    nats_server: NatsServer, worker_factory: WorkerFactory, args: list[str], code: int, text: bytes
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    done = await run(*args, "--server", nats_server.url)
    assert (done.returncode, text in done.stderr) == (code, True), done


async def test_of_no_worker_it_says_so(nats_server: NatsServer) -> None:
    done = await run("queues", "--server", nats_server.url)
    assert done.returncode == 3
    assert b"no worker listens on _requeue.admin.queues" in done.stderr


async def test_markup_and_control_characters_of_strangers_do_nothing(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    async with RequeueClient(nc) as client:
        await client.publish("a.[bold]", b"\x1b[2Jgone", delay="1h")
    listed = await run("list", "--server", nats_server.url)
    assert b"a.[bold]" in listed.stdout
    peeked = await run("peek", "default", "--server", nats_server.url)
    assert b"\x1b" not in peeked.stdout
    assert b"[2Jgone" in peeked.stdout


# -- completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "offered"), [("requeue pe", "peek"), ("requeue list --st", "--state")])
def test_bash_completes_commands_and_options(words: str, offered: str) -> None:
    binaries = Path(sys.executable).parent
    script = f"""
        eval "$(requeue completion bash)"
        COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}
        _requeue_completion requeue
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.decode().split() == [offered]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("top --sort l", ["late"]),
        ("dead im", ["import"]),
        ("dead delete --ex", ["--export"]),
        ("dead redrive mail --to-", ["--to-subject"]),
        ("publish --fi", ["--file"]),
        ("purge mail --dry", ["--dry-run"]),
        ("re", ["resume", "reschedule"]),
        ("subscribe orders.new --fail", ["--fail-rate"]),
        ("doctor -o y", ["yaml"]),
    ],
)
def test_what_a_shell_is_offered_knows_every_command(words: str, offered: list[str]) -> None:
    *args, begun = words.split()
    completion = ShellComplete(main, {}, "requeue", "_REQUEUE_COMPLETE")
    assert [each.value for each in completion.get_completions(args, begun)] == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_a_script_of_each_shell_asks_the_command_itself(shell: str) -> None:
    done = await run("completion", shell)
    assert done.returncode == 0
    assert f"_REQUEUE_COMPLETE={shell}_complete".encode() in done.stdout


# -- contexts of the nats command ----------------------------------------------------------------------------------

ACCOUNTS = """
authorization { users: [ { user: worker, password: w }, { user: ops, password: "o p s" } ] }
"""


def in_context(home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = str(Path(sys.executable).parent / "requeue")
    environ = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": "", **environ}
    return subprocess.run([command, *args], env=environ, capture_output=True, check=False, timeout=60)


async def test_a_context_gives_servers_and_login_and_options_go_before_it(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(config=ACCOUNTS)
    secret = tmp_path / "password"
    secret.write_text("w")
    login = ("--user", "worker", "--password-file", str(secret))
    await asyncio.to_thread(worker_factory, server, *login)
    contexts = tmp_path / ".config/nats/context"
    contexts.mkdir(parents=True)
    (contexts / "ops.json").write_text(
        json.dumps({"url": server.url, "user": "ops", "password": "o p s", "description": "", "creds": ""})
    )
    (contexts / "broken.json").write_text("{")

    async def call(*args: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        return await asyncio.to_thread(in_context, tmp_path, *args, **environ)

    assert (await call("instances", "--context", "ops")).returncode == 0
    assert (await call("instances", NATS_CONTEXT="ops")).returncode == 0
    assert (await call("publish", "a.b", "--context", "ops")).returncode == 0
    assert (await call("instances", "--context", "ops", *login)).returncode == 0
    assert (await call("instances", "--context", "ops", "--server", "nats://127.0.0.1:1")).returncode == 3
    unknown = await call("instances", "--context", "opps")
    assert unknown.returncode == 2
    assert b"there are: broken, ops" in unknown.stderr
    broken = await call("publish", "a.b", "--context", "broken")
    assert broken.returncode == 2
    assert b"broken.json" in broken.stderr
