"""A hub whose terms are long: they are bounded, and nobody else waits while they are read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.ports import PeerAnswer
from mimids.ds.terms.accepted import TERMS_OCTETS
from mimids.ds.terms.hub_terms import MOST_RESTRICTIONS, HubTerms
from mimids.errors import PeerFailed
from mimids.wire.ids import ProviderId
from tests.support.doubles import Called
from tests.support.federation import federated
from tests.support.stored import rows

A, HUB = "a.example", ProviderId("hub.example")


def terms(revision: int, bans: int) -> bytes:
    users = [f"mimi://{A}/u/{revision}-{n}" for n in range(bans)]
    return json.dumps({"revision": revision, "hub": HUB, "bans": users, "mutes": []}).encode()


class Hub:
    """A hub that offers longer terms each time, and confirms whatever is accepted."""

    def __init__(self, bans: int) -> None:
        self.bans = bans
        self.revision = 0

    async def __call__(self, called: Called) -> PeerAnswer:
        if called.method == "PUT":
            return PeerAnswer(b"")
        self.revision += 1
        return PeerAnswer(terms(self.revision, self.bans))


@contextmanager
def reading_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note the threads in which terms are read."""
    threads: list[int] = []
    read = HubTerms.read

    def note(*args: Any, **options: Any) -> HubTerms:
        threads.append(threading.get_ident())
        return read(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(HubTerms, "read", note)
        yield threads


async def test_long_terms_are_read_beside_the_event_loop_and_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MiB of bans held the event loop for seconds, and the writer as well."""
    async with federated(tmp_path, A, jobs_of=()) as (a,):
        a.peers.add(HUB, Hub(MOST_RESTRICTIONS))
        with reading_noted(monkeypatch) as threads:
            for _ in range(2):
                assert await a.services.accepted_terms.renew(HUB)
            await a.services.accepted_terms._load()
        assert threads
        assert threading.get_ident() not in threads
        in_force = a.services.accepted_terms.in_force(HUB)
        assert in_force is not None
        assert (in_force.revision, len(in_force.bans)) == (2, MOST_RESTRICTIONS)
        assert await rows(a, "SELECT count(*) FROM accepted_restrictions") == [(MOST_RESTRICTIONS,)]


async def test_terms_of_too_many_bans_add_no_rows(tmp_path: Path) -> None:
    hub = Hub(MOST_RESTRICTIONS + 1)
    assert len(terms(1, hub.bans)) < TERMS_OCTETS
    async with federated(tmp_path, A, jobs_of=()) as (a,):
        a.peers.add(HUB, hub)
        with pytest.raises(PeerFailed):
            await a.services.accepted_terms.renew(HUB)
        assert await rows(a, "SELECT 1 FROM accepted_restrictions") == []
        assert a.services.accepted_terms.in_force(HUB) is None


async def test_terms_that_are_nested_deeply_are_refused(tmp_path: Path) -> None:
    async def nested(called: Called) -> PeerAnswer:
        return PeerAnswer(b"[" * (TERMS_OCTETS - 1))

    async with federated(tmp_path, A, jobs_of=()) as (a,):
        a.peers.add(HUB, nested)
        with pytest.raises(PeerFailed):
            await a.services.accepted_terms.renew(HUB)
