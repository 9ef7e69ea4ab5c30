from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from requeue_worker import logs


@pytest.fixture(autouse=True)
def root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def written(log_format: logs.LogFormat, level: logs.LogLevel = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, log_format, stream)
    return stream


log = logging.getLogger("requeue_worker.test")


def test_text_puts_the_fields_behind_the_sentence() -> None:
    stream = written("text")
    log.info("replay refused", extra={"queue": "orders", "error": "no stock left", "held": None})
    line = stream.getvalue()
    assert line.endswith(
        'Z INFO    requeue_worker.test: replay refused queue=orders error="no stock left" held=null\n'
    )


def test_json_makes_each_field_a_key() -> None:
    stream = written("json")
    log.warning("replay %s", "refused", extra={"queue": "orders", "attempt": 3})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "requeue_worker.test",
        "message": "replay refused",
        "queue": "orders",
        "attempt": 3,
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_payload_never_reaches_the_log(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    log.info("stored", extra={"payload": b"card 4111", "parts": [b"card 4111", memoryview(b"card")]})
    assert "card" not in stream.getvalue()
    assert "<9 bytes>" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_text_from_outside_cannot_break_a_line_or_reach_the_terminal(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    log.info("handler said: %s", "a\nFATAL b", extra={"error": "x\r\n\x1b[2J\u202e \ud800"})
    assert stream.getvalue().count("\n") == 1
    assert not {"\r", "\x1b", "\u202e", "\ud800"} & set(stream.getvalue())


def test_a_long_field_is_cut() -> None:
    stream = written("json")
    log.info("refused", extra={"error": "x" * 5000})
    assert len(json.loads(stream.getvalue())["error"]) < 1100


def test_a_field_never_hides_the_level() -> None:
    stream = written("json")
    log.info("odd", extra={"level": "none", "time": "never"})
    line = json.loads(stream.getvalue())
    assert line["level"] == "info"
    assert line["time"] != "never"


def test_numbers_that_json_does_not_know_become_text() -> None:
    stream = written("json")
    log.info("rate", extra={"rate": float("inf"), "by": {1: float("nan")}})
    line = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert (line["rate"], line["by"]) == ("inf", {"1": "nan"})


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_is_kept(log_format: logs.LogFormat, tmp_path: Path) -> None:
    stream = written(log_format)
    try:
        (tmp_path / "gone").read_bytes()
    except OSError:
        log.exception("commit failed", extra={"messages": 4})
    assert "FileNotFoundError" in stream.getvalue()


def test_the_level_is_a_floor_and_debug_opens_the_libraries_too() -> None:
    stream = written("text", "warning")
    log.info("not now")
    assert not stream.getvalue()
    assert not logging.getLogger("nats.aio.client").isEnabledFor(logging.INFO)
    written("text", "debug")
    assert logging.getLogger("nats.aio.client").isEnabledFor(logging.DEBUG)


def test_configuring_twice_does_not_double_the_lines() -> None:
    written("text")
    stream = written("text")
    log.info("once")
    assert stream.getvalue().count("once") == 1
