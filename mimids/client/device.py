"""One device of a user, at its own provider: what a client calls.

MLS objects are given and returned as bytes. Every call may raise `Problem` (a refusal, with its code) or `Unreachable`
(no answer). Every call may be repeated: sending the same bytes twice gets the first answer again.

The file is a little long because it has one method for each request that a device can make.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from mimids.client.connection import TIMEOUT_SECONDS, Connection, Problem
from mimids.client.contacts import Contact
from mimids.client.external_senders import ProviderSignatureKey, external_senders_data
from mimids.client.key_packages import KeyPackageFetcher, Stock, Token, Uploaded
from mimids.client.key_sets import KeySets
from mimids.client.sending import SendLimits
from mimids.client.stream import BACKOFF, Stream, open_stream
from mimids.ds.backoff import Backoff
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
    nameable_group_id,
)
from mimids.wire.messages import (
    INBOX_WELCOMES,
    KEY_PACKAGES,
    MOST_POSITIONS,
    SEND_REQUESTS,
    SEND_RESULTS,
    CreateGroupRequest,
    EncodedKeyPackage,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoBundle,
    GroupInfoRequest,
    InboxWelcome,
    KeyPackageBundleResponse,
    KeyPackageResult,
    KeyPackageStatus,
    Message,
    Position,
    PositionsRequest,
    PositionsResponse,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
    SendResult,
    SiblingsRequest,
    WelcomeStatus,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
)

LINEAR: Final = "mimids-linear"


@attrs.frozen
class FoundGroup:
    """The data with which a client joins a group, and whether the group is linear (semantics: linear-groups)."""

    bundle: GroupInfoBundle
    linear: bool


class DeviceToken(Secret):
    """The token by which the provider knows the device, as ASCII."""


class Device:
    """A device; `open_device` makes it."""

    def __init__(
        self, connection: Connection, *, clock: Callable[[], float] = time.time, key_sets: KeySets | None = None
    ) -> None:
        """`clock` returns seconds since the epoch; `key_sets` are the gateway keys that the device saw earlier."""
        self._connection = connection
        self._fetcher = KeyPackageFetcher(connection, clock=clock, key_sets=KeySets() if key_sets is None else key_sets)

    async def me(self) -> dict[str, Any]:
        """Return the user and device that the token belongs to, the limits, and the stock (http: json-bodies)."""
        return await self._connection.exchange_json("GET", "me")

    async def provider_keys(self) -> tuple[ProviderSignatureKey, ...]:
        """Return the signature keys of the device's provider, one for each signature scheme that its devices use.

        The provider makes a scheme's key when one of its devices first uploads a KeyPackage of a suite with that
        scheme.
        """
        return tuple(map(ProviderSignatureKey.read, (await self.me())["external_senders"]))

    async def external_senders(self, cipher_suite: CipherSuite, *, bare: bool = False) -> bytes:
        """Return the extension_data of `external_senders` that lets this provider remove lost devices from a group.

        Give it to the MLS library when it creates the group; `bare` is the form that ts-mls needs
        (`external_senders_data`). Raises `LookupError` if the provider has no key for the suite; then upload
        KeyPackages of the suite first.
        """
        keys = [key for key in await self.provider_keys() if cipher_suite in key.cipher_suites]
        if not keys:
            raise LookupError(f"the provider has no signature key for cipher suite {cipher_suite}")
        return external_senders_data(keys[:1], bare=bare)

    # --- KeyPackages --------------------------------------------------------------------------------------------

    async def upload(self, key_packages: Iterable[bytes], *, replace: bool = False) -> Uploaded:
        """Add KeyPackages (not MLSMessages) to the device's stock; `replace` drops all other KeyPackages in it."""
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

        `expires_at` is in ms since 1970. `rate` is (claims, seconds): that many claims in that many seconds.
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
        """Return one result for each contact, in order; a contact that is named twice gives KeyPackages of two devices.

        One sealed request goes to each provider, or several for more than 64 contacts. Raises `KeysRefused` if a
        provider's keys are not authentic, and its subclass `KeysDiffer` if the provider showed other keys for the same
        time. In both cases no request is sent to that provider.
        """
        return await self._fetcher.fetch(contacts, cipher_suite)

    async def siblings(self, cipher_suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Return one result for each other device of this user, to add them to a group; each call hands out new ones.

        A device without a KeyPackage for the suite has the status `EXHAUSTED`. Raises `Problem`
        (`key-packages-exhausted`) if no other device has one.
        """
        body = encode(SiblingsRequest(MLS10, cipher_suite))
        reply = await self._connection.exchange("POST", "key-packages/siblings", body)
        return decode(KeyPackageBundleResponse, reply.body).results

    async def compare_keys(self, contact: Contact, other: Device) -> bool:
        """Tell whether a device at another provider gets the same gateway keys of the contact's provider.

        If not, the two providers have fetched the keys at different times: compare again later. Raises `KeysDiffer` if
        the contact's provider shows the two providers different keys for the same time. A provider would do this to
        tell the users of the two providers apart.
        """
        return await self._fetcher.compare_keys(contact, other._fetcher)

    # --- groups -------------------------------------------------------------------------------------------------

    async def create_group(self, request: CreateGroupRequest, *, linear: bool = False) -> None:
        """Make this device's provider the hub of a group; in a `linear` group an epoch has only one commit.

        (semantics: linear-groups)
        """
        await self._connection.exchange("POST", "groups" + ("?linear" if linear else ""), encode(request))

    async def replace_group(self, group_id: GroupId, successor: GroupId, hub: ProviderId) -> None:
        """Tell the provider that the group `successor` at `hub` replaces a group that this user created there.

        The operator has to terminate all branches of the group first (semantics: replaced-groups).
        """
        body = json.dumps({"group_id": base64url(successor), "hub": hub}).encode()
        name = base64url(nameable_group_id(group_id))
        await self._connection.exchange("PUT", f"groups/{name}/successor", body, media_type="application/json")

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
    ) -> AsyncGenerator[Message, None]:
        """Yield all messages of a partition from `counter` on, page by page, up to the newest message."""
        while page := await self.receive(hub, partition_key, counter):
            for message in page:
                yield message
            counter += len(page)

    async def positions(self, hub: ProviderId, partition_keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return for each key up to which counter the device's own provider has the partition; the hub is not asked.

        If `known` is 0, or `next_counter` differs from the device's own counter, call `receive` (semantics:
        following-and-delivery).
        """
        found: list[Position] = []
        for start in range(0, len(partition_keys), MOST_POSITIONS):
            body = encode(PositionsRequest(tuple(partition_keys[start : start + MOST_POSITIONS])))
            reply = await self._connection.exchange("POST", f"hubs/{hub}/positions", body)
            found += decode(PositionsResponse, reply.body).positions
        return tuple(found)

    async def group_info(
        self, hub: ProviderId, group_id: GroupId, *, partition: MaskedPartitionKey | None = None
    ) -> GroupInfoBundle:
        """Return the data for joining from outside at this partition, or at the partition that the hub chooses.

        (semantics: joining-from-outside)
        """
        return (await self.find_group(hub, group_id, partition=partition)).bundle

    async def find_group(
        self, hub: ProviderId, group_id: GroupId, *, partition: MaskedPartitionKey | None = None
    ) -> FoundGroup:
        """Do what `group_info` does; also return whether the group is linear."""
        query = "?bundle"
        if partition is not None:
            query += "&partition=" + base64url(partition)
        reply = await self._connection.exchange(
            "POST", f"hubs/{hub}/group-info{query}", encode(GroupInfoRequest(group_id))
        )
        return FoundGroup(decode(GroupInfoBundle, reply.body), linear=reply.headers.get(LINEAR) == "?1")

    async def join(self, hub: ProviderId, request: ExternalJoinRequest) -> SendResponse:
        """Send an external commit; `earlier_commits` in the answer names the commits sequenced before this one."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/join", encode(request))
        return decode(SendResponse, reply.body)

    async def propose(self, hub: ProviderId, request: ExternalProposalRequest) -> SendResponse:
        """Send a proposal from outside the group."""
        reply = await self._connection.exchange("POST", f"hubs/{hub}/propose", encode(request))
        return decode(SendResponse, reply.body)

    async def leave(self, hub: ProviderId, group_id: GroupId) -> None:
        """Tell the provider that this device has left the group, so that the device gets no more messages.

        Send a Remove or SelfRemove first.

        `Departure` says what to do until that proposal is sequenced.
        """
        name = base64url(nameable_group_id(group_id))
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

        `evidence` is MLSMessages of the group. A report with a partition key in `note` or `evidence` is refused.
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

    async def welcome_status(self, hub: ProviderId, partition_key: PartitionKey) -> tuple[WelcomeStatus, ...]:
        """Return what became of the Welcomes of the commit, or of the creation, that opened a partition.

        If a Welcome was not delivered, repeat the commit or the creation with that Welcome: the hub sends it again
        (semantics: welcomes-and-leaving).
        """
        body = encode(WelcomeStatusRequest(partition_key))
        reply = await self._connection.exchange("POST", f"hubs/{hub}/welcome-status", body)
        return decode(WelcomeStatusResponse, reply.body).statuses

    # --- Welcomes -----------------------------------------------------------------------------------------------

    async def welcomes(self) -> tuple[InboxWelcome, ...]:
        """Return the Welcomes in the inbox, oldest first, at most 100; acknowledge them to get the next."""
        reply = await self._connection.exchange("GET", "welcomes")
        return INBOX_WELCOMES.decode(reply.body)

    async def acknowledge(self, welcome_id: int) -> None:
        """Tell the provider that a Welcome is stored; the provider then deletes it from the inbox.

        Repeating the call changes nothing.
        """
        await self._connection.exchange("DELETE", f"welcomes/{welcome_id}")

    # --- being woken --------------------------------------------------------------------------------------------

    async def subscribe(self, endpoint: str, p256dh: bytes, auth: bytes) -> None:
        """Make the provider wake the device with Web Push while it sleeps; this replaces an earlier subscription.

        The arguments are those of the browser's PushSubscription, made with the provider's `push_public_key`. A push
        says only that something is new. After a push, open a stream, or receive.
        """
        body = {"endpoint": endpoint, "p256dh": base64url(p256dh), "auth": base64url(auth)}
        await self._connection.exchange("PUT", "push", json.dumps(body).encode(), media_type="application/json")

    async def unsubscribe(self) -> None:
        """Tell the provider not to wake the device any more."""
        await self._connection.exchange("DELETE", "push")

    async def push_public_key(self) -> bytes | None:
        """Return the key to subscribe with (the `applicationServerKey`), None if the provider sends no pushes."""
        key = (await self.me())["push_public_key"]
        return None if key is None else from_base64url(key)

    # --- live ---------------------------------------------------------------------------------------------------

    def stream(self, *, backoff: Backoff = BACKOFF, caught_up: bool = False) -> AbstractAsyncContextManager[Stream]:
        """Open a live stream for the length of a block: `async with device.stream() as stream`.

        It connects, and reconnects whenever the connection is lost. While it cannot connect, nothing is raised. With
        `caught_up`, there is one event `CaughtUp` for each connection.
        """
        return open_stream(self._connection.address, self._stream_limits, backoff=backoff, caught_up=caught_up)

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
    key_sets: KeySets | None = None,
) -> AsyncIterator[Device]:
    """Yield a device.

    `url` is the client listener of its provider, and `token` is the token that `mimids device add` printed.

    `trust` has the authorities that may certify the provider: a context, a PEM file, or None for the system's.
    `key_sets` are the gateway keys that were seen earlier; keep them across restarts, so that a provider cannot give
    the device a key of its own (docs/client.md).
    """
    connection = Connection(url, DeviceToken(token.encode("ascii")), trust, timeout_seconds=timeout_seconds)
    try:
        yield Device(connection, clock=clock, key_sets=key_sets)
    finally:
        await connection.close()
