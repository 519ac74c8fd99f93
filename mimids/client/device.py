"""One device of a user, at its own provider: what a client calls.

MLS objects go in and come out as bytes. Every call may raise `Problem` (a refusal, with its code) or `Unreachable`,
and every one of them may simply be made again: sending the same bytes twice yields the first answer.
"""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from mimids.client.connection import TIMEOUT_SECONDS, Connection, Problem
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.ohttp import WrongDate, seal
from mimids.client.sending import SendLimits
from mimids.client.stream import Backoff, Stream, open_stream
from mimids.ohttp.config import KeyConfig
from mimids.ohttp.keys_signature import HEADER, KeysRefused
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.declare import decode, encode
from mimids.wire.ids import (
    MLS10,
    BearerToken,
    CipherSuite,
    Counter,
    GroupId,
    MaskedPartitionKey,
    PartitionKey,
    ProviderId,
    Secret,
)
from mimids.wire.messages import (
    INBOX_WELCOMES,
    KEY_PACKAGES,
    SEND_REQUESTS,
    SEND_RESULTS,
    CreateGroupRequest,
    EncodedKeyPackage,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoBundle,
    GroupInfoRequest,
    InboxWelcome,
    KeyPackageRequest,
    KeyPackageResult,
    KeyPackageStatus,
    Message,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
    SendResult,
)

_OHTTP_REQUEST: Final = "message/ohttp-req"
_BACKOFF: Final = Backoff()
_KEY_PROBLEMS: Final = frozenset({400, 422})  # the gateway's own, which the relay passes on as they are


class DeviceToken(Secret):
    """What the device shows its provider, as text in ASCII."""


@attrs.frozen
class Stock:
    """What the device has left for one version and suite."""

    version: int
    cipher_suite: int
    left: int
    last_resort: bool


@attrs.frozen
class Uploaded:
    """What became of an upload: how many were taken, why the others (by index) were not, the stock after it."""

    accepted: int
    refused: tuple[tuple[int, str], ...]
    stock: tuple[Stock, ...]


@attrs.frozen
class Token:
    """A bearer token for one's own KeyPackages; it is shown this once."""

    id: int
    bearer_token: BearerToken


