"""Commands on other providers: what they follow, what is pending for them, and the terms on both sides."""

from __future__ import annotations

import json
from typing import Final

from mimids.ds.commands.declare import Argument, Command, Context, Effect, JsonObject
from mimids.ds.terms.accepted import accept_offer
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import Malformed, NotFound
from mimids.store import arrangements, bans, overview, providers
from mimids.store.engine.transaction import Tx
from mimids.store.overview import PeerSummary
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId, provider_id


def _list_providers(tx: Tx, context: Context) -> JsonObject:
    return {"providers": _all(tx, context)}


def _show_provider(tx: Tx, context: Context, *, provider: str) -> JsonObject:
    for each in _all(tx, context):
        if each["provider"] == provider:
            return {**each, **_arrangement(tx, context, ProviderId(provider))}
    raise NotFound("this provider is neither configured nor known here")


def _all(tx: Tx, context: Context) -> list[JsonObject]:
    """Return the providers that are in the configuration or in the database."""
    config = context.config
    known = {each.provider: each for each in overview.peer_summaries(tx, config.provider)}
    named = {*known, *config.federation.allow, *config.providers}
    return [_provider(context, name, known.get(name)) for name in sorted(named)]


def _arrangement(tx: Tx, context: Context, name: ProviderId) -> JsonObject:
    """Return `our_terms`, which we offer to the provider as hub, and `their_terms`, which it offers to us."""
    row = providers.provider_row(tx, name) or 0
    given, taken = arrangements.find_offered(tx, row), arrangements.find_accepted(tx, row)
    end = bans.banned_providers(tx).get(name, Milliseconds(0))
    offered = None if taken is None else HubTerms.read(json.loads(taken.offered), name).as_json()
    return {
        "banned": end is None or end > context.now,
        "our_terms": None if given is None else given.revision,
        "our_terms_changed_at": None if given is None else given.changed_at,
        "our_terms_accepted": None if given is None else given.accepted_revision,
        "their_terms": None if taken is None else taken.offered_revision,
        "their_terms_accepted": None if taken is None else taken.accepted_revision,
        "their_terms_told": taken is not None and bool(taken.acknowledged),
        "they_ban": [{"user_id": user} for user in offered["bans"]] if offered else [],
        "they_mute": offered["mutes"] if offered else [],
    }


def _accept_terms(tx: Tx, context: Context, *, provider: str) -> JsonObject:
    try:
        hub = provider_id(provider)
    except ValueError:
        raise Malformed("provider: expected a domain in lower case, such as b.example") from None
    return {"provider": hub, "revision": accept_offer(tx, hub, context.config.provider, context.now)}


def _provider(context: Context, name: ProviderId, known: PeerSummary | None) -> JsonObject:
    federation, peer = context.config.federation, context.config.providers.get(name)
    known = known or PeerSummary(name, 0, 0, 0, Milliseconds(0), 0, 0, 0)
    return {
        "provider": name,
        "allowed": federation.mode == "open" or name in federation.allow,
        "url": f"https://{name}" if peer is None or peer.url is None else peer.url,
        "groups": known.groups,
        "follows": known.follows,
        "behind": known.behind,
        "failures": known.failures,
        "failing_since": known.failing_since,
        "next_attempt_at": known.next_attempt_at or None,
        "stuck": known.stuck,
        "welcomes_waiting": known.welcomes_waiting,
        "welcomes_refused": known.welcomes_refused,
    }


_EXAMPLE: Final = (
    '{"provider": "b.example", "allowed": true, "url": "https://b.example", "groups": 1, "follows": 5, "behind": 0,'
    ' "failures": 0, "failing_since": null, "next_attempt_at": null, "stuck": 0,'
    ' "welcomes_waiting": 0, "welcomes_refused": 0}'
)

_ARRANGEMENT_EXAMPLE: Final = (
    '"banned": false, "our_terms": 2, "our_terms_changed_at": 1764000000000, "our_terms_accepted": 2,'
    ' "their_terms": 3, "their_terms_accepted": 3, "their_terms_told": true, "they_ban":'
    ' [{"user_id": "mimi://a.example/u/alice"}], "they_mute":'
    ' [{"user_id": "mimi://a.example/u/anna", "group_id": null}]'
)

PROVIDERS: Final = (
    Command(
        name="provider list",
        summary="List the other providers that are configured or known.",
        work=_list_providers,
        answer=f'{{"providers": [{_EXAMPLE}]}}',
        example="mimids provider list",
        writes=False,
    ),
    Command(
        name="provider show",
        summary="Show another provider: what it follows, what is pending for it, its failures and its terms.",
        arguments=(Argument("provider", "the provider's domain", "b.example"),),
        work=_show_provider,
        answer=f"{_EXAMPLE[:-1]}, {_ARRANGEMENT_EXAMPLE}}}",
        example="mimids provider show b.example",
        writes=False,
        hints={NotFound: "run `mimids provider list` to see the providers"},
    ),
    Command(
        name="provider accept",
        summary="Accept the terms that a hub offers; they then hold for our own users.",
        arguments=(Argument("provider", "the provider's domain", "b.example"),),
        work=_accept_terms,
        answer='{"provider": "b.example", "revision": 3}',
        example="mimids provider accept b.example",
        effects=(Effect.POLICY,),
        hints={NotFound: "terms are fetched after a call to the hub; run `mimids provider show` to see them"},
    ),
)
