from __future__ import annotations

from mimids.errors import Internal
from mimids.http.api import problems
from mimids.wire.codec import WireError


def test_a_fault_of_ours_is_a_bare_internal() -> None:
    assert type(problems.classify(KeyError("secret"))) is Internal
    assert b"secret" not in problems.reply(problems.classify(KeyError("secret"))).body


def test_wire_errors_are_malformed_requests() -> None:
    assert (
        str(problems.classify(WireError("truncated", ("SendRequest", "message")))) == "SendRequest.message: truncated"
    )
