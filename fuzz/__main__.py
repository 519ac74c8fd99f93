"""Fuzz all targets, or those that are named: `python -m fuzz --seconds 60 [NAME ...]`; needs atheris (README.md)."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from fuzz import recordings
from fuzz.corpus import kept
from fuzz.instrumented import TARGETS, fuzz
from fuzz.target import Target

ROOT: Final = Path(__file__).parents[1]
WORK: Final = ROOT / ".fuzz"
OPTIONS: Final = (f"-dict={Path(__file__).parent / 'dictionary.txt'}", "-timeout=20", "-rss_limit_mb=2048")
JOBS: Final = 2
LAST_LINES: Final = 25  # shown of a target that failed


def main() -> int:
    """Share the seconds among the targets; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together, not counting their start")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    given = parser.parse_args()
    targets = [TARGETS[name] for name in given.names or TARGETS]
    for target in targets:
        _fill(target)
    shares = sum(target.share for target in targets)
    targets.sort(key=lambda target: -target.share)  # the longest first, so that both jobs end together
    jobs = min(JOBS, len(targets))
    recordings.messages()  # parsed once, before the processes divide
    running: dict[int, Target] = {}
    failed = 0
    while targets or running:
        while targets and len(running) < jobs:
            target = targets.pop(0)
            seconds = max(1, jobs * given.seconds * target.share // shares)
            running[_start(target, seconds, given.seed)] = target
        process, status = os.wait()
        failed += not _passed(running.pop(process), os.waitstatus_to_exitcode(status))
    return 1 if failed else 0


def _corpus(target: Target) -> Path:
    return WORK / "corpus" / target.name


def _crashes(target: Target) -> Path:
    return WORK / "crashes" / f"{target.name}-"


def _log(target: Target) -> Path:
    return WORK / f"{target.name}.log"


def _fill(target: Target) -> None:
    """Put the repository's corpus beside what earlier runs have found."""
    _corpus(target).mkdir(parents=True, exist_ok=True)
    (WORK / "crashes").mkdir(exist_ok=True)
    for octets in kept(target.name):
        (_corpus(target) / hashlib.sha1(octets, usedforsecurity=False).hexdigest()).write_bytes(octets)


def _start(target: Target, seconds: int, seed: int) -> int:
    """Fuzz a target in a process of its own, forked so that nothing is imported again; return its id."""
    process = os.fork()
    return process or _run(target, [f"-max_total_time={seconds}", f"-seed={seed}"])


def _run(target: Target, options: list[str]) -> NoReturn:
    log = os.open(_log(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    fuzz(target, [*options, *OPTIONS, f"-artifact_prefix={_crashes(target)}", str(_corpus(target))])
    sys.exit(1)  # libFuzzer ends the process itself


def _passed(target: Target, status: int) -> bool:
    """Print a line on a target that has ended; on failure, the end of its output too."""
    lines = _log(target).read_text(errors="replace").splitlines()
    summary = next((line for line in reversed(lines) if line.startswith("Done ")), f"failed with status {status}")
    print(f"{target.name}: {summary}", flush=True)
    if status == 0:
        return True
    shown = [line for line in lines if not line.startswith("#")]
    print("\n".join(shown[-LAST_LINES:]), file=sys.stderr)
    print(
        f"The input is {_crashes(target)}*; to run it again: python -m fuzz.replay {target.name} FILE", file=sys.stderr
    )
    return False


if __name__ == "__main__":
    sys.exit(main())
