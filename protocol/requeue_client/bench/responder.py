"""Load out: answers every delivery at once, and remembers when it came."""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from dataclasses import dataclass, field

from requeue_client.bench.messages import ORIGINAL_SUBJECT, STAMP
from requeue_client.bench.wire import Wire

_SID = 2
_HMSG = re.compile(rb"HMSG \S+ \d+ (\S+) \d+ (\d+)\r\n")
_MSG = re.compile(rb"MSG \S+ \d+ (\S+) (\d+)\r\n")


@dataclass(slots=True)
class Delivered:
    """What was delivered. Lateness in ns against the due instant in the payload: negative is early."""

    lateness_ns: array[int] = field(default_factory=lambda: array("q"))
    numbers: set[int] = field(default_factory=set)
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def count(self) -> int:
        """Deliveries, repeats included."""
        return len(self.lateness_ns)

    @property
    def duplicates(self) -> int:
        """Deliveries of a message that had been delivered before."""
        return self.count - len(self.numbers)

    @property
    def early(self) -> int:
        """Deliveries before their instant: always a defect."""
        return sum(late < 0 for late in self.lateness_ns)

    @property
    def rate_per_s(self) -> float:
        """Deliveries per second, from the first to the last."""
        seconds = self.last_s - self.first_s
        return self.count / seconds if seconds > 0 else 0.0

    @property
    def rate_since_due_per_s(self) -> float:
        """Different messages per second, from the instant at which all of them were due to the last delivery.

        From the first to the last delivery would leave out the time in which the first ones were on their way. Of
        a load with delays the instant is the publisher's: the worker's own comes a commit later, so that this is low
        rather than high.
        """
        last_ns = max(self.lateness_ns, default=0)
        return len(self.numbers) * 1e9 / last_ns if last_ns > 0 else 0.0


class Responder:
    """Settles whatever is delivered to its subject, until `expect` different messages have come."""

    def __init__(self, wire: Wire, size: int, expect: int, subject: str = ORIGINAL_SUBJECT) -> None:
        self._wire = wire
        self._size = size
        self._expect = expect
        self._subject = subject
        self.delivered = Delivered()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def listen(self) -> None:
        """Subscribe; the server knows of it on return."""
        self._wire.reader = self.read
        self._wire.subscribe(self._subject, _SID)
        await self._wire.flush()

    async def finish(self, idle_s: float) -> Delivered:
        """Wait until all have come, or none has for `idle_s`. Raises WireError when the connection fails."""
        seen = -1
        while not self._done.done() and seen != self.delivered.count:
            seen = self.delivered.count
            await asyncio.wait(
                {self._done, self._wire.failed}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._wire.failed.done():
                self._wire.failed.result()
        return self.delivered

    def read(self, buffer: bytes) -> int:
        """Answer every whole delivery in `buffer`."""
        now_ns, now_s = time.time_ns(), time.perf_counter()
        at, size, payload_size = 0, len(buffer), self._size
        match_headers, match_bare, unpack = _HMSG.match, _MSG.match, STAMP.unpack_from
        answers, lateness, numbers = [], [], []
        while at < size:
            found = match_headers(buffer, at) or match_bare(buffer, at)
            if found is None:
                after = self._skip(buffer, at)
                if after == at:
                    break
                at = after
                continue
            reply, total = found.groups()
            end = found.end() + int(total) + 2
            if end > size:
                break
            number, due_ns = unpack(buffer, end - 2 - payload_size)
            answers.append(b"PUB %b 0\r\n\r\n" % reply)
            numbers.append(number)
            lateness.append(now_ns - due_ns)
            at = end
        if answers:
            self._wire.write(b"".join(answers))
            self._record(numbers, lateness, now_s)
        return at

    def _skip(self, buffer: bytes, at: int) -> int:
        """Go past a line that is no delivery (PING, PONG, +OK); stay where a line is not complete."""
        end = buffer.find(b"\r\n", at)
        return at if end < 0 or buffer.startswith((b"MSG ", b"HMSG "), at) else end + 2

    def _record(self, numbers: list[int], lateness_ns: list[int], now_s: float) -> None:
        delivered = self.delivered
        if not delivered.count:
            delivered.first_s = now_s
        delivered.last_s = now_s
        delivered.numbers.update(numbers)
        delivered.lateness_ns.extend(lateness_ns)
        if len(delivered.numbers) >= self._expect and not self._done.done():
            self._done.set_result(None)
