"""Endpoints between providers (http: between-providers): the caller is a `Follower`, known by its certificate."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from mimids.ds.devices.hubs import encode_outcomes
from mimids.ds.services import Services
from mimids.ds.terms.report import Report
from mimids.errors import (
    ArrangementOutdated,
    ArrangementRequired,
    BranchTerminated,
    CommitDataDiffers,
    GroupInfoMismatch,
    InvalidMessage,
    Malformed,
    MimiError,
    NotFollowed,
    NotFound,
    PartitionAmbiguous,
    PartitionExists,
    PolicyRefused,
    QuotaExceeded,
    RatchetTreeNeeded,
    RateLimited,
    Recovering,
    StorageUnavailable,
    TooMany,
    UnknownGroup,
    UnknownPartition,
    WelcomeMismatch,
    WelcomeNotExpected,
    WrongBranch,
    WrongEpoch,
)
from mimids.http.api.endpoints import (
    MESSAGE_MLS,
    Access,
    Body,
    Call,
    Endpoint,
    Listener,
    encoded,
    json_answer,
    json_object,
    mimi_ds,
    of_codec,
)
from mimids.http.api.problems import document
from mimids.mls.framing import MLS_MESSAGE, MLSMessage
from mimids.values import Follower
from mimids.wire import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import MaskedPartitionKey
from mimids.wire.messages import (
    SEND_REQUESTS,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    HeldGroupsRequest,
    HeldGroupsResponse,
    PushRequest,
    PushResponse,
    ReceiveRequest,
    RecoverRequest,
    RecoverResponse,
    ResumeRequest,
    SendRequest,
    SendResponse,
    WelcomeInitRequest,
    WelcomeInitResponse,
    encode_send_results,
)

REVISION_DIGITS: Final = 19
MASKED_KEY_CHARS: Final = 88  # 64 octets in base64url, padded
_WAIT: Final = re.compile(r"""(?:^|,)[\s,]*wait\s*=\s*("?)([0-9]{1,9})\1\s*(?:$|[,;])""")

SENDING: Final[tuple[type[MimiError], ...]] = (
    UnknownGroup,
    PartitionExists,
    WrongEpoch,
    WrongBranch,
    BranchTerminated,
    CommitDataDiffers,
    InvalidMessage,
    RatchetTreeNeeded,
    GroupInfoMismatch,
    WelcomeMismatch,
    PolicyRefused,
    RateLimited,
    QuotaExceeded,
    ArrangementRequired,
    Recovering,
    StorageUnavailable,
)
JOINING: Final = (*SENDING, PartitionAmbiguous)
READING: Final = (UnknownGroup, BranchTerminated, ArrangementRequired, StorageUnavailable)

SEND_BATCH: Final[Body[tuple[SendRequest, ...]]] = of_codec(SEND_REQUESTS, "SendRequest requests<V>")
REPORT: Final = json_object(
    Report.read,
    '{"hub", "group_id": base64url or null, "accused": provider or user_id, "kind": letters, digits and hyphens,'
    ' "note", "evidence": [base64url MLSMessage]}; hub, accused and kind are needed',
    '{"hub":"a.example","group_id":null,"accused":"mimi://c.example/u/carol","kind":"spam","note":"","evidence":[]}',
)
REPORT_TAKEN: Final = json_answer('{"id"}', '{"id":7}')
WELCOME: Final[Body[MLSMessage]] = Body(MESSAGE_MLS, MLS_MESSAGE.decode, MLS_MESSAGE.encode, "MLSMessage")


async def send(services: Services, call: Call[SendRequest]) -> SendResponse:
    """Sequence a message that a follower forwards."""
    return await services.hub.send(call.body, _follower(call))


async def send_batch(services: Services, call: Call[tuple[SendRequest, ...]]) -> bytes:
    """Sequence messages in order, one commit to disk."""
    return encode_send_results(encode_outcomes(await services.hub.send_batch(call.body, _follower(call)), document))


async def receive(services: Services, call: Call[ReceiveRequest]) -> bytes:
    """Return a partition's messages; with `Prefer: wait` once there are any."""
    wait = wait_seconds(call.headers, services.config.limits.receive_wait_seconds)
    return await services.hub.receive(call.body, _follower(call), wait_seconds=wait or 0)


async def join(services: Services, call: Call[ExternalJoinRequest]) -> SendResponse:
    """Sequence an external commit."""
    return await services.hub.join(call.body, _follower(call))


