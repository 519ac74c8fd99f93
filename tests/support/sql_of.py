"""Every SQL statement of the package, found in its sources."""

from __future__ import annotations

import ast
import importlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

from mimids.store import removed

ROOT: Final = Path(__file__).parents[2]
_METHODS: Final = frozenset({"one", "all", "execute", "executemany", "insert"})


@attrs.frozen
class Statement:
    """One statement, and the function that runs it."""

    function: str  # such as "store.follows.end"
    line: int
    sql: str


def statements() -> Iterator[Statement]:
    """Yield every statement that a function of the package gives to a `tx`; raise `ValueError` for one not found.

    Parts of a statement that depend on a parameter of the function are replaced by what `_PARTS` says.
    """
    for path in sorted((ROOT / "mimids").rglob("*.py")):
        if path.is_relative_to(ROOT / "mimids" / "testing"):
            continue  # a test gives the statement
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        tree = ast.parse(path.read_text())
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and _is_statement(node)]
            if calls:
                known = {**vars(importlib.import_module(name))}
                for call in sorted(calls, key=lambda node: node.lineno):
                    place = f"{name.removeprefix('mimids.')}.{function.name}"
                    for sql in _texts(call.args[0], function, known, place):
                        yield Statement(place, call.lineno, sql)


def _is_statement(node: ast.Call) -> bool:
    if not (isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS):
        return False
    return ast.unparse(node.func.value) in {"tx", "self.tx", "self._tx"} and bool(node.args)


# What stands in for the parts of statements that only a running function knows.
_PARTS: Final[dict[str, list[dict[str, str]]]] = {
    "store.accounts.set_suspended": [{"present": "IS NULL"}, {"present": "IS NOT NULL"}],
    "store.bans.put_ban": [{"column": "user_id"}, {"column": "provider"}],
    "store.bans.remove_ban": [{"column": "user_id"}, {"column": "provider"}],
    "store.departures._note": [{"devices": "= 1"}],
    "store.carried_over._add_missing": [{"sql": "SELECT 1"}],
    "store.carried_over._delete_missing": [{"table": "tokens"}, {"table": "devices"}],
    "store.carried_over._update": [{"table": "tokens", "sets": "state = ?"}],
    "store.carried_over.carry_over": [{"table": "rate_buckets"}],
    "store.partitions.by_epoch": [{"condition": "(epoch, id) > (?, ?)"}, {"condition": "epoch IS NULL AND ? < 0"}],
    "store.partitions.has_any_partition": [
        {"query": "SELECT 1 FROM partitions WHERE hub = ? AND masked_key IN (?, ?) LIMIT 1"}
    ],
    "store.recoveries.begin": [{"found": "(SELECT partition, provider FROM follows) x"}],
    "store.removed._forget": [{"devices": "= ?", "statement": each} for each in removed._STATEMENTS],
    "store.retention.drop_group_page": [
        {"table": table, "of_group": "IN (SELECT id FROM partitions WHERE group_ref = ?)"}
        for table in ("proposals", "follows", "device_cursors")
    ],
    "store.retention.empty_page": [{"kinds": ""}, {"kinds": " AND kind = 1"}],
    "store.welcome_outcomes.forget_undelivered": [
        {"table": "outgoing_welcomes", "condition": "state = 'held'"},
        {"table": "unsendable_welcomes", "condition": "true"},
    ],
    "store.welcomes.drop_references": [{"columns": "o.id, o.refs FROM outgoing_welcomes o"}],
    "store.welcomes.sweep_page": [
        {"table": "outgoing_welcomes", "key": "id", "condition": "created_at < ? AND state NOT IN ('held', 'due')"},
        {"table": "inbox", "key": "id", "condition": "arrived_at < ? AND coalesce(acknowledged_at, 0) < ?"},
        {"table": "unsendable_welcomes", "key": "id", "condition": "created_at < ?"},
        {"table": "welcomes", "key": "id", "condition": "stored_at < ?"},
    ],
}


def _texts(node: ast.expr, function: ast.FunctionDef, known: dict[str, Any], place: str) -> list[str]:
    """Return the texts that an expression stands for, with the function's own texts and what `_PARTS` says."""
    names = {**known, "places": "?, ?"}
    for assigned in ast.walk(function):
        if isinstance(assigned, ast.Assign) and isinstance(assigned.targets[0], ast.Name):
            with suppress(Exception):  # what is no text depends on the run
                value = eval(ast.unparse(assigned.value), names)  # noqa: S307
                if isinstance(value, str):
                    names[assigned.targets[0].id] = value
    found = []
    for parts in _PARTS.get(place, [{}]):
        try:
            text = eval(ast.unparse(node), {**names, **parts})  # noqa: S307
        except Exception as error:
            raise ValueError(f"{place}: {ast.unparse(node)}: {error}; add its parts to _PARTS") from error
        found.append(str(text))
    return found


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    """Return the lines of the query plan of a statement."""
    parameters: tuple[None, ...] = ()
    while True:
        try:
            return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        except sqlite3.ProgrammingError as error:
            uses = re.search(r"uses (\d+)", str(error))
            if uses is None or len(parameters) == int(uses[1]):
                raise
            parameters = (None,) * int(uses[1])
