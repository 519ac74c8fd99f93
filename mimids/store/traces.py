"""The groups in which our user was seen, and who may hold data of the user after the removal (docs/privacy.md)."""

from __future__ import annotations

import json

import attrs

from mimids.store import arrangements
from mimids.store.arrangements import AcceptedTermsRow
from mimids.store.engine.transaction import Tx
from mimids.values import UserRow
from mimids.wire.ids import GroupId, ProviderId, UserId


@attrs.frozen
class Traces:
    """The groups in which the devices of a user were seen, and the data that stays here after the user is removed."""

    devices: int
    groups_hosted: int  # hosted here; their messages and public state stay until they expire
    hubs: tuple[ProviderId, ...]  # the hubs of other groups, and the senders of Welcomes
    followers: tuple[ProviderId, ...]  # the followers of the groups hosted here
    reports: int  # reports that accuse the user
    bans: int  # bans of the user, including mutes
    terms_of: tuple[ProviderId, ...]  # the hubs that ban or mute the user by their terms, which are stored here


_DEVICES = "(SELECT id FROM devices WHERE owner = ?1)"
_GROUPS = (
    f"(SELECT group_ref FROM participations WHERE device IN {_DEVICES}"
    " UNION SELECT p.group_ref FROM device_cursors c JOIN partitions p ON p.id = c.partition"
    f" WHERE c.device IN {_DEVICES}"
    f" UNION SELECT id FROM groups WHERE creator_device IN {_DEVICES}"
    f" UNION SELECT group_ref FROM partitions WHERE opener_device IN {_DEVICES})"
)


def groups_of(tx: Tx, user: UserRow) -> list[tuple[GroupId, ProviderId]]:
    """Return id and hub of the groups that the devices of a user were seen in, oldest first."""
    rows = tx.all(
        f"SELECT g.group_id, h.domain FROM groups g JOIN providers h ON h.id = g.hub WHERE g.id IN {_GROUPS}"
        " ORDER BY g.id",
        (user,),
    )
    return [(row[0], row[1]) for row in rows]


def traces_of(tx: Tx, user: UserRow, user_id: UserId, ours: ProviderId) -> Traces:
    """Return the providers and rows that may hold data of a user who is about to be removed."""
    row = tx.one(
        f"SELECT (SELECT count(*) FROM devices WHERE owner = ?1),"
        f" (SELECT count(*) FROM groups g JOIN providers h ON h.id = g.hub WHERE g.id IN {_GROUPS} AND h.domain = ?2),"
        " (SELECT count(*) FROM reports WHERE accused = ?3),"
        " (SELECT count(*) FROM bans WHERE user_id = ?4) + (SELECT count(*) FROM mutes WHERE user_id = ?4)",
        (user, ours, user_id.decode("utf-8", "replace"), user_id),
    )
    devices, hosted, reports, bans = row or (0, 0, 0, 0)
    hubs = tx.all(
        f"SELECT DISTINCT domain FROM providers WHERE domain <> ?2 AND (id IN (SELECT hub FROM groups WHERE id IN"
        f" {_GROUPS}) OR id IN (SELECT hub FROM inbox WHERE device IN {_DEVICES})"
        f" OR id IN (SELECT hub FROM expected_welcomes WHERE device IN {_DEVICES})) ORDER BY domain",
        (user, ours),
    )
    followers = tx.all(
        "SELECT DISTINCT o.domain FROM follows f JOIN providers o ON o.id = f.provider"
        f" JOIN partitions p ON p.id = f.partition WHERE p.group_ref IN {_GROUPS} ORDER BY o.domain",
        (user,),
    )
    return Traces(
        devices,
        hosted,
        tuple(h for (h,) in hubs),
        tuple(f for (f,) in followers),
        reports,
        bans,
        tuple(each.hub for each in arrangements.every_accepted(tx) if _names(each, user_id)),
    )


def _names(terms: AcceptedTermsRow, user_id: UserId) -> bool:
    name = user_id.decode("utf-8", "replace")
    stored = [json.loads(each) for each in (terms.offered, terms.accepted) if each is not None]
    return any(name in (*each.get("bans", ()), *(mute["user_id"] for mute in each.get("mutes", ()))) for each in stored)
