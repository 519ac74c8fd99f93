"""Handlers of the endpoints between providers; `providers.py` is their table.

The caller is a `Follower`: another provider, known by its certificate.
"""

from __future__ import annotations

from typing import TypedDict

from mimids.ds.devices.hubs import encode_outcomes
from mimids.ds.services import Services
from mimids.ds.terms.hub_terms import HubTerms
from mimids.ds.terms.report import Report
from mimids.http.api.endpoints import Call
from mimids.http.api.parameters import number_in, partition_in, wait_seconds
from mimids.http.api.problems import document
from mimids.mls.framing import MLSMessage
from mimids.values import Follower
from mimids.wire.declare import encode
from mimids.wire.messages import (
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


class ReportId(TypedDict):
    """The answer to a report: the number that our operator sees it under."""

    id: int


async def send(services: Services, call: Call[Follower, SendRequest]) -> SendResponse:
    """Sequence a message that a follower forwards."""
    return await services.hub.send(call.body, call.caller)


async def send_batch(services: Services, call: Call[Follower, tuple[SendRequest, ...]]) -> bytes:
    """Sequence messages in order, with one commit to disk."""
    return encode_send_results(encode_outcomes(await services.hub.send_batch(call.body, call.caller), document))


async def receive(services: Services, call: Call[Follower, ReceiveRequest]) -> bytes:
    """Return messages of a partition; with `Prefer: wait`, wait until there are any."""
    wait = wait_seconds(call.headers, services.config.limits.receive_wait_seconds)
    return await services.hub.receive(call.body, call.caller, wait_seconds=wait or 0)


async def join(services: Services, call: Call[Follower, ExternalJoinRequest]) -> SendResponse:
    """Sequence an external commit."""
    return await services.hub.join(call.body, call.caller)


async def propose(services: Services, call: Call[Follower, ExternalProposalRequest]) -> SendResponse:
    """Sequence an external proposal."""
    return await services.hub.propose(call.body, call.caller)


async def group_info(services: Services, call: Call[Follower, GroupInfoRequest]) -> bytes:
    """Return what a client needs to join a group."""
    found = await services.hub.group_info(call.body.group_id, call.caller, partition=partition_in(call.query))
    return encode(found if "bundle" in call.query else found.info)


async def welcome_init(services: Services, call: Call[Follower, WelcomeInitRequest]) -> WelcomeInitResponse:
    """Return which of these KeyPackages belong to users of ours."""
    return await services.incoming_welcomes.init(call.caller.provider, call.body)


async def welcome(services: Services, call: Call[Follower, MLSMessage]) -> None:
    """Store a Welcome for our devices."""
    await services.incoming_welcomes.store(call.caller.provider, call.body)


async def push(services: Services, call: Call[Follower, PushRequest]) -> PushResponse:
    """Store the messages that a hub pushes."""
    return await services.epoch_receiver.receive_push(call.caller.provider, call.body)


async def arrangement(services: Services, call: Call[Follower, None]) -> HubTerms:
    """Return our terms for the calling provider."""
    return await services.offered_terms.terms_for(call.caller.provider)


async def accept_arrangement(services: Services, call: Call[Follower, None]) -> None:
    """Record that the calling provider accepts a revision of our terms."""
    await services.offered_terms.record_acceptance(call.caller.provider, number_in(call.path, "revision"))


async def report(services: Services, call: Call[Follower, Report]) -> ReportId:
    """Store a report of another provider."""
    return {"id": await services.reports.receive(call.body, call.caller)}


async def resume(services: Services, call: Call[Follower, ResumeRequest]) -> None:
    """Push to a follower again, from the counter that it names."""
    await services.delivery.resume(call.body, call.caller)


async def recover(services: Services, call: Call[Follower, RecoverRequest]) -> RecoverResponse:
    """Return messages that the calling hub sequenced and lost."""
    return await services.recovery_answers.messages_beyond(call.caller, call.body)


async def recover_groups(services: Services, call: Call[Follower, HeldGroupsRequest]) -> HeldGroupsResponse:
    """Return which groups of the calling hub we know."""
    return await services.recovery_answers.groups_of(call.caller, call.body)
