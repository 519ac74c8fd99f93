"""`make bench`: run all measurements, or those that the arguments name (bench: programs-and-bars)."""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    "startup",
    "floor",
    "store_floor",
    "ohttp",
    "key_packages",
    "fetches",
    "mls",
    "hub",
    "streams",
    "abuse",
    "many_followers",
)


def main() -> int:
    chosen = sys.argv[1:] or list(PARTS)
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        print(f"unknown measurement: {', '.join(unknown)}; choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    failed = []
    for part in chosen:
        print(f"--- {part}", flush=True)
        failed += [part] * (subprocess.run([sys.executable, "-m", f"bench.{part}"], check=False).returncode != 0)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
