from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.errors import MalformedMessage, SubjectNotAllowed
from requeue_protocol.subjects import (
    INTAKE_DEFAULT,
    SubjectRules,
    check_pattern,
    check_publish_subject,
    check_queue_name,
    handover_subject,
    subject_matches,
    survivors_subject,
)

from tests.unit.protocol.profile import checked


@pytest.mark.parametrize("name", ["a", "default", "A-Z_0.9", ".", "..", "q" * 128])
def test_a_queue_name_is_1_to_128_of_its_alphabet(name: str) -> None:
    check_queue_name(name)


@pytest.mark.parametrize("name", ["", "q" * 129, "a b", "a/b", "a\n", "ü", "a\x00", "a*", "a>", "٣"])
def test_any_other_queue_name_is_refused(name: str) -> None:
    with pytest.raises(MalformedMessage, match=r"a queue name is 1 to 128 of A-Z a-z 0-9 _ \. -"):
        check_queue_name(name)


@pytest.mark.parametrize(
    "subject", ["a", "orders.created", "a*b.c>d", "$KV.x", "ü.ñ", "a" * 2048, "/", "_x.y", "-"]
)
def test_a_subject_is_words_between_dots(subject: str) -> None:
    check_publish_subject(subject.encode())


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [
        (b"", "is empty; name the subject"),
        (b".", "an empty token"),
        (b"a.", "an empty token"),
        (b".a", "an empty token"),
        (b"a..b", "an empty token"),
        (b"*", "the wildcard '*'"),
        (b"a.*.b", "the wildcard '*'"),
        (b"a.>", "the wildcard '>'"),
        (b">", "the wildcard '>'"),
        (b"a b", "whitespace or a control character"),
        (b"a\tb", "whitespace or a control character"),
        (b"a\r\nPUB b 0\r\n\r\n", "whitespace or a control character"),
        (b"a\x00", "whitespace or a control character"),
        (b"a\x7f", "whitespace or a control character"),
        ("a\u00a0b".encode(), "whitespace or a control character"),
        ("a\u2028b".encode(), "whitespace or a control character"),
        ("a\u0085b".encode(), "whitespace or a control character"),
        (b"a\xff", "is not UTF-8"),
        (b"\xed\xa0\x80", "is not UTF-8"),
        (b"a" * 2049, "2049 bytes; at most 2048"),
    ],
)
def test_any_other_subject_is_malformed(subject: bytes, wrong: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        check_publish_subject(subject)
    assert wrong in str(refused.value)
    with pytest.raises(MalformedMessage):
        SubjectRules(allow=(">",), intake=INTAKE_DEFAULT).check(subject)


@checked
@given(st.binary(max_size=60))
def test_any_bytes_are_a_subject_or_malformed(subject: bytes) -> None:
    try:
        check_publish_subject(subject)
    except MalformedMessage:
        return
    text = subject.decode()
    assert all(token not in ("", "*", ">") for token in text.split("."))
    assert not any(char.isspace() or char < " " for char in text)


MATCHES = [
    ("a.b", "a.b", True),
    ("a.b", "a.c", False),
    ("a.b", "a.b.c", False),
    ("a.b.c", "a.b", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*.b", "a.b", True),
    ("*", "a", True),
    ("*", "a.b", False),
    ("a.>", "a.b", True),
    ("a.>", "a.b.c", True),
    ("a.>", "a", False),
    (">", "a", True),
    (">", "a.b", True),
    ("a.*.c.>", "a.x.c.d.e", True),
    ("a.*.c.>", "a.x.d.d.e", False),
    ("a*", "ab", False),
    ("a*", "a*", True),
    ("a.b", "A.b", False),
]


@pytest.mark.parametrize(("pattern", "subject", "matches"), MATCHES)
def test_patterns_match_as_in_nats(pattern: str, subject: str, matches: bool) -> None:
    assert subject_matches(pattern, subject) is matches


@pytest.mark.parametrize("pattern", [">", "*", "a", "a.*.b", "a.>", "$JS.>", "ü.>"])
def test_a_pattern_is_tokens_with_the_rest_last(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", ".", "a..b", "a.", ">.a", "a.>.b", "a b", "a\n", "a.\x00"])
def test_any_other_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_pattern(pattern)
    with pytest.raises(ValueError):
        SubjectRules(deny=(pattern,), intake=INTAKE_DEFAULT)


def test_a_handover_subject_has_one_token_each_for_fleet_and_instance() -> None:
    assert handover_subject("default", "host-1") == "_requeue.handover.default.host-1"
    assert handover_subject("a.b", "c..d.") == "_requeue.handover.a%2Eb.c%2E%2Ed%2E"
    assert survivors_subject("a.b") == "_requeue.handover.a%2Eb.~"
    with pytest.raises(MalformedMessage):
        handover_subject("a b", "c")
    with pytest.raises(MalformedMessage):
        handover_subject("a", "*")


DEFAULT = SubjectRules(intake=INTAKE_DEFAULT)
ALLOW = SubjectRules(allow=("orders.>", "mail.*"), intake=INTAKE_DEFAULT)
DENY = SubjectRules(deny=("orders.secret.>", "*.root"), intake=INTAKE_DEFAULT)
BOTH = SubjectRules(allow=("orders.>",), deny=("orders.secret",), intake=INTAKE_DEFAULT)
OTHER_INTAKE = SubjectRules(intake="jobs.*.in")
ALL = SubjectRules(allow=(">",), intake=INTAKE_DEFAULT)
KEY_VALUE = SubjectRules(allow=("$KV.prices.>", "orders.>"), intake=INTAKE_DEFAULT)


@pytest.mark.parametrize(
    ("rules", "subject"),
    [
        (DEFAULT, "orders.created"),
        (DEFAULT, "requeue"),  # the intake is requeue.>
        (DEFAULT, "requeued.x"),
        (DEFAULT, "a.$x"),
        (DEFAULT, "a._INBOX.x"),
        (DEFAULT, "_INBOXES.x"),
        (DEFAULT, "_requeues.x"),
        (ALLOW, "orders.a.b"),
        (ALLOW, "mail.a"),
        (DENY, "orders.secret"),
        (DENY, "root"),
        (BOTH, "orders.open"),
        (OTHER_INTAKE, "requeue.x"),
        (OTHER_INTAKE, "jobs.a.out"),
        (KEY_VALUE, "$KV.prices.eur"),
        (KEY_VALUE, "orders.x"),
    ],
)
def test_what_no_rule_forbids_is_allowed(rules: SubjectRules, subject: str) -> None:
    for _ in range(2):  # judged, then from the cache
        rules.check(subject.encode())


@pytest.mark.parametrize(
    ("rules", "subject", "wrong"),
    [
        (DEFAULT, "$JS.API.STREAM.DELETE.orders", "belongs to the NATS system"),
        (DEFAULT, "$SYS.REQ.SERVER.PING", "belongs to the NATS system"),
        (DEFAULT, "$x", "belongs to the NATS system"),
        (DEFAULT, "_INBOX.abc.1", "_INBOX.> is denied"),
        (DEFAULT, "requeue.x", "requeue.> is denied"),
        (DEFAULT, "requeue.x.y", "requeue.> is denied"),
        (DEFAULT, "_requeue._stats", "_requeue.> is denied"),
        (DEFAULT, "_requeue.handover.default.host-1", "_requeue.> is denied"),
        (DEFAULT, "_requeue", "_requeue is denied"),
        (ALLOW, "mail.a.b", "this queue allows orders.>, mail.*"),
        (ALLOW, "other", "this queue allows orders.>, mail.*"),
        (DENY, "orders.secret.plan", "orders.secret.> is denied"),
        (DENY, "x.root", "*.root is denied"),
        (BOTH, "orders.secret", "orders.secret is denied"),
        (OTHER_INTAKE, "jobs.a.in", "jobs.*.in is denied"),
        (ALL, "$JS.API.INFO", "belongs to the NATS system"),
        (ALL, "requeue.x", "requeue.> is denied"),
        (ALL, "_INBOX.x", "_INBOX.> is denied"),
        (KEY_VALUE, "$KV.users.1", "belongs to the NATS system"),
    ],
)
def test_what_a_rule_forbids_is_refused_with_that_rule(rules: SubjectRules, subject: str, wrong: str) -> None:
    for _ in range(2):
        with pytest.raises(SubjectNotAllowed) as refused:
            rules.check(subject.encode())
        assert wrong in str(refused.value)


def test_the_cache_of_verdicts_is_bounded_and_never_changes_one() -> None:
    rules = SubjectRules(allow=("orders.>",), intake=INTAKE_DEFAULT)
    source = random.Random(1)
    for number in range(20_000):
        rules.check(b"orders.%d" % number)
        rules.check(b"orders." + b"x" * 1500 + b"%d" % number)
        with pytest.raises(SubjectNotAllowed):
            rules.check(b"mail.%d" % source.randrange(100))
    assert len(rules.passed) <= 4096
    assert max(map(len, rules.passed)) <= 256
