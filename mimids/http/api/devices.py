"""Endpoints for our own users' devices (http: devices): the caller is a `Device`, known by its token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

import attrs

from mimids.config import Limits
from mimids.ds.devices import accounts
from mimids.ds.devices.hubs import Hub
from mimids.ds.devices.streams import DeviceGone
from mimids.ds.key_packages import tokens
from mimids.ds.services import Services
from mimids.ds.terms.report import Report
from mimids.errors import (
    Busy,
    GroupExists,
    MimiError,
    NotFound,
    OhttpKey,
    OhttpUndecipherable,
    PeerFailed,
    PeerUnavailable,
    PolicyRefused,
    ProviderNotAllowed,
    QuotaExceeded,
    RateLimited,
    StorageUnavailable,
    TooMany,
    UnknownGroup,
    UnknownPartition,
)
from mimids.http.api.endpoints import (
    OHTTP_KEYS,
    OHTTP_REQUEST,
    OHTTP_RESPONSE,
    Access,
    Answer,
    Body,
    Call,
    Endpoint,
    Listener,
    StreamClosed,
    WebSocketStream,
    encoded,
    json_answer,
    json_object,
    mimi_ds,
    octets,
    of_codec,
)
from mimids.http.api.providers import (
    JOINING,
    READING,
    REPORT,
    REPORT_TAKEN,
    SEND_BATCH,
    SENDING,
    from_base64url,
    partition_of,
    wait_seconds,
)
from mimids.http.api.public import keys_answer
from mimids.mls.framing import MLSMessage
from mimids.store.engine.store import Tx
from mimids.store.key_packages import StockRow
from mimids.values import Device, TokenId
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, ProviderId, provider_id
from mimids.wire.messages import (
    INBOX_WELCOMES,
    KEY_PACKAGES,
    CreateGroupRequest,
    EncodedKeyPackage,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    InboxWelcome,
    ReceiveRequest,
    SendRequest,
    encode_send_results,
)

_TOLD: Final = (
    "send_batch_messages",
    "receive_wait_seconds",
)  # and all that end in _bytes or begin with device_ or user_


async def me(services: Services, call: Call[None]) -> dict[str, Any]:
    """Say who the device is, what it may do and what it has in stock."""
    device = _device(call)
    limits = {
        field.name: getattr(services.config.limits, field.name)
        for field in attrs.fields(Limits)
        if field.name.endswith("_bytes") or field.name.startswith(("device_", "user_")) or field.name in _TOLD
    }
    return {
        "user_id": device.user_id.decode(),
        "device_id": device.name,
        "provider": device.provider,
        "limits": limits,
        "stock": _stock(await services.key_packages.stock(device)),
    }


async def upload_key_packages(services: Services, call: Call[tuple[EncodedKeyPackage, ...]]) -> dict[str, Any]:
    """Take KeyPackages into stock."""
    uploaded = await services.key_packages.upload(_device(call), call.body, replace="replace" in call.query)
    return {
        "accepted": uploaded.accepted,
        "refused": [{"index": refused.index, "reason": refused.reason} for refused in uploaded.refused],
        "stock": _stock(uploaded.stock),
    }


async def drop_key_packages(services: Services, call: Call[None]) -> None:
    """Drop the device's unclaimed stock."""
    await services.key_packages.drop(_device(call))


async def ohttp_keys(services: Services, call: Call[None]) -> Answer[bytes]:
    """Give another provider's key configurations as it gave them."""
    services.gate.count_fetch(_device(call))
    return keys_answer(await services.relay.ohttp_keys(_device(call).row, _provider(call)))


async def relay(services: Services, call: Call[bytes]) -> Answer[bytes]:
    """Pass a sealed request on; the answer is the gateway's own, its problem documents too."""
    services.gate.count_fetch(_device(call))
    relayed = await services.relay.forward(_device(call).row, _provider(call), call.body)
    headers = {"Content-Type": relayed.media_type, "Cache-Control": "no-store"}
    if relayed.retry_after:
        headers["Retry-After"] = relayed.retry_after
    return Answer(relayed.body, status=relayed.status, headers=headers)


