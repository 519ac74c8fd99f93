# ruff: noqa: S608 - the names of tables come from the schema
"""Rows for every table of the database, made from the schema, so that no new table or column is forgotten."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from mimids.store.engine.sqlite import connect
from mimids.store.engine.tables import FILLED, NOT_MOVED

ATTEMPTS: Final = 200  # for a row that keeps the rules between several columns
_COMMENT: Final = re.compile(r"--[^\n]*")
_TEXTS: Final = ("a\0b", "", "plain", "Grüße \U0001f600", "two\nlines\tand 'quotes' \\N", "Z", "a", "_")
_NUMBERS: Final = (0, 1, -1, 255, 1 << 31, (1 << 63) - 1, -(1 << 63))


def fill(path: Path, random: Random, *, rows: int = 12) -> dict[str, int]:
    """Add up to `rows` rows to each table of a migrated file; return how many each table has then."""
    connection = connect(path)
    try:
        tables = dict(
            connection.execute(
                "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name"
            ).fetchall()
        )
        left = [name for name in tables if name not in NOT_MOVED | {"schema_version"}]
        connection.execute("BEGIN")
        while left:
            name = left.pop(0)
            if any(other in left for other in _references(connection, name).values() if other != name):
                left.append(name)  # after the tables that it refers to
                continue
            for _ in range(rows):
                _add(connection, name, tables[name], random)
        connection.execute("COMMIT")
        _refer_onwards(connection, random)
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    finally:
        connection.close()


def _references(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    return {row[3]: row[2] for row in connection.execute(f"PRAGMA foreign_key_list({table})")}


def _add(connection: sqlite3.Connection, name: str, sql: str, random: Random) -> None:
    columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
    references, rules = _references(connection, name), dict(_rules(sql))
    places = ", ".join("?" * len(columns))
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        row = []
        for _, column, kind, not_null, _, key in columns:
            value = _value(kind, rules.get(column, ""), random, is_key=bool(key))
            if column in references:
                target = references[column]
                id = next(each[1] for each in connection.execute(f"PRAGMA table_info({target})") if each[5])
                found = connection.execute(f"SELECT {id} FROM {target} ORDER BY random() LIMIT 1").fetchone()
                value = found[0] if found else None
            row.append(None if not (not_null or key) and random.random() < 0.4 else value)
        try:
            connection.execute(f"INSERT INTO {name} VALUES ({places})", row)
            return
        except sqlite3.IntegrityError as error:
            failure = error
    if not connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] and name not in FILLED:
        raise AssertionError(f"no row for {name}: {failure}")  # teach `_value` the table's CHECK


def _rules(sql: str) -> Iterator[tuple[str, str]]:
    """Yield each column of a CREATE TABLE with the text of its definition."""
    depth, part, parts = 0, "", []
    inside = _COMMENT.sub("", sql).partition("(")[2]
    for char in inside:
        depth += (char == "(") - (char == ")")
        if depth < 0 or (char == "," and depth == 0):
            parts.append(part.strip())
            part = ""
            if depth < 0:
                break
        else:
            part += char
    for each in parts:
        yield each.split()[0].strip('"'), each


def _value(kind: str, rule: str, random: Random, *, is_key: bool) -> Any:
    if texts := re.findall(r"'(\w+)'", rule.partition("CHECK")[2]):
        return random.choice(texts)
    if found := re.search(r"BETWEEN (\d+) AND (\d+)", rule):
        return random.randint(int(found[1]), int(found[2]))
    if found := re.search(r"length\(\w+\) (?:=|IN) \(?([\d, ]+)", rule):
        return random.randbytes(random.choice([int(each) for each in found[1].split(",")]))
    if found := re.search(r"\w+ IN \(([\d, ]+)\)", rule):
        return random.choice([int(each) for each in found[1].split(",")])
    if found := re.search(r"\w+ (?:>|>=|=) (\d+)\)", rule):
        return int(found[1]) + (1 if ">" in rule else 0)
    match kind:
        case "INTEGER":
            return random.randrange(1, 1 << 53) if is_key else random.choice((*_NUMBERS, random.randrange(1 << 40)))
        case "TEXT":
            return random.choice(_TEXTS[is_key:]) + (
                str(random.randrange(1000)) if is_key or random.random() < 0.7 else ""
            )
        case "REAL":
            return random.choice((0.0, -1.5, 1e300, random.random()))
        case _:
            return random.randbytes(random.choice((0, 1, 32, 300)))


def _refer_onwards(connection: sqlite3.Connection, random: Random) -> None:
    """Let partitions refer to parents that come later in the order of ids."""
    ids = [row[0] for row in connection.execute("SELECT id FROM partitions ORDER BY id")]
    for id in ids:
        connection.execute("UPDATE partitions SET parent = ? WHERE id = ?", (random.choice(ids), id))
