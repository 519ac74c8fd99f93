"""`mimids demo` as a process, and its recording."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mimids.cli.demo.recording import HOMES, Recording
from tests.support.cli_runs import ROOT, run


@pytest.mark.slow
def test_every_check_of_the_demonstration_passes(tmp_path: Path) -> None:
    ran = run("demo", "--keep", "kept", cwd=tmp_path)
    assert ran.code == 0, ran.out + ran.err
    (total,) = re.findall(r"^in all +(\d+) +(\d+) +([\d.]+)$", ran.out, re.MULTILINE)
    assert int(total[0]) > 200
    assert int(total[1]) == 0
    assert float(total[2]) < 60
    for provider in ("a.example", "b.example", "c.example"):
        assert len(re.findall(rf"^{provider} +\S", ran.out, re.MULTILINE)) >= 2  # what it could not see
    listed = run("group", "list", "--json", "--config", "kept/a.example/mimids.toml", cwd=tmp_path).json["groups"]
    assert [(group["hub"], group["epoch"], group["live_forks"]) for group in listed] == [
        ("a.example", 10, 1),
        ("b.example", 7, 1),  # a follower is not told that a branch was terminated
    ]
    listed = run("group", "list", "--json", "--config", "kept/b.example/mimids.toml", cwd=tmp_path).json["groups"]
    hosted = [(group["linear"], group["live_forks"]) for group in listed if group["hub"] == "b.example"]
    assert hosted == [(True, 0)]
    assert run("demo", "--keep", "kept", cwd=tmp_path).code == 1


def test_the_recording_is_that_of_the_tests() -> None:
    shipped = ROOT / "mimids/cli/demo/public.jsonl"
    assert shipped.read_bytes() == (ROOT / "tests/vectors/conversations/public.jsonl").read_bytes()


def test_the_recording_covers_the_fork_and_both_ways_in() -> None:
    recording = Recording()
    assert {step.branch for step in recording.steps} == {"main", "A", "B", "C"}
    assert {user for users in recording.members.values() for user in users} == set(HOMES) - {"alice-last-resort"}
    assert set(recording.welcomes) == {"bob", "carol", "erin", "frank"}
    assert len(list(recording.invalid())) > 10
    assert len({step.key for step in recording.steps}) > 10
