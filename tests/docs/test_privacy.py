"""docs/privacy.md has a row for every column that says something of a person."""

from __future__ import annotations

import pytest

from docs.generate import privacy
from docs.generate.privacy import PERSONAL, column_table, columns, faults, written
from tests.support.documents import ROOT

DOCUMENT = ROOT / "docs/privacy.md"


def test_every_column_of_the_schema_is_declared_once() -> None:
    assert faults() == []


def test_the_table_is_what_the_schema_and_the_declaration_print() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m docs.generate`"
    assert text.count("\n| `") == sum(len(row.says) for rows in PERSONAL.values() for row in rows)


def test_a_column_without_a_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [*columns(), ("devices", "telephone_number")]
    monkeypatch.setattr(privacy, "columns", lambda: present)
    with pytest.raises(ValueError, match=r"devices\.telephone_number has no row"):
        column_table()


def test_every_column_that_names_a_user_or_device_is_personal() -> None:
    personal = {(table, name) for table, rows in PERSONAL.items() for row in rows for name in row.says}
    named = [each for each in columns() if any(word in each[1] for word in ("device", "user", "owner", "accused"))]
    assert len(named) > 12
    assert set(named) <= personal
