"""What the API server's refusals mean."""

from __future__ import annotations

import json

import pytest
from requeue_operator.kube import Forbidden, KubeError, NamespaceGoes, Rejected, _decoded


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, 'jobs.batch is forbidden: User "u" cannot list resource "jobs"', Forbidden),
        (403, 'pods "x" is forbidden: exceeded quota: small, requested: pods=1', Rejected),
        (
            403,
            'configmaps "x" is forbidden: unable to create new content in namespace n because it is being terminated',
            NamespaceGoes,
        ),
        (422, "spec.replicas: Invalid value", Rejected),
        (400, "bad", Rejected),
        (409, "the object has been modified", KubeError),
        (500, "etcdserver: request timed out", KubeError),
    ],
)
def test_each_refusal_is_told_apart(status: int, message: str, error: type[KubeError]) -> None:
    with pytest.raises(KubeError) as raised:
        _decoded(status, json.dumps({"message": message}).encode())
    assert (type(raised.value), raised.value.status, str(raised.value)) == (error, status, message)


def test_what_is_not_there_is_none_and_a_proxys_page_is_an_error() -> None:
    assert _decoded(404, b'{"message": "not found"}') is None
    with pytest.raises(KubeError, match="<html>"):
        _decoded(502, b"<html>bad gateway</html>")
