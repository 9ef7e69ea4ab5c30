"""How `make test JOBS=2` spreads over two processes (pytest-xdist): a file is run by one of them, one file after the other,
and all of tests/cluster by the same one, since each would start a control plane of its own.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

_ONE_PLACE = ("tests/cluster/",)


class Files(LoadFileScheduling):
    """As `--dist loadfile`; files that share something dear to set up count as one."""

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in _ONE_PLACE if nodeid.startswith(place)), super()._split_scope(nodeid))
