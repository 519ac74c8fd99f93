"""Shows the answer of a command as facts and tables.

Only the names of the answer's members decide how it is shown. So nothing here has to change when a member is added to
an answer, or a command to the table of commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import attrs

from mimids.ds.commands.times import is_day, is_time, without_unit
from mimids.http.console.parts import (
    NAME_CHARS,
    Cell,
    CodeText,
    DataTable,
    Hyperlink,
    moment,
    number,
    provider_link,
    user_link,
)
from mimids.printable import printable
from mimids.wire.ids import ProviderId, local_user_id

NOTHING: Final = "\N{EN DASH}"
_OTHERS: Final = ("provider", "hub", "passed_on_to")  # names of members that are domains
_CODES: Final = ("token", "bearer_token", "ohttp_identity", "group_id", "partition", "parent", "message", "path")
_IDENTIFIERS: Final = ("reference",)  # names of members that are numbers and count nothing
_LABELS: Final[Mapping[str, str]] = {
    "user_id": "user",
    "user_ids": "users",
    "device_id": "device",
    "at": "time",
    "not_after": "not after",
}

ActsOfRow = Callable[[Mapping[str, Any]], Sequence[Hyperlink]]


def facts_of(answer: Mapping[str, Any], ours: ProviderId) -> list[tuple[str, Cell]]:
    """Return the members that are not tables, each with a label."""
    return [(label(name), cell_of(name, value, ours)) for name, value in answer.items() if not _is_table(value)]


def tables_of(answer: Mapping[str, Any], ours: ProviderId) -> list[DataTable]:
    """Return the members that are lists of objects, with titles if there is more than one table."""
    found = {label(name): table_of(name, value, ours) for name, value in answer.items() if _is_table(value)}
    if len(answer) == 1:
        return list(found.values())
    return [attrs.evolve(table, title=name) for name, table in found.items()]


def table_of(
    name: str, rows: Sequence[Mapping[str, Any]], ours: ProviderId, acts: ActsOfRow | None = None, more: Cell = None
) -> DataTable:
    """Return a list of objects as a table, with a column for each member of the first object.

    With `acts`, the last column has the actions of each row.
    """
    rows = [_with_group_link(row) for row in rows]
    members = list(rows[0]) if rows else []
    columns = [label(member) + ("#" if _is_number(member, rows) else "") for member in members]
    shown: list[list[Cell]] = [[cell_of(member, row.get(member), ours) for member in members] for row in rows]
    if acts is not None:
        columns.append("actions")
        for cells, row in zip(shown, rows, strict=True):
            cells.append(list(acts(row)))
    return DataTable(columns, shown, f"no {label(name)}", more)


def _with_group_link(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row; if it has id, name and hub of a group, replace id and name by a link to the group's page."""
    if not {"group_id", "name", "hub"} <= row.keys():
        return row
    href = f"/console/groups/{quote(row['hub'], safe='')}/{row['group_id']}"
    link = Hyperlink(printable(row["name"] or row["group_id"], at_most=NAME_CHARS), href)
    return {"group": link, **{name: value for name, value in row.items() if name not in ("group_id", "name")}}


def label(name: str) -> str:
    """Return the name of a member as words."""
    return _LABELS.get(name) or without_unit(name).replace("_", " ")


def cell_of(name: str, value: Any, ours: ProviderId) -> Cell:
    """Return a value as a cell; its name decides how it is written."""
    if isinstance(value, Hyperlink):
        return value
    if value is None or value in ("", [], {}):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _cell_of_number(name, value)
    if isinstance(value, Mapping):
        return "; ".join(f"{label(key)}: {_text(key, each, ours)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_text(name, each, ours) for each in value)
    return _cell_of_text(name, str(value), ours)


def _cell_of_number(name: str, value: int) -> Cell:
    if is_day(name):
        return moment(value).partition(" ")[0]
    if name in _IDENTIFIERS:
        return str(value)
    return moment(value) if is_time(name) else value


def _cell_of_text(name: str, value: str, ours: ProviderId) -> Cell:
    if value.startswith(local_user_id(ours, "").decode()):
        return user_link(value)
    if name in _OTHERS and value != ours:
        return provider_link(value)
    return CodeText(value) if name in _CODES else value


def _text(name: str, value: Any, ours: ProviderId) -> str:
    found = cell_of(name, value, ours)
    if isinstance(found, Hyperlink | CodeText):
        return found.text
    return number(found) if isinstance(found, int) else str(found)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _is_number(member: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return not is_time(member) and all(
        isinstance(row.get(member), int) and not isinstance(row.get(member), bool) for row in rows
    )
