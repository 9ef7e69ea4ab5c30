"""Client library of nats-requeue: the other end of the wire, and the `requeue` command."""
