from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mimids.store.engine.store import Store
from tests.support import notes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a database?.sqlite"  # a name with characters that a URI would read differently
    notes.create(path)
    return path


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with notes.working(path) as store:
        yield store
