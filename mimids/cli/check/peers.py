"""Checks of other providers: whether they answer, accept our certificate, and have the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final

import trio

from mimids.cli.check.finding import Finding, ok, warning, wrong
from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.errors import MimiError, PeerFailed, PeerUnavailable, ProviderNotAllowed
from mimids.http.peers.calls import HttpPeers, open_peers
from mimids.http.server.tls import CertificateFileError
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import WelcomeInitRequest

PEER_SECONDS: Final = 10
CLOCK_WARNING_SECONDS: Final = 30


def peers(config: Config) -> Iterator[Finding]:
    """Call every provider that the configuration or the operator names, with a request that changes nothing."""
    named = sorted(config.named_providers)
    if not named:
        open_ = config.federation.mode == "open"
        fix = 'add domains to allow in [federation], or set mode = "open"'
        yield (
            ok("peers", "no other provider is named; the mode is open")
            if open_
            else warning("peers", "no other provider is named", fix)
        )
        return
    try:
        yield from trio.run(_ask_all, config, named)
    except CertificateFileError:
        return  # reported already


async def _ask_all(config: Config, named: list[ProviderId]) -> list[Finding]:
    found: dict[ProviderId, list[Finding]] = {}

    async def ask(peers: HttpPeers, name: ProviderId) -> None:
        found[name] = await _ask(config, peers, name)

    async with open_peers(config, SystemClock()) as reached, trio.open_nursery() as asking:
        for name in named:
            asking.start_soon(ask, reached, name)
    return [finding for name in named for finding in found[name]]


async def _ask(config: Config, reached: HttpPeers, name: ProviderId) -> list[Finding]:
    check = f"peer {name}"
    peer = config.providers.get(name)
    url = f"https://{name}" if peer is None or peer.url is None else peer.url
    try:
        body = encode(WelcomeInitRequest(()))  # an empty request
        answer = await reached.call(name, "POST", "/ds/v1/welcome/init", body, timeout_seconds=PEER_SECONDS)
    except PeerUnavailable as error:
        reason = f": {error.__cause__}" if error.__cause__ and str(error.__cause__) else ""
        fix = "check that it runs, that its name resolves, and that trust in [tls] covers its certificate"
        return [wrong(check, f"{url} does not answer{reason}", fix)]
    except ProviderNotAllowed:
        if not config.federation.allows(name, us=config.provider):
            return [wrong(check, f"{name} is configured, but not allowed", f"run `mimids provider allow {name}`")]
        return [wrong(check, f"{name} does not allow this provider", f"ask its operator to allow {config.provider}")]
    except PeerFailed as error:
        fix = "check our certificate: it must be valid for clientAuth, and the other provider must trust its authority"
        return [wrong(check, f"{url}: {error}", fix)]
    except MimiError as error:
        return [wrong(check, f"{url} refuses our request: {error}", "ask its operator")]
    return [ok(check, f"{url} answers and accepts our certificate"), *_clock(check, answer.date)]


def _clock(check: str, date: str) -> list[Finding]:
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return []
    off = time.time() - theirs
    if abs(off) <= CLOCK_WARNING_SECONDS:
        return []
    return [
        warning(
            check,
            f"its clock and ours differ by {abs(off):.0f} s",
            "find out which clock is wrong, and set it: OHTTP requests fail with a wrong clock",
        )
    ]
