"""The provider's MLS signature keys, one for each signature scheme in use (semantics: departures).

A group lists such a key in its external_senders, so that this provider may propose to remove members. A key is made
when it is first needed. The key of suite 1, which every client must implement (RFC 9420 section 17.1), is made when
somebody asks for the keys. The key of another scheme is made when a device uploads a KeyPackage, or creates a group,
with a suite of that scheme. A retired key is no longer published, but still signs for the groups that list it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TypedDict

import attrs
import trio

from mimids.ds.ports import Clock
from mimids.errors import StorageUnavailable
from mimids.mls.code_points import CredentialType
from mimids.mls.group_info import ExternalSender
from mimids.mls.leaf_node import Credential, SignaturePublicKey
from mimids.mls.signing_key import SCHEMES, SEED_SIZE, SigningKey, cipher_suites_of
from mimids.mls.suites import suite_of
from mimids.ohttp.at_rest import NONCE_SIZE, OperatorKey, Protection, protect, unprotect
from mimids.store import provider_keys
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.provider_keys import ProviderKeyRow
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId, Secret

FIRST_SCHEME: Final = "Ed25519"


class PublishedKey(TypedDict):
    """A key as the directory and `me` publish it; octets are in base64url without padding."""

    scheme: str
    cipher_suites: list[int]
    signature_key: str
    credential: str  # the identity of the BasicCredential
    external_sender: str  # an encoded ExternalSender


@attrs.frozen
class ProviderKey:
    """A key pair of this provider; new groups do not list a retired key."""

    pair: SigningKey
    retired: bool


def identity_of(provider: ProviderId) -> bytes:
    """Return the identity in the provider's BasicCredential: `mimi://DOMAIN`."""
    return f"mimi://{provider}".encode()


def external_sender(provider: ProviderId, public: bytes) -> bytes:
    """Return the encoded ExternalSender of a key (RFC 9420 section 12.1.8.1)."""
    credential = Credential(CredentialType.BASIC, identity_of(provider))
    return encode(ExternalSender(SignaturePublicKey(public), credential))


def load(tx: Tx, operator_key: OperatorKey | None) -> tuple[ProviderKey, ...]:
    """Return all keys of the schemes that `cryptography` supports here; raise `KeyUnavailable`."""
    found = []
    for row in provider_keys.all_keys(tx):
        if row.scheme not in SCHEMES:
            continue
        seed = unprotect(row.private, _place(row.scheme, row.public), operator_key)
        found.append(ProviderKey(SigningKey.of(row.scheme, seed), row.retired_at is not None))
    return tuple(found)


def ensure(tx: Tx, schemes: Iterable[str], operator_key: OperatorKey | None, now: Milliseconds) -> None:
    """Make the missing keys of these schemes, and encrypt keys that are stored in the clear.

    Keys are encrypted if there is an operator key. Raises `KeyUnavailable`.
    """
    rows = provider_keys.all_keys(tx)
    for scheme in sorted({*schemes} - {row.scheme for row in rows if row.retired_at is None}):
        _make(tx, scheme, operator_key, now)
    for row in rows:
        if operator_key is not None and row.private[:1] == bytes([Protection.PLAIN]):
            place = _place(row.scheme, row.public)
            seed = Secret(unprotect(row.private, place, operator_key))
            stored = protect(seed, place, operator_key, secrets.token_bytes(NONCE_SIZE))
            provider_keys.replace_private(tx, row.public, stored)


def rotate(
    tx: Tx, operator_key: OperatorKey | None, now: Milliseconds, *, scheme: str | None = None, delete_others: bool
) -> list[tuple[str, bytes]]:
    """Make new keys for a scheme, or for all schemes that have a key; return scheme and public key of each new key.

    The earlier keys still sign for the groups that list them, unless `delete_others` deletes all earlier keys.
    """
    in_use = sorted({row.scheme for row in provider_keys.all_keys(tx)} & SCHEMES) or [FIRST_SCHEME]
    made = []
    for each in in_use if scheme is None else [scheme]:
        provider_keys.retire(tx, each, now)
        made.append((each, _make(tx, each, operator_key, now)))
    if delete_others:
        provider_keys.delete_retired(tx)
    return made


def _make(tx: Tx, scheme: str, operator_key: OperatorKey | None, now: Milliseconds) -> bytes:
    seed = Secret(secrets.token_bytes(SEED_SIZE))
    public = SigningKey.of(scheme, seed.reveal()).public
    stored = protect(seed, _place(scheme, public), operator_key, secrets.token_bytes(NONCE_SIZE))
    provider_keys.insert(tx, ProviderKeyRow(public, scheme, stored, now, None))
    return public


def _place(scheme: str, public: bytes) -> bytes:
    return b"mimids signature key " + scheme.encode() + b" " + public


class ProviderKeys:
    """The keys of a running provider, cached; call `refresh` after a command that changed them."""

    def __init__(self, store: Store, clock: Clock, provider: ProviderId, operator_key: OperatorKey | None) -> None:
        self._store = store
        self._clock = clock
        self._provider = provider
        self._operator_key = operator_key
        self._keys: tuple[ProviderKey, ...] | None = None
        self._making = trio.Lock()
        self._generation = 0
        store.when_changed(self.forget, "provider_keys")

    def forget(self) -> None:
        """Clear the cache."""
        self._generation += 1
        self._keys = None

    async def refresh(self) -> None:
        """Read the stored keys."""
        await self._read()

    async def _read(self) -> tuple[ProviderKey, ...]:
        generation = self._generation
        keys = await self._store.read(lambda tx: load(tx, self._operator_key))
        if generation == self._generation:  # if they differ, the snapshot may be older than a change
            self._keys = keys
        return keys

    async def need(self, *cipher_suites: int) -> None:
        """Make the missing keys for these suites; make no keys while the disk takes no writes."""
        schemes = {FIRST_SCHEME} | {suite.scheme for suite in map(suite_of, cipher_suites) if suite is not None}
        with suppress(StorageUnavailable):
            await self._make(schemes & SCHEMES)

    async def all_keys(self) -> tuple[ProviderKey, ...]:
        """Return all keys, including retired ones; there are none before the first key is needed."""
        return await self._read() if self._keys is None else self._keys

    async def published(self) -> list[PublishedKey]:
        """Return the keys for external_senders of new groups, one for each scheme in use, by scheme."""
        await self.need()
        return [
            {
                "scheme": key.pair.scheme,
                "cipher_suites": list(cipher_suites_of(key.pair.scheme)),
                "signature_key": base64url(key.pair.public),
                "credential": base64url(identity_of(self._provider)),
                "external_sender": base64url(external_sender(self._provider, key.pair.public)),
            }
            for key in await self.all_keys()
            if not key.retired
        ]

    async def _make(self, schemes: frozenset[str] | set[str]) -> None:
        if schemes <= {key.pair.scheme for key in self._keys or () if not key.retired}:
            return
        async with self._making:
            now = self._clock.now()
            await self._store.write(lambda tx: ensure(tx, schemes, self._operator_key, now))
            await self.refresh()
