from __future__ import annotations

import pytest

from tests.support.table_rig import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()
