"""Load in: a fixed number of unanswered messages, each ack replaced by the next message."""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from dataclasses import dataclass, field
from secrets import token_hex

from requeue_client.bench.messages import Compose
from requeue_client.bench.wire import Wire, WireError

_SID = 1
_ACK = re.compile(rb"MSG \S+\.(\d+) 1 (\d+)\r\n")
_REFUSAL = re.compile(rb"HMSG \S+\.(\d+) 1 \d+ \d+\r\n(NATS/1\.0[^\r]*)")
_STALL_S = 30.0


@dataclass(slots=True)
class Published:
    """What became of a published load. Latencies in ns, one per ack."""

    acked: int = 0
    refused: int = 0
    unanswered: int = 0
    seconds: float = 0.0
    first_refusal: str = ""
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))

    @property
    def rate_per_s(self) -> float:
        """Acks per second."""
        return self.acked / self.seconds if self.seconds else 0.0


def new_inbox() -> str:
    """Give a fresh reply prefix."""
    return f"_INBOX.bench{token_hex(8)}"


class WindowedPublisher:
    """Publishes `n` messages, at most `window` unanswered.

    `payload_acks`: acks have a payload (JetStream); else an ack is empty, and a payload is a refusal.
    `per_second` bounds the rate, evenly over each 5 ms; 0 = as fast as acks come.
    """

    def __init__(
        self,
        wire: Wire,
        inbox: str,
        compose: Compose,
        *,
        n: int,
        window: int,
        payload_acks: bool = False,
        per_second: float = 0.0,
    ) -> None:
        self._wire = wire
        self._inbox = inbox
        self._compose = compose
        self._n = n
        self._window = window
        self._payload_acks = payload_acks
        self._per_second = per_second
        self._sent_ns = array("q")  # 8 bytes a message: a backlog may have millions
        self._answered = 0
        self._started_s = 0.0
        self._result = Published()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Published:
        """Publish all, and wait for all answers. Raises WireError when the connection fails."""
        self._wire.reader = self._read
        self._wire.subscribe(f"{self._inbox}.*", _SID)
        await self._wire.flush()
        self._started_s = time.perf_counter()
        self._refill()
        await self._until_done()
        result = self._result
        result.seconds = time.perf_counter() - self._started_s
        result.unanswered = self._n - self._answered
        self._wire.write(f"UNSUB {_SID}\r\n".encode())
        return result

    async def _until_done(self) -> None:
        """Wait for the last answer.

        A load that has come to a stand ends too, its rest counted as unanswered.
        """
        answered, stalled_s = 0, 0.0
        step_s = 0.005 if self._per_second else 1.0
        while not self._done.done():
            await asyncio.wait(
                {self._done, self._wire.failed}, timeout=step_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._wire.failed.done():
                self._wire.failed.result()
            if self._per_second:
                self._refill()
            stalled_s = stalled_s + step_s if answered == self._answered else 0.0
            answered = self._answered
            if stalled_s > _STALL_S:
                return

    def _refill(self) -> None:
        sent = len(self._sent_ns)
        allowed = min(self._n, self._answered + self._window)
        if self._per_second:
            allowed = min(allowed, int((time.perf_counter() - self._started_s) * self._per_second) + 1)
        if allowed > sent:
            data = self._compose(sent, allowed)
            self._sent_ns.extend([time.perf_counter_ns()] * (allowed - sent))
            self._wire.write(data)

    def _read(self, buffer: bytes) -> int:
        if b"HMSG " in buffer:
            return self._read_with_refusals(buffer)
        found = _ACK.findall(buffer)
        if not found:
            return buffer.rfind(b"\n") + 1
        now_ns = time.perf_counter_ns()
        sent_ns = self._sent_ns
        if (not self._payload_acks and any(size != b"0" for _, size in found)) or b'"error"' in buffer:
            self._refuse(found, buffer)
        else:
            self._result.latencies_ns.extend([now_ns - sent_ns[int(number)] for number, _ in found])
            self._result.acked += len(found)
        self._answer(len(found))
        return buffer.rfind(b"\n") + 1

    def _read_with_refusals(self, buffer: bytes) -> int:
        """Buffers with header replies.

        Rare, so each is looked for with its own expression. Duplicates are refusals.
        """
        end = buffer.rfind(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        head = buffer[:end]
        refusals = _REFUSAL.findall(head)
        acks = _ACK.findall(head)
        now_ns = time.perf_counter_ns()
        self._result.latencies_ns.extend([now_ns - self._sent_ns[int(number)] for number, _ in acks])
        self._result.acked += len(acks)
        self._result.refused += len(refusals)
        if refusals and not self._result.first_refusal:
            self._result.first_refusal = refusals[0][1].decode(errors="replace")
        self._answer(len(acks) + len(refusals))
        return end

    def _refuse(self, found: list[tuple[bytes, bytes]], buffer: bytes) -> None:
        refused = (
            sum(size != b"0" for _, size in found) if not self._payload_acks else buffer.count(b'"error"')
        )
        self._result.refused += refused
        self._result.acked += len(found) - refused
        if not self._result.first_refusal:
            at = max(buffer.find(b"-ERR"), buffer.find(b'"error"'))
            self._result.first_refusal = buffer[at : at + 200].split(b"\r")[0].decode(errors="replace")

    def _answer(self, count: int) -> None:
        self._answered += count
        if self._answered >= self._n:
            if not self._done.done():
                self._done.set_result(None)
        else:
            self._refill()


def check_all_acked(published: Published) -> None:
    """Raise WireError unless every message was acknowledged: a rate of refusals would be no rate."""
    if published.refused or published.unanswered:
        first = f"; the first refusal: {published.first_refusal}" if published.first_refusal else ""
        raise WireError(
            f"{published.refused} messages were refused and {published.unanswered} not answered{first}"
        )
