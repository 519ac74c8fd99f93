"""The command `audit`: the commands that operators ran, from the audit table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, JsonObject
from mimids.errors import Malformed
from mimids.store import accounts, audit
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, UserRow

LISTED: Final = 50
LISTED_AT_MOST: Final = 1000


def _audit(tx: Tx, _: Context, *, limit: int = LISTED, before: int | None = None) -> JsonObject:
    if not 1 <= limit <= LISTED_AT_MOST:
        raise Malformed(f"limit: expected a number from 1 to {LISTED_AT_MOST}")
    return {
        "entries": [
            {
                "id": each.id,
                "at": each.at,
                "actor": each.actor,
                "command": each.command,
                "arguments": {name: _named(tx, value) for name, value in json.loads(each.arguments).items()},
            }
            for each in audit.newest(tx, limit, before)
        ]
    }


def _named(tx: Tx, value: Any) -> Any:
    """Return an argument with the names of users and devices that still exist in place of their numbers."""
    if isinstance(value, list):
        return [_named(tx, each) for each in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, number),) = value.items()
    if number is None:
        return f"unknown {kind}"
    if kind == "user":
        user_id = accounts.user_of_row(tx, UserRow(number))
        return f"removed user {number}" if user_id is None else user_id.decode()
    return accounts.name_of_device(tx, DeviceRow(number)) or f"removed device {number}"


AUDIT: Final = (
    Command(
        name="audit",
        summary="Show what operators did: the newest commands that wrote something, by whom and when.",
        arguments=(
            Argument(
                "limit",
                f"how many entries, at most {LISTED_AT_MOST}; {LISTED} without it",
                20,
                ArgumentKind.NUMBER,
                required=False,
                flag="--limit",
            ),
            Argument(
                "before",
                "only entries with a lower number, to see earlier ones",
                1000,
                ArgumentKind.NUMBER,
                required=False,
                flag="--before",
            ),
        ),
        work=_audit,
        answer='{"entries": [{"id": 13, "at": 1764000005000, "actor": "socket 998", "command": "clock confirm",'
        ' "arguments": {}}, {"id": 12, "at": 1764000000000, "actor": "shell 998", "command": "user add",'
        ' "arguments": {"name": "mimi://a.example/u/alice"}}]}',
        example="mimids audit --limit 20",
        writes=False,
    ),
)
