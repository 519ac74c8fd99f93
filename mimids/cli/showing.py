"""What commands print: tables and their columns, lists of names and values, a group's tree. Scripts use `--json`.

All commands print with `say` and `say_json`: text that came from others cannot control the terminal or forge a line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

import click

from mimids.ds.commands import JsonObject
from mimids.ds.commands.times import is_day, is_time
from mimids.ds.groups.tree_layout import margins
from mimids.printable import printable

_NAME_CHARS: Final = 64  # of a group in a list
_KEY_DIGITS: Final = 8  # of a masked partition key that are shown in the tree
_SHOWN_FIRST: Final = ("provider", "running", "process", "started_at", "listeners")
MIB: Final = 1024 * 1024


def show(name: str, answer: JsonObject, *, as_json: bool) -> None:
    """Print a command's answer."""
    if as_json:
        say_json(answer)
    else:
        say(*_LAYOUTS.get(name, _names_and_values)(answer))


def say(*lines: str, err: bool = False) -> None:
    """Print each of `lines` as one line, with control characters escaped. Print an empty line if `lines` is empty."""
    for line in lines or ("",):
        click.echo(printable(line), err=err)


def say_json(value: object) -> None:
    """Print a value as one line of JSON in ASCII, without control characters."""
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; columns of numbers are aligned right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
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
    if isinstance(value, int) and is_day(name):
        return f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%d}"
    if isinstance(value, int) and is_time(name):
        return f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
    return value


def _groups(answer: JsonObject) -> Iterator[str]:
    shown = ("hub", "epoch", "messages", "partitions", "live_forks", "linear")
    rows = [
        (
            printable(group["name"] or group["group_id"], at_most=_NAME_CHARS),
            *(_value(key, group[key]) for key in shown),
        )
        for group in answer["groups"]
    ]
    yield from table(("group", *shown), rows) if rows else ("no groups",)
    for group in answer["groups"]:
        if group.get("waits_for"):
            yield f"{printable(group['name'] or group['group_id'], at_most=_NAME_CHARS)}: {_held(group)}"


def _group(answer: JsonObject) -> Iterator[str]:
    """Draw the partitions of a group as a tree: later partitions are below earlier ones, branches to the right."""
    yield answer["name"] or answer["group_id"]
    yield f"hub {answer['hub']}, cipher suite {answer['cipher_suite']}, since {_value('_at', answer['created_at'])}"
    if answer["linear"]:
        yield "linear: an epoch has one commit"
    if answer["successor"]:
        yield f"replaced by the group {answer['successor']['group_id']} at {answer['successor']['hub']}"
    forks = answer["live_forks"]
    if forks:
        yield f"{forks} live fork{'s' if forks > 1 else ''}: `mimids group terminate` ends a branch"
    if answer.get("waits_for"):
        yield _held(answer)
    for lines in margins(answer["tree"], itemgetter("partition"), itemgetter("parent")):
        yield ""
        yield from (f"{margin}{_partition_line(partition)}" for margin, partition in lines)


def _members(answer: JsonObject) -> Iterator[str]:
    """List the members of each branch."""
    yield answer["name"] or answer["group_id"]
    for branch in answer["branches"]:
        epoch = "?" if branch["epoch"] is None else branch["epoch"]
        count = "" if branch["state"] == "unknown" else f", {len(branch['members'])} members"
        yield ""
        yield f"epoch {epoch}  {branch['partition'][:_KEY_DIGITS]}  state {branch['state']}{count}"
        shown = ("leaf", "user_id", "device")
        if branch["members"]:
            yield from table(shown, [[_value(key, each[key]) for key in shown] for each in branch["members"]])


def _deleted_group(answer: JsonObject) -> Iterator[str]:
    """Say what was deleted, and what other providers still have."""
    name = answer["name"] or answer["group_id"]
    yield f"deleted {name}: {answer['partitions']} partitions, {answer['messages']} messages"
    if answer["welcomes_dropped"]:
        yield f"Welcomes that were not delivered: {answer['welcomes_dropped']}; those users will not join"
    if answer["followers"]:
        yield f"These providers keep their copies and get nothing more: {', '.join(answer['followers'])}"
    yield "Devices that still use the group get unknown-partition or unknown-group from this provider."


def _held(group: JsonObject) -> str:
    waits_for = ", ".join(group["waits_for"])
    return f"held since a restore, until these providers answer: {waits_for}; see `mimids group release`"


