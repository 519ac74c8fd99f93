"""The gateway's keys, and the identity that signs the key configurations (semantics: ohttp).

`ohttp/keyring.py` describes when a key is served and retired. The job makes each key in time, stores it minutes before
it is served, and deletes it when it retires. It reads the store again at least once a minute, so that it also serves a
key that a command or another process made. Nothing is lost by a restart.

The clock may be wrong. So there are two times: the clock's, and the believed time (`ds.elapsed`), which a jump of the
clock does not change. The later of the two decides when a key is made and served, and the earlier decides when it is
deleted.

The identity is made once, by `init` or at the first start, and never changes, because contact cards contain it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import attrs
import trio

from mimids.ds.elapsed import Moment, advance
from mimids.ds.ports import Clock
from mimids.errors import Busy, StorageUnavailable
from mimids.ohttp import keys_signature
from mimids.ohttp.at_rest import NONCE_SIZE, OperatorKey, Protection, protect, unprotect
from mimids.ohttp.hpke import KEY_SIZE, PrivateKey
from mimids.ohttp.keyring import KEY_IDS, Keyring, KeyRow, Schedule, load_row
from mimids.ohttp.keys_signature import Identity
from mimids.store import ohttp, seen_time
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import StoredKeyRow
from mimids.store.seen_time import SeenTime
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId

CHECK_SECONDS: Final = 60  # between two reads of the stored keys
LOOK_SECONDS: Final = 1.0  # between two reads because of requests with an unknown key
ROTATIONS: Final = 64  # rotations since a backup, at most

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
    """Return the provider's `ohttp_identity`; make it if there is none. Raise `KeyUnavailable`.

    If the identity is stored in the clear and there is an operator key now, the identity is encrypted with that key.
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
    tx: Tx,
    schedule: Schedule,
    operator_key: OperatorKey | None,
    now: int,
    *,
    retire_others: bool = False,
    skipped: int = 0,
) -> int:
    """Make the next key, even if it is not due, and return its identifier; `now` is in seconds.

    The new key is served at once. If a key with a later start is already stored, it is still served from its own start
    on. With `retire_others` all other keys are deleted at once. The new key's identifier skips `skipped` identifiers.
    """
    keyring = _date_again(tx, load(tx, schedule, operator_key), operator_key, now)
    row = keyring.next_row(now, secrets.token_bytes(KEY_SIZE), skipped=skipped)
    if retire_others:
        for key in keyring.rows:
            ohttp.delete_key(tx, key.key_id)
    _insert(tx, row, operator_key)
    return row.key_id


