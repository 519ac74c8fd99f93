"""The client in examples/ as a module: it shares no code with mimids."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = EXAMPLES / "plain_client.py"


@cache
def plain_client() -> Any:
    """Return the module `plain_client`."""
    return _imported("plain_client")


@cache
def plain_octets() -> Any:
    """Return the module `plain_octets`, which `plain_client` uses."""
    return _imported("plain_octets")


def _imported(name: str) -> Any:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))
