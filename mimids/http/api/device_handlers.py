"""Handlers of the endpoints for our own users' devices; `devices.py` is their table.

The caller is a `Device`, known by its token.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Final, TypedDict

import attrs

from mimids.config import Config
from mimids.ds.departures.provider_keys import PublishedKey
from mimids.ds.devices import accounts
from mimids.ds.devices.stream_session import DeviceGone
from mimids.ds.key_packages import tokens
from mimids.ds.key_packages.stock import UPLOAD_PACKAGES
from mimids.ds.services import Services
from mimids.ds.terms.report import Report
from mimids.http.api.bodies import WebSocketStream
from mimids.http.api.endpoints import Answer, Call
from mimids.http.api.parameters import group_id_in, number_in, partition_in, provider_in, wait_seconds
from mimids.http.api.provider_handlers import ReportId, linear_header
from mimids.http.api.public import keys_answer, published_limits, written_identity
from mimids.http.server.messages import StreamClosed
from mimids.mls.framing import MLSMessage
from mimids.store.engine.transaction import Tx, refusable
from mimids.store.groups import Successor
from mimids.store.key_packages import StockRow
from mimids.values import Device, TokenId
from mimids.web_push.subscription import Subscription
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.messages import (
    CreateGroupRequest,
    EncodedKeyPackage,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    InboxWelcome,
    KeyPackageBundleResponse,
    PositionsRequest,
    PositionsResponse,
    ReceiveRequest,
    SendRequest,
    SiblingsRequest,
    WelcomeStatusRequest,
    encode_send_results,
)

KEYS_IN_A_REQUEST: Final = 64  # a `positions` request with more keys counts as several requests


class StockEntry(TypedDict):
    """KeyPackages of one version and cipher suite that a device has in stock."""

    version: int
    cipher_suite: int
    left: int
    last_resort: bool


class Me(TypedDict):
    """The answer to `me`."""

    user_id: str
    device_id: str
    provider: str
    ohttp_identity: str
    limits: dict[str, int]
    stock: list[StockEntry]
    external_senders: list[PublishedKey]
    push_public_key: str | None


class RefusedUpload(TypedDict):
    """A KeyPackage that was not accepted: its place in the upload, and why."""

    index: int
    reason: str


class Upload(TypedDict):
    """The answer to an upload of KeyPackages."""

    accepted: int
    refused: list[RefusedUpload]
    stock: list[StockEntry]


class ContactToken(TypedDict):
    """A bearer token that was issued; it is shown only once."""

    id: int
    bearer_token: str


def device_limits(config: Config) -> dict[str, int]:
    """Return the limits that a device must know: sizes, its rates and numbers, and limits of KeyPackage uploads."""
    of_stock = config.key_packages
    return published_limits(config.limits, "device_", "user_") | {
        "upload_packages": UPLOAD_PACKAGES,
        "device_packages": of_stock.device_packages,
        "low_stock_packages": of_stock.low_stock_packages,
        "max_lifetime_days": of_stock.max_lifetime_days,
    }


async def me(services: Services, call: Call[Device, None]) -> Me:
    """Return who the device is, its limits and its stock of KeyPackages."""
    device, push_key = call.caller, services.wake_ups.public_key
    return {
        "user_id": device.user_id.decode(),
        "device_id": device.name,
        "provider": device.provider,
        "ohttp_identity": await written_identity(services),
        "limits": device_limits(services.config),
        "stock": _stock(await services.key_packages.stock(device)),
        "external_senders": await services.provider_keys.published(),
        "push_public_key": None if push_key is None else base64url(push_key),
    }


async def subscribe(services: Services, call: Call[Device, Subscription]) -> None:
    """Store the push subscription through which the device is woken while it sleeps."""
    await services.wake_ups.subscribe(call.caller, call.body)


async def unsubscribe(services: Services, call: Call[Device, None]) -> None:
    """End the device's push subscription, so that it is not woken any more."""
    await services.wake_ups.unsubscribe(call.caller.row)


