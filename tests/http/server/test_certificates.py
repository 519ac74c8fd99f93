"""The certificate watch: it reloads changed files, and tries again after a failure."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from trio.testing import wait_all_tasks_blocked

from mimids.http.server.certificates import watch
from mimids.http.server.tls import CertificateFileError
from tests.support.doubles import stopped_clock

if TYPE_CHECKING:
    import trio

SECONDS = 60


class Watched:
    """A watched file, and what the watch did so far; `broken` makes reloads fail."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.broken = False
        self.events: list[str] = []
        self.clock = stopped_clock()
        file.write_text("first")

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await watch(
            [self.file],
            self._reload,
            sleep=self.clock.sleep,
            seconds=SECONDS,
            on_reload=partial(self.events.append, "reloaded"),
            on_failure=lambda error: self.events.append(str(error)),
            task_status=task_status,
        )

    async def _reload(self) -> None:
        if self.broken:
            raise CertificateFileError("key and certificate do not match")

    async def check(self) -> list[str]:
        """Advance the clock to the next check; return what the watch did."""
        await wait_all_tasks_blocked()
        self.events.clear()
        self.clock.advance(SECONDS)
        await wait_all_tasks_blocked()
        return self.events


@pytest.fixture
async def watched(tmp_path: Path, nursery: trio.Nursery) -> Watched:
    watched = Watched(tmp_path / "file")
    await nursery.start(watched.run)
    return watched


async def test_a_file_that_does_not_change_is_not_reloaded(watched: Watched) -> None:
    assert await watched.check() == []


async def test_a_changed_file_is_reloaded_once(watched: Watched) -> None:
    watched.file.write_text("longer than before")
    assert await watched.check() == ["reloaded"]
    assert await watched.check() == []
    os.utime(watched.file, (1, 1))
    assert await watched.check() == ["reloaded"]


async def test_a_failed_reload_is_tried_again_at_the_next_check(watched: Watched) -> None:
    watched.file.write_text("half done")
    watched.broken = True
    assert await watched.check() == ["key and certificate do not match"]
    watched.broken = False
    assert await watched.check() == ["reloaded"]


async def test_a_file_that_disappears_counts_as_changed(watched: Watched) -> None:
    watched.file.unlink()
    watched.broken = True
    assert await watched.check() == ["key and certificate do not match"]
