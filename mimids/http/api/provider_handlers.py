"""Handlers of the endpoints between providers; `providers.py` is their table.

The caller is a `Follower`: another provider, known by its certificate.
"""

from __future__ import annotations

from typing import TypedDict

from mimids.ds.devices.hubs import encode_outcomes
from mimids.ds.services import Services
from mimids.ds.terms.hub_terms import HubTerms
from mimids.ds.terms.report import Report
from mimids.http.api.endpoints import Answer, Call
from mimids.http.api.parameters import number_in, partition_in, wait_seconds
from mimids.http.api.problems import document
from mimids.http.header_names import LINEAR
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
    WelcomeStatusRequest,
    WelcomeStatusResponse,
    encode_send_results,
)


class ReportId(TypedDict):
    """The answer to a report: the reference by which our operator finds it (`report read`)."""

    id: int


def linear_header(linear: bool) -> dict[str, str]:
    """Return the header that marks a group as linear (a Boolean of RFC 8941); for any other group, return no header."""
    return {LINEAR: "?1"} if linear else {}


async def send(services: Services, call: Call[Follower, SendRequest]) -> SendResponse:
    """Sequence a message that a follower forwards."""
    return await services.hub.send(call.body, call.caller)


async def send_batch(services: Services, call: Call[Follower, tuple[SendRequest, ...]]) -> bytes:
    """Sequence messages in order, with one commit to disk."""
    return encode_send_results(encode_outcomes(await services.hub.send_batch(call.body, call.caller), document))


async def receive(services: Services, call: Call[Follower, ReceiveRequest]) -> Answer[bytes]:
    """Return messages of a partition; with `Prefer: wait`, wait until there are any."""
    wait = wait_seconds(call.headers, services.config.limits.receive_wait_seconds)
    octets, found = await services.hub.receive_with_group(call.body, call.caller, wait_seconds=wait or 0)
    return Answer(octets, headers=linear_header(found.linear))


async def join(services: Services, call: Call[Follower, ExternalJoinRequest]) -> SendResponse:
    """Sequence an external commit."""
    return await services.hub.join(call.body, call.caller)


async def propose(services: Services, call: Call[Follower, ExternalProposalRequest]) -> SendResponse:
    """Sequence an external proposal."""
    return await services.hub.propose(call.body, call.caller)


async def group_info(services: Services, call: Call[Follower, GroupInfoRequest]) -> Answer[bytes]:
    """Return what a client needs to join a group."""
    found = await services.hub.group_info(call.body.group_id, call.caller, partition=partition_in(call.query))
    answer = encode(found.bundle if "bundle" in call.query else found.bundle.info)
    return Answer(answer, headers=linear_header(found.linear))


async def welcome_init(services: Services, call: Call[Follower, WelcomeInitRequest]) -> WelcomeInitResponse:
    """Return which of these KeyPackages belong to users of ours."""
    return await services.incoming_welcomes.init(call.caller.provider, call.body)


async def welcome(services: Services, call: Call[Follower, MLSMessage]) -> None:
    """Store a Welcome for our devices."""
    await services.incoming_welcomes.store(call.caller.provider, call.body)


async def welcome_status(services: Services, call: Call[Follower, WelcomeStatusRequest]) -> WelcomeStatusResponse:
    """Return what became of the Welcomes of a commit."""
    return await services.hub.welcome_status(call.body, call.caller)


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


async def recover(services: Services, call: Call[Follower, RecoverRequest]) -> Answer[RecoverResponse]:
    """Return messages that the calling hub sequenced and lost."""
    answers = services.recovery_answers
    answer = await answers.messages_beyond(call.caller, call.body)
    return Answer(answer, headers=linear_header(await answers.is_linear(call.caller, call.body)))


async def recover_welcomes(services: Services, call: Call[Follower, None]) -> None:
    """Send Welcomes again to a provider that was restored."""
    await services.recovery_answers.send_welcomes_again(call.caller)


async def recover_groups(services: Services, call: Call[Follower, HeldGroupsRequest]) -> HeldGroupsResponse:
    """Return which groups of the calling hub we know."""
    return await services.recovery_answers.groups_of(call.caller, call.body)
