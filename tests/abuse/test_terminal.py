"""Text from others cannot control the operator's terminal, forge a line, or show one thing and mean another."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import pytest

import mimids.cli
from mimids.cli.check.command import check
from mimids.cli.check.finding import wrong
from mimids.cli.refusals import CommandRefused
from mimids.cli.showing import show, table
from mimids.ds.terms.hub_terms import HubTerms
from mimids.http.console.parts import CodeText
from mimids.http.console.rendering import TEMPLATES
from mimids.printable import printable
from mimids.telemetry import new_telemetry
from mimids.wire.ids import ProviderId

CLEAR_SCREEN, TITLE, C1, RIGHT_TO_LEFT, LINE, SURROGATE = (
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\x9b2J",
    "\u202e",
    "\r\n",
    "\udc80",
)
HOSTILE = f"ok{CLEAR_SCREEN}{TITLE}{C1}{RIGHT_TO_LEFT}{LINE}\u2028\u2066{SURROGATE}\x7fend"
CLI = Path(mimids.cli.__file__).parent


def is_harmless(text: str) -> bool:
    return all(each.isprintable() for each in text.removesuffix("\n").split("\n"))


def test_every_control_character_is_escaped_and_other_text_is_kept() -> None:
    assert printable("Zoë ✓ \N{NARROW NO-BREAK SPACE}日本") == "Zoë ✓ \N{NARROW NO-BREAK SPACE}日本"
    assert printable(HOSTILE).isprintable()
    assert printable("a\x1bb\nc\u202ed") == r"a\x1bb\nc\u202ed"
    assert printable("x" * 100, at_most=10) == "x" * 9 + "…"


REPORT = {
    "id": 7,
    "accused": HOSTILE,
    "note": HOSTILE,
    "evidence": [{"message": "AAEC", "why": HOSTILE}],
    "reporter": HOSTILE,
}
GROUP = {"group_id": "Zw" * 500, "name": HOSTILE + "g" * 500, "hub": HOSTILE, "epoch": 1, "messages": 2}
GROUP |= {"partitions": 1, "live_forks": 0, "cipher_suite": 1, "created_at": 0, "linear": True}
GROUP |= {"successor": {"group_id": HOSTILE, "hub": HOSTILE}}
TREE: dict[str, Any] = {
    "partition": "a0",
    "parent": None,
    "epoch": 0,
    "messages": 1,
    "state": "derived",
    "detached": False,
}
TREE |= {"terminated": True, "why": HOSTILE, "held_welcomes": 0, "followers": [HOSTILE]}


@pytest.mark.parametrize(
    ("command", "answer", "lines"),
    [
        ("report read", REPORT, 6),
        ("token list", {"tokens": [{"id": 1, "label": HOSTILE}]}, 2),
        ("provider show", {"provider": "b.example", "they_ban": [{"user_id": HOSTILE}]}, 3),
        ("group list", {"groups": [GROUP]}, 2),
        ("group show", {**GROUP, "waits_for": [HOSTILE], "tree": [TREE]}, 7),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_prints_what_its_answer_has_of_controls(
    command: str, answer: dict[str, Any], lines: int, as_json: bool, capsys: Any
) -> None:
    show(command, answer, as_json=as_json)
    out = capsys.readouterr().out
    assert is_harmless(out)
    assert len(out.splitlines()) == (1 if as_json else lines)
    if as_json:
        assert json.loads(out) == answer


def test_the_name_of_a_group_is_cut_in_a_list(capsys: Any) -> None:
    show("group list", {"groups": [GROUP]}, as_json=False)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 300


def test_columns_stay_aligned_beside_hostile_text() -> None:
    lines = list(table(("name", "end"), [(HOSTILE, "|"), ("plain", "|")]))
    assert len({line.index("|") for line in lines[1:]}) == 1


def test_refusals_and_findings_are_escaped(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    CommandRefused(HOSTILE, "first\nsecond").show()
    refused = capsys.readouterr().err
    assert is_harmless(refused)
    assert len(refused.splitlines()) == 3

    found = wrong("peer b.example", f"https://b.example refuses our request: {HOSTILE}", "ask its operator")
    monkeypatch.setattr("mimids.cli.check.command._findings", lambda *_, **__: [found])
    monkeypatch.setattr("mimids.cli.check.command.load_config", lambda _: None)
    with pytest.raises(SystemExit):
        check.callback(None, as_json=False, no_peers=False)  # type: ignore[misc]
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    assert len(printed.splitlines()) == 4


def test_the_console_escapes_them_too() -> None:
    cell = TEMPLATES.get_template("parts.html").module.cell  # type: ignore[attr-defined]
    for value in (HOSTILE, CodeText(HOSTILE, title=HOSTILE)):
        assert is_harmless(str(cell(value)).strip())


def test_an_exception_cannot_forge_a_line_of_the_log() -> None:
    to = io.StringIO()
    log = new_telemetry(ProviderId("a.example"), to=to).log
    log.error("a handler failed", exc_info=ValueError(f"{HOSTILE}\n2030-01-01T00:00:00.000Z info  forged"))
    first, *others = to.getvalue().splitlines()
    assert "a handler failed" in first
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_say_is_the_only_way_in_which_commands_print() -> None:
    """`progress` draws on one line of our own text, and `completion` prints a program of click."""
    for path in CLI.rglob("*.py"):
        if path.name in ("showing.py", "progress.py", "completion.py"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {each.attr for each in calls if isinstance(each, ast.Attribute)}
        names |= {each.id for each in calls if isinstance(each, ast.Name)}
        assert not names & {"echo", "secho", "print"}, path


@pytest.mark.parametrize(
    "written", ["mimi://b.example/u/bob\x1b[2J", "bob", "b.example", "mimi://b.example/r/room", ""]
)
def test_the_ids_in_the_terms_of_a_hub_are_user_ids(written: str) -> None:
    hub = ProviderId("a.example")
    bans = {"revision": 1, "hub": hub, "bans": [written], "mutes": []}
    mutes = {"revision": 1, "hub": hub, "bans": [], "mutes": [{"user_id": written, "group_id": None}]}
    for terms in (bans, mutes):
        with pytest.raises(ValueError, match="user id"):
            HubTerms.read(terms, hub)
        stored = HubTerms.read(terms, hub, stored=True)
        assert (stored.bans, stored.mutes) == ((), ())