def renew(tx: Tx, schedule: Schedule, operator_key: OperatorKey | None, now: int, *, newer: Tx | None = None) -> int:
    """After a restore: make a new key, delete all others, and return the new identifier; `now` is in seconds.

    The store no longer knows which requests were answered since the backup, so a replay of such a request would get
    another answer. The new identifier must differ from those of all keys since the backup, because clients may still
    have the configuration of such a key. `newer` is the database that is replaced: the new identifier follows the
    newest identifier there. Without `newer`, at least `ROTATIONS` identifiers are skipped, and the number of skipped
    ones is random, so that two restores of one backup choose different identifiers.
    """
    mine = _newest_id(tx)
    skipped = ROTATIONS + secrets.randbelow(KEY_IDS // 2)
    if newer is not None:
        skipped = (_newest_id(newer) - mine) % KEY_IDS
    return rotate(tx, schedule, operator_key, now, retire_others=True, skipped=skipped)


def _newest_id(tx: Tx) -> int:
    """Return the identifier of the newest stored key; -1 if no key is stored."""
    stored = ohttp.keys(tx)
    return stored[-1].key_id if stored else -1


def maintain(
    tx: Tx, schedule: Schedule, operator_key: OperatorKey | None, now: int, *, surely: int | None = None
) -> Keyring:
    """Delete retired keys, make the next one minutes before it is served, and return the keys.

    `now` is in seconds. If the time `surely` is earlier than `now`, `surely` decides which keys are deleted: a clock
    that is ahead must not delete a key early.
    """
    keyring = _date_again(tx, load(tx, schedule, operator_key), operator_key, now)
    for row in keyring.outlived(now if surely is None else min(now, surely)):
        ohttp.delete_key(tx, row.key_id)
    for stored in ohttp.keys(tx):
        if _in_the_clear(stored.private_key, operator_key):
            row = next(each for each in keyring.rows if each.key_id == stored.key_id)
            ohttp.replace_private_key(tx, row.key_id, row.stored(operator_key, secrets.token_bytes(NONCE_SIZE)))
    if keyring.storing_due_at(now) <= now:
        at = max(now, keyring.rotation_due_at(now))
        _insert(tx, keyring.next_row(at, secrets.token_bytes(KEY_SIZE)), operator_key)
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
        self._seen: SeenTime | None = None  # what retention believed when the keys were read last
        self._identity: Identity | None = None
        self._look = trio.Lock()
        self._refreshing = trio.Lock()  # so that an older snapshot does not replace a newer one
        self._looked_at = -LOOK_SECONDS  # in trio's time
        self._signed: tuple[bytes, int, str] | None = None  # body, not_after, and the signature over both

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Rotate the keys until cancelled; ready once there is a key. Raises `KeyUnavailable`."""
        self._identity = await self._store.write(lambda tx: ensure_identity(tx, self._operator_key))
        await self.refresh(maintain_now=True)
        task_status.started()
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            with suppress(StorageUnavailable):  # the keys are rotated at the next check
                await self.refresh()

    async def refresh(self, *, maintain_now: bool = False) -> None:
        """Read the stored keys, and rotate them if a rotation is due; call this after a command that made a key."""
        async with self._refreshing:
            await self._refresh(maintain_now=maintain_now)

    async def _refresh(self, *, maintain_now: bool) -> None:
        seen, keyring = await self._store.read(
            lambda tx: (seen_time.load(tx), load(tx, self._schedule, self._operator_key))
        )
        # Another refresh may have moved `_seen` meanwhile, so this moment is taken now and not before.
        moment = Moment(self._clock.now(), self._clock.running(), self._clock.boot())
        self._seen = advance(seen or self._seen or SeenTime(moment.now, moment.running, moment.boot), moment)
        latest, surely = self._latest(), self._surely()
        due = keyring.outlived(surely) or keyring.misdated(latest) or keyring.storing_due_at(latest) <= latest
        if maintain_now or due:
            retired = keyring.outlived(surely)
            keyring = await self._store.write(
                lambda tx: maintain(tx, self._schedule, self._operator_key, latest, surely=surely)
            )
            if retired:
                await self._store.truncate_log()  # the log still has the deleted keys
        self._keyring = keyring

    async def look(self) -> None:
        """Read the stored keys, because a request names an unknown key, at most once in LOOK_SECONDS.

        Another process on the same database may have made the key. So this method waits for a read of the store
        that begins after the call. All requests that wait at the same time share one read.
        """
        asked_at = trio.current_time()
        async with self._look:
            if self._looked_at < asked_at:
                await trio.sleep_until(self._looked_at + LOOK_SECONDS)
                self._looked_at = trio.current_time()
                with suppress(StorageUnavailable):
                    await self.refresh()

    def live(self) -> Mapping[int, PrivateKey]:
        """Return the keys that open requests now, by identifier."""
        return self._keyring.live(self._surely())

    def served(self) -> KeysAnswer:
        """Return the key configurations for clients; raise `Busy` if there is no key to serve."""
        served = self._keyring.served(self._latest())
        if served is None or self._identity is None:
            raise Busy("the gateway has no key to serve yet; try again")
        if self._signed is None or self._signed[:2] != (served.body, served.not_after):
            signature = keys_signature.sign(self._provider, served.body, served.not_after, self._identity)
            self._signed = (served.body, served.not_after, signature)
        return KeysAnswer(served.body, self._signed[2], served.max_age)

    def _latest(self) -> int:
        return max(self._clock.now(), self._believed()) // 1000

    def _surely(self) -> int:
        return min(self._clock.now(), self._believed()) // 1000

    def _believed(self) -> Milliseconds:
        """Return retention's believed time, in milliseconds."""
        if self._seen is None:
            return self._clock.now()
        return Milliseconds(self._seen.believed + self._clock.running() - self._seen.running)


def _date_again(tx: Tx, keyring: Keyring, operator_key: OperatorKey | None, now: int) -> Keyring:
    """Correct the stored times of keys that were made while the clock was ahead. Return all keys."""
    for row in keyring.misdated(now):
        ohttp.delete_key(tx, row.key_id)
        _insert(tx, keyring.dated_again(row, now), operator_key)
        keyring = load(tx, keyring.schedule, operator_key)
    return keyring


def _insert(tx: Tx, row: KeyRow, operator_key: OperatorKey | None) -> None:
    stored = row.stored(operator_key, secrets.token_bytes(NONCE_SIZE))
    ohttp.insert_key(tx, StoredKeyRow(row.key_id, row.created_at, row.retire_at, stored))


def _in_the_clear(stored: bytes, operator_key: OperatorKey | None) -> bool:
    return operator_key is not None and stored[:1] == bytes([Protection.PLAIN])