async def issue_contact_token(services: Services, call: Call[tokens.TokenTerms]) -> dict[str, Any]:
    """Issue a bearer token for the user's own KeyPackages."""
    device = _device(call)
    quota = services.config.limits.device_contact_tokens
    now = services.clock.now()

    def issue(tx: Tx) -> tokens.IssuedToken:
        user, _ = accounts.find_user(tx, device.provider, device.user_id.decode())
        return tokens.issue(tx, user, call.body, now, device=device.row, quota=quota)

    issued = await services.store.write(issue)
    return {"id": issued.id, "bearer_token": base64url(issued.bearer_token.reveal())}


async def revoke_contact_token(services: Services, call: Call[None]) -> None:
    """End one of the user's tokens at once."""
    device, token, now = _device(call), TokenId(_number(call, "id")), services.clock.now()

    def revoke(tx: Tx) -> None:
        user, _ = accounts.find_user(tx, device.provider, device.user_id.decode())
        tokens.revoke(tx, user, token, now)

    await services.store.write(revoke)


async def create_group(services: Services, call: Call[CreateGroupRequest]) -> None:
    """Make this provider the hub of a group."""
    services.gate.count_creation(_device(call), call.body)
    await services.hub.create_group(call.body, _device(call))


async def send(services: Services, call: Call[SendRequest]) -> bytes:
    """Sequence a message at its hub."""
    return await _hub(services, call).send(_device(call), call.body)


async def send_batch(services: Services, call: Call[tuple[SendRequest, ...]]) -> bytes:
    """Sequence messages at their hub."""
    return encode_send_results(await _hub(services, call).send_batch(_device(call), call.body))


async def receive(services: Services, call: Call[ReceiveRequest]) -> bytes:
    """Return a partition's messages."""
    wait = wait_seconds(call.headers, services.config.limits.receive_wait_seconds)
    return await _hub(services, call).receive(_device(call), call.body, wait_seconds=wait)


async def join(services: Services, call: Call[ExternalJoinRequest]) -> bytes:
    """Sequence an external commit."""
    return await _hub(services, call).join(_device(call), call.body)


async def propose(services: Services, call: Call[ExternalProposalRequest]) -> bytes:
    """Sequence a proposal from outside."""
    return await _hub(services, call).propose(_device(call), call.body)


async def group_info(services: Services, call: Call[GroupInfoRequest]) -> bytes:
    """Return what a joiner needs."""
    partition, bundle = partition_of(call.query), "bundle" in call.query
    return await _hub(services, call).group_info(_device(call), call.body, partition=partition, bundle=bundle)


async def leave(services: Services, call: Call[None]) -> None:
    """Let the device leave a group."""
    await services.following.leave(_device(call), _provider(call), GroupId(from_base64url(call.path["group_id"])))


async def report(services: Services, call: Call[Report]) -> dict[str, Any]:
    """Take a report of one of our own users."""
    return {"id": await services.reports.receive(call.body, _device(call))}


async def welcomes(services: Services, call: Call[None]) -> tuple[InboxWelcome, ...]:
    """Return the Welcomes that the device has not acknowledged."""
    waiting = await services.welcomes.inbox(_device(call).row)
    return tuple(InboxWelcome(each.id, decode(MLSMessage, each.body)) for each in waiting)


async def acknowledge_welcome(services: Services, call: Call[None]) -> None:
    """Take a Welcome out of the inbox; again changes nothing."""
    await services.welcomes.acknowledge(_device(call).row, _number(call, "id"))


async def stream(services: Services, call: Call[WebSocketStream]) -> None:
    """Serve a device's frames until it is gone."""
    await services.streams.serve(_device(call), _Frames(call.body))


@attrs.frozen
class _Frames:
    """A WebSocket as `ds.devices.streams` needs it."""

    stream: WebSocketStream

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


# --- what requests have in common ---------------------------------------------------------------------------------


def _device(call: Call[Any]) -> Device:
    assert isinstance(call.caller, Device)  # noqa: S101  # the row says so
    return call.caller


def _provider(call: Call[Any]) -> ProviderId:
    try:
        return provider_id(call.path["provider"])
    except ValueError:
        raise NotFound("that is no provider's name") from None


def _hub(services: Services, call: Call[Any]) -> Hub:
    return services.hub_router.hub(_provider(call))


