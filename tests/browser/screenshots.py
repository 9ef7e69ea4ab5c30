"""`make screenshots`: pictures of the web view for the docs, of real workers with messages of a made-up shop."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from playwright.async_api import Browser, Page, async_playwright
from requeue_client import Message
from requeue_client.local import NatsServer, WorkerProcess

from tests.browser.conftest import chromium
from tests.browser.view import CONFIG, address_of, later, publish
from tests.servers import settle

IMAGES = Path(__file__).parents[2] / "docs/img"
MOST_BYTES = 150_000
QUEUES = ("billing", "emails", "invoices", "orders", "parcels", "refunds", "reports", "search", "webhooks")


async def fill(nc: Client) -> None:
    """Pending, failing and dead messages."""

    async def refuse(msg: Msg) -> None:
        await msg.respond(b"+TERM the card was declined")

    await nc.subscribe("billing.charge", cb=refuse)
    await settle(nc)
    for number, queue in enumerate(QUEUES):
        await publish(nc, [later(queue, f"{queue}.created", n) for n in range(40 * number + 12)])
    payload = b'{"order": 4711, "amount": "17.00 EUR"}'
    await publish(nc, [Message("billing.charge", payload, queue="billing", retries=3) for _ in range(6)])
    await publish(nc, [Message("webhooks.send", payload, queue="webhooks", retries=1) for _ in range(9)])


async def keep_busy(nc: Client) -> None:
    """A rate to be seen: handled messages, until it is cancelled."""

    async def handle(msg: Msg) -> None:
        await msg.respond(b"")

    await nc.subscribe("emails.send", cb=handle)
    while True:
        await publish(nc, [Message("emails.send", b"{}", queue="emails") for _ in range(40)])
        await asyncio.sleep(0.2)


async def take(page: Page, address: str, path: str, name: str, ready: str) -> None:
    await page.goto(f"{address}/ui/#/{path}")
    await page.get_by_text(ready).first.wait_for()
    await page.wait_for_timeout(4500 if not path else 300)  # two looks, for rates
    file = IMAGES / f"{name}.png"
    await page.screenshot(path=file)
    size = file.stat().st_size
    assert size < MOST_BYTES, f"{file} has {size} bytes"
    print(f"{file.relative_to(IMAGES.parents[1])}: {size:,} bytes")


async def shoot(browser: Browser, address: str) -> None:
    page = await browser.new_page(viewport={"width": 1180, "height": 640})
    await take(page, address, "", "web-queues", "webhooks")
    await take(page, address, "messages?state=dead", "web-dead", "exhausted")
    await page.get_by_role("button", name="Redrive these").click()
    await page.get_by_text("become pending again").wait_for()
    await page.screenshot(path=IMAGES / "web-redrive.png")
    dark = await browser.new_page(viewport={"width": 390, "height": 700}, color_scheme="dark")
    await take(dark, address, "", "web-phone", "webhooks")


async def main() -> None:
    """Start everything, take the pictures, end everything."""
    path = chromium()
    if path is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "worker.yaml").write_text(CONFIG)
        server = NatsServer(root / "nats").start()
        args = ("--config", str(root / "worker.yaml"), "--web", "127.0.0.1:0", "--web-changes", "true")
        workers = [
            WorkerProcess(
                server.url,
                root / name,
                args=("--instance-id", name, *args),
                log_file=root / f"{name}.log",
            ).start()
            for name in ("orders-0", "orders-1")
        ]
        nc = await nats.connect(server.url)
        try:
            await fill(nc)
            busy = asyncio.create_task(keep_busy(nc))
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                await shoot(browser, address_of(workers[0].log))
                await browser.close()
            busy.cancel()
        finally:
            await nc.close()
            for worker in workers:
                worker.stop()
            server.stop()


if __name__ == "__main__":
    asyncio.run(main())