def _restored(answer: JsonObject) -> Iterator[str]:
    yield f"backup made at     {_value('_at', answer['backup_made_at'])}"
    yield f"restored at        {_value('_at', answer['restored_at'])}"
    yield f"groups held        {answer['groups_held']}"
    if answer["carried_over"]:
        yield "Removals, revocations and bans were taken over from the database that was replaced."
        return
    yield "No newer database could be read. What was removed or revoked after the backup is valid again:"
    yield from _names_and_values({"devices": answer["devices"]})
    yield from _names_and_values({"tokens": answer["tokens"]})
    yield f"bans {answer['bans']}, mutes {answer['mutes']}: as they were at the backup; see `mimids ban list`"
    if answer["devices"] or answer["tokens"]:
        yield "`mimids restored --revoke all` removes these devices and revokes these bearer tokens."


def _forgotten(answer: JsonObject) -> Iterator[str]:
    """List who may still hold data of a removed user."""
    yield f"removed {answer['user_id']}; devices: {answer['devices']}"
    yield ""
    yield "These may still hold data of this user:"
    if answer["hubs"]:
        yield f"  hubs of groups elsewhere, until their messages expire there: {', '.join(answer['hubs'])}"
    if answer["groups_hosted"]:
        yield f"  this provider: hosted groups, until their messages expire: {answer['groups_hosted']}"
    if answer["followers"]:
        yield f"  followers of these groups, until the messages expire there: {', '.join(answer['followers'])}"
    if answer["reports"]:
        yield f"  this provider: reports about the user (`mimids report list`): {answer['reports']}"
    if answer["bans"]:
        yield f"  this provider: bans and mutes of the user (`mimids ban list`): {answer['bans']}"
    if answer["terms_of"]:
        yield f"  hubs that ban or mute the user; their terms are stored here, too: {', '.join(answer['terms_of'])}"
    if answer["in_postgresql"]:
        yield "  the files of PostgreSQL until its next vacuum, its write-ahead log, and archives of that log"
    yield "  everybody who fetched a KeyPackage or has the contact card"
    yield "  backups, and databases that `mimids restore` put aside: delete those made before now"


def _welcomes(answer: JsonObject) -> Iterator[str]:
    shown = ("id", "provider", "key_packages", "state", "failures", "reason", "created_at", "next_attempt_at")
    rows = [
        (
            *(_value(key, each[key]) for key in shown),
            printable(each["name"] or each["group_id"], at_most=_NAME_CHARS),
        )
        for each in answer["welcomes"]
    ]
    yield from table((*shown, "group"), rows) if rows else ("no welcomes",)


def _audit(answer: JsonObject) -> Iterator[str]:
    """List what operators did, each with its arguments as NAME=VALUE."""
    rows = [
        (
            each["id"],
            _value("at", each["at"]),
            each["actor"],
            each["command"],
            " ".join(f"{name}={_written(value)}" for name, value in each["arguments"].items()),
        )
        for each in answer["entries"]
    ]
    yield from table(("id", "at", "actor", "command", "arguments"), rows) if rows else ("no entries",)


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(_value("", value))


def _link(answer: JsonObject) -> Iterator[str]:
    yield answer["link"]
    yield f"Open it in a browser by {_value('_at', answer['expires_at'])}; it works once. The session lasts 12 hours."


def _reload(answer: JsonObject) -> Iterator[str]:
    yield f"changed: {', '.join(answer['changed']) or 'nothing'}"
    if answer["needs_restart"]:
        yield f"needs a restart: {', '.join(answer['needs_restart'])}"
    failure = answer["certificates"]
    yield "certificates: read again" if failure is None else f"certificates: the old ones stay in use: {failure}"


def _status(answer: JsonObject) -> Iterator[str]:
    """Say first what runs, then all other facts, with sizes in MiB."""
    running = f"running as process {answer['process']} since {_value('_at', answer['started_at'])}"
    yield f"{answer['provider']} is {running if answer['running'] else 'not running'}"
    for each in answer["listeners"]:
        yield f"  {each['listener']:<16} {each['address']}"
    shown = {name: value for name, value in answer.items() if name not in _SHOWN_FIRST}
    sizes = {name: f"{-(-value // MIB):,} MiB" for name, value in shown.items() if name.endswith("_bytes") and value}
    yield from _names_and_values({name.removesuffix("_bytes"): sizes.get(name, value) for name, value in shown.items()})


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


_LAYOUTS: Final[Mapping[str, Callable[[JsonObject], Iterator[str]]]] = {
    "audit": _audit,
    "console": _link,
    "forget": _forgotten,
    "group delete": _deleted_group,
    "group list": _groups,
    "group members": _members,
    "group show": _group,
    "reload": _reload,
    "restored": _restored,
    "welcome list": _welcomes,
    "status": _status,
}