async def upload_key_packages(services: Services, call: Call[Device, tuple[EncodedKeyPackage, ...]]) -> Upload:
    """Add KeyPackages to the device's stock."""
    uploaded = await services.key_packages.upload(call.caller, call.body, replace="replace" in call.query)
    await services.provider_keys.need(*(each.cipher_suite for each in uploaded.stock))
    return {
        "accepted": uploaded.accepted,
        "refused": [{"index": refused.index, "reason": refused.reason} for refused in uploaded.refused],
        "stock": _stock(uploaded.stock),
    }


async def drop_key_packages(services: Services, call: Call[Device, None]) -> None:
    """Delete the device's unclaimed KeyPackages."""
    await services.key_packages.drop(call.caller)


async def siblings(services: Services, call: Call[Device, SiblingsRequest]) -> KeyPackageBundleResponse:
    """Hand out one KeyPackage of each other device of the user."""
    services.gate.count_fetch(call.caller)
    wanted = call.body
    claimed = services.key_packages.claim_siblings(
        call.caller, wanted.version, wanted.cipher_suite, reserve=call.reserve
    )
    return KeyPackageBundleResponse(await claimed)


async def ohttp_keys(services: Services, call: Call[Device, None]) -> Answer[bytes]:
    """Return another provider's key configurations unchanged."""
    services.gate.count_fetch(call.caller)
    return keys_answer(await services.relay.ohttp_keys(call.caller.row, provider_in(call.path)))


async def relay(services: Services, call: Call[Device, bytes]) -> Answer[bytes]:
    """Relay a sealed request; the gateway's answer is returned unchanged, even if it is a problem document."""
    services.gate.count_fetch(call.caller)
    relayed = await services.relay.forward(call.caller.row, provider_in(call.path), call.body, reserve=call.reserve)
    headers = {"Content-Type": relayed.media_type, "Cache-Control": "no-store"}
    if relayed.retry_after:
        headers["Retry-After"] = relayed.retry_after
    return Answer(relayed.body, status=relayed.status, headers=headers)


async def issue_contact_token(services: Services, call: Call[Device, tokens.TokenTerms]) -> ContactToken:
    """Issue a bearer token for the user's own KeyPackages."""
    device = call.caller
    quota = services.config.limits.device_contact_tokens
    now = services.clock.now()

    def issue(tx: Tx) -> tokens.IssuedToken:
        user, _ = accounts.find_user(tx, device.provider, device.user_id.decode())
        return tokens.issue(tx, user, call.body, now, device=device.row, quota=quota)

    issued = await services.store.write_or_refuse(refusable(issue))
    return {"id": issued.id, "bearer_token": base64url(issued.bearer_token.reveal())}


async def revoke_contact_token(services: Services, call: Call[Device, None]) -> None:
    """Revoke one of the user's tokens."""
    device, token, now = call.caller, TokenId(number_in(call.path, "id")), services.clock.now()

    def revoke(tx: Tx) -> None:
        user, _ = accounts.find_user(tx, device.provider, device.user_id.decode())
        tokens.revoke(tx, user, token, now)

    await services.store.write_or_refuse(refusable(revoke))


async def create_group(services: Services, call: Call[Device, CreateGroupRequest]) -> None:
    """Make this provider the hub of a group."""
    services.gate.count_creation(call.caller, call.body)
    await services.hub.create_group(call.body, call.caller, linear="linear" in call.query)
    await services.provider_keys.need(call.body.cipher_suite)


async def replace_group(services: Services, call: Call[Device, Successor]) -> None:
    """Record which group replaces a group that the device's user created."""
    await services.hub.replace_group(group_id_in(call.path), call.body, call.caller)


async def send(services: Services, call: Call[Device, SendRequest]) -> bytes:
    """Have the hub sequence a message."""
    hub = services.hub_router.hub(provider_in(call.path))
    return await services.own_messages.send(call.caller, hub, call.body)


async def send_batch(services: Services, call: Call[Device, tuple[SendRequest, ...]]) -> bytes:
    """Have the hub sequence messages."""
    hub = services.hub_router.hub(provider_in(call.path))
    return encode_send_results(await services.own_messages.send_batch(call.caller, hub, call.body))


