"""Checks of Web Push: the key, and whether the push services of our devices can be reached."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

from mimids.cli.check.finding import Finding, ok, wrong
from mimids.config import Config, ConfigError
from mimids.ds.clock import SystemClock
from mimids.ds.commands.declare import read_operator_key
from mimids.ds.wake_ups.vapid_key import load_vapid_key
from mimids.errors import MimiError, PeerUnavailable
from mimids.http.peers.push_services import HttpPushServices
from mimids.ohttp.at_rest import KeyUnavailable
from mimids.store.engine.access import read_here
from mimids.store.push_subscriptions import endpoints
from mimids.web_push.subscription import parse_endpoint

SERVICES: Final = 8  # the check calls at most this many push services: those that most of our devices use


def push_key(config: Config) -> Finding:
    """Check that the server can read the key by which push services recognise it."""
    if not config.push.enabled:
        return ok("push", "devices are not woken: enabled is false in [push]")
    try:
        operator_key = read_operator_key(config)
        with read_here(config.place) as tx:
            key, devices = load_vapid_key(tx, operator_key), len(endpoints(tx))
    except (ConfigError, KeyUnavailable) as error:
        fix = "set key_file in [ohttp] to the file with which the keys were encrypted"
        return wrong("push", f"the key for push services cannot be read: {error}", fix)
    if key is None:
        return ok("push", "there is no key for push services yet; `mimids serve` makes one")
    return ok("push", f"{devices} devices can be woken")


def push_services(config: Config) -> Iterator[Finding]:
    """Connect to the push services that most of our devices use; nothing is sent to them."""
    found: Counter[str] = Counter()
    if config.push.enabled:
        with suppress(sqlite3.Error, OSError, MimiError), read_here(config.place) as tx:  # other checks report these
            found.update(parse_endpoint(each).origin for each in endpoints(tx))
    for origin, _ in found.most_common(SERVICES):
        yield trio.run(_reach, config, origin)


async def _reach(config: Config, origin: str) -> Finding:
    services = HttpPushServices(config, SystemClock())
    try:
        await services.reach(parse_endpoint(origin))
    except PeerUnavailable as error:
        fix = "check that this machine reaches the internet; an address that is not public must be in [push] endpoints"
        return wrong("push", f"{origin} cannot be reached: {error.__cause__}", fix)
    finally:
        services.close()
    return ok("push", f"{origin} can be reached")
