"""Make a failing input smaller: `python -m fuzz.minimize NAME FILE` writes FILE.min, which fails in the same way."""

from __future__ import annotations

import sys
from pathlib import Path

from fuzz.target import Target
from fuzz.targets import TARGETS


def failure(target: Target, octets: bytes) -> type[Exception] | None:
    """Return the class of what an input raises; None if it passes."""
    try:
        target.test(octets)
    except Exception as error:
        return type(error)
    return None


def minimized(target: Target, octets: bytes) -> bytes:
    """Return an input from which no piece can be left out that fails in the same way."""
    wanted = failure(target, octets)
    if wanted is None:
        return octets
    size = len(octets) // 2
    while size:
        for start in range(0, len(octets), size):
            shorter = octets[:start] + octets[start + size :]
            if failure(target, shorter) is wanted:
                octets = shorter
                break
        else:
            size //= 2
    return octets


if __name__ == "__main__":
    name, path = sys.argv[1:]
    Path(f"{path}.min").write_bytes(minimized(TARGETS[name], Path(path).read_bytes()))
