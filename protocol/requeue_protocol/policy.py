"""Queue policy: how a queue treats its messages where a message itself says nothing.

Keys are written without units (`min_backoff`, or `minBackoff` as the custom resource spells it), attributes
carry them (`min_backoff_ns`). Durations are Go's notation plus days (`14d`), or whole nanoseconds.
`model_dump(mode="json", by_alias=True)` writes what can be read back.
"""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AliasChoices,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from requeue_protocol.durations import MAX_NS, NS_PER_S, format_duration, parse_duration
from requeue_protocol.envelope import Backoff
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.header_values import MAX_ACK_TIMEOUT_NS, MAX_BACKOFF_STEPS, UNLIMITED_RETRIES
from requeue_protocol.subjects import check_pattern, check_publish_subject, check_queue_name

_DAY_NS = 86_400 * NS_PER_S
_DAYS = re.compile(r"([0-9]{1,6})d(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,19})\s*([KMGT]i?B?|B)?")
_SHAPES = {
    "fixed": Backoff.FIXED,
    "exponential": Backoff.EXPONENTIAL,
    "linear": Backoff.LINEAR,
    "list": Backoff.LIST,
}
_UNLIMITED = "unlimited"


def read_duration(value: object) -> int:
    """Nanoseconds of a configured duration: `1m30s`, `14d`, `1d12h`, or an int of ns. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a duration; write it with a unit, like 1m30s or 14d")  # noqa: TRY004
    if isinstance(value, int):
        if not 0 <= value <= MAX_NS:
            raise ValueError(f"{value} ns is out of range; a duration is 0 to {format_duration(MAX_NS)}")
        return value
    days = _DAYS.fullmatch(value.strip())
    if days is None:
        return parse_duration(value.strip())
    total_ns = int(days[1]) * _DAY_NS + (parse_duration(days[2]) if days[2] else 0)
    if total_ns > MAX_NS:
        raise ValueError(
            f"{value!r} is more than {format_duration(MAX_NS)} (292 years), the longest duration"
        )
    return total_ns


def read_size(value: object) -> object:
    """Bytes of a configured size: `512MiB`, `10Gi`, `2GB`, or an int; anything else is left to pydantic."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is not a size; write it like 512MiB, 10Gi or a number of bytes")
    unit = (found[2] or "").removesuffix("B")
    base = 1024 if unit.endswith("i") else 1000
    return int(found[1]) * base ** " KMGT".index(unit[0] if unit else " ")


def _unlimited_as_none(value: object) -> object:
    return None if value == _UNLIMITED else value


def _read_retries(value: object) -> object:
    if value == _UNLIMITED:
        return UNLIMITED_RETRIES
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().isdecimal()):
        raise ValueError(f"{value!r} is no number of attempts; it is 1 or more, or unlimited")
    if isinstance(value, int) and value > UNLIMITED_RETRIES:
        raise ValueError(f"{value} attempts are more than 64 bits hold; write unlimited")
    return value


def _read_backoff(value: object) -> object:
    if isinstance(value, str):
        try:
            return _SHAPES[value]
        except KeyError:
            raise ValueError(
                f"{value!r} is no backoff; it is fixed, exponential, linear, or a list of durations"
            ) from None
    return value


Duration = Annotated[int, BeforeValidator(read_duration), PlainSerializer(format_duration, when_used="json")]
Size = Annotated[int, BeforeValidator(read_size), Field(ge=1)]
Retries = Annotated[
    int,
    BeforeValidator(_read_retries),
    Field(ge=1),
    PlainSerializer(lambda n: _UNLIMITED if n == UNLIMITED_RETRIES else n, when_used="json"),
]
Shape = Annotated[
    Backoff,
    BeforeValidator(_read_backoff),
    PlainSerializer(lambda backoff: Backoff(backoff).name.lower(), when_used="json"),
]
Patterns = tuple[str, ...]


def _keys(field: str) -> AliasChoices:
    """How a field may be written beside its own name: `min_backoff` or `minBackoff`."""
    key = field.removesuffix("_ns")
    return AliasChoices(key, to_camel(key))


