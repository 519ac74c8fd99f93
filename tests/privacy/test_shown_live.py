"""What two live providers show their operators does not change when a KeyPackage is fetched through one of them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

import pytest
import trio

from mimids.telemetry import COUNT_SECONDS
from mimids.testing import Provider, Session, open_federation
from tests.support.people import key_packages
from tests.support.stage import SUITE

PAGES = ("/metrics", "/console", "/console/health", "/console/providers")
OF_THE_READER = ("console-", 'route="metrics"', "requests since the start")  # they count the requests for pages
OF_THE_MACHINE = ("free on the disk",)
SPARE_SECONDS = 20


def shown(provider: Provider) -> dict[str, list[str]]:
    """Return the lines of everything that Prometheus or a person reads every second."""
    found = {}
    for page in PAGES:
        with urllib.request.urlopen(provider.operator_url + page) as answer:  # noqa: S310  # on loopback
            found[page] = answer.read().decode().replace("<div>", "\n<div>").splitlines()
    return found


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> set[str]:
    return {
        f"{page}: {line}"
        for page in PAGES
        for line in {*before[page]} ^ {*after[page]}
        if not any(each in line for each in (*OF_THE_READER, *OF_THE_MACHINE))
    }


async def in_thread(function: Callable[..., object], *arguments: object) -> object:
    return await trio.to_thread.run_sync(function, *arguments)


async def wait_for_a_period() -> None:
    """Wait, if needed, until the counts stay the same for a while."""
    left = COUNT_SECONDS - time.monotonic() % COUNT_SECONDS
    if left < SPARE_SECONDS:
        await trio.sleep(left + 1)


@pytest.mark.slow
async def test_nothing_that_is_shown_changes_with_a_fetch(mimids_session: Session) -> None:
    async with open_federation("a.example", "b.example", session=mimids_session) as federation:
        a, b = federation
        alice, bob = [await in_thread(p.add_device, user) for p, user in ((a, "alice"), (b, "bob"))]
        card = await in_thread(b.contact, "bob")
        async with bob.client() as device:  # type: ignore[attr-defined]
            await device.upload(key_packages(1, "bob@b.example", 8))
        async with alice.client() as device:  # type: ignore[attr-defined]
            await wait_for_a_period()
            await device.me()
            for provider in federation:
                await in_thread(shown, provider)  # the first page of the console
            await trio.sleep(1)
            before = [await in_thread(shown, provider) for provider in federation]
            await device.fetch_key_package(card, SUITE)
            after = [await in_thread(shown, provider) for provider in federation]
        for one, other in zip(before, after, strict=True):
            assert changes(one, other) == set()  # type: ignore[arg-type]
