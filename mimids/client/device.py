"""One device of a user, at its own provider: what a client calls.

MLS objects are given and returned as bytes. Every call may raise `Problem` (a refusal, with its code) or `Unreachable`.
Every call may be repeated: sending the same bytes twice gets the first answer again.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from mimids.client.connection import TIMEOUT_SECONDS, Connection, Problem
from mimids.client.contacts import Contact
from mimids.client.key_packages import KeyPackageFetcher, Stock, Token, Uploaded
from mimids.client.sending import SendLimits
from mimids.client.stream import BACKOFF, Stream, open_stream
from mimids.ds.backoff import Backoff
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.declare import decode, encode
from mimids.wire.ids import (
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
    KeyPackageResult,
    KeyPackageStatus,
    Message,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
    SendResult,
)


class DeviceToken(Secret):
    """The token by which the provider knows the device, as ASCII."""


class Device:
    """A device; `open_device` makes it."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        self._connection = connection
        self._fetcher = KeyPackageFetcher(connection, clock=clock)

    async def me(self) -> dict[str, Any]:
        """Return the user and device that the token belongs to, the limits, and the stock (http: json-bodies)."""
        return await self._connection.exchange_json("GET", "me")

    # --- KeyPackages --------------------------------------------------------------------------------------------

    async def upload(self, key_packages: Iterable[bytes], *, replace: bool = False) -> Uploaded:
        """Add KeyPackages (not MLSMessages) to the device's stock; `replace` drops all others in it."""
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
        """Drop all KeyPackages that were uploaded and not handed out."""
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

        `expires_at` is in ms since 1970. `rate` is a number of claims, and the number of seconds that it holds for.
        """
        claims, seconds = rate or (None, None)
        terms = {"scheme": scheme, "label": label, "expires_at": expires_at, "uses": uses}
        terms |= {"rate_claims": claims, "rate_seconds": seconds}
        answer = await self._connection.exchange_json("POST", "contact-tokens", terms)
        text = answer["bearer_token"]
        return Token(answer["id"], BearerToken(from_base64url(text)))

    async def revoke_token(self, token_id: int) -> None:
        """Revoke a token; this takes effect at once."""
        await self._connection.exchange("DELETE", f"contact-tokens/{token_id}")

    async def fetch_key_package(self, contact: Contact, cipher_suite: CipherSuite) -> bytes:
        """Return a KeyPackage of a contact; raise `Problem` if the contact's provider gives none."""
        (result,) = await self.fetch_key_packages([contact], cipher_suite)
        if result.key_package is None:
            exhausted = result.status is KeyPackageStatus.EXHAUSTED
            code = "key-packages-exhausted" if exhausted else "key-package-refused"
            raise Problem(404 if exhausted else 403, {"type": f"urn:mimids:problem:{code}"})
        return result.key_package

    async def fetch_key_packages(
        self, contacts: Sequence[Contact], cipher_suite: CipherSuite
    ) -> tuple[KeyPackageResult, ...]:
        """Return one result for each contact, in order; naming a contact twice reaches two of their devices.

        One sealed request goes to each provider. Raises `KeysRefused` if a provider's keys are not authentic: then that
        provider gets no request.
        """
        return await self._fetcher.fetch(contacts, cipher_suite)

    # --- groups -------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest) -> None:
        """Make this device's provider the hub of a group."""
        await self._connection.exchange("POST", "groups", encode(request))

    async def send(self, hub: ProviderId, request: SendRequest) -> SendResponse:
        """Send one message; return when it is durable."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/send", encode(request))
        return decode(SendResponse, reply.body)

    async def send_batch(self, hub: ProviderId, requests: Sequence[SendRequest]) -> tuple[SendResult, ...]:
        """Send messages in order, in one request; each has its own result."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/send-batch", SEND_REQUESTS.encode(tuple(requests)))
        return SEND_RESULTS.decode(reply.body)

    async def receive(
        self, hub: ProviderId, partition_key: PartitionKey, counter: int = 0, *, wait_seconds: int = 0
    ) -> tuple[Message, ...]:
        """Return one page of a partition's messages from `counter` on: at least one message, if there are any."""
        body = encode(ReceiveRequest(partition_key, Counter(counter)))
        reply = await self._connection.exchange("POST", f"hubs/{hub}/receive", body, wait_seconds=wait_seconds)
        return decode(ReceiveResponse, reply.body).epoch.messages

    async def receive_all(
        self, hub: ProviderId, partition_key: PartitionKey, counter: int = 0
    ) -> AsyncIterator[Message]:
        """Yield all messages of a partition from `counter` on, page by page, up to the newest one now."""
        while page := await self.receive(hub, partition_key, counter):
            for message in page:
                yield message
            counter += len(page)

    async def group_info(
        self, hub: ProviderId, group_id: GroupId, *, partition: MaskedPartitionKey | None = None
    ) -> GroupInfoBundle:
        """Return what joining from outside needs, for this partition, or for the one that the hub chooses.

        (semantics: joining-from-outside)
        """
        query = "?bundle"
        if partition is not None:
            query += "&partition=" + base64url(partition)
        reply = await self._connection.exchange(
            "POST", f"hubs/{hub}/group-info{query}", encode(GroupInfoRequest(group_id))
        )
        return decode(GroupInfoBundle, reply.body)

    async def join(self, hub: ProviderId, request: ExternalJoinRequest) -> SendResponse:
        """Send an external commit; `earlier_commits` in the answer names commits that were sequenced before it."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/join", encode(request))
        return decode(SendResponse, reply.body)

    async def propose(self, hub: ProviderId, request: ExternalProposalRequest) -> SendResponse:
        """Send a proposal from outside the group."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/propose", encode(request))
        return decode(SendResponse, reply.body)

    async def leave(self, hub: ProviderId, group_id: GroupId) -> None:
        """Say that this device has left: it gets no more messages of the group. Send a Remove or SelfRemove before.

        `Departure` says what to do until that proposal is sequenced.
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
        """Report a provider or a user (`accused`) to the device's own provider; return the report's number.

        `evidence` is MLSMessages of the group. A partition key in `note` or `evidence` gets the report refused.
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
        """Return the Welcomes in the inbox, oldest first, at most 100; acknowledge them to get the next."""
        reply = await self._connection.exchange("GET", "welcomes")
        return INBOX_WELCOMES.decode(reply.body)

    async def acknowledge(self, welcome_id: int) -> None:
        """Say that a Welcome is stored: it leaves the inbox. Repeating the call changes nothing."""
        await self._connection.exchange("DELETE", f"welcomes/{welcome_id}")

    # --- live ---------------------------------------------------------------------------------------------------

    def stream(self, *, backoff: Backoff = BACKOFF) -> AbstractAsyncContextManager[Stream]:
        """Open a live stream for the length of a block: `async with device.stream() as stream`.

        It connects, and reconnects whenever the connection is lost. While it cannot connect, nothing is raised.
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
    """Yield a device: `url` is the client listener of its provider, `token` what `mimids device add` printed.

    `trust` has the authorities that may certify the provider: a context, a PEM file, or None for the system's.
    """
    connection = Connection(url, DeviceToken(token.encode("ascii")), trust, timeout_seconds=timeout_seconds)
    try:
        yield Device(connection, clock=clock)
    finally:
        await connection.close()
