"""`requeue publish --file` as users run it, with a real worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

from tests.integration.client.test_admin_commands import shown
from tests.integration.client.test_command import run
from tests.integration.client.test_subscribe import REQUEUE
from tests.servers import NatsServer, WorkerFactory, until


def written(path: Path, count: int) -> Path:
    lines = [{"payload": str(n), "queue": "bulk", "delay": "1h"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def pending(server: NatsServer) -> int:
    [row] = await shown(server, "queues", "bulk")
    assert isinstance(row["pending"], int)
    return row["pending"]


async def test_a_kill_in_the_middle_and_a_second_run_put_each_line_on_disk_once(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    file, note = written(tmp_path / "lines", 30_000), tmp_path / "lines.acked"
    args = ["publish", "bulk.a", "--file", str(file), "--server", nats_server.url]
    child = subprocess.Popen([REQUEUE, *args], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
    await until(lambda: note.exists() and note.stat().st_size > 30_000)
    child.kill()
    child.wait()
    assert note.exists()
    done = await run(*args)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"were before" in done.stdout
    assert await pending(nats_server) == 30_000
    assert not note.exists()


async def test_a_bad_line_is_told_by_its_number_and_the_others_go_on(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    file = written(tmp_path / "lines", 3)
    whole = file.read_text()
    file.write_text(whole + '{"payload": 3, "quue": "bulk"}\nno json\n{"delay": "soon"}\n')
    args = ["publish", "bulk.a", "--file", str(file), "--server", nats_server.url]
    done = await run(*args)
    assert done.returncode == 2
    assert done.stdout == b"on disk: 3 messages, 3 failed\n"
    assert b"line 4: payload: Input should be a valid string; quue: Extra inputs" in done.stderr
    assert b"line 5: " in done.stderr
    assert b"line 6: " in done.stderr
    file.write_text(whole)
    assert (await run(*args)).stdout == b"on disk: 0 messages, 3 were before\n"
    assert await pending(nats_server) == 3


async def test_the_same_file_again_while_it_is_pending_adds_nothing_and_says_so(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    args = ["publish", "bulk.a", "--file", str(written(tmp_path / "lines", 3)), "--server", nats_server.url]
    assert (await run(*args)).stdout == b"on disk: 3 messages\n"
    again = await run(*args)
    assert again.stdout == b"on disk: 3 messages, 3 of them were pending already under the same id\n"
    assert await pending(nats_server) == 3


async def test_lines_come_from_standard_input_too(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    lines = b'{"subject": "bulk.a", "queue": "bulk", "delay": "1h", "payload_base64": "/w=="}\n'
    done = await run("publish", "--file", "-", "--server", nats_server.url, stdin=lines)
    assert done.stdout == b"on disk: 1 messages\n"
    assert await pending(nats_server) == 1


async def test_a_wrong_option_sends_nothing() -> None:
    for args in (["--file", "nowhere"], [], ["--file", "-", "--queue", "x"]):
        assert (await run("publish", *args)).returncode == 2
