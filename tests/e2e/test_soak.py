"""An hour of honest traffic: memory and files level off, and only what is stored grows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import linear_regression

import attrs
import pytest
import trio

from mimids.testing import Provider, Session, open_federation
from tests.support.honest_load import UNLIMITED, honest_load
from tests.support.stage import AWAY, NAMES

pytestmark = AWAY

SOAK_SECONDS = int(os.environ.get("MIMIDS_SOAK_SECONDS", "3600"))
SHORT_SECONDS = 4
SAMPLES, FEW_SAMPLES = 60, 4
FILLING = 1 / 6  # of the time
PACE_SECONDS = 0.1
FETCH_SECONDS = 2.0  # faster ones would use up the token's share of the replay store within minutes
MOST_GROWTH = 0.1  # of the resident memory, in the second half
MOST_FILES = 5  # more at the end than in the middle


@attrs.frozen
class Sample:
    """What one provider uses at one moment."""

    seconds: float
    megabytes: float  # resident
    files: int
    log_megabytes: float  # of the write-ahead log
    rows: dict[str, int]

    @classmethod
    def of(cls, provider: Provider, seconds: float) -> Sample:
        process = Path(f"/proc/{provider.pid}")
        log = provider.database.with_name(f"{provider.database.name}-wal")
        tables = [row[0] for row in provider.read("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return cls(
            seconds,
            int((process / "status").read_text().partition("VmRSS:")[2].split()[0]) / 1024,
            len(list((process / "fd").iterdir())),
            log.stat().st_size / 1_000_000 if log.exists() else 0.0,
            {table: provider.read(f"SELECT count(*) FROM {table}")[0][0] for table in tables},  # noqa: S608
        )


def slopes(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield a line for each figure: its first and last value, and by how much it grows in an hour."""
    times = [each.seconds for each in samples]
    figures = {
        "resident, MB": [each.megabytes for each in samples],
        "open files": [float(each.files) for each in samples],
        "write-ahead log, MB": [each.log_megabytes for each in samples],
    }
    figures |= {f"rows of {name}": [float(each.rows[name]) for each in samples] for name in samples[0].rows}
    for name, values in figures.items():
        slope = linear_regression(times, values).slope * 3600
        if values[0] or values[-1]:
            yield f"  {name:<32}{values[0]:>10.1f}{values[-1]:>10.1f}{slope:>+12.1f} an hour"


async def soak(session: Session, seconds: float, count: int) -> dict[str, list[Sample]]:
    """Run honest traffic between three providers; print the slopes of the second half, and return all samples.

    At first the senders do not pause, so that the caches are full by the middle.
    """
    found: dict[str, list[Sample]] = {name: [] for name in NAMES}
    async with (
        open_federation(*NAMES, links=False, session=session, config=UNLIMITED) as federation,
        honest_load(federation, pace_seconds=0, fetch_seconds=FETCH_SECONDS) as load,
    ):
        began = trio.current_time()
        for n in range(count):
            await trio.sleep_until(began + (n + 1) * seconds / count)
            if n + 1 >= count * FILLING:
                load.pace_seconds = PACE_SECONDS
            for name, samples in found.items():
                samples.append(Sample.of(federation[name], trio.current_time() - began))
    for name, samples in found.items():
        print(f"{name}, second half of {seconds:.0f} s:", *slopes(samples[count // 2 :]), sep="\n")
    return found


@pytest.mark.slow
async def test_a_few_seconds_of_traffic_are_sampled(mimids_session: Session) -> None:
    found = await soak(mimids_session, SHORT_SECONDS, FEW_SAMPLES)
    assert any(samples[-1].rows["messages"] > samples[0].rows["messages"] for samples in found.values())


@pytest.mark.soak
async def test_memory_and_files_level_off_in_an_hour_of_traffic(mimids_session: Session) -> None:
    for name, samples in (await soak(mimids_session, SOAK_SECONDS, SAMPLES)).items():
        middle, last = samples[SAMPLES // 2], samples[-1]
        assert last.megabytes < (1 + MOST_GROWTH) * middle.megabytes, name
        assert last.files <= middle.files + MOST_FILES, name
