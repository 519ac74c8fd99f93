from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.other_provider import World

if TYPE_CHECKING:
    import trio


@pytest.fixture
def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    return World(tmp_path, trustme.CA(), nursery)
