"""The gateway's keys, and the identity that signs the key configurations (semantics: ohttp).

`ohttp/keyring.py` describes when a key is served and retired. The job makes each key in time, stores it before it is
served, and deletes it when it retires. It reads the store again at least once a minute, so that it also serves a key
that a command made. Nothing is lost by a restart.

The identity is made once, by `init` or at the first start, and never changes, because contact cards contain it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

import attrs
import trio

from mimids.ds.ports import Clock
from mimids.errors import Busy
from mimids.ohttp import keys_signature
from mimids.ohttp.at_rest import NONCE_SIZE, OperatorKey, Protection, protect, unprotect
from mimids.ohttp.hpke import KEY_SIZE, PrivateKey
from mimids.ohttp.keyring import Keyring, KeyRow, Schedule, load_row
from mimids.ohttp.keys_signature import Identity
from mimids.store import ohttp
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import StoredKeyRow
from mimids.wire.ids import ProviderId

CHECK_SECONDS: Final = 60  # between two reads of the stored keys

_IDENTITY: Final = "ohttp_identity"
_IDENTITY_PUBLIC: Final = "ohttp_identity_public"  # stored too, so that reading it needs no operator key
_PLACE: Final = b"mimids ohttp identity"


@attrs.frozen
class KeysAnswer:
    """An `application/ohttp-keys` answer: `signature` is the header `Mimids-Keys-Signature`, `max_age` in seconds."""

    body: bytes
    signature: str
    max_age: int


def ensure_identity(tx: Tx, operator_key: OperatorKey | None) -> Identity:
    """Return the provider's `ohttp_identity`, made now if there is none; raise `KeyUnavailable`.

    If it is stored in the clear and there is an operator key now, it is stored again, encrypted with that key.
    """
    stored = ohttp.setting(tx, _IDENTITY)
    octets = secrets.token_bytes(32) if stored is None else unprotect(stored, _PLACE, operator_key)
    identity = Identity(octets)
    if stored is None or _in_the_clear(stored, operator_key):
        ohttp.put_setting(tx, _IDENTITY, protect(identity, _PLACE, operator_key, secrets.token_bytes(NONCE_SIZE)))
        ohttp.put_setting(tx, _IDENTITY_PUBLIC, identity.public)
    return identity


def identity_public(tx: Tx) -> bytes | None:
    """Return the public key of the identity, 32 octets; None before `init` or the first start."""
    return ohttp.setting(tx, _IDENTITY_PUBLIC)


def load(tx: Tx, schedule: Schedule, operator_key: OperatorKey | None) -> Keyring:
    """Return all stored keys; raise `KeyUnavailable`."""
    rows = (
        load_row(row.key_id, row.created_at, row.retire_at, row.private_key, operator_key) for row in ohttp.keys(tx)
    )
    return Keyring(tuple(rows), schedule)


def rotate(
    tx: Tx, schedule: Schedule, operator_key: OperatorKey | None, now: int, *, retire_others: bool = False
) -> int:
    """Make the next key, due or not, and return its identifier; `now` is in seconds.

    With `retire_others` all earlier keys are deleted at once. That is needed after a restore: the store no longer
    knows which requests it answered since the backup, so a replay of one would get a second answer.
    """
    keyring = load(tx, schedule, operator_key)
    row = keyring.next_row(now, secrets.token_bytes(KEY_SIZE))
    if retire_others:
        for key in keyring.rows:
            ohttp.delete_key(tx, key.key_id)
    _insert(tx, row, operator_key)
    return row.key_id


def maintain(tx: Tx, schedule: Schedule, operator_key: OperatorKey | None, now: int) -> Keyring:
    """Delete retired keys, make the next one if it is due, and return the keys; `now` is in seconds."""
    keyring = load(tx, schedule, operator_key)
    for row in keyring.outlived(now):
        ohttp.delete_key(tx, row.key_id)
    for stored in ohttp.keys(tx):
        if _in_the_clear(stored.private_key, operator_key):
            row = next(each for each in keyring.rows if each.key_id == stored.key_id)
            ohttp.replace_private_key(tx, row.key_id, row.stored(operator_key, secrets.token_bytes(NONCE_SIZE)))
    if keyring.rotation_due_at(now) <= now:
        _insert(tx, keyring.next_row(now, secrets.token_bytes(KEY_SIZE)), operator_key)
    return load(tx, schedule, operator_key)


class OhttpKeys:
    """The keys of a running gateway."""

    def __init__(
        self, store: Store, clock: Clock, provider: ProviderId, schedule: Schedule, operator_key: OperatorKey | None
    ) -> None:
        self._store = store
        self._clock = clock
        self._provider = provider
        self._schedule = schedule
        self._operator_key = operator_key
        self._keyring = Keyring((), schedule)
        self._identity: Identity | None = None
        self._signed: tuple[bytes, int, str] | None = None  # body, not_after, and the signature over both

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Rotate the keys until cancelled; ready once there is a key. Raises `KeyUnavailable`."""
        self._identity = await self._store.write(lambda tx: ensure_identity(tx, self._operator_key))
        await self.refresh(maintain_now=True)
        task_status.started()
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            await self.refresh()

    async def refresh(self, *, maintain_now: bool = False) -> None:
        """Read the stored keys, and rotate them if that is due; call this after a command that made a key."""
        now = self._seconds()
        keyring = await self._store.read(lambda tx: load(tx, self._schedule, self._operator_key))
        if maintain_now or keyring.outlived(now) or keyring.rotation_due_at(now) <= now:
            keyring = await self._store.write(lambda tx: maintain(tx, self._schedule, self._operator_key, now))
        self._keyring = keyring

    def live(self) -> Mapping[int, PrivateKey]:
        """Return the keys that open requests now, by identifier."""
        return self._keyring.live(self._seconds())

    def served(self) -> KeysAnswer:
        """Return the key configurations for clients; raise `Busy` if there is no key to serve."""
        served = self._keyring.served(self._seconds())
        if served is None or self._identity is None:
            raise Busy("the gateway has no key to serve yet; try again")
        if self._signed is None or self._signed[:2] != (served.body, served.not_after):
            signature = keys_signature.sign(self._provider, served.body, served.not_after, self._identity)
            self._signed = (served.body, served.not_after, signature)
        return KeysAnswer(served.body, self._signed[2], served.max_age)

    def _seconds(self) -> int:
        return self._clock.now() // 1000


def _insert(tx: Tx, row: KeyRow, operator_key: OperatorKey | None) -> None:
    stored = row.stored(operator_key, secrets.token_bytes(NONCE_SIZE))
    ohttp.insert_key(tx, StoredKeyRow(row.key_id, row.created_at, row.retire_at, stored))


def _in_the_clear(stored: bytes, operator_key: OperatorKey | None) -> bool:
    return operator_key is not None and stored[:1] == bytes([Protection.PLAIN])
