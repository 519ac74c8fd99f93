"""Octets from the recorded conversations in tests/vectors/conversations, from which seeds are made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from mimids.mls.framing import MLSMessage
from mimids.wire.codec import WireError
from mimids.wire.declare import decode

CONVERSATIONS: Final = Path(__file__).parents[1] / "tests/vectors/conversations"
MOST_OCTETS: Final = 16 * 1024  # a longer recorded message is no seed: short ones show the same


@cache
def lines() -> tuple[dict[str, Any], ...]:
    """Return the lines of all recordings, in order."""
    files = sorted(CONVERSATIONS.glob("*.jsonl"))
    return tuple(json.loads(line) for file in files for line in file.read_text().splitlines())


@cache
def octets() -> tuple[bytes, ...]:
    """Return the recorded messages as octets, tampered ones too; each once."""
    found = (bytes.fromhex(line["bytes"]) for line in lines() if "bytes" in line)
    return tuple(dict.fromkeys(each for each in found if len(each) <= MOST_OCTETS))


@cache
def messages() -> tuple[MLSMessage, ...]:
    """Return those that parse."""
    return tuple(_parsed())


def _parsed() -> Iterator[MLSMessage]:
    for each in octets():
        try:
            yield decode(MLSMessage, each)
        except WireError:
            continue
