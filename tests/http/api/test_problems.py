from __future__ import annotations

import json

import pytest

from mimids.errors import Internal, InvalidMessage
from mimids.http.api import problems
from mimids.wire.codec import WireError


def test_an_unexpected_exception_becomes_internal_without_details() -> None:
    assert type(problems.classify(KeyError("secret"))) is Internal
    assert b"secret" not in problems.reply(problems.classify(KeyError("secret"))).body


def test_wire_errors_are_malformed_requests() -> None:
    assert (
        str(problems.classify(WireError("truncated", ("SendRequest", "message")))) == "SendRequest.message: truncated"
    )


@pytest.mark.parametrize(
    ("section", "travels"),
    [
        ("RFC 9420 section 12.2", True),
        ("draft-ietf-mimi-room-policy-03 section 8", True),
        ("semantics: public-group-state", False),
    ],
)
def test_a_section_of_our_own_documents_does_not_travel(section: str, travels: bool) -> None:
    error = InvalidMessage("why", rule="a-rule", section=section)
    members = json.loads(problems.document(error))
    assert members.get("section") == (section if travels else None)
    assert members["rule"] == "a-rule"
    assert error.members["section"] == section
