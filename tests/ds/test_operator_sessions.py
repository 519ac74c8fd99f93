"""Sessions of the operator: a link works once and for a minute, a form once and for an hour; nothing is unbounded."""

from __future__ import annotations

from mimids.ds import operator_sessions
from mimids.ds.operator_sessions import FORM_SECONDS, LINK_SECONDS, SESSION_SECONDS, OperatorSession, OperatorSessions
from mimids.testing.clock import MovableClock
from tests.support.doubles import stopped_clock


def started() -> tuple[OperatorSessions, MovableClock, str, OperatorSession]:
    clock = stopped_clock()
    sessions = OperatorSessions(clock)
    secret, _ = sessions.new_link()
    cookie = sessions.start(secret)
    assert cookie is not None
    session = sessions.find(cookie)
    assert session is not None
    return sessions, clock, cookie, session


def test_a_link_starts_one_session() -> None:
    sessions, _, cookie, session = started()
    assert sessions.find(cookie) is session
    secret, _ = sessions.new_link()
    assert sessions.start(secret) is not None
    assert sessions.start(secret) is None
    assert sessions.start("") is None
    assert sessions.find("\udcff") is None


def test_a_link_ends_after_a_minute() -> None:
    clock = stopped_clock()
    sessions = OperatorSessions(clock)
    in_time, _ = sessions.new_link()
    late, until = sessions.new_link()
    assert until == clock.now() + LINK_SECONDS * 1000
    clock.advance(LINK_SECONDS - 1)
    assert sessions.start(in_time) is not None
    clock.advance(1)
    assert sessions.start(late) is None


def test_a_session_ends_after_half_a_day_or_when_it_is_ended() -> None:
    sessions, clock, cookie, session = started()
    clock.advance(SESSION_SECONDS - 1)
    assert sessions.find(cookie) is session
    clock.advance(1)
    assert sessions.find(cookie) is None
    sessions, _, cookie, _ = started()
    sessions.end(cookie)
    assert sessions.find(cookie) is None


def test_a_form_is_taken_once_in_time_and_for_its_purpose() -> None:
    _, clock, _, session = started()
    token = session.new_form("user add", clock.now())
    assert session.take_form(token, "user add", clock.now())
    assert not session.take_form(token, "user add", clock.now())
    assert not session.take_form(session.new_form("user add", clock.now()), "user remove", clock.now())
    old = session.new_form("user add", clock.now())
    clock.advance(FORM_SECONDS)
    assert not session.take_form(old, "user add", clock.now())
    assert not session.take_form("", "user add", clock.now())


def test_what_is_kept_has_a_bound_and_the_oldest_goes_first() -> None:
    sessions, clock, cookie, session = started()
    first = session.new_form("user add", clock.now())
    newest = [session.new_form("user add", clock.now()) for _ in range(operator_sessions.FORMS)][-1]
    assert not session.take_form(first, "user add", clock.now())
    assert session.take_form(newest, "user add", clock.now())
    link, _ = sessions.new_link()
    for _ in range(operator_sessions.LINKS):
        sessions.new_link()
    assert sessions.start(link) is None
    for _ in range(operator_sessions.SESSIONS):
        sessions.start(sessions.new_link()[0])
    assert sessions.find(cookie) is None


def test_no_secret_is_shown_or_kept_as_it_is() -> None:
    sessions, clock, cookie, session = started()
    token = session.new_form("user add", clock.now())
    secret, _ = sessions.new_link()
    assert token not in repr(session)
    kept = repr(vars(sessions))
    assert cookie not in kept
    assert secret not in kept


def test_setting_the_clock_back_prolongs_neither_a_link_nor_a_session() -> None:
    sessions, clock, cookie, _ = started()
    secret, _ = sessions.new_link()
    clock.jump(-SESSION_SECONDS)
    clock.advance(LINK_SECONDS)
    assert sessions.start(secret) is None
    clock.advance(SESSION_SECONDS - LINK_SECONDS)
    assert sessions.find(cookie) is None
