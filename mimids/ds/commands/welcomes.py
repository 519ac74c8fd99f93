"""Commands on Welcomes that are not delivered yet."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, JsonObject
from mimids.ds.commands.groups import group_name
from mimids.errors import NotFound
from mimids.store import waiting_welcomes
from mimids.store.engine.transaction import Tx
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId

LISTED: Final = 1000


def _list(tx: Tx, _: Context, *, provider: str | None = None) -> JsonObject:
    to = None if provider is None else ProviderId(provider)
    return {
        "welcomes": [
            {
                "id": each.id,
                "group_id": base64url(each.group_id),
                "name": group_name(each.group_id),
                "partition": each.partition.hex(),
                "provider": each.provider,
                "key_packages": each.references,
                "state": each.state,
                "octets": each.octets,
                "created_at": each.created_at,
                "failures": each.failures,
                "next_attempt_at": each.next_attempt_at or None,
                "reason": each.reason,
            }
            for each in waiting_welcomes.waiting(tx, limit=LISTED, provider=to)
        ]
    }


def _drop(tx: Tx, _: Context, *, id: int) -> JsonObject:
    if not waiting_welcomes.drop(tx, id):
        raise NotFound("no Welcome with this number waits to be delivered")
    return {"id": id}


WELCOMES: Final = (
    Command(
        name="welcome list",
        summary=f"List Welcomes that are not delivered yet, the oldest first, at most {LISTED}.",
        arguments=(
            Argument("provider", "only Welcomes to this provider", "b.example", required=False, flag="--provider"),
        ),
        work=_list,
        answer='{"welcomes": [{"id": 5, "group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE", "name": "mimi://a.example/g/1",'
        ' "partition": "8c5a", "provider": "b.example", "key_packages": 1, "state": "due", "octets": 812,'
        ' "created_at": 1764000000000, "failures": 3, "next_attempt_at": 1764000300000,'
        ' "reason": "peer-unavailable"}]}',
        example="mimids welcome list --provider b.example",
        writes=False,
    ),
    Command(
        name="welcome drop",
        summary="Drop a Welcome that is not delivered. Its sender sees it as cancelled and may send it again.",
        arguments=(Argument("id", "the Welcome's number in `welcome list`", 5, ArgumentKind.NUMBER),),
        work=_drop,
        answer='{"id": 5}',
        example="mimids welcome drop 5",
        hints={NotFound: "run `mimids welcome list` to see the Welcomes"},
    ),
)
