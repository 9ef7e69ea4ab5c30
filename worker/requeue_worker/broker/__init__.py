"""The worker's side of NATS: nats-py's client with a bulk reader, behind a small interface of our own."""