async def propose(services: Services, call: Call[ExternalProposalRequest]) -> SendResponse:
    """Sequence a proposal from outside."""
    return await services.hub.propose(call.body, _follower(call))


async def group_info(services: Services, call: Call[GroupInfoRequest]) -> bytes:
    """Return what a joiner needs."""
    found = await services.hub.group_info(call.body.group_id, _follower(call), partition=partition_of(call.query))
    return encode(found if "bundle" in call.query else found.info)


async def welcome_init(services: Services, call: Call[WelcomeInitRequest]) -> WelcomeInitResponse:
    """Say whose KeyPackages are ours."""
    return await services.welcomes.init(_follower(call).provider, call.body)


async def welcome(services: Services, call: Call[MLSMessage]) -> None:
    """Take a Welcome for our devices."""
    await services.welcomes.take(_follower(call).provider, call.body)


async def push(services: Services, call: Call[PushRequest]) -> PushResponse:
    """Take what a hub pushes."""
    return await services.following.take_push(_follower(call).provider, call.body)


async def arrangement(services: Services, call: Call[None]) -> dict[str, Any]:
    """Give a follower its terms."""
    return (await services.offered_terms.terms_for(_follower(call).provider)).as_json()


async def accept_arrangement(services: Services, call: Call[None]) -> None:
    """Take note that a follower accepts its terms."""
    revision = call.path["revision"]
    if not (revision.isascii() and revision.isdigit() and len(revision) < REVISION_DIGITS):
        raise NotFound
    await services.offered_terms.record_acceptance(_follower(call).provider, int(revision))


async def report(services: Services, call: Call[Report]) -> dict[str, Any]:
    """Take a report of another provider."""
    return {"id": await services.reports.receive(call.body, _follower(call))}


async def resume(services: Services, call: Call[ResumeRequest]) -> None:
    """Push to a follower again, from there."""
    await services.delivery.resume(call.body, _follower(call))


async def recover(services: Services, call: Call[RecoverRequest]) -> RecoverResponse:
    """Give a hub back what it sequenced."""
    return await services.recovery.beyond(_follower(call), call.body)


async def recover_groups(services: Services, call: Call[HeldGroupsRequest]) -> HeldGroupsResponse:
    """Tell a hub which groups of its own are known here."""
    return await services.recovery.groups_of(_follower(call), call.body)


# --- what requests have in common ---------------------------------------------------------------------------------


def _follower(call: Call[Any]) -> Follower:
    assert isinstance(call.caller, Follower)  # noqa: S101  # the row says so
    return call.caller


def wait_seconds(headers: Mapping[str, str], at_most: int) -> int | None:
    """Return for how long `Prefer: wait=N` (RFC 7240 section 4.3) asks to be held, None if it does not."""
    found = _WAIT.search(headers.get("prefer", "").lower())
    return min(int(found[2]), at_most) if found else None


def partition_of(query: Mapping[str, str]) -> MaskedPartitionKey | None:
    """Return the partition that `?partition=` names in base64url; raise `Malformed`."""
    text = query.get("partition")
    if text is None:
        return None
    octets = from_base64url(text) if len(text) <= MASKED_KEY_CHARS else b""
    if len(octets) not in (32, 48, 64):
        raise Malformed("partition is a masked partition key in base64url")
    return MaskedPartitionKey(octets)


def from_base64url(text: str) -> bytes:
    """Read base64url as a part of a request; raise `Malformed`."""
    try:
        return base64url.from_base64url(text)
    except ValueError as error:
        raise Malformed("not base64url") from error


def _row(
    name: str,
    path: str,
    handler: Callable[[Any, Call[Any]], Awaitable[Any]],
    request: Body[Any],
    answer: Body[Any] | None,
    summary: str,
    problems: tuple[type[MimiError], ...],
    **more: Any,
) -> Endpoint:
    return Endpoint(
        name, Listener.PUBLIC, "POST", f"/ds/v1/{path}", Access.PROVIDER, request, answer, handler, summary,
        problems=problems, **more,
    )  # fmt: skip


_SEND_RESPONSE: Final = mimi_ds(SendResponse)
_GROUP_INFO: Final = encoded("GroupInfoResponse; with ?bundle GroupInfoBundle")