def _number(call: Call[Any], name: str) -> int:
    text = call.path[name]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise NotFound
    return int(text)


def _stock(rows: Iterable[StockRow]) -> list[dict[str, Any]]:
    return [
        {"version": row.version, "cipher_suite": row.cipher_suite, "left": row.left, "last_resort": row.has_last_resort}
        for row in rows
    ]


def _terms(members: dict[str, Any]) -> tokens.TokenTerms:
    """Read what a contact token is to be; unknown members are ignored."""
    scheme, label = members["scheme"], members.get("label") or ""
    numbers = {name: members.get(name) for name in ("expires_at", "uses", "rate_claims", "rate_seconds")}
    if not isinstance(scheme, str) or not isinstance(label, str):
        raise TypeError
    if any(type(each) not in (int, type(None)) for each in numbers.values()):
        raise TypeError
    return tokens.TokenTerms(scheme, label, **numbers)


def _row(
    name: str,
    method: str,
    path: str,
    handler: Callable[[Any, Call[Any]], Awaitable[Any]],
    request: Body[Any] | None,
    answer: Body[Any] | None,
    summary: str,
    problems: tuple[type[MimiError], ...] = (),
    **more: Any,
) -> Endpoint:
    return Endpoint(
        name, Listener.CLIENT, method, f"/client/v1/{path}", Access.DEVICE, request, answer, handler, summary,
        problems=problems, **more,
    )  # fmt: skip


_STOCK: Final = '[{"version", "cipher_suite", "left", "last_resort"}]'
_STOCK_EXAMPLE: Final = '[{"version":1,"cipher_suite":1,"left":98,"last_resort":true}]'
_AWAY: Final = (ProviderNotAllowed, PeerUnavailable, PeerFailed)  # what a hub elsewhere adds
_KEYS_BODY: Final = of_codec(KEY_PACKAGES, "KeyPackage key_packages<V>")

