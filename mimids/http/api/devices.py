"""The endpoints for our own users' devices (http: devices)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from mimids.ds.key_packages import tokens
from mimids.errors import (
    Busy,
    GroupExists,
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
from mimids.http.api import device_handlers as handlers
from mimids.http.api.bodies import (
    NO_BODY,
    WEBSOCKET,
    encoded,
    json_answer,
    json_object,
    mimi_ds,
    octets,
    of_codec,
)
from mimids.http.api.endpoints import AnyEndpoint, Endpoint, Listener
from mimids.http.api.providers import JOINING, READING, REPORT, REPORT_ID, SEND_BATCH, SENDING
from mimids.http.media_types import OHTTP_KEYS, OHTTP_REQUEST, OHTTP_RESPONSE
from mimids.values import Device
from mimids.wire.messages import (
    INBOX_WELCOMES,
    KEY_PACKAGES,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    ReceiveRequest,
    SendRequest,
)

AT_OTHER_HUBS: Final = (ProviderNotAllowed, PeerUnavailable, PeerFailed)  # added where another provider is asked

_STOCK: Final = '[{"version", "cipher_suite", "left", "last_resort"}]'
_STOCK_EXAMPLE: Final = '[{"version":1,"cipher_suite":1,"left":98,"last_resort":true}]'

ME: Final = json_answer(
    handlers.Me,
    f'{{"user_id", "device_id", "provider", "limits": {{NAME: number}}, "stock": {_STOCK}}}',
    '{"user_id":"mimi://b.example/u/bob","device_id":"phone","provider":"b.example",'
    f'"limits":{{"key_package_bytes":65536}},"stock":{_STOCK_EXAMPLE}}}',
)
UPLOAD: Final = json_answer(
    handlers.Upload,
    f'{{"accepted": n, "refused": [{{"index", "reason"}}], "stock": {_STOCK}}}',
    f'{{"accepted":99,"refused":[{{"index":3,"reason":"uploaded before"}}],"stock":{_STOCK_EXAMPLE}}}',
)
CONTACT_TOKEN: Final = json_answer(
    handlers.ContactToken,
    '{"id", "bearer_token": base64url}',
    '{"id":7,"bearer_token":"vIufUZ9H-Zrbh5RzXwPbqeiiZUHpZQV2hBn-OzlJHd0"}',
)


def _token_terms(members: dict[str, Any]) -> tokens.TokenTerms:
    """Read the terms of a contact token; unknown members are ignored."""
    scheme, label = members["scheme"], members.get("label") or ""
    numbers = {name: members.get(name) for name in ("expires_at", "uses", "rate_claims", "rate_seconds")}
    if not isinstance(scheme, str) or not isinstance(label, str):
        raise TypeError
    if any(type(each) not in (int, type(None)) for each in numbers.values()):
        raise TypeError
    return tokens.TokenTerms(scheme, label, **numbers)


TOKEN_TERMS: Final = json_object(
    _token_terms,
    '{"scheme": "shared" or "unique", "label", "expires_at": ms since the epoch, "uses", "rate_claims",'
    ' "rate_seconds"}; scheme is required; a rate allows "rate_claims" KeyPackages in each "rate_seconds"',
    '{"scheme":"unique","label":"Carol","expires_at":1924992000000,"uses":10,"rate_claims":2,"rate_seconds":3600}',
)

# Not annotated, so that mypy checks each handler against its row (see `endpoints.AnyEndpoint`).
_ROWS = (
    Endpoint(
        name="me",
        listener=Listener.CLIENT,
        method="GET",
        path="/client/v1/me",
        caller=Device,
        request=NO_BODY,
        answer=ME,
        handler=handlers.me,
        summary="who the device is, its limits and its stock of KeyPackages",
    ),
    Endpoint(
        name="key-packages",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/key-packages",
        caller=Device,
        request=of_codec(KEY_PACKAGES, "KeyPackage key_packages<V>"),
        answer=UPLOAD,
        handler=handlers.upload_key_packages,
        summary="add to the device's stock; `?replace` deletes the rest of the stock in the same transaction",
        problems=(TooMany, StorageUnavailable),
        query=("replace",),
    ),
    Endpoint(
        name="drop-key-packages",
        listener=Listener.CLIENT,
        method="DELETE",
        path="/client/v1/key-packages",
        caller=Device,
        request=NO_BODY,
        answer=NO_BODY,
        handler=handlers.drop_key_packages,
        summary="delete the device's unclaimed stock",
        problems=(StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    Endpoint(
        name="provider-ohttp-keys",
        listener=Listener.CLIENT,
        method="GET",
        path="/client/v1/providers/{provider}/ohttp-keys",
        caller=Device,
        request=NO_BODY,
        answer=octets(OHTTP_KEYS),
        handler=handlers.ohttp_keys,
        summary="another provider's key configurations and their signature, unchanged",
        problems=(*AT_OTHER_HUBS, Busy, RateLimited),
        unlinkable=True,
    ),
    Endpoint(
        name="relay",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/providers/{provider}/ohttp",
        caller=Device,
        request=octets(OHTTP_REQUEST),
        answer=octets(OHTTP_RESPONSE),
        handler=handlers.relay,
        summary="relay a sealed request; problem documents of the gateway are returned unchanged",
        problems=(*AT_OTHER_HUBS, Busy, RateLimited, OhttpKey, OhttpUndecipherable),
        limit="ohttp_bytes",
        unlinkable=True,
    ),
    Endpoint(
        name="contact-tokens",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/contact-tokens",
        caller=Device,
        request=TOKEN_TERMS,
        answer=CONTACT_TOKEN,
        handler=handlers.issue_contact_token,
        summary="issue a bearer token for the user's own KeyPackages",
        problems=(QuotaExceeded, StorageUnavailable),
        status=HTTPStatus.CREATED,
    ),
    Endpoint(
        name="revoke-contact-token",
        listener=Listener.CLIENT,
        method="DELETE",
        path="/client/v1/contact-tokens/{id}",
        caller=Device,
        request=NO_BODY,
        answer=NO_BODY,
        handler=handlers.revoke_contact_token,
        summary="revoke a token; it stops working at once",
        problems=(StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    Endpoint(
        name="create-group",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/groups",
        caller=Device,
        request=mimi_ds(CreateGroupRequest),
        answer=NO_BODY,
        handler=handlers.create_group,
        summary="make this provider the hub of a group",
        problems=(GroupExists, *SENDING),
        status=HTTPStatus.CREATED,
    ),
    Endpoint(
        name="hub-send",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/send",
        caller=Device,
        request=mimi_ds(SendRequest),
        answer=encoded("SendResponse"),
        handler=handlers.send,
        summary="as `send`, at that hub",
        problems=(*SENDING, *AT_OTHER_HUBS),
    ),
    Endpoint(
        name="hub-send-batch",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/send-batch",
        caller=Device,
        request=SEND_BATCH,
        answer=encoded("SendResult results<V>"),
        handler=handlers.send_batch,
        summary="as `send-batch`, at that hub",
        problems=(TooMany, StorageUnavailable, *AT_OTHER_HUBS),
    ),
    Endpoint(
        name="hub-receive",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/receive",
        caller=Device,
        request=mimi_ds(ReceiveRequest),
        answer=encoded("ReceiveResponse"),
        handler=handlers.receive,
        summary="as `receive`, at that hub; without hints",
        problems=(UnknownPartition, PolicyRefused, StorageUnavailable, *AT_OTHER_HUBS),
    ),
    Endpoint(
        name="hub-join",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/join",
        caller=Device,
        request=mimi_ds(ExternalJoinRequest),
        answer=encoded("SendResponse"),
        handler=handlers.join,
        summary="as `join`, at that hub",
        problems=(*JOINING, *AT_OTHER_HUBS),
    ),
    Endpoint(
        name="hub-propose",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/propose",
        caller=Device,
        request=mimi_ds(ExternalProposalRequest),
        answer=encoded("SendResponse"),
        handler=handlers.propose,
        summary="as `propose`, at that hub",
        problems=(*JOINING, *AT_OTHER_HUBS),
    ),
    Endpoint(
        name="hub-group-info",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/hubs/{provider}/group-info",
        caller=Device,
        request=mimi_ds(GroupInfoRequest),
        answer=encoded("GroupInfoResponse; with ?bundle GroupInfoBundle"),
        handler=handlers.group_info,
        summary="as `group-info`, at that hub",
        problems=(*READING, PolicyRefused, *AT_OTHER_HUBS),
        query=("bundle", "partition"),
    ),
    Endpoint(
        name="leave",
        listener=Listener.CLIENT,
        method="DELETE",
        path="/client/v1/hubs/{provider}/groups/{group_id}",
        caller=Device,
        request=NO_BODY,
        answer=NO_BODY,
        handler=handlers.leave,
        summary="this device leaves the group; group_id is in base64url",
        problems=(UnknownGroup, StorageUnavailable),
        status=HTTPStatus.NO_CONTENT,
    ),
    Endpoint(
        name="welcomes",
        listener=Listener.CLIENT,
        method="GET",
        path="/client/v1/welcomes",
        caller=Device,
        request=NO_BODY,
        answer=of_codec(INBOX_WELCOMES, "InboxWelcome welcomes<V>"),
        handler=handlers.welcomes,
        summary="Welcomes that the device has not acknowledged, oldest first, at most 100",
    ),
    Endpoint(
        name="acknowledge-welcome",
        listener=Listener.CLIENT,
        method="DELETE",
        path="/client/v1/welcomes/{id}",
        caller=Device,
        request=NO_BODY,
        answer=NO_BODY,
        handler=handlers.acknowledge_welcome,
        summary="remove a Welcome from the inbox",
        problems=(StorageUnavailable,),
        status=HTTPStatus.NO_CONTENT,
    ),
    Endpoint(
        name="stream",
        listener=Listener.CLIENT,
        method="GET",
        path="/client/v1/stream",
        caller=Device,
        request=WEBSOCKET,
        answer=NO_BODY,
        handler=handlers.stream,
        summary="a WebSocket of Frames, one in each binary message, without compression",
        problems=(QuotaExceeded,),
    ),
    Endpoint(
        name="client-report",
        listener=Listener.CLIENT,
        method="POST",
        path="/client/v1/reports",
        caller=Device,
        request=REPORT,
        answer=REPORT_ID,
        handler=handlers.report,
        summary="report a hub or follower that breaks its terms, or a message",
        problems=(QuotaExceeded, StorageUnavailable),
        limit="report_bytes",
        status=HTTPStatus.ACCEPTED,
    ),
)
DEVICES: Final[tuple[AnyEndpoint, ...]] = _ROWS
