"""Options that every command has, as kubectl names them, and how a command ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from requeue_operator.kube import Kube, KubeError
from requeue_operator.plugin.errors import PluginError, told
from requeue_operator.plugin.output import Format

EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  shown, and something needs somebody's hand
  2  usage: an option is wrong, nothing was asked
  3  no login, or the API server cannot be reached
  4  you lack a right; the message has the rule
  5  no such RequeueQueue, or no CRD
"""
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """Where to look, and how to show it. `namespace`: empty for all."""

    kube: Kube
    namespace: str
    form: Format = "table"


Do = Callable[[Asked], Awaitable[int]]


def where_options(command: _F) -> _F:
    """Add what says which cluster and which namespace."""
    for option in reversed(
        (
            click.option("-n", "--namespace", metavar="NS", help="Namespace. Default: that of the context."),
            click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces."),
            click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
            click.option(
                "--kubeconfig", metavar="FILE", help="Default: KUBECONFIG, the pod's account, ~/.kube/config."
            ),
        )
    ):
        command = option(command)
    return command


def output_option(command: _F) -> _F:
    """Add `-o`."""
    forms = click.Choice(["table", "json", "yaml"])
    return click.option("-o", "--output", "output", type=forms, default="table", help="Form of the output.")(
        command
    )


def run(options: dict[str, Any], do: Do) -> None:
    """Log in as the options say, and do it; the process ends with its exit code."""
    if options["namespace"] is not None and options["all_namespaces"]:
        raise click.UsageError("-n names one namespace, -A means all: give one of them")
    try:
        code = asyncio.run(_run(options, do))
    except PluginError as error:
        click.echo(f"error: {error}", err=True)
        code = error.code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


async def _run(options: dict[str, Any], do: Do) -> int:
    try:
        async with await Kube.connect(kubeconfig=options["kubeconfig"], context=options["context"]) as kube:
            namespace = "" if options["all_namespaces"] else options["namespace"] or kube.namespace
            return await do(Asked(kube, namespace, options.get("output", "table")))
    except KubeError as error:
        raise told(error) from None
