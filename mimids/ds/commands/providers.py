"""Commands on other providers: whom this one deals with, and what is due to them."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Argument, Command, Context, JsonObject
from mimids.errors import NotFound
from mimids.store import overview
from mimids.store.db import Tx
from mimids.store.overview import PeerSummary
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


def _list_providers(tx: Tx, context: Context) -> JsonObject:
    return {"providers": _all(tx, context)}


def _show_provider(tx: Tx, context: Context, *, provider: str) -> JsonObject:
    for each in _all(tx, context):
        if each["provider"] == provider:
            return each
    raise NotFound("nothing here knows that provider")


def _all(tx: Tx, context: Context) -> list[JsonObject]:
    """Return those that the configuration names and those that the database refers to."""
    config = context.config
    known = {each.provider: each for each in overview.peer_summaries(tx, config.provider)}
    named = {*known, *config.federation.allow, *config.providers}
    return [_provider(context, name, known.get(name)) for name in sorted(named)]


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
        "next_attempt_at": known.next_attempt_at or None,
        "welcomes_waiting": known.welcomes_waiting,
        "welcomes_refused": known.welcomes_refused,
    }


_EXAMPLE: Final = (
    '{"provider": "b.example", "allowed": true, "url": "https://b.example", "groups": 1, "follows": 5, "behind": 0,'
    ' "failures": 0, "next_attempt_at": null, "welcomes_waiting": 0, "welcomes_refused": 0}'
)

PROVIDERS: Final = (
    Command(
        name="provider list",
        summary="List the other providers that are configured or were met.",
        work=_list_providers,
        answer=f'{{"providers": [{_EXAMPLE}]}}',
        example="mimids provider list",
        writes=False,
    ),
    Command(
        name="provider show",
        summary="Show what another provider follows here, what is due to it, and how it answers.",
        arguments=(Argument("provider", "its domain", "b.example"),),
        work=_show_provider,
        answer=_EXAMPLE,
        example="mimids provider show b.example",
        writes=False,
        hints={NotFound: "`mimids provider list` shows whom there is"},
    ),
)
