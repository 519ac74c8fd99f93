"""Writes pages from templates. Text that others wrote cannot become markup, disguise itself, or control a page.

Each value that a template shows is escaped twice: control characters and bidi marks by `printable`, then HTML.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

import attrs
from jinja2 import Environment, PackageLoader, StrictUndefined

from mimids.ds.operator_sessions import OperatorSession
from mimids.http.console.parts import Badge, CodeText, Hyperlink, moment, number
from mimids.printable import printable
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId

PAGES: Final = (
    ("/console", "Overview"),
    ("/console/groups", "Groups"),
    ("/console/providers", "Providers"),
    ("/console/users", "Users"),
    ("/console/tokens", "Tokens"),
    ("/console/reports", "Reports"),
    ("/console/policy", "Policy"),
    ("/console/health", "Health"),
    ("/console/audit", "Audit"),
    ("/console/commands", "Commands"),
)
STATIC: Final = {
    name: files("mimids.http.console").joinpath("static", name).read_bytes() for name in ("console.css", "console.js")
}


@attrs.frozen
class PageFrame:
    """What each page has around its content: the provider, the time, the session, the current entry of the menu."""

    provider: ProviderId
    version: str
    now: Milliseconds
    session: OperatorSession | None
    path: str  # of the page

    @property
    def menu(self) -> list[tuple[str, str, bool]]:
        """Return path, name, and whether it is the current page or above it, for each entry of the menu."""
        return [(path, name, self._is_within(path)) for path, name in PAGES]

    def _is_within(self, path: str) -> bool:
        return self.path == path or (path != PAGES[0][0] and self.path.startswith(f"{path}/"))


def render(template: str, frame: PageFrame, title: str, **values: object) -> str:
    """Return a page."""
    return TEMPLATES.get_template(template).render(frame=frame, title=title, **values)


def _shown(value: object) -> object:
    if hasattr(value, "__html__"):  # what a macro wrote is markup
        return value
    return "" if value is None else printable(str(value))


def _static_url(name: str) -> str:
    """Return the URL of a file; the URL changes with the file, so that browsers may cache the file."""
    return f"/console/static/{name}?{hashlib.sha256(STATIC[name]).hexdigest()[:16]}"


TEMPLATES: Final = Environment(
    loader=PackageLoader("mimids.http.console"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.tests.update(
    link=lambda value: isinstance(value, Hyperlink),
    badge=lambda value: isinstance(value, Badge),
    code=lambda value: isinstance(value, CodeText),
    text=lambda value: isinstance(value, str),
    count=lambda value: isinstance(value, int) and not isinstance(value, bool),
)
TEMPLATES.globals.update(number=number, moment=moment, static=_static_url)
