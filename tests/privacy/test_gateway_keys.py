"""Gateway keys are deleted in time, whatever the clock shows, and no copy of a database opens old requests."""

from __future__ import annotations

import itertools
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from click.testing import CliRunner

from mimids.cli.main import main
from mimids.cli.places import CONFIG_FILE
from mimids.config import Config
from mimids.config import load as load_config
from mimids.ds.commands import Context
from mimids.ds.key_packages.gateway_keys import load, maintain
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keyring import AHEAD_SECONDS, Keyring, KeyRow, Schedule
from mimids.ohttp.keys_signature import APART_SECONDS
from mimids.store import ohttp
from mimids.store.engine.sqlite import read_here, write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from tests.support.cli_runs import provider
from tests.support.doubles import stopped_clock
from tests.support.mls_makers import DAY, NOW
from tests.support.rig import Rig, running

SCHEDULE = Schedule(DAY, 2 * DAY)
YEAR = 365 * DAY
_KEY = PrivateKey(bytes(range(32)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def stored(rig: Rig) -> set[int]:
    return {row.key_id for row in await rig.store.read(ohttp.keys)}


@pytest.mark.parametrize("ahead", [2 * 3600, 4 * DAY, YEAR])
async def test_a_clock_that_jumps_ahead_and_back_deletes_no_key(path: Path, ahead: int) -> None:
    async with running(path, schedule=SCHEDULE) as rig:
        (first,) = rig.keys.live()
        rig.clock.jump(ahead)
        for _ in range(3):
            await rig.keys.refresh()
            rig.clock.advance(60)
        assert first in rig.keys.live()
        rig.clock.jump(-ahead)
        await rig.keys.refresh()
        assert first in rig.keys.live()
        assert first in await stored(rig)


async def test_a_restart_while_the_clock_is_ahead_deletes_no_key(path: Path) -> None:
    clock = stopped_clock(NOW)
    async with running(path, clock, schedule=SCHEDULE) as rig:
        await rig.see_time()
        (first,) = rig.keys.live()
    clock.jump(YEAR)
    async with running(path, clock, schedule=SCHEDULE) as rig:
        assert first in rig.keys.live()


async def test_a_key_of_a_clock_that_was_ahead_is_served_and_kept_no_longer_than_others(path: Path) -> None:
    async with running(path, schedule=SCHEDULE) as rig:
        rig.clock.jump(YEAR)
        await rig.keys.refresh()
        rig.clock.jump(-YEAR)
        await rig.keys.refresh()
        assert {row.created_at for row in await rig.store.read(ohttp.keys)} <= {NOW}
        before = await stored(rig)
        for _ in range(2 * 24 * 4):
            rig.clock.advance(DAY / 48)
            await rig.keys.refresh()
        assert not before & await stored(rig)
        assert 1 <= len(await stored(rig)) <= 4


async def test_time_that_passes_deletes_keys_within_three_days(path: Path) -> None:
    async with running(path, schedule=SCHEDULE) as rig:
        octets = [next(iter(rig.keys.live().values())).reveal()]
        for _ in range(3 * 24):
            rig.clock.advance(3600)
            await rig.keys.refresh()
        assert octets[0] not in [key.reveal() for key in rig.keys.live().values()]
        assert len(await stored(rig)) == 3


async def test_a_look_at_the_keys_that_takes_long_moves_no_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(path, schedule=SCHEDULE) as rig:
        rig.clock.advance(22 * 3600)
        await rig.keys.refresh()
        read, reads, released = rig.store.read, itertools.count(), trio.Event()

        async def slow_at_first(work: Callable[[Tx], object]) -> object:
            if not next(reads):
                await released.wait()
            return await read(work)

        monkeypatch.setattr(rig.store, "read", slow_at_first)
        async with trio.open_nursery() as looking:
            looking.start_soon(rig.keys.refresh)
            await trio.testing.wait_all_tasks_blocked()
            rig.clock.advance(3600)
            looking.start_soon(rig.keys.refresh)
            await trio.testing.wait_all_tasks_blocked()
            released.set()
        await rig.keys.refresh()
        assert len(await stored(rig)) == 1, "the next key is due an hour later"


async def test_a_clock_that_is_set_back_still_serves_a_key_that_clients_accept(path: Path) -> None:
    async with running(path, schedule=SCHEDULE) as rig:
        await rig.see_time()
        served = rig.keys.served()
        rig.clock.jump(-YEAR)
        await rig.keys.refresh()
        assert rig.keys.served().body == served.body


@pytest.mark.parametrize("seconds", [0, 1, 60, APART_SECONDS - 1, APART_SECONDS])
def test_keys_that_are_made_soon_after_one_another_retire_apart(seconds: int) -> None:
    keyring = Keyring((), SCHEDULE)
    for n in range(4):
        row = keyring.next_row(NOW + n * seconds, secrets.token_bytes(32))
        keyring = Keyring((*keyring.rows, row), SCHEDULE)
    retired = sorted(row.retire_at for row in keyring.rows)
    assert all(later - earlier >= APART_SECONDS for earlier, later in itertools.pairwise(retired))


def test_a_key_of_a_longer_schedule_does_not_prolong_the_next() -> None:
    old = Keyring((), Schedule(30 * DAY, 7 * DAY)).next_row(NOW, bytes(32))
    row = Keyring((old,), SCHEDULE).next_row(NOW + 60, bytes(32))
    assert row.retire_at == NOW + 60 + 3 * DAY


def test_only_keys_of_the_far_future_are_misdated() -> None:
    rows = tuple(KeyRow(n, _KEY, NOW + n * AHEAD_SECONDS, NOW + n * AHEAD_SECONDS + 3 * DAY) for n in range(3))
    keyring = Keyring(rows, SCHEDULE)
    assert keyring.misdated(NOW) == rows[2:]
    again = keyring.dated_again(rows[2], NOW)
    assert (again.created_at, again.key_id) == (NOW, 2)


# --- copies of the database -----------------------------------------------------------------------------------------


def invoke(config: Config, *arguments: str | Path) -> None:
    file = config.tls.certificate.parent / CONFIG_FILE
    done = CliRunner().invoke(main, [*map(str, arguments), "--config", str(file)])
    assert done.exit_code == 0, done.stderr


def keys_of(config: Config) -> tuple[list[bytes], list[bytes]]:
    """Return the gateway's private keys as they are stored, and in the clear."""
    context = Context.of(config, Milliseconds(0))
    with read_here(config.database) as tx:
        in_the_clear = [row.private.reveal() for row in load(tx, SCHEDULE, context.operator_key).rows]
        return [row.private_key for row in ohttp.keys(tx)], in_the_clear


def found_in(directory: Path, octets: list[bytes]) -> set[str]:
    """Return the files with any of these octets, as they are or in hex."""
    wanted = [*octets, *(each.hex().encode() for each in octets)]
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.name for path in files if any(each in path.read_bytes() for each in wanted)}


def test_init_makes_a_key_file_outside_the_data_directory(tmp_path: Path) -> None:
    config = provider(tmp_path)
    assert config.ohttp.key_file is not None
    assert config.data_dir not in config.ohttp.key_file.parents
    assert stat.S_IMODE(config.ohttp.key_file.stat().st_mode) == 0o600
    invoke(config, "ohttp", "rotate")
    encrypted, in_the_clear = keys_of(config)
    assert found_in(tmp_path, in_the_clear) == set()
    assert found_in(tmp_path, encrypted) == {config.database.name}, "the search finds what is there"


@pytest.mark.parametrize("with_key_file", [True, False])
def test_neither_a_backup_nor_a_database_put_aside_opens_recorded_requests(tmp_path: Path, with_key_file: bool) -> None:
    config = provider(tmp_path)
    if not with_key_file:
        file = tmp_path / CONFIG_FILE
        file.write_text("\n".join(line for line in file.read_text().splitlines() if "key_file" not in line))
        config = load_config(file)
    for _ in range(3):
        invoke(config, "ohttp", "rotate")
    encrypted, in_the_clear = keys_of(config)
    (tmp_path / "copies").mkdir()
    invoke(config, "backup", tmp_path / "copies" / "monday")
    assert found_in(tmp_path / "copies", encrypted + in_the_clear) == set()
    invoke(config, "ohttp", "rotate")
    later, later_in_the_clear = keys_of(config)
    invoke(config, "restore", "--replace", tmp_path / "copies" / "monday")
    (aside,) = config.data_dir.glob("*.before-*")
    assert aside.stat().st_size
    assert found_in(tmp_path, encrypted + in_the_clear + later + later_in_the_clear) == set()


def test_a_damaged_database_that_still_has_keys_is_named(tmp_path: Path) -> None:
    config = provider(tmp_path)
    invoke(config, "backup", tmp_path / "monday")
    config.database.write_bytes(b"no database" + config.database.read_bytes()[11:])
    file = config.tls.certificate.parent / CONFIG_FILE
    done = CliRunner().invoke(main, ["restore", "--replace", str(tmp_path / "monday"), "--config", str(file)])
    assert done.exit_code == 0, done.stderr
    aside = min(config.data_dir.glob("*.before-*"))  # the others are its log
    assert f"{aside} is damaged, so it still has private keys of the gateway" in done.stdout


def test_a_database_that_is_put_back_serves_no_blank_key(tmp_path: Path) -> None:
    config = provider(tmp_path)
    invoke(config, "ohttp", "rotate")
    invoke(config, "backup", tmp_path / "monday")
    invoke(config, "restore", "--replace", tmp_path / "monday")
    (aside,) = config.data_dir.glob("*.before-*")
    aside.rename(config.database)
    context = Context.of(config, Milliseconds(0))
    now = int(time.time())
    made = write_here(config.database, lambda tx: maintain(tx, SCHEDULE, context.operator_key, now))
    assert set(made.live(now)) == {1}
    assert bytes(32) not in [key.reveal() for key in made.live(now).values()]


def test_after_a_restore_without_the_newer_database_clients_accept_the_new_key(tmp_path: Path) -> None:
    """The key that was served last is not in the backup, and a client may still remember it."""
    config = provider(tmp_path)
    invoke(config, "backup", tmp_path / "monday")
    invoke(config, "ohttp", "rotate")
    with read_here(config.database) as tx:
        last = ohttp.keys(tx)[-1].retire_at
    config.database.unlink()
    invoke(config, "restore", tmp_path / "monday")
    with read_here(config.database) as tx:
        assert ohttp.keys(tx)[-1].retire_at - last >= APART_SECONDS