async def receive(services: Services, call: Call[Device, ReceiveRequest]) -> bytes:
    """Return messages of a partition."""
    wait = wait_seconds(call.headers, services.config.limits.receive_wait_seconds)
    hub = services.hub_router.hub(provider_in(call.path))
    if not wait:
        return await hub.receive(call.caller, call.body, wait_seconds=wait)
    async with services.sessions.open(call.caller):
        answer = await hub.receive(call.caller, call.body, wait_seconds=wait)
    return answer


def requests_for_positions(body: PositionsRequest) -> int:
    """Return how many requests a `positions` request counts as."""
    return max(1, ceil(len(body.partition_keys) / KEYS_IN_A_REQUEST))


async def positions(services: Services, call: Call[Device, PositionsRequest]) -> PositionsResponse:
    """Return, for each of these partitions, the counter up to which this provider has its messages."""
    hub = services.hub_router.hub(provider_in(call.path))
    return PositionsResponse(await hub.positions(call.caller, call.body.partition_keys))


async def join(services: Services, call: Call[Device, ExternalJoinRequest]) -> bytes:
    """Have the hub sequence an external commit."""
    hub = services.hub_router.hub(provider_in(call.path))
    return await services.own_messages.note_from_outside(call.caller, hub, await hub.join(call.caller, call.body))


async def propose(services: Services, call: Call[Device, ExternalProposalRequest]) -> bytes:
    """Have the hub sequence an external proposal."""
    hub = services.hub_router.hub(provider_in(call.path))
    return await services.own_messages.note_from_outside(call.caller, hub, await hub.propose(call.caller, call.body))


async def group_info(services: Services, call: Call[Device, GroupInfoRequest]) -> Answer[bytes]:
    """Return what a client needs to join a group."""
    partition, bundle = partition_in(call.query), "bundle" in call.query
    hub = services.hub_router.hub(provider_in(call.path))
    found = await hub.group_info(call.caller, call.body, partition=partition, bundle=bundle)
    return Answer(found.octets, headers=linear_header(found.linear))


async def welcome_status(services: Services, call: Call[Device, WelcomeStatusRequest]) -> bytes:
    """Return what became of the Welcomes of a commit."""
    return await services.hub_router.hub(provider_in(call.path)).welcome_status(call.caller, call.body)


async def leave(services: Services, call: Call[Device, None]) -> None:
    """Let the device leave a group."""
    await services.following.leave(call.caller, provider_in(call.path), group_id_in(call.path))


async def report(services: Services, call: Call[Device, Report]) -> ReportId:
    """Store a report that one of our users makes."""
    return {"id": await services.reports.receive(call.body, call.caller)}


async def welcomes(services: Services, call: Call[Device, None]) -> tuple[InboxWelcome, ...]:
    """Return the Welcomes that the device has not acknowledged."""
    waiting = await services.incoming_welcomes.inbox(call.caller.row)
    return tuple(InboxWelcome(each.id, each.hub, decode(MLSMessage, each.body)) for each in waiting)


async def acknowledge_welcome(services: Services, call: Call[Device, None]) -> None:
    """Remove a Welcome from the inbox; a second call changes nothing."""
    await services.incoming_welcomes.acknowledge(call.caller.row, number_in(call.path, "id"))


async def stream(services: Services, call: Call[Device, WebSocketStream]) -> None:
    """Serve a device's frames until it disconnects."""
    async with services.sessions.open(call.caller, heard_at=lambda: call.body.heard_at):
        await services.streams.serve(call.caller, _Frames(call.body))


@attrs.frozen
class _Frames:
    """A WebSocket with the methods that `ds.devices.stream_session` needs."""

    stream: WebSocketStream

    @property
    def heard_at(self) -> float:
        return self.stream.heard_at

    async def receive(self) -> bytes:
        try:
            return await self.stream.receive()
        except StreamClosed:
            raise DeviceGone from None

    async def send(self, frame: bytes) -> None:
        try:
            await self.stream.send(frame)
        except StreamClosed:
            raise DeviceGone from None


def _stock(rows: Iterable[StockRow]) -> list[StockEntry]:
    return [
        {"version": row.version, "cipher_suite": row.cipher_suite, "left": row.left, "last_resort": row.has_last_resort}
        for row in rows
    ]
