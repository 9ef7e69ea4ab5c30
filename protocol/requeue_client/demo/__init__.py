"""`python -m requeue_client.demo` (`make demo`): the main job on this machine, with nothing to set up.

    plan.py      which messages: delay, queue, TTL, backoff, intake, and how each is meant to end
    parts.py     a nats-server, a worker and its configuration in a temporary directory; the worker's metrics
    handler.py   the other end: it settles, refuses, is silent, works long, terminates, as the message asks
    ledger.py    what was seen of each message, and what that proves: lost, early, late
    show.py      live progress, the closing table, what to try
    run.py       the order of events: publish, kill half-way, start again, wait for the last end

Nothing here looks into the worker: what it did is known from what came out of it (deliveries and published dead
letters) and from its own metrics, and the two have to agree.
"""
