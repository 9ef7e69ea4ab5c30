"""The web view in a real Chromium, on real workers: what people see, and what a hostile message can't do."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg
from playwright.async_api import Page, expect
from requeue_client import Message
from requeue_protocol.dead_letters import DeadLetter

from tests.browser.view import later, publish, start_views
from tests.integration.client.test_command import run
from tests.servers import NatsServer, WorkerFactory, settle

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


async def test_queues_of_all_instances_are_summed_sorted_filtered_and_paged(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    address, _ = await start_views(worker_factory, nats_server, tmp_path, ("worker-0", "worker.1"))
    many = [later(f"queue-{n:04}", "jobs.a", n) for n in range(1000)]
    await publish(nc, many + [later("mail", "mail.out", n) for n in range(40)])
    await page.goto(address)
    await expect(page.get_by_text("1,001 queues")).to_be_visible()
    await expect(page.get_by_text("2 of 2")).to_be_visible()
    await expect(page.locator("tbody tr")).to_have_count(50)
    await page.get_by_role("button", name="Pending").click()
    await expect(page.locator("tbody tr").first).to_contain_text("mail")
    await expect(page.locator("tbody tr").first.locator("td").first).to_have_text("40")
    await page.get_by_role("button", name="Next", exact=True).click()
    await expect(page.get_by_text("page 2 of 21")).to_be_visible()
    await page.get_by_label("Filter").fill("queue-077")
    await expect(page.get_by_text("10 queues")).to_be_visible()
    await page.get_by_role("link", name="queue-0777").click()
    await expect(page.get_by_role("heading")).to_have_text("Pending of queue-0777")
    await expect(page.locator("tbody tr")).to_have_count(1)


async def test_what_changes_is_seen_without_a_reload(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(worker_factory, nats_server, tmp_path, ("worker-0",))
    await page.goto(address)
    await expect(page.get_by_text("0 queues")).to_be_visible()
    await publish(nc, [later("mail", "mail.out", 1)])
    await expect(page.get_by_role("link", name="mail")).to_be_visible()
    await expect(page.locator("thead th").nth(5)).to_have_text("In/s")
    coming_in = page.locator("tbody td").nth(4)
    while await coming_in.inner_text() in ("–", "0"):
        await publish(nc, [later("mail", "mail.out", 2)])
        await asyncio.sleep(0.2)


async def test_nothing_in_a_message_becomes_markup_or_script(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(worker_factory, nats_server, tmp_path, ("worker-0",))

    async def end(msg: Msg) -> None:
        await msg.respond(b"+TERM " + HOSTILE.encode())

    subject = "jobs.<img/src=x/onerror=document.title='owned'>"
    await nc.subscribe("jobs.>", cb=end)
    await settle(nc)
    headers = {"Note": HOSTILE}
    await publish(nc, [Message(subject, HOSTILE.encode(), queue="bad", msg_id=HOSTILE, headers=headers)])
    await page.goto(f"{address}/ui/#/messages?state=dead")
    row = page.locator("tbody tr")
    while not await row.count():
        await page.get_by_role("button", name="Show", exact=True).click()
        await asyncio.sleep(0.2)
    await expect(row).to_contain_text(subject)
    await expect(row).to_contain_text(HOSTILE)
    await row.get_by_role("link").click()
    await expect(page.locator("pre").first).to_have_text(HOSTILE)
    await expect(page.locator("main")).to_contain_text(f"Nats-Msg-Id{HOSTILE}")
    await page.goto(f"{address}/ui/#/messages?queue={HOSTILE.replace('#', '')}&reason={HOSTILE}")
    await expect(page.get_by_role("heading")).to_contain_text("<img src=x")
    assert await page.locator("img, main script").count() == 0
    assert await page.title() == "requeue"


async def test_dead_letters_are_counted_confirmed_and_redriven_from_all_instances(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    views = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0", "worker-1"), "--web-changes", "true"
    )
    await publish(nc, [Message("nobody.here", b"%d" % n, queue="lost", retries=1) for n in range(30)])
    await publish(nc, [Message("nobody.else", b"x", queue="other", retries=1)])
    await page.goto(views[0])
    await expect(page.get_by_role("link", name="30", exact=True)).to_be_visible()
    handled: list[bytes] = []

    async def handle(msg: Msg) -> None:
        handled.append(msg.data)
        await msg.respond(b"")

    await nc.subscribe("nobody.here", cb=handle)
    await settle(nc)
    await page.get_by_role("link", name="30", exact=True).click()
    await expect(page.locator("tbody tr")).to_have_count(30)
    await expect(page.locator("tbody tr").first).to_contain_text("exhausted")
    await page.get_by_role("button", name="Redrive these").click()
    await expect(page.get_by_role("status")).to_contain_text("30 messages")
    await page.get_by_role("button", name="Redrive", exact=True).click()
    await expect(page.get_by_role("heading", name="Redrives")).to_be_visible()
    await expect(page.locator("tbody tr", has_text="done")).to_have_count(2)
    async with asyncio.timeout(20):
        while len(handled) < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert sorted(map(int, handled)) == list(range(30))
    await page.get_by_role("link", name="Dead letters").click()
    await expect(page.locator("tbody tr")).to_have_count(1)


async def test_refused_messages_are_left_out_of_a_redrive_and_it_says_so(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0",), "--web-changes", "true"
    )
    await publish(nc, [Message("nobody.here", b"x", queue="lost", retries=1) for _ in range(3)])
    await nc.request("requeue.x", b"x", headers={"Requeue-Subject": "_INBOX.a"}, timeout=20)
    await page.goto(address)
    await expect(page.get_by_role("link", name="3", exact=True)).to_be_visible()
    for query, says in (("", "3 messages, "), ("&queue=$invalid", "0 messages, ")):
        await page.goto(f"{address}/ui/#/messages?state=dead{query}")
        await page.get_by_role("button", name="Redrive these").click()
        status = page.get_by_role("status")
        await expect(status).to_contain_text(says)
        await expect(status).to_contain_text("Refused messages stay: export them")
        enabled = await page.get_by_role("button", name="Redrive", exact=True).is_enabled()
        assert enabled == (says[0] == "3")
        await page.get_by_role("button", name="Cancel", exact=True).click()


async def test_a_queue_is_purged_after_it_was_counted_and_its_name_was_typed(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address, _] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0", "worker-1"), "--web-changes", "true"
    )
    await publish(nc, [later("mail", "mail.out", n) for n in range(30)] + [later("kept", "mail.out", 1)])
    await page.goto(address)
    await page.get_by_role("button", name="Purge mail").click()
    await expect(page.get_by_role("status")).to_have_text("30 messages are removed.")
    purge = page.get_by_role("button", name="Purge", exact=True)
    await expect(purge).to_be_disabled()
    await page.get_by_label("Type mail").fill("mai")
    await expect(purge).to_be_disabled()
    await page.get_by_label("Type mail").fill("mail")
    await purge.click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    row = page.locator("tbody tr", has_text="mail")
    await expect(row.locator("td").first).to_have_text("0")
    await expect(page.locator("tbody tr", has_text="kept").locator("td").first).to_have_text("1")


async def test_chosen_dead_letters_are_deleted_and_the_others_stay(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address, _] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0", "worker-1"), "--web-changes", "true"
    )
    await publish(nc, [Message("nobody.here", b"%d" % n, queue="lost", retries=1) for n in range(20)])
    await page.goto(address)
    await page.get_by_role("link", name="20", exact=True).click()
    await expect(page.locator("tbody tr")).to_have_count(20)
    await page.get_by_role("button", name="Choose all shown").click()
    left = page.locator("tbody tr").nth(7)
    message = await left.get_by_role("link").inner_text()
    await left.get_by_role("checkbox").uncheck()
    await page.get_by_role("button", name="Delete 19").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator("tbody tr")).to_have_count(1)
    await expect(page.locator("tbody tr").get_by_role("link")).to_have_text(message)


async def test_chosen_messages_are_cancelled_with_and_without_an_id_of_their_publisher(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0",), "--web-changes", "true"
    )
    without = [Message("mail.out", b"x", queue="mail", delay="2h") for _ in range(2)]
    await publish(nc, [later("mail", "mail.out", n) for n in range(2)] + without)
    await page.goto(f"{address}/ui/#/messages?queue=mail")
    await expect(page.locator("tbody tr")).to_have_count(4)
    kept = [await page.locator("tbody tr").nth(n).get_by_role("link").inner_text() for n in (0, 3)]
    for number in (1, 2):
        await page.locator("tbody tr").nth(number).get_by_role("checkbox").check()
    await page.get_by_role("button", name="Cancel 2").click()
    await page.get_by_role("button", name="Cancel them").click()
    await expect(page.locator("tbody tr")).to_have_count(2)
    assert [await each.inner_text() for each in await page.locator("tbody tr a").all()] == kept


async def test_an_export_of_dead_letters_is_a_file_that_the_command_imports(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address, _] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0", "worker-1"), "--web-changes", "true"
    )
    payloads = [b'{"a": "}]\\"}', b"\xff\x00", b"x" * 900_000]
    headers = {"Note": 'with "quotes" and \\'}
    lost = [Message("nobody.here", each, queue="lost", retries=1, headers=headers) for each in payloads]
    await publish(nc, [*lost, Message("nobody.else", b"x", queue="other", retries=1)])
    await page.goto(address)
    await page.get_by_role("link", name="3", exact=True).click()
    await expect(page.locator("tbody tr")).to_have_count(3)
    await page.get_by_role("button", name="Export these").click()
    async with page.expect_download() as started:
        await page.get_by_role("button", name="Export", exact=True).click()
    download = await started.value
    assert download.suggested_filename == "dead-letters.jsonl"
    await download.save_as(tmp_path / "letters.jsonl")
    letters = [DeadLetter.model_validate_json(line) for line in (tmp_path / "letters.jsonl").open("rb")]
    assert {b64decode(letter.payload) for letter in letters} == set(payloads)
    assert {"Note: " + headers["Note"] in str(letter.headers) for letter in letters} == {True}
    done = await run(
        "dead", "import", str(tmp_path / "letters.jsonl"), "-o", "json", "--server", nats_server.url
    )
    assert json.loads(done.stdout) == [{"imported": 0, "known": 3, "refused": 0}], "each is the very same"


async def test_a_queue_is_paused_and_resumed(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(
        worker_factory, nats_server, tmp_path, ("worker-0",), "--web-changes", "true"
    )
    await publish(nc, [later("mail", "mail.out", 1)])
    await page.goto(address)
    await page.get_by_role("button", name="Pause mail").click()
    await page.get_by_label("For").fill("soon")
    await page.get_by_role("button", name="Pause", exact=True).click()
    await expect(page.get_by_role("dialog")).to_contain_text("no duration")
    await page.get_by_label("For").fill("10m")
    await page.get_by_role("button", name="Pause", exact=True).click()
    await expect(page.get_by_text(re.compile("ends in (9|10) min"))).to_be_visible()
    await page.get_by_role("button", name="Resume mail").click()
    await page.get_by_role("button", name="Resume", exact=True).click()
    await expect(page.get_by_role("button", name="Pause mail")).to_be_visible()


async def test_a_view_that_only_shows_offers_no_change(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    args = ("--web-changes", "true", "--admin-read-only", "true")
    for number, more in enumerate(((), args)):
        [address] = await start_views(worker_factory, nats_server, tmp_path, (f"worker-{number}",), *more)
        await publish(nc, [later("mail", "mail.out", number)])
        await page.goto(address)
        await expect(page.get_by_role("link", name="mail")).to_be_visible()
        assert await page.get_by_role("button", name=re.compile("(Pause|Purge) mail")).count() == 0
        await page.goto(f"{address}/ui/#/messages?queue=mail")
        await expect(page.locator("tbody tr")).to_have_count(number + 1)
        assert await page.get_by_role("checkbox").count() == 0
        await page.goto(f"{address}/ui/#/messages?state=dead")
        await expect(page.get_by_text("0 shown")).to_be_visible()
        offered = re.compile("Redrive|Export|Choose|Delete|Cancel")
        assert await page.get_by_role("button", name=offered).count() == 0


async def test_a_phone_has_no_sideways_scroll_and_keys_reach_everything(
    page: Page, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    [address] = await start_views(worker_factory, nats_server, tmp_path, ("worker-0",))
    await publish(nc, [later("orders.with.a.long.name.that.goes.on", "mail.out", 1)])
    await page.set_viewport_size({"width": 360, "height": 740})
    for path in ("", "messages?state=pending", "instances", "jobs"):
        await page.goto(f"{address}/ui/#/{path}")
        await expect(page.locator("main h1")).to_be_visible()
        await expect(page.locator("main[data-looks]")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
    await page.goto(f"{address}/ui/#/")
    await expect(page.get_by_role("link", name="orders.with")).to_be_visible()
    await page.get_by_role("button", name="Queue").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("th[aria-sort=descending]")).to_contain_text("Queue")
    await expect(page.get_by_role("button", name="Queue")).to_be_focused()
