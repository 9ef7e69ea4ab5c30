"""`kubectl requeue`: what a person asks about fleets. It reads, and writes nothing into the cluster.

    cli.py ── look.py (live objects) ── overview.py, volumes.py, logs.py, bundle.py ── output.py (table, JSON, YAML)

What the operator would do with a volume is judged by the operator's own plan.py and drains/, on the same objects.
"""
