"""The pages on users, their devices, and bearer tokens."""

from __future__ import annotations

from typing import Final

from mimids.http.console import offers
from mimids.http.console.answers import NOTHING, table_of
from mimids.http.console.parts import Badge, Cell, DataTable, PageSection, moment, user_link
from mimids.http.console.snapshot import PER_PAGE, Search, Snapshot
from mimids.store import listing
from mimids.values import TokenId
from mimids.wire.ids import UserId, local_user_id

# the nouns whose commands the rows of a user's page offer
_OF_ROWS: Final = (("device", ("user", "name")), ("token", ("user", "id")))


def users(seen: Snapshot) -> str:
    """Return the users by name; for a search, only users whose names begin with the searched text."""
    search = seen.text("search")
    beginning = UserId(search.encode()) if search.startswith("mimi:") else local_user_id(seen.ours, search)
    after = local_user_id(seen.ours, seen.text("after"))
    found = listing.users_from(seen.tx, beginning, after, limit=PER_PAGE)
    rows: list[list[Cell]] = [
        [
            user_link(each.user_id.decode()),
            each.devices,
            moment(each.created_at),
            None if each.suspended_at is None else Badge("bad", f"since {moment(each.suspended_at)}"),
        ]
        for each in found
    ]
    empty = f"no user's name begins with {search}" if search else "no users yet"
    table = DataTable(("user", "devices#", "created", "suspended"), rows, empty)
    older = seen.older(found, "after", found[-1].user_id.decode().rpartition("/")[2]) if found else None
    section = PageSection("By name", "users", [table], acts=offers.named(("user add",), seen.back))
    removals = seen.section("Removed devices that are still in groups", "device removals")
    return seen.page("Users", [section, removals], search=Search("Beginning of the user's name", search), older=older)


def user(seen: Snapshot, *, user: str) -> str:
    """Return the page of one user: devices, bearer tokens, and the commands that apply.

    Raises `Malformed` for a name that is not valid, and `NotFound` if there is no such user.
    """
    fixed = {"user": user}
    answer = seen.answer("user show", fixed)
    devices, groups, tokens = (answer.pop(name) for name in ("devices", "groups", "tokens"))
    without = "user resume" if answer["suspended_at"] is None else "user suspend"
    acts = offers.of_page(fixed, _OF_ROWS, seen.back, without=(without,))
    of_devices = seen.table_with_acts("device", "devices", devices, {"name": "device_id"}, fixed)
    of_tokens = seen.table_with_acts("token", "tokens", tokens, {"id": "id"}, fixed)
    sections = [
        seen.section_of("What is known", "user", answer, acts),
        PageSection("Devices", "devices", [of_devices]),
        PageSection("Groups that its devices were seen in", "groups", [table_of("groups", groups, seen.ours)]),
        PageSection("Bearer tokens", "tokens", [of_tokens]),
    ]
    return seen.page(f"User {user}", sections)


def tokens(seen: Snapshot) -> str:
    """Return the newest bearer tokens of all users."""
    before = seen.number("before")
    found = listing.newest_tokens(seen.tx, None if before is None else TokenId(before), limit=PER_PAGE)
    rows: list[list[Cell]] = []
    for user_id, token in found:
        owner = user_link(user_id.decode())
        ends = NOTHING if token.expires_at is None else moment(token.expires_at)
        known = {"user": user_id.decode().rpartition("/")[2], "id": str(token.id)}
        acts = offers.of_row("token", known, ("user",), seen.back)
        when = moment(token.created_at)
        rows.append([str(token.id), owner, token.scheme, token.label or NOTHING, token.state, when, ends, acts])
    columns = ("id", "user", "scheme", "label", "state", "created", "expires", "actions")
    table = DataTable(columns, rows, "no bearer tokens yet")
    older = seen.older(found, "before", found[-1][1].id) if found else None
    acts = offers.named(("token issue", "contact"), seen.back)
    return seen.page("Bearer tokens", [PageSection("Newest tokens", "tokens", [table], acts=acts)], older=older)
