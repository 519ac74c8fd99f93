"""Fetching a KeyPackage: the own provider does not learn whose, and the other provider does not learn who asks."""

from __future__ import annotations

import random
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Any

import attrs
import pytest

from mimids.client import Contact
from mimids.mls.suites import SUITES, key_package_ref
from mimids.testing import DeviceAccount, Provider, Session, federation
from tests.support.curious import octets_of_rows
from tests.support.people import key_packages
from tests.support.stage import SUITE
from tests.support.tables import ON_POSTGRESQL

SEED = 7
FETCHES = (60, pytest.param(200, marks=pytest.mark.soak))
UNLIMITED: dict[str, dict[str, Any]] = {"limits": {"device_fetches_per_minute": 0}, "log": {"level": "debug"}}


def named_in(provider: Provider, signs: Iterable[bytes], *, metrics: bool = False) -> list[tuple[str, bytes]]:
    """Return the files of a provider (database, write-ahead log, log) with any of `signs`, in any encoding."""
    contents = {path.name: octets for path, octets in provider.files().items()}
    if ON_POSTGRESQL:
        contents["rows"] = octets_of_rows(provider.config.place)
    if metrics:
        contents["metrics"] = "\n".join(provider.metrics()).encode()
    return [
        (name, sign)
        for sign in signs
        for written in {sign, sign.hex().encode(), b64encode(sign), urlsafe_b64encode(sign).rstrip(b"=")}
        for name, octets in contents.items()
        if written in octets
    ]


@attrs.frozen
class Target:
    """A user whose KeyPackages are fetched, and everything that would identify the user at another provider."""

    card: Contact
    signs: tuple[bytes, ...]

    @classmethod
    def at(cls, provider: Provider, user: str, seed: int, number: int) -> Target:
        account = provider.add_device(user)
        made = key_packages(seed, f"{user}@{provider.name}", number)
        account.ask(lambda device: device.upload(made))
        card = provider.contact(user)
        refs = [key_package_ref(SUITES[SUITE], each) for each in made]
        return cls(card, (card.user_id, user.encode(), card.bearer_token.reveal(), *made, *refs))


def signs_of(account: DeviceAccount, user: str) -> tuple[bytes, ...]:
    """Return everything that would identify a requester at the other provider."""
    return (account.user_id.encode(), user.encode(), account.name.encode(), account.token.encode())


def test_before_a_commit_neither_provider_knows_the_user_of_the_other(mimids_session: Session) -> None:
    with federation("a.example", "b.example", config=UNLIMITED, session=mimids_session) as (a, b):
        alice = a.add_device("alice", "alices-telephone")
        bob = Target.at(b, "bob", 1, 5)
        fetched = alice.ask(lambda device: device.fetch_key_package(bob.card, SUITE))
        assert fetched in bob.signs
        assert named_in(a, bob.signs) == []
        assert named_in(b, signs_of(alice, "alice")) == []
        assert named_in(b, [b"a.example"]) == []  # nor her provider: the relay shows no certificate
        # The search finds what is there.
        assert {name for name, _ in named_in(a, signs_of(alice, "alice")[:1])} != set()
        assert {name for name, _ in named_in(b, bob.signs[:1])} != set()
        a.terminate()
        b.terminate()
        assert named_in(a, bob.signs) == []
        assert named_in(b, signs_of(alice, "alice")) == []


# Longer than 40 lines: one story, in which each step needs the one before.
@pytest.mark.slow
@pytest.mark.parametrize("fetches", FETCHES)
def test_after_many_fetches_no_relay_knows_a_target_and_no_gateway_a_requester(
    fetches: int, mimids_session: Session
) -> None:
    chance = random.Random(SEED)
    names = ("a.example", "b.example", "c.example")
    targets_of, requesters_of = ("olga", "otto", "orhan"), ("rita", "ralph")
    with federation(*names, config=UNLIMITED, session=mimids_session) as made:
        targets = {
            provider.name: [
                Target.at(provider, f"{user}-of-{provider.name[0]}", 1 + 10 * index + number, fetches // 4)
                for number, user in enumerate(targets_of)
            ]
            for index, provider in enumerate(made)
        }
        requesters = {
            provider.name: [
                (user, provider.add_device(user, f"phone-of-{user}"))
                for user in (f"{each}-of-{provider.name[0]}" for each in requesters_of)
            ]
            for provider in made
        }
        for _ in range(fetches):
            home, away = chance.sample(names, 2)
            _, account = chance.choice(requesters[home])
            card = chance.choice(targets[away]).card
            account.ask(lambda device, card=card: device.fetch_key_package(card, SUITE))  # type: ignore[misc]
        for provider in made:
            others = [target for name in names if name != provider.name for target in targets[name]]
            strangers = [
                sign
                for name in names
                if name != provider.name
                for user, account in requesters[name]
                for sign in signs_of(account, user)
            ]
            assert named_in(provider, [sign for other in others for sign in other.signs], metrics=True) == []
            assert named_in(provider, strangers, metrics=True) == []
            own = [user.encode() for user, _ in requesters[provider.name]]
            assert named_in(provider, own), "the search would find them"
            in_metrics = [found for found in named_in(provider, own, metrics=True) if found[0] in ("metrics", "log")]
            assert in_metrics == []
