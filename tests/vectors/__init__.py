"""Where the vectors lie: beside this repository, or where MIMIDS_VECTORS says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).parents[2] / ".." / "shared" / "vectors"
_OWN = Path(__file__).parent


def path(name: str) -> Path:
    """Return the path of a vector file such as `mls/messages.json`; skip the test where it is absent."""
    shared = os.environ.get("MIMIDS_VECTORS")
    places = [_OWN / name, Path(shared) / name] if shared else [_OWN / name, _BESIDE / name]
    for place in places:
        if place.is_file():
            return place.resolve()
    pytest.skip(f"vectors/{name} is not here; MIMIDS_VECTORS names the directory that has it")


def load(name: str) -> Any:
    """Return a JSON file; skip the test where it is absent."""
    return json.loads(path(name).read_text())


def load_lines(name: str) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; skip the test where it is absent."""
    return [json.loads(line) for line in path(name).read_text().splitlines() if line]
