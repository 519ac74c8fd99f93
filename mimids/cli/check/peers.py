"""Other providers: whether they answer, take our certificate, and have our time."""

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
    """Ask every provider that the configuration names something harmless, as ourselves."""
    named = sorted({*config.federation.allow, *config.providers})
    if not named:
        open_ = config.federation.mode == "open"
        mend = 'add their domains to allow in [federation], or write mode = "open"'
        yield ok("peers", "none named; mode is open") if open_ else warning("peers", "no other provider is named", mend)
        return
    try:
        yield from trio.run(_ask_all, config, named)
    except CertificateFileError:
        return  # said before


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
        body = encode(WelcomeInitRequest(()))  # asks for nothing and changes nothing
        answer = await reached.call(name, "POST", "/ds/v1/welcome/init", body, timeout_seconds=PEER_SECONDS)
    except PeerUnavailable as error:
        reason = f": {error.__cause__}" if error.__cause__ and str(error.__cause__) else ""
        mend = "is it running, does the name resolve, is its certificate one that [tls] trust vouches for?"
        return [wrong(check, f"{url} does not answer{reason}", mend)]
    except ProviderNotAllowed:
        if name not in config.federation.allow and config.federation.mode != "open":
            return [wrong(check, "is configured, but not allowed", f'add "{name}" to allow in [federation]')]
        return [wrong(check, "does not deal with us", f"its operator has to allow {config.provider}")]
    except PeerFailed as error:
        mend = "does it believe our certificate? Its trust must vouch for it, and it must serve clientAuth"
        return [wrong(check, f"{url}: {error}", mend)]
    except MimiError as error:
        return [wrong(check, f"{url} refuses: {error}", "ask its operator")]
    return [ok(check, f"{url} answers and takes our certificate"), *_clock(check, answer.date)]


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
            "one of the two is wrong: sealed requests will fail",
        )
    ]
