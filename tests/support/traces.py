"""A provider with three users who did everything that leaves traces, and what its database says of one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from mimids.ds.key_packages.tokens import TokenTerms, issue
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.store import accounts
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Device, UserRow
from mimids.wire.declare import decode
from mimids.wire.ids import BearerToken, KeyPackageRef, ProviderId, Secret
from mimids.wire.messages import CommitData, SendRequest, WelcomeInitRequest
from tests.support.curious import found_in, tables_of
from tests.support.federation import COMMIT, Room, read
from tests.support.inmemory import InMemory
from tests.support.provider import Assembled
from tests.support.rig import SUITE, ask, packages
from tests.support.tables import ON_POSTGRESQL
from tests.support.welcomes import welcome_to

FIRST_ROWS = {"users": 7_000_001, "devices": 8_000_001}  # so that their numbers are not those of other rows
A = ProviderId("a.example")
_COUNT_FROM = (
    "SELECT setval(pg_get_serial_sequence(?, 'id'), ?)"
    if ON_POSTGRESQL
    else "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)"
)


@attrs.frozen
class Person:
    """A user with one device, and everything by which the files could name them."""

    name: str
    device: Device
    secrets: Mapping[str, bytes]
    refs: tuple[KeyPackageRef, ...]


async def operate(provider: Assembled, command: str, **arguments: object) -> Any:
    socket = InMemory(provider.app(OPERATOR_SOCKET))
    headers = {"content-type": "application/json"}
    answer = await socket.ask("POST", f"/v1/{command}", json.dumps(arguments).encode(), headers)
    assert answer.status == 200, answer.body
    return answer.json()


async def person(b: Assembled, name: str) -> Person:
    """Add a user who has uploaded KeyPackages, of which two were claimed with a labelled token."""
    token = await b.add_device(name, f"{name}s-telephone")
    device = await b.services.devices.authenticate(Secret(token.encode()))
    assert device is not None
    uploaded = packages(device.user_id, 12)
    assert (await b.services.key_packages.upload(device, uploaded)).accepted == 12
    last = packages(device.user_id, 1, last_resort=True)
    assert (await b.services.key_packages.upload(device, last)).accepted == 1

    def work(tx: Tx) -> BearerToken:
        row = accounts.find_user(tx, device.user_id)
        assert row is not None
        terms = TokenTerms("unique", label=f"label for {name}", rate_claims=50, rate_seconds=3600)
        return issue(tx, UserRow(row), terms, b.services.clock.now(), device=device.row).bearer_token

    bearer = await b.services.store.write(work)
    for _ in range(2):
        (one,) = await b.services.key_packages.claim([ask(bearer, name)])
        assert one.key_package is not None
    parsed = [decode(KeyPackageIn, each) for each in (*uploaded, *last)]
    refs = tuple(each.ref(SUITES[SUITE]) for each in parsed)
    secrets = {
        "user id": device.user_id,
        "device name": device.name.encode(),
        "label": f"label for {name}".encode(),
        "digest of the bearer token": bearer.digest(),
        "digest of the device token": hashlib.sha256(token.encode()).digest(),
    }
    for number, (package, ref) in enumerate(zip(parsed, refs, strict=True)):
        secrets |= {f"reference {number}": ref, f"init key {number}": package.init_key}
    return Person(name, device, secrets, refs)


async def take_part(a: Assembled, b: Assembled, who: Person, creator: Device) -> None:
    """Take part in a group at another provider and in one of the own, read, leave, report, and use up rates."""
    elsewhere, own, left = Room(f"of {who.name}"), Room(f"own {who.name}", "b.example"), Room(f"left {who.name}")
    await a.services.hub.create_group(elsewhere.creation(), creator)
    await a.services.hub.create_group(left.creation(), creator)
    await b.services.hub.create_group(own.creation(), who.device)
    hub = b.services.hub_router.hub(ProviderId("b.example"))
    await hub.send(
        who.device, SendRequest(own.message("c", kind=COMMIT), own.key, CommitData(own.new_key(), None, None))
    )
    for room in (elsewhere, left, own):
        await read(b, who.device, room.hub, room.key)
        await b.services.hub_router.hub(room.hub).send(who.device, room.send("hello"))
    await b.services.following.leave(who.device, A, left.group_id)
    incoming = b.services.incoming_welcomes
    for hub_name, refs in ((A, who.refs[:1]), (A, who.refs[:2])):
        await incoming.init(hub_name, WelcomeInitRequest(refs))
        await incoming.store(hub_name, welcome_to(*refs))
    first, _ = await incoming.inbox(who.device.row)
    await incoming.acknowledge(who.device.row, first.id)
    b.services.gate.count_fetch(who.device)
    await b.services.cursors.save()
    await b.services.rates.save()


@attrs.frozen
class Town:
    """Two providers. At b.example there are a user who is forgotten and others who stay."""

    a: Assembled
    b: Assembled
    gone: Person
    staying: Person
    clock: MovableClock


async def settle(a: Assembled, b: Assembled, clock: MovableClock) -> Town:
    for values in FIRST_ROWS.items():
        await b.services.store.write(partial(Tx.execute, sql=_COUNT_FROM, params=values))
    token = await a.add_device("alice")
    alice = await a.services.devices.authenticate(Secret(token.encode()))
    assert alice is not None
    people = [await person(b, name) for name in ("stefan", "mallory", "zoe")]
    for each in people:
        await take_part(a, b, each, alice)
    return Town(a, b, people[1], people[0], clock)


def traces(b: Assembled, who: Person, *rows: int) -> set[str]:
    """Return the columns that contain something of a person, or one of these numbers of rows."""
    found, written = set(), [b"%d" % row for row in rows]
    for table in tables_of(b.config.database).values():
        for name in table.columns:
            for value in table.column(name):
                octets = value if isinstance(value, bytes) else str(value).encode()
                if value in rows or octets in written or found_in(octets, who.secrets):
                    found.add(f"{table.name}.{name}")
    return found - {"sqlite_sequence.seq"}
