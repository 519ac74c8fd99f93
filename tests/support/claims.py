"""Claims of KeyPackages with one token each, of which nothing at rest should say which token claimed which."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

from mimids.ds.key_packages.tokens import TokenTerms, issue
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.store import accounts
from mimids.store.engine.transaction import Tx
from mimids.values import UserRow
from mimids.wire.declare import decode
from mimids.wire.ids import BearerToken, KeyPackageRef, ProviderId, Secret
from mimids.wire.messages import WelcomeInitRequest
from tests.support.provider import Assembled
from tests.support.rig import SUITE, ask, packages
from tests.support.welcomes import welcome_to

CLAIMS: Final = 60
A: Final = ProviderId("a.example")


async def _nothing() -> None:
    pass


async def claimed(
    b: Assembled, chance: random.Random, *, after_each: Callable[[], Awaitable[None]] = _nothing
) -> list[tuple[int, KeyPackageRef]]:
    """Claim KeyPackages with one token each, and let their Welcomes arrive.

    Return which token claimed which KeyPackage, in the order of the claims.
    """
    secret = await b.add_device("bob")
    bob = await b.services.devices.authenticate(Secret(secret.encode()))
    assert bob is not None
    done = await b.services.key_packages.upload(bob, packages(bob.user_id, CLAIMS))
    assert done.accepted == CLAIMS

    def new_token(tx: Tx) -> tuple[int, BearerToken]:
        user = accounts.find_user(tx, bob.user_id)
        assert user is not None
        made = issue(tx, UserRow(user), TokenTerms("unique"), b.services.clock.now())
        return int(made.id), made.bearer_token

    tokens = [await b.services.store.write(new_token) for _ in range(CLAIMS)]
    claims: list[tuple[int, KeyPackageRef]] = []
    for token, bearer in chance.sample(tokens, CLAIMS):
        (outcome,) = await b.services.key_packages.claim([ask(bearer, "bob")])
        assert outcome.key_package is not None
        claims.append((token, decode(KeyPackageIn, outcome.key_package).ref(SUITES[SUITE])))
        await after_each()
    for _, ref in chance.sample(claims, CLAIMS):
        await b.services.incoming_welcomes.init(A, WelcomeInitRequest((ref,)))
        await b.services.incoming_welcomes.store(A, welcome_to(ref))
        await after_each()
    return claims
