"""KeyPackage fetches over OHTTP (bench: programs-and-bars).

- At the gateway's provider: TLS, HTTP, open, claim, seal.
- Through the relay of the device's provider: both providers together.

Every request is encapsulated separately and gets another KeyPackage. They come over 16 connections. The figures are
compared with the echo floor, in CPU time of the servers' processes.

    python -m bench.fetches
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.floor import echo_floor
from bench.hub import Figure
from bench.versus import make_key_packages
from bench.versus_side import Side, two_providers

FETCHES: Final = 2000
WARM_UP: Final = 200


@contextmanager
def stocked(**listen: Any) -> Iterator[Side]:
    """Run two providers with KeyPackages for one load; `listen` are further settings of their listeners."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "key-packages"
        make_key_packages(FETCHES + WARM_UP, file)
        key_packages = [bytes.fromhex(line) for line in file.read_text().split()]
    with two_providers(key_packages, **listen) as side:
        yield side


def direct() -> float:
    """Return fetches for each CPU second of the gateway's process."""
    with stocked() as side:
        side.fetch(WARM_UP)
        spent, count = side.fetch(FETCHES)
        return count / spent


def relayed(*, tls: bool) -> float:
    """Return fetches for each CPU second of the relay's and the gateway's provider together.

    `tls` is for the connections of devices. Providers always use TLS between them.
    """
    with stocked(client_tls=tls) as side:
        side.relayed_fetch(WARM_UP)
        spent, count = side.relayed_fetch(FETCHES)
        return count / spent


def main() -> None:
    found: list[list[Figure]] = []
    for _ in range(3):
        echo = echo_floor(2).per_cpu_second
        found.append(
            [
                Figure("KeyPackage fetches over OHTTP", direct(), "the echo floor", echo, 0.6),
                *(
                    Figure(f"the same through the relay, {how}", relayed(tls=tls), "the echo floor", echo)
                    for how, tls in (("TLS", True), ("plain HTTP from devices", False))
                ),
            ]
        )
    for each in zip(*found, strict=True):
        print(sorted(each, key=lambda figure: figure.ratio)[1])


if __name__ == "__main__":
    main()
