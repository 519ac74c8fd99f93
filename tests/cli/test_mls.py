"""`mimids mls`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from mimids.cli.main import main
from tests.support.cli_runs import ROOT

RECORDING = ROOT / "tests/vectors/conversations/public.jsonl"


def invoke(*arguments: str | Path, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["mls", *map(str, arguments)], input=input)


def lines() -> list[dict[str, str]]:
    return [json.loads(line) for line in RECORDING.read_text().splitlines()]


def test_inspect_reads_binary_hex_and_standard_input(tmp_path: Path) -> None:
    package = lines()[1]["bytes"]
    (tmp_path / "octets").write_bytes(bytes.fromhex(package))
    (tmp_path / "hex").write_text(package)
    drawn = invoke("inspect", tmp_path / "octets")
    assert drawn.exit_code == 0
    assert "mimi://b.example/u/bob/d/1" in drawn.stdout
    assert drawn.stdout == invoke("inspect", tmp_path / "hex").stdout == invoke("inspect", "-", input=package).stdout


def test_inspect_refuses_other_data_and_says_where_it_stops_being_mls() -> None:
    package = lines()[1]["bytes"]
    refused = invoke("inspect", "-", input=package[:-2])
    assert refused.exit_code == 1
    assert "not an MLS object" in refused.stderr
    assert invoke("inspect", "nowhere").exit_code == 2


def test_replay_prints_a_line_for_each_message_and_agrees_with_the_recording() -> None:
    played = invoke("replay", RECORDING)
    assert played.exit_code == 0, played.stderr
    records = [json.loads(line) for line in played.stdout.splitlines()]
    assert len(records) == sum("bytes" in line for line in lines())
    assert {"verdict", "reason", "epoch", "tree_hash", "members"} <= set(records[0])


def test_replay_exits_with_1_if_a_message_is_not_as_expected(tmp_path: Path) -> None:
    changed = lines()
    for line in changed:
        if line.get("name") == "bad_signature":
            line["expect"] = "accept"
    (tmp_path / "changed.jsonl").write_text("\n".join(map(json.dumps, changed)))
    played = invoke("replay", tmp_path / "changed.jsonl")
    assert played.exit_code == 1
    assert "1 messages" in played.stderr
    assert invoke("replay", "-", input="no recording").exit_code == 1