class Device:
    """A device; made by `open_device`."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        self._connection = connection
        self._clock = clock
        self._keys: dict[ProviderId, SignedKeys] = {}

    async def me(self) -> dict[str, Any]:
        """Return who the provider takes this device for, its limits and its stock (appendix A)."""
        return await self._connection.exchange_json("GET", "me")

    # --- KeyPackages --------------------------------------------------------------------------------------------

    async def upload(self, key_packages: Iterable[bytes], *, replace: bool = False) -> Uploaded:
        """Add KeyPackages (not MLSMessages) to the device's stock; `replace` drops the rest of it."""
        body = KEY_PACKAGES.encode(tuple(map(EncodedKeyPackage, key_packages)))
        reply = await self._connection.exchange("POST", "key-packages" + ("?replace" if replace else ""), body)
        answer = json.loads(reply.body)
        return Uploaded(
            answer["accepted"],
            tuple((each["index"], each["reason"]) for each in answer["refused"]),
            tuple(
                Stock(each["version"], each["cipher_suite"], each["left"], each["last_resort"])
                for each in answer["stock"]
            ),
        )

    async def drop_stock(self) -> None:
        """Drop all that was uploaded and not handed out."""
        await self._connection.exchange("DELETE", "key-packages")

    async def issue_token(
        self,
        scheme: str,
        *,
        label: str = "",
        expires_at: int | None = None,
        uses: int | None = None,
        rate: tuple[int, int] | None = None,
    ) -> Token:
        """Issue a token (`shared` or `unique`) for this user's KeyPackages.

        `expires_at` is in ms since the epoch, `rate` so many KeyPackages in each so many seconds.
        """
        claims, seconds = rate or (None, None)
        terms = {"scheme": scheme, "label": label, "expires_at": expires_at, "uses": uses}
        terms |= {"rate_claims": claims, "rate_seconds": seconds}
        answer = await self._connection.exchange_json("POST", "contact-tokens", terms)
        text = answer["bearer_token"]
        return Token(answer["id"], BearerToken(from_base64url(text)))

    async def revoke_token(self, token_id: int) -> None:
        """End a token at once."""
        await self._connection.exchange("DELETE", f"contact-tokens/{token_id}")

    async def fetch_key_package(self, contact: Contact, cipher_suite: CipherSuite) -> bytes:
        """Return a KeyPackage of a contact; raise `Problem` if there is none for us."""
        (result,) = await self.fetch_key_packages([contact], cipher_suite)
        if result.key_package is None:
            exhausted = result.status is KeyPackageStatus.EXHAUSTED
            code = "key-packages-exhausted" if exhausted else "key-package-refused"
            raise Problem(404 if exhausted else 403, {"type": f"urn:mimids:problem:{code}"})
        return result.key_package

    async def fetch_key_packages(
        self, contacts: Sequence[Contact], cipher_suite: CipherSuite
    ) -> tuple[KeyPackageResult, ...]:
        """Return one result for each contact, in order: naming somebody twice reaches two of their devices.

        One sealed request for each provider. Raises `KeysRefused` where a provider's keys are not authentic, and then
        nothing is sent to it.
        """
        theirs: defaultdict[ProviderId, list[int]] = defaultdict(list)
        for index, contact in enumerate(contacts):
            theirs[contact.provider].append(index)
        results: dict[int, KeyPackageResult] = {}
        for indices in theirs.values():
            found = await self._fetch([contacts[index] for index in indices], cipher_suite)
            if len(found) != len(indices):
                raise ValueError("another number of results than of requests")
            results |= dict(zip(indices, found, strict=True))
        return tuple(results[index] for index in range(len(contacts)))

    async def _fetch(self, contacts: Sequence[Contact], suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Ask one provider; again where its key was gone or our clock off, once each (RFC 9458 sections 5.3, 6.5.2)."""
        contact = contacts[0]
        requests = [KeyPackageRequest(each.user_id, each.bearer_token, MLS10, suite) for each in contacts]
        now = int(self._clock())
        config = await self._key_config(contact, now)
        renewed = corrected = False
        while True:
            sealed = seal(config, contact.provider, requests, now_seconds=now, ephemeral=secrets.token_bytes(32))
            reply = await self._connection.exchange(
                "POST",
                f"providers/{contact.provider}/ohttp",
                sealed.message,
                media_type=_OHTTP_REQUEST,
                takes=_KEY_PROBLEMS,
            )
            if reply.status != 200:
                problem = Problem.from_json(reply.status, reply.body)
                if renewed or problem.code != "ohttp-key":
                    raise problem
                config, renewed = await self._key_config(contact, now, anew=True), True
                continue
            try:
                return sealed.open(reply.body)
            except WrongDate as wrong:
                if corrected or wrong.seconds is None:
                    raise
                now, corrected = wrong.seconds, True

    async def _key_config(self, contact: Contact, now: int, *, anew: bool = False) -> KeyConfig:
        """Return a configuration to seal to: one that is at hand and still good, else the provider's newest."""
        for keys in () if anew else (self._keys.get(contact.provider), contact.keys):
            if keys is not None:
                try:
                    return contact.key_config(keys, now)
                except KeysRefused:
                    continue  # most likely expired
        reply = await self._connection.exchange("GET", f"providers/{contact.provider}/ohttp-keys")
        keys = SignedKeys(reply.body, reply.headers.get(HEADER, ""))
        config = contact.key_config(keys, now)
        self._keys[contact.provider] = keys
        return config

    # --- groups -------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest) -> None:
        """Make this device's provider the hub of a group."""
        await self._connection.exchange("POST", "groups", encode(request))

    async def send(self, hub: ProviderId, request: SendRequest) -> SendResponse:
        """Send one message; the answer comes when it is durable."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/send", encode(request))
        return decode(SendResponse, reply.body)

    async def send_batch(self, hub: ProviderId, requests: Sequence[SendRequest]) -> tuple[SendResult, ...]:
        """Send messages in order, as one commit to disk; each has its own result."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/send-batch", SEND_REQUESTS.encode(tuple(requests)))
        return SEND_RESULTS.decode(reply.body)

    async def receive(
        self, hub: ProviderId, partition_key: PartitionKey, counter: int = 0, *, wait_seconds: int = 0
    ) -> tuple[Message, ...]:
        """Return messages of a partition from `counter` on: a page, at least one where there is one."""
        body = encode(ReceiveRequest(partition_key, Counter(counter)))
        reply = await self._connection.exchange("POST", f"hubs/{hub}/receive", body, wait_seconds=wait_seconds)
        return decode(ReceiveResponse, reply.body).epoch.messages

    async def receive_all(
        self, hub: ProviderId, partition_key: PartitionKey, counter: int = 0
    ) -> AsyncIterator[Message]:
        """Yield all messages of a partition from `counter` on, page after page, until there are no more now."""
        while page := await self.receive(hub, partition_key, counter):
            for message in page:
                yield message
            counter += len(page)

    async def group_info(
        self, hub: ProviderId, group_id: GroupId, *, partition: MaskedPartitionKey | None = None
    ) -> GroupInfoBundle:
        """Return what joining from outside needs: of the partition named, or of the branch that is most used."""
        query = "?bundle"
        if partition is not None:
            query += "&partition=" + base64url(partition)
        reply = await self._connection.exchange(
            "POST", f"hubs/{hub}/group-info{query}", encode(GroupInfoRequest(group_id))
        )
        return decode(GroupInfoBundle, reply.body)

    async def join(self, hub: ProviderId, request: ExternalJoinRequest) -> SendResponse:
        """Send an external commit; `earlier_commits` in the answer says that others were before it."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/join", encode(request))
        return decode(SendResponse, reply.body)

    async def propose(self, hub: ProviderId, request: ExternalProposalRequest) -> SendResponse:
        """Send a proposal from outside the group."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/propose", encode(request))
        return decode(SendResponse, reply.body)

    async def leave(self, hub: ProviderId, group_id: GroupId) -> None:
        """Say that this device has left: it gets no more of the group. Send a Remove or SelfRemove before.

        See `Departure` for what to look for until it is sequenced.
        """
        name = base64url(group_id)
        await self._connection.exchange("DELETE", f"hubs/{hub}/groups/{name}")

    async def report(
        self,
        hub: ProviderId,
        accused: str,
        kind: str,
        *,
        group_id: GroupId | None = None,
        note: str = "",
        evidence: Iterable[bytes] = (),
    ) -> int:
        """Tell one's provider who breaks a group's terms: `accused` is a provider or a user id.

        `evidence` are MLSMessages of the group; never put a partition key anywhere. Returns the report's number.
        """
        body = {
            "hub": hub,
            "group_id": None if group_id is None else base64url(group_id),
            "accused": accused,
            "kind": kind,
            "note": note,
            "evidence": [base64url(each) for each in evidence],
        }
        answer = await self._connection.exchange_json("POST", "reports", body)
        return int(answer["id"])

    # --- Welcomes -----------------------------------------------------------------------------------------------

    async def welcomes(self) -> tuple[InboxWelcome, ...]:
        """Return the Welcomes that wait, oldest first, at most 100: acknowledge them to see the next."""
        reply = await self._connection.exchange("GET", "welcomes")
        return INBOX_WELCOMES.decode(reply.body)

    async def acknowledge(self, welcome_id: int) -> None:
        """Say that a Welcome is stored: it leaves the inbox. Again changes nothing."""
        await self._connection.exchange("DELETE", f"welcomes/{welcome_id}")

    # --- live ---------------------------------------------------------------------------------------------------

    def stream(self, *, backoff: Backoff = _BACKOFF) -> AbstractAsyncContextManager[Stream]:
        """Open a live stream for the length of a block: `async with device.stream() as stream`.

        It connects by itself, now and whenever the connection is lost; nothing is raised while it cannot.
        """
        return open_stream(self._connection.address, self._stream_limits, backoff=backoff)

    async def _stream_limits(self) -> SendLimits:
        limits = (await self.me())["limits"]
        return SendLimits(limits["frame_bytes"], limits["send_batch_messages"])


@asynccontextmanager
async def open_device(
    url: str,
    token: str,
    *,
    trust: ssl.SSLContext | Path | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Device]:
    """Give a device: `url` is its provider's client listener, `token` what `device add` printed.

    `trust` vouches for the provider: a context, a PEM file, or None for the system's authorities.
    """
    connection = Connection(url, DeviceToken(token.encode("ascii")), trust, timeout_seconds=timeout_seconds)
    try:
        yield Device(connection, clock=clock)
    finally:
        await connection.close()
