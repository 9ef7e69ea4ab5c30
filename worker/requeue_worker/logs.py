"""Log set-up of the worker process: one line per event, on standard error, as text or JSON.

Modules log with the standard library: a fixed sentence as the message, and the facts as `extra` fields,

    log.warning("replay refused", extra={"queue": name, "subject": subject, "attempt": 3})

Text puts the fields behind the sentence as `key=value`; JSON makes each a key of its own. Payloads have no
place in a log: a field that holds bytes is shown as its length, whatever a caller passes. Text from outside
(a handler's error, say) can neither break a line nor reach the terminal's control codes.

Only the console command configures logging; a worker that is embedded leaves it to its host.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_BARE_LIMIT_CHARS: Final = 1024


def configure(level: LogLevel, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send every log record of the process to `stream` (standard error), replacing earlier handlers."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Third parties report what this worker reports itself, with fields: their chatter is kept for debugging.
    for name in ("asyncio", "aiohttp.access", "nats", "watchfiles"):
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # It logs every check of its own, also under debug.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What the caller gave as `extra`, safe to print: bytes as their length, long text cut."""
    return {key: _plain(value) for key, value in vars(record).items() if key not in _STANDARD}


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    text = str(value)
    return text if len(text) <= _BARE_LIMIT_CHARS else text[:_BARE_LIMIT_CHARS] + "…"


def _time_of(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


class _Text(logging.Formatter):
    """`2026-11-23T18:53:00.123Z INFO    requeue_worker.app: started queue=orders` and a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time_of(record)} {record.levelname:<7} {record.name}: {_one_line(record.getMessage())}"
        fields = "".join(f" {key}={_bare(value)}" for key, value in fields_of(record).items())
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return head + fields + trace


class _Json(logging.Formatter):
    """One JSON object a line: `time, level, logger, message`, then the fields, then `exc_info`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # A field never hides the four keys that every reader of these logs relies on.
        line |= {key: value for key, value in fields_of(record).items() if key not in line}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _bare(value: object) -> str:
    """A field's value for text: bare when that is unambiguous, else quoted as JSON."""
    if isinstance(value, str):
        plain = value.isprintable() and value and not set(value) & set(' "=')
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    return json.dumps(value)
