"""The program with the MLS libraries is built once for each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stacks import build_stacks


@pytest.fixture(scope="session")
def stacks_program() -> Path:
    """The built program; tests that want it are skipped where it cannot be built."""
    return build_stacks()
