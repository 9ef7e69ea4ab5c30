"""The command `requeue-operator`. Exit codes: 0 stopped by a signal, 1 ended by an error, 2 wrong usage."""

from __future__ import annotations

import asyncio
import logging
import sys

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nats-requeue", prog_name="requeue-operator")
def main() -> None:
    """Runs fleets of workers from RequeueQueue resources."""


@main.command(short_help="Run the operator until it is told to stop.")
@click.option(
    "--namespace", "namespaces", metavar="NS", multiple=True, help="Namespace to look after. Repeat it."
)
@click.option("--all-namespaces", is_flag=True, help="Look after all namespaces.")
@click.option(
    "--image",
    envvar="REQUEUE_WORKER_IMAGE",
    required=True,
    metavar="IMAGE",
    help="Image of the workers where a RequeueQueue names none. [env: REQUEUE_WORKER_IMAGE]",
)
@click.option(
    "--image-pull-policy",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    help="When nodes pull it, for new fleets. Default: Always for the tag latest, else IfNotPresent.",
)
@click.option(
    "--image-pull-secret",
    "image_pull_secrets",
    multiple=True,
    metavar="NAME",
    help="Secret for its registry, in the namespace of each RequeueQueue, for new fleets. Repeat it.",
)
@click.option(
    "--http", metavar="HOST:PORT", help="Serve /livez and /metrics there; :PORT for every interface."
)
@click.option(
    "--resync",
    "resync_s",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Look at each RequeueQueue that often when nothing happens.",
)
def run(
    namespaces: tuple[str, ...],
    all_namespaces: bool,
    image: str,
    image_pull_policy: str | None,
    image_pull_secrets: tuple[str, ...],
    http: str | None,
    resync_s: float,
) -> None:
    """Keep every RequeueQueue as it asks to be. Run one operator for a namespace.

    Logs in by KUBECONFIG, else as the service account of its pod.
    """
    if bool(namespaces) == all_namespaces:
        raise click.UsageError("name the namespaces with --namespace, or give --all-namespaces")
    from requeue_operator.children import Pull
    from requeue_operator.handlers import operate
    from requeue_operator.http import Address, ListenError

    try:
        address = None if http is None else Address.parse(http)
    except ValueError as error:
        raise click.UsageError(f"--http: {error}") from None
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        pull = Pull(image_pull_policy, image_pull_secrets)
        asyncio.run(operate(namespaces=namespaces, image=image, pull=pull, http=address, resync_s=resync_s))
    except ListenError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
