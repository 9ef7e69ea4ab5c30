"""`requeue doctor`: is anything wrong, and what can be done about it?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Any, Final

import click

from requeue_client.commands.output import Format, dump, printable
from requeue_client.contexts import ContextError
from requeue_client.doctor.diagnosis import diagnose
from requeue_client.doctor.findings import Finding
from requeue_client.exits import FAULT_FOUND
from requeue_client.options import Connection, connection_options, intake_option
from requeue_client.times import duration_s

_EXIT_CODES = """\b
Exit codes:
  0  nothing is wrong; there may be warnings
  2  usage: an option or the context is wrong, nothing was looked at
  7  something does not work (with --strict: or there is a warning)
"""
_COLORS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(epilog=_EXIT_CODES)
@click.option("--no-probe", is_flag=True, help="Send no message through; then nothing is changed at all.")
@click.option("--strict", is_flag=True, help="A warning ends with exit code 7, too.")
@click.option("--timeout", default="5s", show_default=True, help="How long each step may take.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Form of the output.",
)
@intake_option
@connection_options
def doctor(no_probe: bool, strict: bool, timeout: str, output: Format, intake: str, **options: Any) -> None:
    """Look at NATS, permissions, workers, disks, clocks and queues, and say what is wrong and what to do.

    One message goes through a worker and back, as in `requeue check`.
    """
    try:
        timeout_s = duration_s(timeout, "timeout")
        findings = asyncio.run(_run(Connection(**options), intake, not no_probe, timeout_s, output))
    except (ContextError, ValueError) as wrong:
        raise click.UsageError(str(wrong)) from None
    bad = ("warn", "fail") if strict else ("fail",)
    sys.exit(FAULT_FOUND if any(each.level in bad for each in findings) else 0)


async def _run(how: Connection, intake: str, probe: bool, timeout_s: float, output: Format) -> list[Finding]:
    findings: list[Finding] = []
    async for finding in diagnose(how, intake=intake, probe=probe, timeout_s=timeout_s):
        findings.append(finding)
        if output == "table":
            _print(finding)
    if output != "table":
        dump(_as_value(findings), output)
    return findings


def _print(finding: Finding) -> None:
    level = click.style(f"{finding.level:4}", fg=_COLORS[finding.level])
    click.echo(f"{level}  {finding.check}: {_plain(finding.what)}")
    if finding.advice:
        click.echo(f"      -> {_plain(finding.advice)}")


def _plain(text: str) -> str:
    return printable(text).replace(r"\[", "[")


def _as_value(findings: Iterable[Finding]) -> dict[str, object]:
    rows = [
        {"check": each.check, "level": each.level, "what": each.what, "advice": each.advice}
        for each in findings
    ]
    return {"ok": not any(row["level"] == "fail" for row in rows), "findings": rows}