DEVICES: Final[tuple[Endpoint, ...]] = (
    _row(
        "me",
        "GET",
        "me",
        me,
        None,
        json_answer(
            f'{{"user_id", "device_id", "provider", "limits": {{NAME: number}}, "stock": {_STOCK}}}',
            '{"user_id":"mimi://b.example/u/bob","device_id":"phone","provider":"b.example",'
            f'"limits":{{"key_package_bytes":65536}},"stock":{_STOCK_EXAMPLE}}}',
        ),
        "who the device is, what it may do, what it has in stock",
    ),
    _row(
        "key-packages",
        "POST",
        "key-packages",
        upload_key_packages,
        _KEYS_BODY,
        json_answer(
            f'{{"accepted": n, "refused": [{{"index", "reason"}}], "stock": {_STOCK}}}',
            f'{{"accepted":99,"refused":[{{"index":3,"reason":"uploaded before"}}],"stock":{_STOCK_EXAMPLE}}}',
        ),
        "add to the device's stock; `?replace` drops the rest of it in the same transaction",
        (TooMany, StorageUnavailable),
        query=("replace",),
    ),
    _row(
        "drop-key-packages",
        "DELETE",
        "key-packages",
        drop_key_packages,
        None,
        None,
        "drop the device's unclaimed stock",
        (StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    _row(
        "provider-ohttp-keys",
        "GET",
        "providers/{provider}/ohttp-keys",
        ohttp_keys,
        None,
        octets(OHTTP_KEYS),
        "another provider's key configurations and their signature, as it gave them",
        (*_AWAY, Busy, RateLimited),
        unlinkable=True,
    ),
    _row(
        "relay",
        "POST",
        "providers/{provider}/ohttp",
        relay,
        octets(OHTTP_REQUEST),
        octets(OHTTP_RESPONSE),
        "a sealed request, relayed; the gateway's problem documents come back as it gave them",
        (*_AWAY, Busy, RateLimited, OhttpKey, OhttpUndecipherable),
        limit="ohttp_bytes",
        unlinkable=True,
    ),
    _row(
        "contact-tokens",
        "POST",
        "contact-tokens",
        issue_contact_token,
        json_object(
            _terms,
            '{"scheme": "shared" or "unique", "label", "expires_at": ms since the epoch, "uses", "rate_claims",'
            ' "rate_seconds"}; scheme is needed, and a rate is so many KeyPackages in each so many seconds',
            '{"scheme":"unique","label":"Carol","expires_at":1924992000000,"uses":10,"rate_claims":2,'
            '"rate_seconds":3600}',
        ),
        json_answer(
            '{"id", "bearer_token": base64url}',
            '{"id":7,"bearer_token":"vIufUZ9H-Zrbh5RzXwPbqeiiZUHpZQV2hBn-OzlJHd0"}',
        ),
        "issue a bearer token for the user's own KeyPackages",
        (QuotaExceeded, StorageUnavailable),
        status=HTTPStatus.CREATED,
    ),
    _row(
        "revoke-contact-token",
        "DELETE",
        "contact-tokens/{id}",
        revoke_contact_token,
        None,
        None,
        "end a token at once",
        (StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    _row(
        "create-group",
        "POST",
        "groups",
        create_group,
        mimi_ds(CreateGroupRequest),
        None,
        "make this provider the hub of a group",
        (GroupExists, *SENDING),
        status=HTTPStatus.CREATED,
    ),
    _row(
        "hub-send",
        "POST",
        "hubs/{provider}/send",
        send,
        mimi_ds(SendRequest),
        encoded("SendResponse"),
        "as `send`, at that hub",
        (*SENDING, *_AWAY),
    ),
    _row(
        "hub-send-batch",
        "POST",
        "hubs/{provider}/send-batch",
        send_batch,
        SEND_BATCH,
        encoded("SendResult results<V>"),
        "as `send-batch`, at that hub",
        (TooMany, StorageUnavailable, *_AWAY),
    ),
    _row(
        "hub-receive",
        "POST",
        "hubs/{provider}/receive",
        receive,
        mimi_ds(ReceiveRequest),
        encoded("ReceiveResponse"),
        "as `receive`, at that hub; no hints",
        (UnknownPartition, PolicyRefused, StorageUnavailable, *_AWAY),
    ),
    _row(
        "hub-join",
        "POST",
        "hubs/{provider}/join",
        join,
        mimi_ds(ExternalJoinRequest),
        encoded("SendResponse"),
        "as `join`, at that hub",
        (*JOINING, *_AWAY),
    ),
    _row(
        "hub-propose",
        "POST",
        "hubs/{provider}/propose",
        propose,
        mimi_ds(ExternalProposalRequest),
        encoded("SendResponse"),
        "as `propose`, at that hub",
        (*JOINING, *_AWAY),
    ),
    _row(
        "hub-group-info",
        "POST",
        "hubs/{provider}/group-info",
        group_info,
        mimi_ds(GroupInfoRequest),
        encoded("GroupInfoResponse; with ?bundle GroupInfoBundle"),
        "as `group-info`, at that hub",
        (*READING, PolicyRefused, *_AWAY),
        query=("bundle", "partition"),
    ),
    _row(
        "leave",
        "DELETE",
        "hubs/{provider}/groups/{group_id}",
        leave,
        None,
        None,
        "this device leaves; group_id in base64url",
        (UnknownGroup, StorageUnavailable),
        status=HTTPStatus.NO_CONTENT,
    ),
    _row(
        "welcomes",
        "GET",
        "welcomes",
        welcomes,
        None,
        of_codec(INBOX_WELCOMES, "InboxWelcome welcomes<V>"),
        "Welcomes that the device has not acknowledged, oldest first, at most 100",
    ),
    _row(
        "acknowledge-welcome",
        "DELETE",
        "welcomes/{id}",
        acknowledge_welcome,
        None,
        None,
        "take a Welcome out of the inbox",
        (StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    _row(
        "stream",
        "GET",
        "stream",
        stream,
        None,
        None,
        "a WebSocket of Frames, one to a binary message, no compression",
        (QuotaExceeded,),
        websocket=True,
    ),
    _row(
        "client-report",
        "POST",
        "reports",
        report,
        REPORT,
        REPORT_TAKEN,
        "say that a hub or follower breaks its terms, or point at a message",
        (QuotaExceeded, StorageUnavailable),
        limit="report_bytes",
        status=HTTPStatus.ACCEPTED,
    ),
)
