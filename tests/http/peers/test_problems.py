"""Refusals of other providers, read back from their problem documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids import errors
from mimids.errors import (
    BranchTerminated,
    CertificateMismatch,
    Malformed,
    MimiError,
    PeerFailed,
    PeerUnavailable,
    RateLimited,
    StorageUnavailable,
    TooLarge,
    WrongEpoch,
    every_error,
)
from mimids.http.api.problems import reply
from mimids.http.peers.problems import MEMBERS, RETRY_AFTER_SECONDS, TEXT_CHARS, error_from

PROBLEM = {"content-type": "application/problem+json"}
NOW = 1_900_000_000.0


def back(error: MimiError) -> MimiError:
    sent = reply(error)
    headers = {name.decode(): value.decode() for name, value in sent.headers}
    return error_from(sent.status, headers, sent.body, now_seconds=NOW)


@pytest.mark.parametrize(
    "error",
    [
        BranchTerminated(),
        WrongEpoch("it stands for another", epoch=7),
        TooLarge("message_bytes", 12),
        RateLimited("provider_sends_per_second", 9),
        Malformed("SendRequest.message: truncated"),
    ],
)
def test_a_refusal_is_read_back_as_the_same_error(error: MimiError) -> None:
    again = back(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.members == error.members


def test_every_refusal_is_read_back_unless_it_describes_us_or_a_fault_of_the_peer() -> None:
    for kind in every_error():
        error = kind.__new__(kind)
        MimiError.__init__(error, "why")
        again = back(error)
        if kind.status >= 500:
            assert type(again) is PeerUnavailable
        elif kind in (errors.Unauthenticated, errors.CertificateRequired, CertificateMismatch):
            assert type(again) is PeerFailed
        elif kind is errors.TimedOut:
            assert type(again) is PeerUnavailable
        else:
            assert type(again) is kind


def test_a_fault_of_the_peer_is_unavailability_with_its_retry_after() -> None:
    error = error_from(503, {"retry-after": "77"}, b"", now_seconds=NOW)
    assert isinstance(error, PeerUnavailable)
    assert error.members["retry_after"] == 77
    assert back(StorageUnavailable()).members["retry_after"] == RETRY_AFTER_SECONDS


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("0", 0),
        ("999999", 86_400),
        ("Sun, 17 Mar 2030 17:46:45 GMT", 5),
        ("Sun, 17 Mar 2030 17:00:00 GMT", 0),
        ("soon", 5),
        ("-3", 5),
        ("٣", 5),
        ("9" * 5000, 5),
        ("Sun, 99 Mar 99999 17:46:45 GMT", 5),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(written: str, seconds: int) -> None:
    error = error_from(500, {"retry-after": written}, b"", now_seconds=NOW)
    assert error.members["retry_after"] == seconds


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (404, {}, b"<html>"),
        (404, PROBLEM, b"<html>"),
        (404, PROBLEM, b"[]"),
        (404, PROBLEM, b"[" * 100_000),
        (404, PROBLEM, b'{"type": ["x"]}'),
        (404, PROBLEM, b'{"type": "about:blank"}'),
        (301, {"location": "https://evil.example/"}, b""),
        (404, PROBLEM, json.dumps({"type": BranchTerminated.problem_type()}).encode()),  # its status is 409
        (409, {"content-type": "application/json"}, json.dumps({"type": BranchTerminated.problem_type()}).encode()),
    ],
)
def test_an_answer_that_cannot_be_understood_is_peer_failed(status: int, headers: dict[str, str], body: bytes) -> None:
    assert type(error_from(status, headers, body, now_seconds=NOW)) is PeerFailed


def test_a_refusal_that_describes_us_is_not_passed_on_to_a_client() -> None:
    assert "certificate-mismatch" in str(back(CertificateMismatch()))
    assert type(back(CertificateMismatch())) is PeerFailed


def test_texts_and_members_of_a_peer_are_bounded() -> None:
    problem: dict[str, object] = {
        "type": BranchTerminated.problem_type(),
        "detail": "x" * 10_000,
        "a": "y" * 10_000,
        "b": {"c": 1},
    }
    problem |= {f"m{n}": n for n in range(1000)} | {"z" * 1000: 1}
    error = error_from(409, PROBLEM, json.dumps(problem).encode(), now_seconds=NOW)
    assert len(str(error)) == TEXT_CHARS
    assert len(error.members) <= MEMBERS + 5
    assert "b" not in error.members


@given(st.integers(300, 599), st.binary(max_size=100), st.booleans())
def test_any_answer_is_read_as_some_error(status: int, body: bytes, is_problem: bool) -> None:
    assert isinstance(error_from(status, PROBLEM if is_problem else {}, body, now_seconds=NOW), MimiError)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x),
    )
)
def test_any_json_is_read_as_some_error(value: object) -> None:
    body = json.dumps({"type": BranchTerminated.problem_type(), "members": value, "retry_after": value}).encode()
    error = error_from(409, PROBLEM, body, now_seconds=NOW)
    assert isinstance(error, BranchTerminated)
    assert reply(error).status == 409


@pytest.mark.parametrize("written", ["5\r\nset-cookie: x", "soon", 3.5, None, [1], True, 10**30, -4])
def test_a_peers_retry_after_cannot_become_another_header(written: object) -> None:
    problem = {"type": RateLimited.problem_type(), "retry_after": written}
    error = error_from(429, PROBLEM, json.dumps(problem).encode(), now_seconds=NOW)
    waits = [value for name, value in reply(error).headers if name == b"retry-after"]
    assert waits in ([], [b"0"], [b"86400"])


def test_nan_and_infinity_are_left_out() -> None:
    body = f'{{"type": "{BranchTerminated.problem_type()}", "a": NaN, "b": Infinity, "c": 1e999, "d": 1}}'.encode()
    assert error_from(409, PROBLEM, body, now_seconds=NOW).members == {"d": 1}


@pytest.mark.parametrize(
    ("member", "kept"),
    [
        ('"self": 1', {"self": 1}),  # also the name of an argument in Python
        ('"error": 1', {"error": 1}),
        ('"n": ' + "9" * 400, {}),  # too large for a float
        ('"n": -9223372036854775808', {}),
        ('"n": 9223372036854775807', {"n": (1 << 63) - 1}),
        ('"n": true', {"n": True}),
        (r'"n": "\ud800x"', {"n": "?x"}),  # an unpaired surrogate: not storable, nor can a line be written with it
        (r'"n": ["\udfff"]', {"n": ["?"]}),
        (r'"\ud800": 1', {}),
    ],
)
def test_no_member_of_a_peer_is_an_error_of_another_kind(member: str, kept: dict[str, object]) -> None:
    body = f'{{"type": "{WrongEpoch.problem_type()}", "detail": "\\ud800!", {member}}}'.encode()
    error = error_from(409, PROBLEM, body, now_seconds=NOW)
    assert type(error) is WrongEpoch
    assert str(error) == "?!"
    assert error.members == kept
    assert reply(error).status == 409
