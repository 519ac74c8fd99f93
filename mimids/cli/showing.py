"""Output for people: tables, lists of names and values, a group's tree. Scripts use `--json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

import click

from mimids.ds.commands import JsonObject
from mimids.ds.groups.tree_layout import margins

_KEY_DIGITS: Final = 8  # of a masked partition key that are shown in the tree
_TIMES: Final = ("_at", "not_after")


def show(name: str, answer: JsonObject, *, as_json: bool) -> None:
    """Print a command's answer."""
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for line in _LAYOUTS.get(name, _names_and_values)(answer):
            click.echo(line)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; columns of numbers are aligned right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for line in ([*columns], *cells):
        padded = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        )
        yield "  ".join(padded).rstrip()


def _names_and_values(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each name with its value, and a table for each list of objects."""
    width = max((len(name) for name, value in answer.items() if not isinstance(value, list)), default=0)
    for name, value in answer.items():
        if not isinstance(value, list):
            yield f"{name.ljust(width)}  {_value(name, value)}"
        elif value:
            yield from table(list(value[0]), [[_value(key, each[key]) for key in value[0]] for each in value])
        else:
            yield f"no {name}"


def _value(name: str, value: object) -> object:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(_TIMES):
        return f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
    return value


def _groups(answer: JsonObject) -> Iterator[str]:
    shown = ("hub", "epoch", "messages", "partitions", "live_forks")
    rows = [(group["name"] or group["group_id"], *(_value(key, group[key]) for key in shown))
            for group in answer["groups"]]  # fmt: skip
    yield from table(("group", *shown), rows) if rows else ("no groups",)


def _group(answer: JsonObject) -> Iterator[str]:
    """Draw the partitions of a group as a tree: later partitions are below earlier ones, branches to the right."""
    yield answer["name"] or answer["group_id"]
    yield f"hub {answer['hub']}, cipher suite {answer['cipher_suite']}, since {_value('_at', answer['created_at'])}"
    forks = answer["live_forks"]
    if forks:
        yield f"{forks} live fork{'s' if forks > 1 else ''}: `mimids group terminate` ends a branch"
    if answer.get("waits_for"):
        waits_for = ", ".join(answer["waits_for"])
        yield f"held since a restore, until these providers answer: {waits_for}; see `mimids group release`"
    for lines in margins(answer["tree"], itemgetter("partition"), itemgetter("parent")):
        yield ""
        yield from (f"{margin}{_partition_line(partition)}" for margin, partition in lines)


def _partition_line(partition: JsonObject) -> str:
    epoch = "?" if partition["epoch"] is None else partition["epoch"]
    count = partition["messages"]
    notes = [f"{count} message{'' if count == 1 else 's'}", f"state {partition['state']}"]
    if partition["detached"]:
        notes.append("DETACHED")
    if partition["terminated"]:
        notes.append("TERMINATED" + (f" ({partition['why']})" if partition["why"] else ""))
    if partition.get("live_fork"):
        notes.append("LIVE FORK")
    if partition["held_welcomes"]:
        notes.append(f"{partition['held_welcomes']} Welcomes held")
    if partition["followers"]:
        notes.append("followed by " + ", ".join(partition["followers"]))
    return f"● epoch {epoch}  {partition['partition'][:_KEY_DIGITS]}  {', '.join(notes)}"


_LAYOUTS: Final[Mapping[str, Callable[[JsonObject], Iterator[str]]]] = {"group list": _groups, "group show": _group}
