from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate.policy import written
from mimids.policy.rules import RULES

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "policy.md"


def test_the_tables_are_what_the_code_prints() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m docs.generate.policy docs/policy.md`"
    for rule in RULES:
        assert f"| `{rule.name}` |" in text


def test_the_test_above_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text.replace("`muted-sender`", "`mute-sender`")) == text
    with pytest.raises(ValueError, match="rules"):
        written("no markers")
