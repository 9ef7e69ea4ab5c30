from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from requeue_worker.settings import Settings, load_settings
from requeue_worker.watcher import watch_settings

PATIENCE_S = 30


class Directory:
    """A plain directory with one configuration file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True)
        self.file = root / "worker.yaml"

    def write(self, content: str) -> None:
        self.file.write_text(content)


class ConfigMap(Directory):
    """A ConfigMap volume as the kubelet writes it: worker.yaml → ..data/worker.yaml, ..data → ..<version>."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._version = 0
        self.file.symlink_to("..data/worker.yaml")

    def write(self, content: str) -> None:
        old = self.root / f"..version-{self._version}"
        self._version += 1
        new = self.root / f"..version-{self._version}"
        new.mkdir()
        (new / "worker.yaml").write_text(content)
        (self.root / "..data_tmp").symlink_to(new.name)
        (self.root / "..data_tmp").replace(self.root / "..data")
        shutil.rmtree(old, ignore_errors=True)


class Watch:
    """Settings as they arrive, and what was logged meanwhile."""

    def __init__(self, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        self.settings = settings
        self._stream = watch_settings(settings)
        self._caplog = caplog

    async def next(self) -> Settings:
        async with asyncio.timeout(PATIENCE_S):
            return await anext(self._stream)

    async def logged(self, text: str) -> str:
        """Watch on until a line that contains `text` was logged."""
        upcoming = asyncio.ensure_future(anext(self._stream))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (lines := [line for line in self.lines() if text in line]):
                    assert not upcoming.done(), f"changed instead: {upcoming}"
                    await asyncio.sleep(0.01)
            return lines[0]
        finally:
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await upcoming
            await self._stream.aclose()
            self._stream = watch_settings(self.settings)

    def lines(self) -> list[str]:
        return [f"{r.levelname} {r.message} {vars(r)}" for r in self._caplog.records]

    async def close(self) -> None:
        await self._stream.aclose()


@pytest.fixture(params=[Directory, ConfigMap])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    made = request.param(tmp_path / "config")
    assert isinstance(made, Directory)
    made.write("defaults: {retries: 3}\n")
    return made


Start = Callable[..., Awaitable[Watch]]


@pytest.fixture
async def start(directory: Directory, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Start]:
    caplog.set_level(logging.INFO, "requeue_worker")
    watches: list[Watch] = []

    async def begin(**flags: object) -> Watch:
        watches.append(
            Watch(load_settings(directory.file, {"data_dir": "data", **flags}, environ={}), caplog)
        )
        return watches[-1]

    yield begin
    for watch in watches:
        await watch.close()


async def test_a_changed_policy_arrives_again_and_again(directory: Directory, start: Start) -> None:
    watch = await start()
    for retries in (4, 5, 6):
        directory.write(f"defaults: {{retries: {retries}}}\nqueues: [{{name: orders, delay: {retries}s}}]\n")
        settings = await watch.next()
        assert settings.policy_for("orders").retries == retries
        assert settings.policy_for("orders").delay_ns == retries * 1_000_000_000
        assert settings.policy_for("other").delay_ns == 0


async def test_a_change_between_loading_and_watching_is_seen(directory: Directory, start: Start) -> None:
    watch = await start()
    directory.write("defaults: {retries: 9}\n")
    assert (await watch.next()).defaults.retries == 9


async def test_only_policies_are_taken_over(directory: Directory, start: Start) -> None:
    watch = await start()
    directory.write("http: ':9'\nnats: {servers: 'nats://secret@other'}\ndefaults: {retries: 9}\n")
    settings = await watch.next()
    assert settings.defaults.retries == 9
    assert settings.http is None
    assert settings.nats == watch.settings.nats
    line = next(line for line in watch.lines() if "need a restart" in line)
    assert "['nats.servers', 'http']" in line
    assert "secret" not in "".join(watch.lines())


async def test_a_flag_stays_above_a_changed_file(directory: Directory, start: Start) -> None:
    watch = await start(**{"defaults.retries": 7})
    directory.write("defaults: {retries: 9, weight: 5}\n")
    settings = await watch.next()
    assert (settings.defaults.retries, settings.defaults.weight) == (7, 5)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("defaults: {retreis: 9}\n", "did you mean retries?"),
        ("defaults: [\n", "is not YAML"),
        ("\n", "is empty"),
    ],
)
async def test_a_content_with_mistakes_is_logged_and_the_old_one_stays(
    directory: Directory, start: Start, content: str, complaint: str
) -> None:
    watch = await start()
    directory.write(content)
    assert (await watch.logged(complaint)).startswith("ERROR the changed configuration is not used")
    directory.write("defaults: {retries: 9}\n")
    assert (await watch.next()).defaults.retries == 9


async def test_a_file_that_is_gone_is_logged_and_seen_when_it_is_back(
    directory: Directory, start: Start
) -> None:
    watch = await start()
    directory.file.rename(directory.root / "aside")
    await watch.logged("cannot be read: No such file")
    (directory.root / "aside").rename(directory.file)
    directory.write("defaults: {retries: 9}\n")
    assert (await watch.next()).defaults.retries == 9


async def test_a_change_that_says_the_same_wakes_nobody(directory: Directory, start: Start) -> None:
    watch = await start()
    directory.write("# a comment\ndefaults: {retries: 3}\n")
    directory.write("defaults: {retries: 3}\nlog_level: debug\n")
    await watch.logged("need a restart")
    directory.write("defaults: {retries: 9}\n")
    assert (await watch.next()).defaults.retries == 9


async def test_a_file_behind_a_symlink_is_seen_when_its_target_is_edited(tmp_path: Path) -> None:
    target = Directory(tmp_path / "elsewhere")
    target.write("defaults: {retries: 3}\n")
    link = tmp_path / "worker.yaml"
    link.symlink_to(target.file)
    stream = watch_settings(load_settings(link, {"data_dir": "data"}, environ={}))
    upcoming = asyncio.ensure_future(anext(stream))
    target.write("defaults: {retries: 9}\n")
    async with asyncio.timeout(PATIENCE_S):
        assert (await upcoming).defaults.retries == 9
    await stream.aclose()


@pytest.mark.parametrize(
    "settings", [Settings(data_dir=Path("data")), load_settings(None, {"data_dir": "d"})]
)
async def test_without_a_file_the_watch_ends_at_once(settings: Settings) -> None:
    assert [changed async for changed in watch_settings(settings)] == []
