"""A real helm, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm import Helm, helm_at


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    """Skips the test where there is none."""
    return helm_at(tmp_path)
