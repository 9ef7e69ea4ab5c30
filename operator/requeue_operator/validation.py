"""What the API server cannot judge about a spec: pure functions, whose sentences end up in the condition Stalled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from requeue_protocol.policy import NamedQueuePolicy

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children.overrides import refusals


class InvalidSpec(Exception):
    """The spec cannot be carried out. `sentences` say where, what is wrong, and what would be right."""

    def __init__(self, sentences: list[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__("; ".join(sentences))


def read_spec(spec: Mapping[str, Any]) -> RequeueQueueSpec:
    """The spec as a model, judged as the workers will judge it. Raises InvalidSpec."""
    try:
        read = RequeueQueueSpec.model_validate(spec)
    except ValidationError as error:
        raise InvalidSpec(_sentences(error)) from None
    wrong = [
        sentence for at, queue in enumerate(read.queues) for sentence in _against_defaults(read, at, queue)
    ]
    wrong += refusals(read.pod_template)
    if read.storage.mode == "Shared" and read.storage.on_delete == "Drain":
        wrong.append(
            "spec.storage.onDelete: the one volume of mode Shared is not drained; write Retain or Delete"
        )
    if wrong:
        raise InvalidSpec(wrong)
    return read


def _against_defaults(spec: RequeueQueueSpec, at: int, queue: NamedQueuePolicy) -> list[str]:
    try:
        queue.over(spec.defaults)
    except ValidationError as error:
        return [
            f"spec.queues[{at}] ({queue.name}) does not go with spec.defaults: {_text(error.errors()[0]['msg'])}"
        ]
    return []


def _sentences(error: ValidationError) -> list[str]:
    found = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        place = "spec"
        for part in each["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{to_camel(str(part))}"
        found.append(f"{place}: {_text(each['msg'])}")
    return found


def _text(message: str) -> str:
    return message.removeprefix("Value error, ")