class QueuePolicy(BaseModel):
    """Everything a queue does by policy, with the defaults of the project. Immutable."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=AliasGenerator(
            validation_alias=_keys, serialization_alias=lambda field: field.removesuffix("_ns")
        ),
    )
    # A named queue inherits what it leaves out: its own values are judged together only after `over`.
    is_partial: ClassVar[bool] = False

    retries: Retries = Field(default=20, description="Dispatches in all, the first included; or unlimited.")
    delay_ns: Duration = Field(default=0, description="First due this long after the commit, never earlier.")
    ttl_ns: Duration = Field(default=0, description="Deadline this long after the commit; 0 is none.")
    on_expire: Literal["dead-letter", "drop"] = Field(
        default="dead-letter", description="What becomes of an expired message."
    )
    backoff: Shape = Field(
        default=Backoff.EXPONENTIAL, description="fixed, exponential, linear, or a list of durations."
    )
    backoff_list_ns: tuple[Duration, ...] = Field(
        default=(), description="The steps of backoff list; the last one repeats."
    )
    min_backoff_ns: Duration = Field(
        default=NS_PER_S, description="Base of the backoff where the message has no delay."
    )
    max_backoff_ns: Duration = Field(default=3_600 * NS_PER_S, description="No backoff is longer.")
    jitter: float = Field(
        default=0.2, ge=0, le=1, description="Exponential backoff is multiplied by U(1, 1 + jitter)."
    )
    ack_timeout_ns: Duration = Field(
        default=15 * NS_PER_S, description="No reply for this long: the attempt failed."
    )
    max_in_flight: int = Field(
        default=4096, ge=1, le=1_000_000, description="Unsettled dispatches at a time."
    )
    max_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Dispatches per second."
    )
    weight: int = Field(
        default=100, ge=1, le=10_000, description="Share when several queues have due messages."
    )
    max_messages: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Beyond: 429. None is unlimited."
    )
    max_bytes: Size | None = Field(default=None, description="Beyond: 429. None is unlimited.")
    on_exhausted: Literal["dead-letter", "drop"] = Field(
        default="dead-letter", description="After the last attempt failed."
    )
    dead_letter_retention_ns: Duration = Field(
        default=14 * _DAY_NS, description="A dead letter is kept this long from death."
    )
    dead_letter_subject: str | None = Field(
        default=None, description="Dead letters are published there too, at least once."
    )
    allow_subjects: Patterns = Field(
        default=(), description="Original subjects that may be replayed; empty is all."
    )
    deny_subjects: Patterns = Field(
        default=(), description="Original subjects that may not be, beyond the built-in ones."
    )
    count_no_responders: bool = Field(default=True, description="Whether nobody listening spends an attempt.")
    ack_mode: Literal["verbs", "any"] = Field(
        default="verbs", description="any: whatever is replied settles."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_backoff_list(cls, data: object) -> object:
        """`backoff: [1s, 5s]` and `backoff: "1s,5s"` are short for `backoff: list` with `backoff_list`."""
        if not isinstance(data, dict):
            return data
        steps = data.get("backoff")
        if isinstance(steps, str) and "," in steps:
            steps = [step.strip() for step in steps.split(",")]
        if not isinstance(steps, list | tuple):
            return data
        if any(key in data for key in ("backoff_list", "backoffList", "backoff_list_ns")):
            raise ValueError("backoff is a list and backoff_list is given too; write one of them")
        return {**data, "backoff": "list", "backoff_list": steps}

    @field_validator("max_rate", "max_messages", "max_bytes", mode="before")
    @classmethod
    def _none_for_unlimited(cls, value: object) -> object:
        return _unlimited_as_none(value)

    @field_validator("ack_timeout_ns")
    @classmethod
    def _check_ack_timeout(cls, ns: int) -> int:
        if not 0 < ns <= MAX_ACK_TIMEOUT_NS:
            raise ValueError(
                f"ack_timeout {format_duration(ns)} is out of range; it is more than 0 and at most 12h"
            )
        return ns

    @field_validator("dead_letter_retention_ns")
    @classmethod
    def _check_retention(cls, ns: int) -> int:
        if ns == 0:
            raise ValueError("dead_letter_retention is 0; write how long to keep them, or on_exhausted: drop")
        return ns

    @field_validator("backoff")
    @classmethod
    def _check_backoff(cls, backoff: Backoff) -> Backoff:
        if backoff is Backoff.UNDEFINED:
            raise ValueError("a queue's backoff is fixed, exponential, linear, or a list of durations")
        return backoff

    @field_validator("backoff_list_ns")
    @classmethod
    def _check_backoff_list(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if len(steps) > MAX_BACKOFF_STEPS:
            raise ValueError(
                f"{len(steps)} steps of backoff; at most {MAX_BACKOFF_STEPS}, and the last one repeats"
            )
        return steps

    @field_validator("dead_letter_subject")
    @classmethod
    def _check_dead_letter_subject(cls, subject: str | None) -> str | None:
        if subject is not None:
            try:
                check_publish_subject(subject.encode(errors="replace"))
            except MalformedMessage as wrong:
                raise ValueError(str(wrong).replace("the original subject", "dead_letter_subject")) from None
        return subject

    @field_validator("allow_subjects", "deny_subjects")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            check_pattern(pattern)
        return patterns

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """What two values say together; of a partial policy only where both are its own."""

        def known(*fields: str) -> bool:
            return not self.is_partial or self.model_fields_set.issuperset(fields)

        if known("min_backoff_ns", "max_backoff_ns") and self.min_backoff_ns > self.max_backoff_ns:
            low, high = format_duration(self.min_backoff_ns), format_duration(self.max_backoff_ns)
            raise ValueError(f"min_backoff {low} is more than max_backoff {high}; it is at most that")
        if self.backoff is Backoff.LIST and not self.backoff_list_ns:
            raise ValueError("backoff is list and backoff_list is empty; write it like backoff: [1s, 5s, 1m]")
        if self.backoff_list_ns and self.backoff is not Backoff.LIST:
            raise ValueError(
                "backoff_list is given and backoff is not list; write it like backoff: [1s, 5s, 1m]"
            )
        return self

    def over(self, base: "QueuePolicy") -> "QueuePolicy":
        """This policy where it says something, else `base`. Raises ValidationError when they contradict."""
        own = {
            field: getattr(self, field) for field in self.model_fields_set & QueuePolicy.model_fields.keys()
        }
        if "backoff" in own:  # the list belongs to the shape: a queue that says fixed must not inherit steps
            own["backoff_list_ns"] = self.backoff_list_ns
        inherited = {field: getattr(base, field) for field in QueuePolicy.model_fields}
        return QueuePolicy.model_validate({**inherited, **own})


class NamedQueuePolicy(QueuePolicy):
    """The policy of one queue by its name; what it leaves out comes from the defaults (`over`)."""

    is_partial: ClassVar[bool] = True

    name: str = Field(description="1 to 128 of A-Z a-z 0-9 _ . -")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        try:
            check_queue_name(name)
        except MalformedMessage as wrong:
            raise ValueError(str(wrong)) from None
        return name