PROVIDERS: Final[tuple[Endpoint, ...]] = (
    _row("send", "send", send, mimi_ds(SendRequest), _SEND_RESPONSE, "sequence a message", SENDING),
    _row(
        "send-batch",
        "send-batch",
        send_batch,
        SEND_BATCH,
        encoded("SendResult results<V>"),
        "sequence messages in order, one commit to disk; each is refused by itself",
        (TooMany, ArrangementRequired, StorageUnavailable),
    ),
    _row(
        "receive",
        "receive",
        receive,
        mimi_ds(ReceiveRequest),
        encoded("ReceiveResponse"),
        "messages of a partition; `Prefer: wait=N` holds it until something new or N seconds",
        (UnknownPartition, ArrangementRequired, StorageUnavailable),
    ),
    _row("join", "join", join, mimi_ds(ExternalJoinRequest), _SEND_RESPONSE, "sequence an external commit", JOINING),
    _row(
        "propose",
        "propose",
        propose,
        mimi_ds(ExternalProposalRequest),
        _SEND_RESPONSE,
        "sequence a proposal from outside: senders `external` and `new_member_proposal` only",
        JOINING,
    ),
    _row(
        "group-info",
        "group-info",
        group_info,
        mimi_ds(GroupInfoRequest),
        _GROUP_INFO,
        "what a joiner needs; `?partition=` a masked key in base64url",
        READING,
        query=("bundle", "partition"),
    ),
    _row(
        "welcome-init",
        "welcome/init",
        welcome_init,
        mimi_ds(WelcomeInitRequest),
        mimi_ds(WelcomeInitResponse),
        "which of these KeyPackages' owners take a Welcome",
        (StorageUnavailable,),
        open_without_arrangement=True,
    ),
    _row(
        "welcome",
        "welcome",
        welcome,
        WELCOME,
        None,
        "a Welcome for our devices",
        (WelcomeNotExpected, ArrangementRequired, StorageUnavailable),
        status=HTTPStatus.NO_CONTENT,
        limit="welcome_bytes",
    ),
    _row(
        "push",
        "push",
        push,
        mimi_ds(PushRequest),
        mimi_ds(PushResponse),
        "messages of groups that the caller hosts; answered with the counter that is wanted next of each",
        (StorageUnavailable,),
        open_without_arrangement=True,
        limit="push_bytes",
    ),
    _row(
        "resume",
        "resume",
        resume,
        mimi_ds(ResumeRequest),
        None,
        "push again from there",
        (UnknownGroup, UnknownPartition, NotFollowed, StorageUnavailable),
        status=HTTPStatus.NO_CONTENT,
        open_without_arrangement=True,
    ),
    _row(
        "recover",
        "recover",
        recover,
        mimi_ds(RecoverRequest),
        mimi_ds(RecoverResponse),
        "what is here of a group that the caller hosts, beyond what a backup left it",
        (UnknownGroup, StorageUnavailable),
        open_without_arrangement=True,
    ),
    _row(
        "recover-groups",
        "recover/groups",
        recover_groups,
        mimi_ds(HeldGroupsRequest),
        mimi_ds(HeldGroupsResponse),
        "which groups that the caller hosts are known here",
        (StorageUnavailable,),
        open_without_arrangement=True,
    ),
    Endpoint(
        "arrangement",
        Listener.PUBLIC,
        "GET",
        "/ds/v1/arrangement",
        Access.PROVIDER,
        None,
        json_answer(
            '{"revision", "hub", "bans": [user_id], "mutes": [{"user_id", "group_id": base64url, or null for all}],'
            ' "rates": {NAME: number}, "sizes": {NAME: octets}}',
            '{"revision":2,"hub":"a.example","bans":["mimi://b.example/u/bob"],"mutes":[],'
            '"rates":{"device_sends_per_second":100,"device_sends_burst":2000},"sizes":{"message_bytes":4194304}}',
        ),
        arrangement,
        "the terms for the caller's own users",
        problems=(StorageUnavailable,),
        open_without_arrangement=True,
    ),
    Endpoint(
        "accept-arrangement",
        Listener.PUBLIC,
        "PUT",
        "/ds/v1/arrangement/{revision}",
        Access.PROVIDER,
        None,
        None,
        accept_arrangement,
        "accept the terms of that revision, if it is the current one",
        problems=(ArrangementOutdated, StorageUnavailable),
        status=HTTPStatus.NO_CONTENT,
        open_without_arrangement=True,
    ),
    Endpoint(
        "report",
        Listener.PUBLIC,
        "POST",
        "/ds/v1/report",
        Access.PROVIDER,
        REPORT,
        REPORT_TAKEN,
        report,
        "say that a hub or follower breaks its terms, or point at a message",
        limit="report_bytes",
        status=HTTPStatus.ACCEPTED,
        problems=(QuotaExceeded, ArrangementRequired, StorageUnavailable),
    ),
)
