"""The operator's sessions in the console: one-time links, sessions, and the tokens of forms (http: console).

All of them are in memory and end with the process. Links and sessions end by the monotonic clock, so that setting the
clock back does not prolong them. Only digests of links and cookies are kept.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, TypeVar

import attrs

from mimids.ds.ports import Clock
from mimids.values import Milliseconds

LINK_SECONDS: Final = 60
SESSION_SECONDS: Final = 12 * 3600
FORM_SECONDS: Final = 3600
LINKS: Final = 16  # a newer link takes the place of the oldest
SESSIONS: Final = 64  # a newer session takes the place of the oldest
FORMS: Final = 256  # forms of one session; a newer form takes the place of the oldest

K = TypeVar("K")
V = TypeVar("V")


@attrs.define(eq=False)
class OperatorSession:
    """One session; `id` names it in the audit table and is not secret."""

    id: str
    expires_at: Milliseconds  # by the provider's clock, to be shown
    ends_at: Milliseconds  # by the monotonic clock
    _forms: dict[str, tuple[str, Milliseconds]] = attrs.field(factory=dict, repr=False)  # purpose and end, by token

    def new_form(self, purpose: str, now: Milliseconds) -> str:
        """Return a token for one submission of a form, for FORM_SECONDS."""
        token = secrets.token_urlsafe(24)
        _put(self._forms, token, (purpose, _after(now, FORM_SECONDS)), most=FORMS)
        return token

    def take_form(self, token: str, purpose: str, now: Milliseconds) -> bool:
        """Use up a token; tell whether it was given out for this purpose and is not too old."""
        made_for, until = self._forms.pop(token, ("", Milliseconds(0)))
        return made_for == purpose and now < until


class OperatorSessions:
    """The links and sessions of one provider's console."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._links: dict[bytes, Milliseconds] = {}  # when the link ends (monotonic clock), by digest
        self._sessions: dict[bytes, OperatorSession] = {}  # by digest of the cookie

    def new_link(self) -> tuple[str, Milliseconds]:
        """Return the secret of a link that starts one session, and the time at which the link ends."""
        secret = secrets.token_urlsafe(32)
        _put(self._links, _digest(secret), _after(self._clock.running(), LINK_SECONDS), most=LINKS)
        return secret, _after(self._clock.now(), LINK_SECONDS)

    def start(self, secret: str) -> str | None:
        """Start a session with the secret of a link, and use the link up; return the cookie, None if the link ended."""
        now, running = self._clock.now(), self._clock.running()
        if running >= self._links.pop(_digest(secret), Milliseconds(0)):
            return None
        cookie = secrets.token_urlsafe(32)
        ends = _after(now, SESSION_SECONDS), _after(running, SESSION_SECONDS)
        session = OperatorSession(secrets.token_hex(4), *ends)
        _put(self._sessions, _digest(cookie), session, most=SESSIONS)
        return cookie

    def find(self, cookie: str) -> OperatorSession | None:
        """Return the session of a cookie, None if there is no such session or it has ended."""
        session = self._sessions.get(_digest(cookie))
        if session is None or self._clock.running() < session.ends_at:
            return session
        del self._sessions[_digest(cookie)]
        return None

    def end(self, cookie: str) -> None:
        """End the session of a cookie, if there is one."""
        self._sessions.pop(_digest(cookie), None)


def _put(kept: dict[K, V], key: K, value: V, *, most: int) -> None:
    """Add an entry; drop the oldest one if there are more than `most`."""
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _after(now: Milliseconds, seconds: int) -> Milliseconds:
    return Milliseconds(now + seconds * 1000)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
