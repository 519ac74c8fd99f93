"""The checks of every request to the console: who asks, and whether the request may act or is refused."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import attrs
from quart import request

from mimids.ds.operator_sessions import OperatorSession
from mimids.ds.services import Services
from mimids.errors import UnsupportedMediaType
from mimids.http.api.public import installed_version
from mimids.http.console.rendering import PageFrame

if TYPE_CHECKING:
    from werkzeug.datastructures import MultiDict

TOKEN: Final = "form-token"  # noqa: S105  # the name of a field
_FORM: Final = "application/x-www-form-urlencoded"


@attrs.frozen
class RefusalPage:
    """A reason to refuse a request, with what the operator can do."""

    code: str  # in the log and in the counts of refusals
    status: HTTPStatus
    title: str
    advice: str


class ConsoleRefused(Exception):
    """The request is refused for `refusal`."""

    def __init__(self, refusal: RefusalPage) -> None:
        super().__init__(refusal.title)
        self.refusal = refusal


FOREIGN_HOST: Final = RefusalPage(
    "malformed",
    HTTPStatus.BAD_REQUEST,
    "This listener does not serve that Host",
    "Open the console as localhost, 127.0.0.1 or [::1].",
)
FOREIGN_ORIGIN: Final = RefusalPage(
    "foreign-origin",
    HTTPStatus.FORBIDDEN,
    "The form was sent by another site",
    "If you did this, open the console itself and fill in its form.",
)
NO_SESSION: Final = RefusalPage(
    "no-session",
    HTTPStatus.FORBIDDEN,
    "There is no session",
    "Run mimids console on the machine of the server, and open the link that it prints.",
)
OLD_FORM: Final = RefusalPage(
    "old-form",
    HTTPStatus.FORBIDDEN,
    "The form is too old, was sent already, or is of another session",
    "Check on the page Audit whether the command was run. If not, open the form again.",
)
OLD_LINK: Final = RefusalPage(
    "old-link",
    HTTPStatus.FORBIDDEN,
    "This link no longer works",
    "A link works once, for 60 seconds: run mimids console again.",
)


def cookie_name() -> str:
    """Return the name of the session's cookie. Cookies are shared by all ports of a host, so the port is part of it."""
    host = request.headers.get("Host", "")
    port = host.rpartition(":")[2]
    return f"mimids-console-{port}" if port.isdecimal() else "mimids-console"


def current_session(services: Services) -> OperatorSession | None:
    """Return the session of the request, None if there is none."""
    cookie = request.cookies.get(cookie_name())
    return None if cookie is None else services.operator_sessions.find(cookie)


def current_frame(services: Services) -> PageFrame:
    """Return the frame of a page: everything around its content."""
    return PageFrame(
        services.config.provider,
        installed_version(),
        services.clock.now(),
        current_session(services),
        request.path.rstrip("/"),
    )


async def admitted(services: Services, purpose: str) -> tuple[OperatorSession, MultiDict[str, str]]:
    """Return the session and the fields of the submitted form.

    Raises `UnsupportedMediaType` if the body is not a form, and `ConsoleRefused` for every other fault.

    `purpose` is the purpose for which the form's token was made. The token cannot be used again.
    """
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if request.headers.get("Origin") != f"http://{request.headers.get('Host')}" or site != "same-origin":
        raise ConsoleRefused(FOREIGN_ORIGIN)
    session = current_session(services)
    if session is None:
        raise ConsoleRefused(NO_SESSION)
    if request.mimetype != _FORM:
        raise UnsupportedMediaType
    fields = await request.form
    if not session.take_form(fields.get(TOKEN, ""), purpose, services.clock.now()):
        raise ConsoleRefused(OLD_FORM)
    return session, fields
