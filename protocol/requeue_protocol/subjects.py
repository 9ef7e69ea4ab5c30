"""Names on the wire: fixed subjects, queue names, and which subjects a client may make a worker write to.

A worker's NATS rights may exceed those of the client whose envelope it replays, so an original subject is
checked twice: that it is one at all (no wildcard, no whitespace, no empty token), and that the rules of its
queue allow it.
"""

import re

from requeue_protocol.errors import MalformedMessage, SubjectNotAllowed

INTAKE_DEFAULT = "requeue.>"
QUEUE_GROUP = "requeue-workers"
STATS = "_requeue._stats"
ADMIN_PREFIX = "_requeue"
HANDOVER_PREFIX = "_requeue.handover"

# A replay puts subject and reply inbox on one protocol line, and a server closes the connection of a client
# whose line is longer than its max_control_line (4096 bytes by default): one long subject would cut the
# worker off for ever.
MAX_SUBJECT_BYTES = 2048
MAX_QUEUE_NAME = 128

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}", re.ASCII)
_ASCII_SUBJECT = re.compile(rb"[!-~]+")
_CACHED_VERDICTS = 4096
_CACHED_SUBJECT_BYTES = 256


def check_queue_name(name: str) -> None:
    """Raise MalformedMessage unless `name` is 1 to 128 of `A-Za-z0-9_.-`."""
    if _QUEUE_NAME.fullmatch(name) is None:
        raise MalformedMessage(
            f"queue name {_shown(name)}; a queue name is 1 to {MAX_QUEUE_NAME} of A-Z a-z 0-9 _ . -"
        )


def check_publish_subject(subject: bytes) -> None:
    """Raise MalformedMessage unless `subject` is one that a message can be published to."""
    if not subject:
        raise MalformedMessage("the original subject is empty; name the subject that the message belongs to")
    if len(subject) > MAX_SUBJECT_BYTES:
        raise MalformedMessage(
            f"the original subject has {len(subject)} bytes; at most {MAX_SUBJECT_BYTES} are allowed"
        )
    if _ASCII_SUBJECT.fullmatch(subject) is None:
        _check_characters(subject)
    for token in subject.split(b"."):
        if token in (b"", b"*", b">"):
            what = f"the wildcard {token.decode()!r}" if token else "an empty token"
            raise MalformedMessage(
                f"the original subject {_shown(subject)} has {what}; tokens are words between dots"
            )


def _check_characters(subject: bytes) -> None:
    try:
        text = subject.decode()
    except UnicodeDecodeError:
        raise MalformedMessage(f"the original subject {_shown(subject)} is not UTF-8") from None
    if any(char.isspace() or char < " " or "\x7f" <= char <= "\x9f" for char in text):
        raise MalformedMessage(
            f"the original subject {_shown(text)} has whitespace or a control character; use neither"
        )


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless `pattern` is a subject in which tokens may be `*` and the last one `>`."""
    tokens = pattern.split(".")
    if any(not token or any(char.isspace() or char < " " for char in token) for token in tokens):
        raise ValueError(
            f"{pattern!r} is not a subject pattern; write tokens between dots, like orders.* or orders.>"
        )
    if ">" in tokens[:-1]:
        raise ValueError(f"{pattern!r} has '>' before its end; '>' stands for the rest and comes last")


def subject_matches(pattern: str, subject: str) -> bool:
    """Whether a subscription on `pattern` gets what is published to `subject`."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(given) > at
        if at >= len(given) or (token != "*" and token != given[at]):
            return False
    return len(wanted) == len(given)


def handover_subject(fleet: str, instance: str) -> str:
    """Where a drain hands records to one worker. Dots are escaped: fleet and instance stay one token each.

    Raises MalformedMessage for a name that is none.
    """
    check_queue_name(fleet)
    check_queue_name(instance)
    return f"{HANDOVER_PREFIX}.{_token(fleet)}.{_token(instance)}"


def survivors_subject(fleet: str) -> str:
    """Where a drain asks who of a fleet would take something over: `~` is in no instance id.

    Raises MalformedMessage for a name that is none.
    """
    check_queue_name(fleet)
    return f"{HANDOVER_PREFIX}.{_token(fleet)}.~"


def _token(name: str) -> str:
    return name.replace(".", "%2E")  # '%' is in no name, so that two names never meet


class SubjectRules:
    """What a client may make the worker write to. One instance per distinct allow and deny list.

    Never allowed: `_INBOX.>`, `_requeue` and below, and what the worker itself takes in (it would feed
    itself). A first token that starts with `$` (JetStream API, system account, key-value stores) is refused
    unless an allow pattern names it with its `$`. Then deny goes before allow; an empty allow list allows
    the rest.
    """

    def __init__(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = (), *, intake: str) -> None:
        for pattern in (*allow, *deny, intake):
            check_pattern(pattern)
        self._allow = allow
        self._deny = ("_INBOX.>", ADMIN_PREFIX, f"{ADMIN_PREFIX}.>", intake, *deny)
        self._system = tuple(pattern for pattern in allow if pattern.startswith("$"))
        #: subjects that `check` has let through lately
        self.passed: set[bytes] = set()

    def check(self, subject: bytes) -> None:
        """Raise MalformedMessage or SubjectNotAllowed when a message must not be replayed to `subject`."""
        if subject in self.passed:
            return
        check_publish_subject(subject)
        self._judge(subject.decode())
        if len(subject) <= _CACHED_SUBJECT_BYTES:
            if len(self.passed) >= _CACHED_VERDICTS:
                self.passed.clear()  # unique subjects: rather judge again than grow
            self.passed.add(subject)

    def _judge(self, subject: str) -> None:
        for pattern in self._deny:
            if subject_matches(pattern, subject):
                raise SubjectNotAllowed(f"subject {_shown(subject)} is not allowed: {pattern} is denied here")
        if subject.startswith("$") and not any(subject_matches(p, subject) for p in self._system):
            raise SubjectNotAllowed(
                f"subject {_shown(subject)} is not allowed: it belongs to the NATS system ($...)"
            )
        if self._allow and not any(subject_matches(pattern, subject) for pattern in self._allow):
            allowed = ", ".join(self._allow)
            raise SubjectNotAllowed(
                f"subject {_shown(subject)} is not allowed: this queue allows {allowed[:200]}"
            )


def _shown(text: str | bytes) -> str:
    """`text` for an error message: quoted, escaped, and short."""
    readable = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    return repr(readable if len(readable) <= 100 else readable[:97] + "...")
