"""KeyPackages of users who are in no recording."""

from __future__ import annotations

import time

from mimids.mls.code_points import LeafNodeSource
from mimids.mls.leaf_node import Lifetime
from mimids.wire.declare import encode
from tests.support.signing import Client

DAY = 86_400


def key_packages(seed: int, name: str, number: int) -> list[bytes]:
    """Return different KeyPackages of one device of `user@provider`, with signature keys from the seed (1 to 255)."""
    now = int(time.time())
    client = Client.of(seed, name)
    lifetime = Lifetime(now - DAY, now + 90 * DAY)
    leaves = (client.leaf(LeafNodeSource.KEY_PACKAGE, origin=lifetime) for _ in range(number))
    return [encode(client.key_package(leaf)) for leaf in leaves]
