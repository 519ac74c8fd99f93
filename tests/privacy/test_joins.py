"""Two curious administrators with both disks join nothing: no asker with a target, no token with a KeyPackage or group.

They read every table of two live providers while 200 devices fetch KeyPackages with labelled unique tokens, and after
the Welcomes, then backups from both moments, and what `restore` puts aside and restores. They join any two columns of
times by equal values and by order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import attrs

from mimids.config import Config
from mimids.ds.key_packages.tokens import TokenTerms, issue
from mimids.ds.ports import RelayedAnswer
from mimids.http.api.devices import DEVICES
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import decode_keys
from mimids.ohttp.encapsulation import RESPONSE_TYPE
from mimids.ohttp.padding import pad_request
from mimids.store import accounts, backup
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Device, Milliseconds, UserRow
from mimids.wire.declare import decode, encode
from mimids.wire.ids import BearerToken, KeyPackageRef, ProtocolVersion, Secret
from mimids.wire.messages import (
    CreateGroupRequest,
    KeyPackageRequest,
    KeyPackageResponse,
    WelcomeData,
)
from tests.support.curious import Table, joined, ranked, tables_of, time_columns
from tests.support.doubles import Called
from tests.support.federation import Room, federated, read
from tests.support.inmemory import InMemory
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled
from tests.support.restoring import restore
from tests.support.rig import SUITE, packages
from tests.support.stored import rows, sweep, until
from tests.support.tables import ON_POSTGRESQL
from tests.support.welcomes import welcome_to

FETCHES = 200
AT_MOST = 10  # right guesses out of 200; one guess in 200 is right by chance


@attrs.frozen
class Fetch:
    """One fetch as it really was."""

    asker: Device
    token_id: int
    ref: KeyPackageRef
    room: Room


async def asker(a: Assembled, number: int) -> tuple[Device, str]:
    token = await a.add_device(f"asker{number}")
    found = await a.services.devices.authenticate(Secret(token.encode()))
    assert found is not None
    return found, token


async def target(b: Assembled, count: int) -> tuple[Device, list[tuple[int, BearerToken]]]:
    """Add Bob with `count` KeyPackages and as many labelled unique tokens."""
    token = await b.add_device("bob")
    bob = await b.services.devices.authenticate(Secret(token.encode()))
    assert bob is not None
    done = await b.services.key_packages.upload(bob, packages(bob.user_id, count))
    assert done.accepted == count
    issued = []
    for number in range(count):
        terms = TokenTerms("unique", label=f"for asker {number}")

        def work(tx: Tx, terms: TokenTerms = terms) -> tuple[int, BearerToken]:
            row = accounts.find_user(tx, bob.user_id)
            assert row is not None
            made = issue(tx, UserRow(row), terms, b.services.clock.now())
            return int(made.id), made.bearer_token

        issued.append(await b.services.store.write(work))
    return bob, issued


async def fetch(a: Assembled, b: Assembled, device_token: str, bob: Device, token: BearerToken) -> KeyPackageRef:
    """Fetch a KeyPackage through the endpoints of the relay; return its reference."""
    request = encode(KeyPackageRequest(bob.user_id, token, ProtocolVersion(1), SUITE))
    date = formatdate(a.services.clock.now() // 1000, usegmt=True).encode()
    fields = ((b"content-type", b"application/mimi-ds"), (b"date", date))
    plain = bhttp.encode_request(bhttp.Request("POST", "https", "b.example", "/key-packages", fields, request))
    (key,) = decode_keys(b.services.ohttp_keys.served().body)
    sealed = encapsulate(key, pad_request(plain), random.randbytes(32))
    headers = {"content-type": "message/ohttp-req", "authorization": f"Bearer {device_token}"}
    answer = await InMemory(a.app(DEVICES)).ask("POST", "/client/v1/providers/b.example/ohttp", sealed.message, headers)
    assert answer.status == 200, answer.body
    opened = bhttp.decode_response(sealed.opener.open(answer.body))
    package = decode(KeyPackageResponse, opened.content).key_package
    return decode(KeyPackageIn, package).ref(SUITES[SUITE])


def gateway_of(b: Assembled) -> Callable[[Called], object]:
    async def answer(called: Called) -> RelayedAnswer:
        return RelayedAnswer(status=200, media_type=RESPONSE_TYPE, body=await b.services.gateway.answer(called.body))

    return answer


def pairs_of(
    left: dict[str, Table], right: dict[str, Table]
) -> Iterator[tuple[Table, str, Table, str, list[tuple[int, int]]]]:
    """Yield each pair of columns of times with the places that a join by time connects."""
    for first in left.values():
        for name, values in time_columns(first):
            for second in right.values():
                for other, others in time_columns(second):
                    for join in (joined, ranked):
                        yield first, name, second, other, join(values, others)


def right_guesses(
    left: dict[str, Table], right: dict[str, Table], truth: set[tuple[object, object]]
) -> dict[tuple[str, str], int]:
    """Return for each pair of columns how many rows it joins that belong to one fetch, if they are more than chance."""
    found = {}
    for first, name, second, other, places in pairs_of(left, right):
        if (first.name, second.name) == (second.name, first.name):
            continue
        guesses = {(value, match) for at, to in places for value in first.rows[at] for match in second.rows[to]}
        right_ones = len(truth & guesses)
        if right_ones > AT_MOST:
            found[f"{first.name}.{name}", f"{second.name}.{other}"] = right_ones
    return found


def columns_with(tables: dict[str, Table], values: set[object]) -> set[str]:
    """Return the columns that have one of these values."""
    return {
        f"{table.name}.{name}" for table in tables.values() for name in table.columns if values & {*table.column(name)}
    }


async def test_no_two_columns_of_times_join_what_ohttp_keeps_apart(tmp_path: Path) -> None:
    chance, clock = random.Random(15), MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        a.peers.add_gateway("b.example", gateway_of(b))  # type: ignore[arg-type]
        bob, tokens = await target(b, FETCHES)
        order = chance.sample(range(FETCHES), FETCHES)
        askers = [await asker(a, number) for number in range(FETCHES)]
        fetches: list[Fetch] = []
        moments: set[object] = set()
        seen: dict[tuple[object, ...], tuple[object, ...]] = {}
        for number in order:
            device, device_token = askers[number]
            clock.advance(chance.uniform(0.001, 20))
            token_id, token = tokens[number]
            ref = await fetch(a, b, device_token, bob, token)
            moments.add(clock.now())
            fetches.append(Fetch(device, token_id, ref, Room(f"room {number}")))
            await a.services.rates.save()
            seen |= {row[:2]: row for row in await rows(a, "SELECT * FROM rate_buckets")}
        for provider in (a, b):
            assert columns_with(tables_of(provider.config.database), moments) == set()
        for provider in (a, b):
            keep(provider, tmp_path, "before the Welcomes")
        asked: set[tuple[object, object]] = {(each.asker.row, each.ref) for each in fetches}
        asked |= {(str(each.asker.row), each.ref) for each in fetches}
        asked |= {(str(each.asker.row), each.token_id) for each in fetches}
        ours = tables_of(a.config.database)
        # The administrator has looked after each fetch: the row of a bucket that is full again is deleted.
        ours["rate_buckets"] = attrs.evolve(ours["rate_buckets"], rows=tuple(seen.values()))
        assert right_guesses(ours, tables_of(b.config.database), asked) == {}

        for each in chance.sample(fetches, FETCHES):
            clock.advance(chance.uniform(0.001, 20))
            await invite(a, each)
            await until(lambda each=each: arrived(b, each.ref))  # type: ignore[misc]
            await read(b, bob, each.room.hub, each.room.key)
        await sweep(a)
        await sweep(b)
        theirs = tables_of(b.config.database)
        assert not any(theirs["key_package_refs"].column("token"))
        labels: set[tuple[object, object]] = {(each.token_id, each.ref) for each in fetches}
        labels |= {(each.token_id, each.room.group_id) for each in fetches}
        assert right_guesses(theirs, theirs, labels) == {}
        assert right_guesses(tables_of(a.config.database), theirs, asked | labels) == {}
        for provider in (a, b):
            keep(provider, tmp_path, "after the Welcomes")
    if not ON_POSTGRESQL:
        for moment in ("after the Welcomes", "before the Welcomes"):
            ours_kept, theirs_kept = (files_of_restore(each.config, tmp_path, moment) for each in (a, b))
            for one in theirs_kept:
                assert right_guesses(tables_of(one), tables_of(one), labels) == {}
                for other in ours_kept:
                    assert right_guesses(tables_of(other), tables_of(one), asked | labels) == {}


def keep(provider: Assembled, directory: Path, moment: str) -> None:
    """Make a backup, as an administrator may find it later."""
    if not ON_POSTGRESQL:
        backup.copy(provider.config.database, copy_of(provider.config, directory, moment), Milliseconds(1))


def copy_of(config: Config, directory: Path, moment: str) -> Path:
    return directory / f"{config.provider} {moment}"


def files_of_restore(config: Config, directory: Path, moment: str) -> tuple[Path, ...]:
    """Restore a backup of a provider; return the backup, the file that was put aside, and the restored file."""
    copy = copy_of(config, directory, moment)
    return (copy, *restore(config, copy))


async def invite(a: Assembled, fetch: Fetch) -> None:
    """Create a group whose Welcome is for the KeyPackage of the fetch."""
    made = fetch.room.creation()
    data = WelcomeData(welcome_to(fetch.ref), (Room(hub="b.example").hub,))
    request = CreateGroupRequest(made.group_id, made.version, made.cipher_suite, made.partition_key, None, None, data)
    await a.services.hub.create_group(request, fetch.asker)


async def arrived(b: Assembled, ref: KeyPackageRef) -> bool:
    return (await rows(b, "SELECT token FROM key_package_refs WHERE ref = ?", ref)) == [(None,)]
