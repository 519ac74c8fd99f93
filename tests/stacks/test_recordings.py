"""Conversations of released MLS libraries, recorded and judged as a server would judge them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from mimids.replay.replay import replay

pytestmark = pytest.mark.slow

RECORDINGS = 40


def test_the_server_accepts_what_mls_libraries_send(stacks_program: Path, tmp_path: Path) -> None:
    subprocess.run([stacks_program, "record", tmp_path], check=True, timeout=600)
    recordings = sorted(tmp_path.glob("*.jsonl"))
    assert len(recordings) == RECORDINGS
    wrong = {}
    for path in recordings:
        records = list(replay(path.read_text(encoding="ascii"), now_s=int(time.time())))
        assert len(records) > 80, path.name
        failed = [f"{record.name}: {record.verdict}" for record in records if record.failed]
        if failed:
            wrong[path.name] = failed
    assert not wrong
