"""A process that is cut off from PostgreSQL without an error answers 503, and never from its caches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from mimids.config_keys import StoreUrl
from mimids.ds import processes
from mimids.errors import StorageUnavailable
from mimids.values import Device
from mimids.wire.ids import Secret
from tests.support import postgresql
from tests.support.federation import Room, device
from tests.support.provider import Assembled, assembled
from tests.support.silent_proxy import before
from tests.support.stored import until
from tests.support.twins import ran, shared_config

watch = pytest.importorskip("mimids.store.engine.postgresql.watch")

pytestmark = [
    pytest.mark.slow,  # each attempt to connect waits two seconds, which is libpq's least
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
]


async def known(at: Assembled, token: str) -> Device | None:
    return await at.services.devices.authenticate(Secret(token.encode()))


async def test_a_process_that_is_cut_off_silently_answers_nothing_from_its_caches_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "ALIVE_SECONDS", 0.1)
    for name, seconds in (("BUSY_SECONDS", 0.2), ("LOOK_SECONDS", 0.1), ("PROBE_SECONDS", 2)):
        monkeypatch.setattr(watch, name, seconds)
    config = shared_config(tmp_path)
    async with before(str(config.store.url)) as proxy, assembled(config) as one:
        url = StoreUrl(f"{proxy.url}?connect_timeout=2")
        through = attrs.evolve(config, store=attrs.evolve(config.store, url=url))
        async with assembled(through) as other:
            room, token = Room(), await one.add_device("bob")
            await one.add_device()
            await one.services.hub.create_group(room.creation(), device(one))
            assert await known(other, token) is not None
            proxy.be_silent()
            # The silent process may have a transaction that keeps a lock, until the server ends it.
            await until(lambda: _removes(one))
            await until(lambda: _is_unavailable(other, token))
            with pytest.raises(StorageUnavailable):
                await other.services.hub.send(room.send("hello"), device(other))
            proxy.pass_on()
            await until(lambda: _is_removed(other, token))
            await until(lambda: _can_write(other))


async def _is_unavailable(at: Assembled, token: str) -> bool:
    try:
        await known(at, token)
    except StorageUnavailable:
        return True
    return False


async def _removes(at: Assembled) -> bool:
    with suppress(StorageUnavailable):
        await ran(at, "device remove", user="bob", name="phone")
        return True
    return False


async def _can_write(at: Assembled) -> bool:
    with suppress(StorageUnavailable):
        await at.services.store.write(lambda tx: None)
        return True
    return False


async def _is_removed(at: Assembled, token: str) -> bool:
    with suppress(StorageUnavailable):
        return await known(at, token) is None
    return False
