"""The parts that all pages of the console are made of: page, header, section, table, badge, and formatted values."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

from mimids.ds.commands.groups import group_name
from mimids.http.console.markup import Child, Markup, element
from mimids.store.overview import GroupSummary
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId

STYLE: Final = files("mimids.http.console").joinpath("console.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# These pages may not load, run, frame or send anything, even if a peer managed to inject markup.
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page(title: str, *content: Child) -> Markup:
    """Return a complete HTML page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    return Markup(f"<!doctype html>\n{element('html', head, element('body', element('main', *content)), lang='en')}\n")


def header(provider: ProviderId, version: str, now: Milliseconds, *, up: bool = False) -> Markup:
    """Return the header of a page; with `up`, its name links to the overview."""
    name = element("a", provider, href="/console", class_="home") if up else element("span", provider, class_="home")
    return element("header", name, element("small", f"mimids {version}, {moment(now)}; reload for newer data"))


def section(title: str, *content: Child, id_: str | None = None) -> Markup:
    """Return a section with a heading."""
    return element("section", element("h2", title), *content, id_=id_)


def tile(name: str, value: int, more: str) -> Markup:
    """Return a tile with a number and a line below it."""
    classes = "tile" if value else "tile none"
    return element("div", element("span", name), element("b", number(value)), element("small", more), class_=classes)


def table(columns: Sequence[str], rows: Iterable[Sequence[Child]], empty: str) -> Markup:
    """Return a table, or the paragraph `empty` if there are no rows. Columns named with a final # hold numbers."""
    classes = ["number" if column.endswith("#") else None for column in columns]
    body = [
        element(
            "tr",
            [
                element("td", number(cell) if isinstance(cell, int) else cell, class_=class_)
                for cell, class_ in zip(row, classes, strict=True)
            ],
        )
        for row in rows
    ]
    if not body:
        return element("p", empty, class_="empty")
    titles = zip(columns, classes, strict=True)
    head = element("tr", [element("th", column.rstrip("#"), class_=class_) for column, class_ in titles])
    return element("div", element("table", element("thead", head), element("tbody", body)), class_="wide")


def badge(tone: str, text: Child) -> Markup:
    """Return a short text in the colour of `tone`, a class of the style sheet."""
    return element("span", text, class_=f"badge {tone}")


def command(text: str) -> Markup:
    """Return a command of the operator, as code."""
    return element("code", text)


def link(group: GroupSummary) -> Markup:
    """Return the name of a group as a link to its page."""
    return element("a", group_title(group), href=f"/console/groups/{group.hub}/{base64url(group.group_id)}")


def group_title(group: GroupSummary) -> str:
    """Return the name of a group, or its id in base64url if it has no readable one."""
    return group_name(group.group_id) or base64url(group.group_id)


def counted(count: int, what: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def number(value: int) -> str:
    """Return a number with spaces between groups of three digits."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def moment(at: Milliseconds) -> str:
    """Return a time in UTC, to the minute."""
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}Z"
