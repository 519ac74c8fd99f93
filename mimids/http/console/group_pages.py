"""The list of groups, and the page of one group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import attrs

from mimids.errors import Malformed, NotFound
from mimids.http.console import group_view, offers
from mimids.http.console.answers import table_of
from mimids.http.console.overview import groups_table
from mimids.http.console.parts import DataTable, Hyperlink, PageSection, counted, group_title
from mimids.http.console.rendering import render
from mimids.http.console.snapshot import PER_PAGE, Search, Snapshot
from mimids.http.console.tree import sample
from mimids.store import listing, overview, recoveries
from mimids.store.overview import PartitionSummary
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import GroupId, ProviderId

MEMBERS: Final = 200  # members of one branch that the page lists


def groups(seen: Snapshot) -> str:
    """Return the newest groups or, for a search, the groups whose ids begin with the searched text."""
    search, older = seen.text("search"), None
    if search:
        found = listing.groups_beginning_with(seen.tx, _beginnings(seen, search), limit=PER_PAGE)
        empty = f"no group id begins with {search}"
    else:
        found = listing.groups_before(seen.tx, seen.number("before"), limit=PER_PAGE)
        empty = "no groups yet"
        older = seen.older(found, "before", min((each.row for each in found), default=0))
    table = attrs.evolve(groups_table(found), empty=empty)
    section = PageSection("Found" if search else "Newest groups", "groups", [table])
    return seen.page("Groups", [section], search=Search("Beginning of the group id", search), older=older)


def _beginnings(seen: Snapshot, search: str) -> list[bytes]:
    """Return the octets with which the ids of the searched groups may begin."""
    found = [search.encode(), f"mimi://{seen.ours}/g/{search}".encode()]
    with suppress(ValueError):
        found.append(from_base64url(search))
    return found


def group(seen: Snapshot, *, hub: str, group_id: str) -> str:
    """Return the page of one group, with its partitions drawn as a tree.

    Raises `Malformed` for a path that does not contain a group id, and `NotFound` if there is no such group.
    """
    try:
        id_ = GroupId(from_base64url(group_id))
    except ValueError:
        raise Malformed("the group id in the path is not base64url") from None
    found = overview.group_summary(seen.tx, ProviderId(hub), id_)
    if found is None:
        raise NotFound("there is no group with this hub and id")
    partitions = overview.partition_summaries(seen.tx, found.row)
    view = group_view.GroupView(seen.ours, found, partitions, recoveries.waited_for(seen.tx, found.row))
    tree = view.tree()
    known = {"group": base64url(id_), "hub": hub}
    return render(
        "group.html",
        seen.frame,
        group_title(id_),
        alerts=list(view.alerts()),
        facts=view.facts(),
        acts=[
            Hyperlink("Members and storage", f"{seen.frame.path}/contents"),
            *offers.of_page(
                known,
                [("group", [*known, "partition"])],
                seen.back,
                without=() if view.waits_for else ("group release",),
            ),
        ],
        left_out=f"{tree.left_out} older partitions not drawn" if tree.left_out else None,
        rows=group_view.rows(tree, _acts_on_partitions(view, known, seen.back), seen.context.now),
        drawings=group_view.drawings(tree),
        legend=[(sample(kind), text) for kind, text in group_view.LEGEND],
    )


def contents(seen: Snapshot, *, hub: str, group_id: str) -> str:
    """Return the members of a group, and what it stores. This may take long, so the page does not refresh itself."""
    known = {"group": group_id, "hub": hub}
    storage = seen.answer("group storage", known)
    title = group_title(GroupId(from_base64url(storage["group_id"])))
    sizes = {name: value for name, value in storage.items() if name not in ("group_id", "name", "hub")}
    back = Hyperlink("Back to the partitions", seen.frame.path.removesuffix("/contents"))
    sections = [_members(seen, known), seen.section_of("Storage", "storage", sizes)]
    return seen.page(title, sections, older=back, live=False)


def _members(seen: Snapshot, known: Mapping[str, str]) -> PageSection:
    """Return the members at the end of each open branch, where they are known."""
    tables = []
    for branch in seen.answer("group members", known)["branches"]:
        epoch = "?" if branch["epoch"] is None else branch["epoch"]
        title = f"branch {branch['partition'][: group_view.KEY_DIGITS]}, epoch {epoch}, state {branch['state']}"
        members = branch["members"] or []
        left_out = len(members) - MEMBERS
        more = f"and {counted(left_out, 'more member')}" if left_out > 0 else None
        table = table_of("members", members[:MEMBERS], seen.ours, more=more)
        tables.append(attrs.evolve(table, title=title, empty="members not known here"))
    return PageSection("Members", "members", tables or [DataTable((), (), "no open branch")])


def _acts_on_partitions(
    view: group_view.GroupView, known: Mapping[str, str], back: str
) -> Mapping[int, Sequence[Hyperlink]]:
    """Return the acts on each partition of a group that is hosted here."""
    if view.group.hub != view.provider:
        return {}
    return {each.row: list(_acts_on(each, known, back)) for each in view.partitions}


def _acts_on(partition: PartitionSummary, known: Mapping[str, str], back: str) -> Iterator[Hyperlink]:
    """Yield the acts on a partition. A terminated branch can be opened again at the partition where it begins."""
    of_it = {**known, "partition": partition.masked_key.hex()}
    for each in offers.of_row("group", of_it, known, back):
        if each.text != "terminate" or not partition.terminated:
            yield each
        elif partition.terminated_reason is not None:
            yield attrs.evolve(each, text="open again", href=f"{each.href}&undo=yes", grave=False)
