"""The console as a Quart application: its routes, headers, error pages, and its lines in the log."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

from quart import g, request
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from mimids.ds.services import Services
from mimids.errors import Internal
from mimids.http.api import problems
from mimids.http.api.operator import HOSTS
from mimids.http.console.acting import ActingPages
from mimids.http.console.reading import ReadingPages
from mimids.http.console.rendering import STATIC, render
from mimids.http.console.requests import FOREIGN_HOST, ConsoleRefused, RefusalPage, current_frame
from mimids.http.header_names import REQUEST_ID
from mimids.telemetry import new_request_id

FORM_OCTETS: Final = 1 << 20  # room for as many names as one command takes
REFRESH: Final = "Mimids-Refresh"  # a page that refreshes itself sends this header
# A page may load our style sheet and script, ask for itself, and send its forms to us. It may load nothing else,
# even if markup was injected. A form's Origin would be "null" with `no-referrer`.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def make_console(services: Services) -> QuartTrio:
    """Return the application."""
    app = QuartTrio(__name__, static_folder=None, template_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=FORM_OCTETS,
        MAX_FORM_MEMORY_SIZE=FORM_OCTETS,
        BODY_TIMEOUT=services.config.limits.body_seconds,
        RESPONSE_TIMEOUT=None,  # the connection has a limit of its own
    )
    app.logger = services.telemetry.logger
    app.url_map.strict_slashes = app.url_map.merge_slashes = False
    app.before_request(_begin)
    app.after_request(_Ending(services).finish)
    app.register_error_handler(Exception, _ErrorPages(services).answer)
    app.add_url_rule("/console/static/<name>", "static", _static)
    ReadingPages(services).add_to(app)
    ActingPages(services).add_to(app)
    return app


async def _begin() -> None:
    g.code, g.id, g.began = "ok", new_request_id(), time.perf_counter()
    host = request.headers.get("Host", "").lower()
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if name not in HOSTS:
        raise ConsoleRefused(FOREIGN_HOST)


class _Ending:
    """Adds the headers of every answer, and writes its line in the log."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def finish(self, response: TrioResponse) -> TrioResponse:
        """Return the answer to send."""
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        self._services.telemetry.request(
            "none" if request.endpoint is None else f"console-{request.endpoint}",
            g.code,
            id_=g.id,
            peer=None,
            received=request.content_length or 0,
            sent=response.content_length or 0,
            milliseconds=(time.perf_counter() - g.began) * 1000,
            log=not (REFRESH in request.headers and request.method == "GET" and g.code == "ok"),
        )
        return response


class _ErrorPages:
    """Makes the page of a refusal."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def answer(self, error: Exception) -> TrioResponse:
        """Return the answer to a request that raised an error."""
        advice, headers = "", {}
        if isinstance(error, ConsoleRefused):
            refusal = error.refusal
        elif isinstance(error, HTTPException):
            status = HTTPStatus(error.code or 500)
            refusal = RefusalPage(error.name.lower().replace(" ", "-"), status, error.name, "")
            if isinstance(error, MethodNotAllowed):
                headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        else:
            found = problems.classify(error)
            if isinstance(found, Internal):
                self._services.telemetry.log.error("a handler failed", route=request.endpoint, id=g.id, exc_info=error)
                headers[REQUEST_ID] = g.id
                advice = f"The log of the server has the traceback, with the id {g.id}."
            refusal = RefusalPage(found.code, found.status, str(found), advice)
        g.code = refusal.code
        page = render("error.html", current_frame(self._services), refusal.title, refusal=refusal)
        return TrioResponse(page, refusal.status, headers)


async def _static(name: str) -> TrioResponse:
    """Return a file that pages load; the URL of a file changes with its content."""
    if name not in STATIC:
        raise ConsoleRefused(RefusalPage("not-found", HTTPStatus.NOT_FOUND, "There is no such file", ""))
    kind = _TYPES[name.rpartition(".")[2]]
    return TrioResponse(STATIC[name], content_type=kind, headers={"Cache-Control": "max-age=31536000, immutable"})
