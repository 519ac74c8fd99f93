"""Make databases of several sizes and print what work costs in each (bench: growth).

python -m bench.growth [--stalls] [MESSAGES ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

SIZES: Final = (10_000, 1_000_000, 10_000_000)
BAR: Final = 1.5  # of the largest database against the smallest
STALLS_BAR: Final = 3.0  # of sends beside other work against sends alone
WITHOUT_BAR: Final = ("GB", "linear", "a GB")


def figures(program: str, directory: Path, messages: int) -> dict[str, Any]:
    """Run a program of this package on the database in a directory, which it makes if there is none."""
    command = [sys.executable, "-m", f"bench.growth.{program}", str(directory), str(messages)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def table(sizes: Sequence[int], found: Sequence[dict[str, float]]) -> list[str]:
    """Return the lines of the table: a figure for each size, and the ratio of the last to the first."""
    lines = [f"{'work':<42}{''.join(f'{size:>13,}' for size in sizes)}{'ratio':>8}"]
    for name in found[0]:
        values = [each[name] for each in found]
        ratio = values[-1] / max(values[0], 1e-9)
        missed = ratio > BAR and not any(part in name for part in WITHOUT_BAR)
        shown = "".join(f"{value:>13.3f}" for value in values)
        lines.append(f"{name:<42}{shown}{ratio:>8.1f}{'  over the bar' if missed else ''}")
    return lines


def stalls(size: int, found: dict[str, tuple[float, float]]) -> list[str]:
    """Return the lines on sends beside other work."""
    usual, _ = found["usual"]
    return [f"\n{size:,} messages: 99th percentile of sends, its ratio, longest transaction (CPU), ms"] + [
        f"{name:<42}{p99:>13.1f}{p99 / usual:>8.1f}{longest:>13.1f}"
        f"{'  over the bar' if p99 > STALLS_BAR * usual else ''}"
        for name, (p99, longest) in found.items()
    ]


def main(arguments: Sequence[str]) -> None:
    sizes = [int(each.replace("_", "")) for each in arguments if not each.startswith("-")] or list(SIZES)
    found, waits = [], []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="mimids-growth-") as directory:
            found.append(figures("measure", Path(directory), size))
            if "--stalls" in arguments:
                waits += stalls(size, figures("stalls", Path(directory), size))
    print("\n".join(table(sizes, found) + waits))


if __name__ == "__main__":
    main(sys.argv[1:])
