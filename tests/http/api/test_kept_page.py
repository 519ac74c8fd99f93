from __future__ import annotations

from itertools import count
from pathlib import Path
from unittest import mock

import pytest

from mimids.http.api import kept_page
from mimids.http.api.kept_page import QUICK_SECONDS, KeptPage
from mimids.store.engine.access import migrate, open_store


@pytest.mark.parametrize(("took", "expected"), [(QUICK_SECONDS / 2, [0, 1]), (3600.0, [0, 0])])
async def test_a_page_is_kept_if_it_took_long(took: float, expected: list[int], tmp_path: Path) -> None:
    migrate(tmp_path / "db")
    page, made, cpu = KeptPage[int](), count(), count(step=took)
    with mock.patch.object(kept_page, "thread_time", side_effect=cpu):
        async with open_store(tmp_path / "db") as store:
            assert [await page.read(store, lambda tx: next(made)) for _ in range(2)] == expected
