"""The bulk reader: hands the messages of hot subscriptions over as one list for each socket read.

nats-py spends about 18 µs on a message (regular expressions one by one, a queue, a task, header parsing). The two
subscriptions that carry all the load, intake and reply inbox, need none of that. This parser walks each read in one
loop, slices out the complete messages of hot subscriptions, and passes every other operation, whole and one at a
time, to nats-py's own `parse`: connect, auth, TLS, PING, errors, reconnect and other subscriptions stay nats-py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

MAX_CONTROL_LINE: Final = 1 << 20  #: beyond this without an end, it is not NATS that talks

#: subject, sid, reply, size | subject, sid, reply, header size, size
_MESSAGE = re.compile(rb"MSG (\S+) (\d+) (?:(\S+) )?(\d+)\r\n|HMSG (\S+) (\d+) (?:(\S+) )?(\d+) (\d+)\r\n")
_MSG_GROUPS = 4


#: subject, reply (empty when absent), headers, payload: a plain tuple, since one is made for each message
Raw = tuple[bytes, bytes, bytes | None, bytes]
Consumer = Callable[[list[Raw]], None]


class BulkParser(Parser):  # type: ignore[misc, unused-ignore]
    """nats-py's parser with a fast lane for hot subscriptions."""

    def __init__(self, client: Any) -> None:
        self.hot: dict[bytes, Consumer] = {}
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0
        self._connection = 0
        #: the server's last error as it came; the parent hands it on in lower case, subjects included
        self.error_line = b""
        super().__init__(client)

    def reset(self) -> None:
        """Forget a half-read message: the connection that it came on is gone."""
        super().reset()
        self._connection += 1
        self._chunks = []
        self._held = self._needed = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take one socket read. Raises ProtocolError as the parent does."""
        if self._chunks:
            # A large message arrives in many reads: join once, when it can be whole.
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return
            data = b"".join(self._chunks)
            self._chunks = []
        connection = self._connection
        position = await self._walk(data)
        if position < len(data) and connection == self._connection:
            rest = data[position:]
            self._chunks = [rest]
            self._held = len(rest)

    async def _walk(self, data: bytes) -> int:
        """Handle every complete operation; return where the incomplete rest begins."""
        match, hot = _MESSAGE.match, self.hot
        batches: dict[bytes, list[Raw]] = {sid: [] for sid in hot}
        position, length, received = 0, len(data), 0
        connection = self._connection
        self._needed = 0
        # An operation that ended the connection (an error, say) ends the read: the rest came on the old one.
        while position < length and connection == self._connection:
            if self.state != AWAITING_CONTROL_LINE or self.buf:
                # An operation spelt in a way that only the parent understands: the rest is the parent's.
                await super().parse(data[position:])
                return length
            found = match(data, position)
            if found is None:
                end = data.find(b"\r\n", position)
                if end < 0:
                    if length - position > MAX_CONTROL_LINE:
                        raise ProtocolError("nats: control line without end")
                    break
                _hand_over(batches, hot)
                if data.startswith(b"-ERR", position):
                    self.error_line = data[position + len(b"-ERR") : end]
                await super().parse(data[position : end + 2])
                position = end + 2
                continue
            if found.lastindex == _MSG_GROUPS:
                subject, sid, reply, size = found.group(1, 2, 3, 4)
                header_size = 0
            else:
                subject, sid, reply, header, size = found.group(5, 6, 7, 8, 9)
                header_size = int(header)
            start = found.end()
            end = start + int(size)
            if end + 2 > length:
                self._needed = end + 2 - position
                break
            batch = batches.get(sid)
            if batch is None:
                _hand_over(batches, hot)
                await super().parse(data[position : end + 2])
            elif header_size:
                body = start + header_size
                batch.append((subject, reply or b"", data[start:body], data[body:end]))
                received += 1
            else:
                batch.append((subject, reply or b"", None, data[start:end]))
                received += 1
            position = end + 2
        _hand_over(batches, hot)
        self.nc.stats["in_msgs"] += received
        return position


def _hand_over(batches: dict[bytes, list[Raw]], hot: dict[bytes, Consumer]) -> None:
    for sid, batch in batches.items():
        if batch:
            batches[sid] = []
            hot[sid](batch)
