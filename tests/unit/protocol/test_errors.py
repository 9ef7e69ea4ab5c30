from __future__ import annotations

import pytest
from requeue_protocol import errors
from requeue_protocol.errors import (
    PermanentRefusal,
    RefusedError,
    RequeueError,
    TransientRefusal,
    refusal_for,
)

CODES = {
    "MalformedMessage": (400, True),
    "SubjectNotAllowed": (403, True),
    "ReadOnly": (405, True),
    "MessageTooLarge": (413, True),
    "QueueFull": (429, False),
    "CommitFailed": (500, False),
    "UnexpectedReply": (502, False),
    "Busy": (503, False),
    "Draining": (503, False),
    "NoWorker": (503, False),
    "DiskFull": (507, False),
}


@pytest.mark.parametrize(("name", "expected"), CODES.items(), ids=CODES.keys())
def test_every_refusal_has_its_code_and_says_whether_to_retry(name: str, expected: tuple[int, bool]) -> None:
    kind: type[RefusedError] = getattr(errors, name)
    refusal = kind("text")
    assert (refusal.code, refusal.permanent, str(refusal)) == (*expected, "text")
    assert isinstance(refusal, PermanentRefusal if refusal.permanent else TransientRefusal)
    assert isinstance(refusal, RequeueError)


@pytest.mark.parametrize(("name", "expected"), CODES.items(), ids=CODES.keys())
def test_a_code_leads_back_to_its_type(name: str, expected: tuple[int, bool]) -> None:
    code, permanent = expected
    refusal = refusal_for(code, "text")
    assert issubclass(getattr(errors, name), type(refusal))
    assert (refusal.code, refusal.permanent, str(refusal)) == (code, permanent, "text")


def test_an_unknown_code_keeps_its_number_in_the_text() -> None:
    assert str(refusal_for(451, "law")) == "451 law"
    assert type(refusal_for(451, "law")) is PermanentRefusal
    assert type(refusal_for(599, "")) is TransientRefusal
    assert str(refusal_for(599, "")) == "599"
