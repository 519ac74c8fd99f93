"""What pages are made of, as values: cells, tables, lists of facts, sections. The templates only write them as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import attrs

from mimids.ds.commands.groups import group_name
from mimids.printable import printable
from mimids.store.overview import GroupSummary
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import GroupId

NAME_CHARS: Final = 80  # of a group


@attrs.frozen
class Hyperlink:
    """A link to another page of the console; with `act`, to the form of a command."""

    text: str
    href: str
    act: bool = False
    grave: bool = False  # the command removes something or cannot be undone


@attrs.frozen
class Badge:
    """A short text in a colour: `tone` is a class of the style sheet."""

    tone: str
    text: str | int


@attrs.frozen
class CodeText:
    """A command, a key or an identifier, in a font of fixed width; `title` is shown on hovering."""

    text: str
    title: str | None = None


Cell = str | int | None | Hyperlink | Badge | CodeText | Sequence["Cell"]


@attrs.frozen
class DataTable:
    """A table, or the text `empty` if it has no rows. Columns whose name ends in # hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    empty: str
    more: Cell = None  # below the table: says what is left out
    title: str = ""  # above the table, if the section has other parts


@attrs.frozen
class PageSection:
    """A part of a page with a heading: facts, tables, and the acts that it offers."""

    title: str
    id: str
    tables: Sequence[DataTable] = ()
    facts: Sequence[tuple[str, Cell]] = ()
    acts: Sequence[Hyperlink] = ()


@attrs.frozen
class Alert:
    """A message to the operator: what happened, and what to do."""

    tone: str  # "bad", "warn", "note"
    what: Cell
    advice: Cell


@attrs.frozen
class Tile:
    """A number on the overview, with a line below it."""

    name: str
    value: int
    more: str
    href: str


def group_link(group: GroupSummary) -> Hyperlink:
    """Return the name of a group as a link to its page."""
    return Hyperlink(group_title(group.group_id), f"/console/groups/{quote(group.hub)}/{base64url(group.group_id)}")


def group_title(group_id: GroupId) -> str:
    """Return the name of a group, or its id in base64url if it has no readable name."""
    return printable(group_name(group_id) or base64url(group_id), at_most=NAME_CHARS)


def provider_link(provider: str) -> Hyperlink:
    """Return another provider's domain as a link to its page."""
    return Hyperlink(provider, f"/console/providers/{quote(provider, safe='')}")


def user_link(user_id: str) -> Hyperlink:
    """Return one of our users as a link to the user's page."""
    return Hyperlink(user_id, f"/console/users/{quote(user_id.rpartition('/')[2], safe='')}")


def counted(count: int, what: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def number(value: int) -> str:
    """Return a number with spaces between groups of three digits."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def moment(at: int) -> str:
    """Return a time in UTC, to the minute; a number that is out of range is returned as a number."""
    try:
        return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}Z"
    except (OverflowError, ValueError, OSError):
        return str(at)


def short_moment(at: Milliseconds, now: Milliseconds) -> str:
    """Return a time in UTC, without the year if it is the current year."""
    written = moment(at)
    return written[5:] if written[:5] == moment(now)[:5] else written
