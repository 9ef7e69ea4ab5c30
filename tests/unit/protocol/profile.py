"""How much hypothesis tries here. Slowness is no failure: the machine may be busy."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

checked = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
