"""Commands on removed devices that are still in groups, and on the keys that propose to remove them."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.commands.groups import group_name
from mimids.ds.departures import provider_keys
from mimids.mls.signing_key import SCHEMES, cipher_suites_of
from mimids.store import departures
from mimids.store import provider_keys as stored
from mimids.store.engine.transaction import Tx
from mimids.wire.base64url import base64url

LISTED: Final = 1000


def _list(tx: Tx, _: Context) -> JsonObject:
    search = departures.search(tx)
    return {
        "searching": search is not None and search.next_group is not None,
        "removals": [
            {
                "removal": each.removal,
                "removed_at": each.removed_at,
                "hub": each.hub,
                "group_id": base64url(each.group_id),
                "name": group_name(each.group_id),
                "member": None if each.identity is None else each.identity.decode("utf-8", "replace"),
                "leaf": None if each.leaf == departures.NOT_KNOWN else each.leaf,
                "state": each.state,
                "reason": None if each.state == departures.SEARCHING else each.reason,
                "failures": each.failures,
                "next_attempt_at": each.next_attempt_at or None,
            }
            for each in departures.listed(tx, limit=LISTED)
        ],
    }


def _list_keys(tx: Tx, _: Context) -> JsonObject:
    return {
        "keys": [
            {
                "scheme": row.scheme,
                "signature_key": base64url(row.public),
                "cipher_suites": ", ".join(map(str, cipher_suites_of(row.scheme))),
                "made_at": row.made_at,
                "retired_at": row.retired_at,
            }
            for row in stored.all_keys(tx)
        ]
    }


def _rotate(tx: Tx, context: Context, *, scheme: str | None = None, delete_others: bool = False) -> JsonObject:
    made = provider_keys.rotate(tx, context.operator_key, context.now, scheme=scheme, delete_others=delete_others)
    return {"keys": [{"scheme": each, "signature_key": base64url(public)} for each, public in made]}


_KEY: Final = '"scheme": "Ed25519", "signature_key": "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"'

REMOVALS: Final = (
    Command(
        name="device removals",
        summary="List groups that removed devices have yet to leave, and why some leaves cannot be removed.",
        work=_list,
        answer='{"searching": false, "removals": [{"removal": 3, "removed_at": 1764000000000, "hub": "b.example",'
        ' "group_id": "bWltaTovL2IuZXhhbXBsZS9nLzE", "name": "mimi://b.example/g/1",'
        ' "member": "mimi://a.example/u/alice/d/phone", "leaf": 4, "state": "impossible", "reason": "key-not-listed",'
        ' "failures": 0, "next_attempt_at": null}]}',
        example="mimids device removals",
        writes=False,
    ),
    Command(
        name="signature-key list",
        summary="List the keys with which this provider proposes that removed devices leave their groups.",
        work=_list_keys,
        answer=f'{{"keys": [{{{_KEY}, "cipher_suites": "1, 3", "made_at": 1764000000000, "retired_at": null}}]}}',
        example="mimids signature-key list",
        writes=False,
    ),
    Command(
        name="signature-key rotate",
        summary="Make new signature keys; the earlier ones still sign for groups that list them.",
        arguments=(
            Argument(
                "scheme",
                "only the key of this signature scheme",
                "Ed25519",
                required=False,
                flag="--scheme",
                choices=tuple(sorted(SCHEMES)),
            ),
            Argument(
                "delete_others",
                "delete all earlier keys at once; groups that list no other key cannot be served any more",
                True,
                ArgumentKind.FLAG,
                required=False,
                flag="--delete-others",
            ),
        ),
        work=_rotate,
        answer=f'{{"keys": [{{{_KEY}}}]}}',
        example="mimids signature-key rotate",
        effects=(Effect.SIGNATURE_KEYS,),
    ),
)
