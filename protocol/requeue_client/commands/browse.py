"""`requeue list`, `requeue peek` and `requeue show`: single messages, without changing them."""

from __future__ import annotations

import time
from base64 import b64decode
from typing import Any

import click
from requeue_protocol.admin import (
    GET,
    LIST,
    MESSAGES_LIMIT,
    GetAnswer,
    GetRequest,
    ListAnswer,
    ListRequest,
    State,
)

from requeue_client.commands.filters import checked, filter_fields, filter_options
from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    Row,
    admin_options,
    dump,
    from_now,
    instant,
    printable,
    render,
    run_admin,
    text,
)
from requeue_client.exits import NOT_FOUND
from requeue_client.service import AdminClient

_STATES = click.Choice(["pending", "in-flight", "dead"])


@click.command("list", epilog=EXIT_CODES)
@click.argument("queue", required=False)
@click.option("--state", type=_STATES, default="pending", show_default=True, help="Which messages.")
@filter_options
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="So many at most; 0: all."
)
@admin_options
def list_messages(queue: str | None, output: Format, limit: int, **options: Any) -> None:
    """List messages of QUEUE, or of all queues: pending ones in due order, dead letters in the order of their deaths."""
    state, fields = options.pop("state"), filter_fields(queue, options)
    request = _request(limit, state=state, **fields)

    async def do(admin: AdminClient) -> int:
        rows = await _collect(admin, request, limit)
        render(rows, _columns(request.state), output, "no messages")
        return 0

    run_admin(options, do)


def _request(limit: int, **fields: Any) -> ListRequest:
    """The request. Raises UsageError for filters that make no sense."""
    return checked(ListRequest, limit=min(limit or MESSAGES_LIMIT, MESSAGES_LIMIT), **fields)


async def _collect(admin: AdminClient, request: ListRequest, limit: int) -> list[Row]:
    """The first of all instances. Each instance is asked for as many as are wanted in all."""
    rows: list[Row] = []
    for first in await admin.ask(LIST, request, ListAnswer):
        page, taken = first, 0
        while True:
            rows += [{"instance": page.instance, **entry.model_dump()} for entry in page.messages]
            taken += len(page.messages)
            if page.next is None or (limit and taken >= limit):
                break
            following = request.model_copy(update={"after": page.next})
            page = await admin.ask_one(page.instance, LIST, following, ListAnswer)
    rows.sort(key=lambda row: (row["queue"], row["priority"] or 0, row["due_ns"] or row["died_ns"] or 0))
    return rows[:limit] if limit else rows


def _columns(state: State) -> list[Column]:
    now_ns = time.time_ns()
    when = (
        [
            Column("DIED", lambda row: from_now(row["died_ns"], now_ns), right=True),
            Column("REASON", text("reason")),
        ]
        if state == "dead"
        else [Column("DUE", lambda row: from_now(row["due_ns"], now_ns), right=True)]
    )
    return [
        Column("ID", text("id")),
        Column("QUEUE", text("queue")),
        Column("SUBJECT", text("subject")),
        Column("ATTEMPTS", lambda row: str(row["attempts"]), right=True),
        *when,
        Column("LAST ERROR", text("last_error")),
    ]


@click.command(epilog=EXIT_CODES)
@click.argument("queue")
@click.option("--state", type=_STATES, default="pending", show_default=True, help="Which messages.")
@click.option("--limit", type=click.IntRange(1, 100), default=1, show_default=True, help="So many at most.")
@admin_options
def peek(queue: str, state: State, limit: int, output: Format, **options: Any) -> None:
    """Show the next messages of QUEUE with their payloads (1 KiB of each), and leave them where they are."""
    request = _request(limit, queue=queue, state=state, payload_bytes=1024)

    async def do(admin: AdminClient) -> int:
        rows = await _collect(admin, request, limit)
        if output != "table":
            dump(rows, output)
        elif not rows:
            click.echo(f"nothing is {state} in {queue}")
        for row in rows if output == "table" else []:
            click.echo(f"{row['id']}  {row['subject']}  {_when(row)}")
            click.echo(f"  {_payload(row)}")
        return 0 if rows else NOT_FOUND

    run_admin(options, do)


@click.command(epilog=EXIT_CODES)
@click.argument("message_id", metavar="ID")
@click.option("--queue", help="Look in this queue alone: faster among millions.")
@admin_options
def show(message_id: str, queue: str | None, output: Format, **options: Any) -> None:
    """Show everything about the message with this Requeue-Id or Nats-Msg-Id, pending, in flight or dead."""

    async def do(admin: AdminClient) -> int:
        found: dict[tuple[str, str], Row] = {}
        async for page in admin.pages(GET, GetRequest(id=message_id, queue=queue), GetAnswer):
            for entry in page.messages:
                found[page.instance, entry.id] = {"instance": page.instance, **entry.model_dump()}
        if not found:
            click.echo(
                f"requeue: no message has the id {message_id}: settled, dropped, or never here", err=True
            )
            return NOT_FOUND
        if output != "table":
            dump(list(found.values()), output)
        else:
            click.echo("\n\n".join(_described(row) for row in found.values()))
        return 0

    run_admin(options, do)


def _described(row: Row) -> str:
    now_ns = time.time_ns()
    facts = {
        "id": row["id"],
        "Nats-Msg-Id": row["client_id"],
        "instance": row["instance"],
        "queue": row["queue"],
        "state": row["state"],
        "subject": row["subject"],
        "priority": row["priority"],
        "attempts": row["attempts"],
        "on disk": f"{instant(row['enqueued_ns'])}, {from_now(row['enqueued_ns'], now_ns)}",
        "due": _at(row["due_ns"], now_ns),
        "deadline": _at(row["deadline_ns"], now_ns),
        "died": _at(row["died_ns"], now_ns),
        "reason": row["reason"],
        "payload": f"{row['payload_size']} bytes: {_payload(row)}",
    }
    lines = [f"{name + ':':13}{_plain(str(fact))}" for name, fact in facts.items() if fact not in (None, "")]
    headers = [line for line in row["headers"].split("\r\n")[1:] if line]
    if headers:
        lines += ["headers:", *(f"  {_plain(line)}" for line in headers)]
    if row["history"]:
        lines.append("history:")
        for attempt in row["history"]:
            lines.append(f"  {attempt['number']:>4}  {instant(attempt['at_ns'])}  {_plain(attempt['error'])}")
    return "\n".join(lines)


def _at(ns: int | None, now_ns: int) -> str:
    return "" if ns is None else f"{instant(ns)}, {from_now(ns, now_ns)}"


def _when(row: Row) -> str:
    now_ns = time.time_ns()
    return (
        f"{row['reason']} {from_now(row['died_ns'], now_ns)}"
        if row["died_ns"]
        else f"due {from_now(row['due_ns'], now_ns)}"
    )


def _payload(row: Row) -> str:
    """As text where it is one, else in hexadecimal."""
    raw = b64decode(row["payload"])
    more = "" if len(raw) == row["payload_size"] else " ..."
    try:
        return _plain(raw.decode()) + more
    except UnicodeDecodeError:
        return raw.hex(" ") + more


def _plain(stranger: str) -> str:
    return printable(stranger).replace(r"\[", "[")
