"""The wire contract of nats-requeue: envelope, headers, replies, subjects, queue policy, errors.

Worker, client and operator stand on this package; it imports none of them and knows no network and no disk.
`docs/protocol.md` states the same contract for authors of clients in other languages.
"""
