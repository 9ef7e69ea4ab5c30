"""Whether and where the web view is served, and what it may do."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from requeue_worker.http import HttpAddress
from requeue_worker.setting_types import Section, read_list


def _port_as_text(value: object) -> object:
    return str(value) if type(value) is int else value


class WebSettings(Section):
    """The web view."""

    listen: Annotated[str | None, BeforeValidator(_port_as_text)] = Field(
        default=None, description="HOST:PORT of the web view; off unless given."
    )
    changes: bool = Field(default=False, description="Whether it may change anything; else it only shows.")
    hosts: Annotated[tuple[str, ...], BeforeValidator(read_list)] = Field(
        default=(), description="Names by which browsers reach it, besides localhost and addresses."
    )

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, address: str | None) -> str | None:
        return None if address is None else str(HttpAddress.parse(address))

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host) is None:
                raise ValueError(
                    f"{host!r} is no host name; it has no port and no scheme, like requeue.example"
                )
        return tuple(host.lower() for host in hosts)
