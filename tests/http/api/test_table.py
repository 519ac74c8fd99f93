"""Answers of a table: typed values in and out, refusals, faults, log lines and metrics."""

from __future__ import annotations

import pytest

from mimids.http.media_types import MIMI_DS
from mimids.wire.ids import Counter
from tests.support.table_rig import PLAIN, RECEIVE, Rig


async def test_a_handler_gets_the_typed_value_and_its_answer_is_encoded(rig: Rig) -> None:
    request = RECEIVE.read(bytes(16) + (5).to_bytes(4, "big"))
    answer = await rig.ask("POST", "/receive", RECEIVE.write(request), {"content-type": MIMI_DS})
    assert (answer.status, answer.body) == (200, b"")
    (call,) = rig.handlers.calls
    assert call.body == request
    assert call.body.counter == Counter(5)


async def test_an_unknown_caller_is_refused_before_its_body_is_received() -> None:
    rig = Rig(body_seconds=0)
    answer = await rig.ask("POST", "/client/v1/x", [b"x"] * 200, PLAIN)
    assert (answer.status, answer.problem, answer.headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")


async def test_a_refusal_has_its_members_but_no_section_of_our_documents(rig: Rig) -> None:
    answer = await rig.ask("GET", "/refuse")
    assert answer.json() == {
        "type": "urn:mimids:problem:policy",
        "title": "refused by policy",
        "status": 403,
        "detail": "muted in this fork",
        "rule": "muted",
    }


async def test_answers_to_a_provider_have_the_stamped_headers_refusals_too(rig: Rig) -> None:
    answer = await rig.ask("GET", "/limit")
    assert (answer.status, answer.headers["retry-after"], answer.headers["mimids-arrangement-revision"]) == (
        429,
        "7",
        "7",
    )
    assert "mimids-arrangement-revision" not in (await rig.ask("GET", "/wide")).headers


async def test_the_details_of_an_internal_error_are_logged_and_not_sent(rig: Rig) -> None:
    answer = await rig.ask("GET", "/fail")
    assert (answer.status, answer.problem) == (500, "internal")
    assert b"42" not in answer.body
    (line,) = [line for line in rig.log.lines if line["level"] == "error"]
    assert "the secret is 42" in line["exception"]
    assert line["id"] == answer.headers["mimids-request-id"] == rig.last["id"]


async def test_each_request_is_logged_in_one_line(rig: Rig) -> None:
    await rig.ask("POST", "/ds/v1/x", b"12345", PLAIN)
    (line,) = rig.log.lines
    assert line.pop("timestamp")
    assert line.pop("ms") >= 0
    assert len(line.pop("id")) == 16
    assert line == {
        "event": "request",
        "level": "info",
        "provider": "a.example",
        "route": "provider",
        "code": "ok",
        "peer": "b.example",
        "received": 5,
        "sent": 0,
    }


async def test_unlinkable_requests_are_counted_but_not_logged(rig: Rig) -> None:
    await rig.ask("POST", "/gateway", b"12345", PLAIN)
    await rig.ask("POST", "/gateway", b"12345", PLAIN)
    assert not rig.log.lines
    rig.log.telemetry.tell_counts()
    (line,) = rig.log.lines
    assert (line["event"], line["route"], line["code"], line["count"]) == ("requests", "gateway", "ok", 2)


async def test_requests_are_counted_by_row_and_outcome(rig: Rig) -> None:
    await rig.ask("GET", "/refuse")
    await rig.ask("GET", "/somewhere/else/1234")
    metrics = rig.log.telemetry.metrics().decode()
    assert 'mimids_requests_total{code="policy",route="refuse"} 1.0' in metrics
    assert 'mimids_requests_total{code="not-found",route="none"} 1.0' in metrics


@pytest.mark.parametrize("query", ["bundle=%", "bundle&" * 40, "bundle=" + "x" * 5000, "bundle=%ff"])
async def test_a_bad_query_is_never_an_internal_error(rig: Rig, query: str) -> None:
    assert (await rig.ask("GET", f"/groups/1/items/2?{query}")).status in (200, 400)
