"""Run inputs once, without atheris: `python -m fuzz.replay NAME FILE...` for files, such as a crash that was kept.

Without arguments it runs what the fuzzer ended with in .fuzz/corpus, and prints how many branches of the decoders that
reaches: `python -m fuzz.replay`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import coverage

PACKAGES: Final = ("wire", "mls", "ohttp")


def run_files(name: str, paths: list[str]) -> None:
    """Run the inputs in files; what they raise is not caught."""
    from fuzz.targets import TARGETS

    for path in paths:
        TARGETS[name].test(Path(path).read_bytes())
        print(f"{path}: passed")


def measure() -> None:
    """Run what the fuzzer ended with, and print the share of branches reached in each package."""
    recorder = coverage.Coverage(
        data_file=None, branch=True, source_pkgs=[f"mimids.{each}" for each in PACKAGES], config_file=False
    )
    recorder.start()
    from fuzz.corpus import found
    from fuzz.targets import TARGETS

    for name, target in TARGETS.items():
        for octets in found(name):
            target.run(octets)
    recorder.stop()
    with tempfile.NamedTemporaryFile("r") as report:
        recorder.json_report(outfile=report.name)
        files: dict[str, Any] = json.load(report)["files"]
    for package in PACKAGES:
        sums = [each["summary"] for path, each in files.items() if f"mimids/{package}/" in path]
        branches, reached = (sum(each[key] for each in sums) for key in ("num_branches", "covered_branches"))
        print(f"mimids/{package}: {reached} of {branches} branches, {100 * reached / branches:.1f} %")


if __name__ == "__main__":
    if sys.argv[1:]:
        run_files(sys.argv[1], sys.argv[2:])
    else:
        measure()
