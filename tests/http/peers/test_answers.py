from __future__ import annotations

import pytest

from mimids.ds.ports import RelayedAnswer
from mimids.http.peers.answers import HttpAnswer, named_revision, relayed_answer


def test_the_relay_gets_only_the_headers_that_it_may_use() -> None:
    headers = {
        "content-type": "Application/OHTTP-Keys; v=1",
        "cache-control": "max-age=60",
        "mimids-keys-signature": "s",
        "retry-after": "17",
        "set-cookie": "a=b",
    }
    assert relayed_answer(HttpAnswer(404, headers, b"x")) == RelayedAnswer(
        status=404,
        media_type="application/ohttp-keys",
        body=b"x",
        retry_after="17",
        max_age_seconds=60,
        keys_signature="s",
    )


def test_an_answer_without_headers_may_not_be_cached() -> None:
    assert relayed_answer(HttpAnswer(200, {}, b"x")) == RelayedAnswer(status=200, media_type="", body=b"x")


@pytest.mark.parametrize(
    ("written", "revision"),
    [
        ("0", 0),
        ("7", 7),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("", None),
        ("-1", None),
        ("\u0663", None),
        ("7, 8", None),
    ],
)
def test_a_revision_is_a_number_that_a_row_can_hold(written: str, revision: int | None) -> None:
    assert named_revision({"mimids-arrangement": written}) == revision


def test_an_answer_may_name_no_revision() -> None:
    assert named_revision({}) is None
