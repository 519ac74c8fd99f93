"""What our devices requested from other hubs: kept until the partition is stored, bounded for each device."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.store import participations, providers, removed, requested_partitions
from mimids.store.engine.access import migrate, read_here, write_here
from mimids.store.requested_partitions import Requested
from mimids.values import DeviceRow
from mimids.wire.ids import PartitionKey, provider_id

PHONE, TABLET = DeviceRow(1), DeviceRow(2)
KEYS = [PartitionKey(bytes([n]) * 16) for n in range(4)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    migrate(tmp_path / "db")
    write_here(tmp_path / "db", lambda tx: providers.ensure_provider(tx, provider_id("a.example")))
    return tmp_path / "db"


def request(database: Path, key: PartitionKey, device: DeviceRow, *, linear: bool = False) -> None:
    write_here(database, lambda tx: requested_partitions.add(tx, 1, key.masks(), device, linear=linear))


def requested(database: Path, size: int = 32) -> list[DeviceRow | None]:
    with read_here(database) as tx:
        found = [requested_partitions.find(tx, 1, key.mask(size)) for key in KEYS]
    return [None if each is None else each.device for each in found]


def test_a_request_is_found_under_each_mask_of_its_key_and_belongs_to_the_device_that_asked_last(
    database: Path,
) -> None:
    request(database, KEYS[0], PHONE)
    request(database, KEYS[0], TABLET, linear=True)
    for size in (32, 48, 64):
        assert requested(database, size) == [TABLET, None, None, None]
    with read_here(database) as tx:
        assert requested_partitions.find(tx, 1, KEYS[0].mask(48)) == Requested(TABLET, True)
        assert requested_partitions.find(tx, 2, KEYS[0].mask(48)) is None, "another hub"
    write_here(database, lambda tx: requested_partitions.forget(tx, 1, [KEYS[0].mask(64)]))
    assert requested(database) == [None] * 4


def test_a_device_that_requests_too_much_loses_its_own_oldest_requests(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requested_partitions, "PARTITIONS_OF_A_DEVICE", 2)
    request(database, KEYS[0], TABLET)
    for key in (KEYS[1], KEYS[2], KEYS[1], KEYS[3]):
        request(database, key, PHONE)
    assert requested(database) == [TABLET, PHONE, None, PHONE]


def test_what_a_device_requested_is_forgotten_with_it(database: Path) -> None:
    for key, device in zip(KEYS, (PHONE, PHONE, TABLET), strict=False):
        request(database, key, device)
    write_here(database, lambda tx: requested_partitions.forget_device(tx, PHONE))
    assert requested(database) == [None, None, TABLET, None]
    with read_here(database) as tx:
        assert participations.of_refused(tx) == [TABLET], "there is no such device"
    write_here(database, lambda tx: removed.forget_devices(tx, [TABLET]))
    assert requested(database) == [None] * 4
