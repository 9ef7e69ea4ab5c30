"""Any bytes as an envelope and as stats: refused as malformed, or read as the generated code reads them."""

from __future__ import annotations

from harness import GOLDEN, fuzz, instrumented

with instrumented():
    from requeue_protocol.envelope import read_envelope
    from requeue_protocol.stats import read_stats

from tests.unit.protocol.oracle import check_envelope, check_stats

assert callable(read_envelope)
assert callable(read_stats)


def one_input(data: bytes) -> None:
    check_envelope(data)
    check_stats(data)


if __name__ == "__main__":
    fuzz(one_input, [path.read_bytes() for path in sorted(GOLDEN.glob("*.bin"))])
