"""Faults happen to workers in the test's own event loop too: `start`, as in tests/integration/worker."""

from tests.integration.worker.conftest import start  # noqa: F401 - a fixture is found by its name
