"""Commands on other providers: the partitions they follow, their pending messages, and the terms on both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mimids.ds.commands.declare import Argument, Command, Context, Effect, JsonObject
from mimids.ds.terms.accepted import accept_offer
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import Malformed, NotFound
from mimids.store import arrangements, bans, federation_rules, overview, providers
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


def _all(tx: Tx, context: Context, *more: ProviderId) -> list[JsonObject]:
    """Return the providers that are in the configuration, in the database or in `more`."""
    config, rules = context.config, federation_rules.every_rule(tx)
    known = {each.provider: each for each in overview.peer_summaries(tx, config.provider)}
    named = {*known, *config.federation.allow, *config.providers, *rules, *more}
    return [_provider(context, rules, name, known.get(name)) for name in sorted(named)]


def _arrangement(tx: Tx, context: Context, name: ProviderId) -> JsonObject:
    """Return `our_terms`, which we offer to the provider as hub, and `their_terms`, which it offers to us."""
    row = providers.provider_row(tx, name) or 0
    given, taken = arrangements.find_offered(tx, row), arrangements.find_accepted(tx, row)
    end = bans.banned_providers(tx).get(name, Milliseconds(0))
    offered = None if taken is None else HubTerms.read(json.loads(taken.offered), name, stored=True).as_json()
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
    hub = _domain(provider)
    return {"provider": hub, "revision": accept_offer(tx, hub, context.config.provider, context.now)}


def _allow(tx: Tx, context: Context, *, provider: str) -> JsonObject:
    return _decide(tx, context, _domain(provider), allowed=True)


def _remove(tx: Tx, context: Context, *, provider: str) -> JsonObject:
    return _decide(tx, context, _domain(provider), allowed=False)


def _decide(tx: Tx, context: Context, name: ProviderId, *, allowed: bool) -> JsonObject:
    """Store the operator's decision, unless the configuration already says the same."""
    if name == context.config.provider:
        raise Malformed("provider: this is our own domain; give another provider's domain")
    if context.config.federation.allows_by_itself(name) == allowed:
        federation_rules.drop_rule(tx, name)
    else:
        federation_rules.put_rule(tx, name, allowed=allowed, now=context.now)
    (answer,) = (each for each in _all(tx, context, name) if each["provider"] == name)
    return {key: answer[key] for key in ("provider", "allowed", "decided_by", "follows", "groups")}


def _domain(written: str) -> ProviderId:
    try:
        return provider_id(written)
    except ValueError:
        raise Malformed("provider: expected a domain in lower case, such as b.example") from None


def _provider(
    context: Context, rules: Mapping[ProviderId, bool], name: ProviderId, known: PeerSummary | None
) -> JsonObject:
    federation, peer = context.config.federation, context.config.providers.get(name)
    known = known or PeerSummary(name, 0, 0, 0, Milliseconds(0), 0, 0, 0)
    return {
        "provider": name,
        "allowed": rules.get(name, federation.allows_by_itself(name)),
        "decided_by": "operator" if name in rules else "configuration",
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
    '{"provider": "b.example", "allowed": true, "decided_by": "configuration",'
    ' "url": "https://b.example", "groups": 1, "follows": 5, "behind": 0,'
    ' "failures": 0, "failing_since": null, "next_attempt_at": null, "stuck": 0,'
    ' "welcomes_waiting": 0, "welcomes_refused": 0}'
)

_ARRANGEMENT_EXAMPLE: Final = (
    '"banned": false, "our_terms": 2, "our_terms_changed_at": 1764000000000, "our_terms_accepted": 2,'
    ' "their_terms": 3, "their_terms_accepted": 3, "their_terms_told": true, "they_ban":'
    ' [{"user_id": "mimi://a.example/u/alice"}], "they_mute":'
    ' [{"user_id": "mimi://a.example/u/anna", "group_id": null}]'
)

_DECIDED_EXAMPLE: Final = (
    '{"provider": "b.example", "allowed": true, "decided_by": "operator", "follows": 5, "groups": 1}'
)
_PROVIDER: Final = Argument("provider", "the provider's domain", "b.example")

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
        arguments=(_PROVIDER,),
        work=_show_provider,
        answer=f"{_EXAMPLE[:-1]}, {_ARRANGEMENT_EXAMPLE}}}",
        example="mimids provider show b.example",
        writes=False,
        hints={NotFound: "run `mimids provider list` to see the providers"},
    ),
    Command(
        name="provider allow",
        summary="Allow another provider, without a restart; this overrides `allow` in the configuration.",
        arguments=(_PROVIDER,),
        work=_allow,
        answer=_DECIDED_EXAMPLE,
        example="mimids provider allow b.example",
        effects=(Effect.FEDERATION,),
    ),
    Command(
        name="provider remove",
        summary="Stop allowing another provider, without a restart. What it follows is kept for a later return.",
        arguments=(_PROVIDER,),
        work=_remove,
        answer=_DECIDED_EXAMPLE.replace("true", "false"),
        example="mimids provider remove b.example",
        effects=(Effect.FEDERATION,),
    ),
    Command(
        name="provider accept",
        summary="Accept the terms that a hub offers; they then hold for our own users.",
        arguments=(_PROVIDER,),
        work=_accept_terms,
        answer='{"provider": "b.example", "revision": 3}',
        example="mimids provider accept b.example",
        effects=(Effect.POLICY,),
        hints={
            NotFound: "terms are fetched after the next call to the hub;"
            " run `mimids provider show NAME` to see whether they have come"
        },
    ),
)
