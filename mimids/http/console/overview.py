"""The overview: what needs the operator, then tables of groups, providers, stock, reports and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from mimids.ds.following.delivery import OPEN_CIRCUIT_FAILURES
from mimids.ds.services import Services
from mimids.errors import Internal, every_error
from mimids.http.api.kept_page import KeptPage
from mimids.http.api.stock_totals import stock_totals
from mimids.http.console.parts import (
    Alert,
    Badge,
    Cell,
    CodeText,
    DataTable,
    Hyperlink,
    PageSection,
    Tile,
    counted,
    group_link,
    moment,
    number,
    provider_link,
)
from mimids.store import overview, recoveries, reports
from mimids.store.engine.transaction import Tx
from mimids.store.overview import GroupSummary, GroupTotals, PeerSummary, SuiteStock
from mimids.store.reports import StoredReport
from mimids.values import Milliseconds

LISTED: Final = 50  # groups on the overview; those with live forks come first
REPORTS: Final = 50
COUNTED: Final = 500  # rows of each kind for one provider are counted up to this number

_TITLES: Final[Mapping[str, str]] = {kind.code: kind.title for kind in every_error()}


@attrs.frozen
class Overview:
    """The data of the overview."""

    now: Milliseconds
    writable: bool
    groups: Sequence[GroupSummary]
    peers: Sequence[PeerSummary]
    stock: Sequence[SuiteStock]
    devices: int
    devices_without_stock: int
    held_groups: int  # groups held since a restore
    reports: Sequence[StoredReport]  # open reports, newest first
    requests: Counter[tuple[str, str]]  # counts by route and code, since the start
    totals: GroupTotals  # of all groups: `groups` may have only some


_KEPT: Final = KeptPage[Overview]()


async def read_overview(services: Services) -> Overview:
    """Return the data of the overview, which may be cached."""
    config, now = services.config, services.clock.now()

    stock = await stock_totals(services)

    def read(tx: Tx) -> Overview:
        return Overview(
            now,
            services.store.statistics().writable,
            overview.newest_groups(tx, limit=LISTED),
            overview.peer_summaries(tx, config.provider, count_to=COUNTED),
            stock.suites,
            stock.devices,
            stock.devices_empty,
            recoveries.held_groups(tx),
            reports.newest(tx, closed=False, limit=REPORTS),
            services.telemetry.requests(),
            overview.group_totals(tx),
        )

    return await _KEPT.read(services.store, read)


def tiles(seen: Overview) -> list[Tile]:
    """Return the numbers at the top."""
    refused = sum(count for (_, code), count in seen.requests.items() if code not in ("ok", "closed"))
    behind = sum(each.behind for each in seen.peers)
    return [
        Tile("groups", seen.totals.groups, f"{number(seen.totals.messages)} messages", "/console/groups"),
        Tile("live forks", seen.totals.live_forks, "forks with messages on several branches", "#groups"),
        Tile("undelivered", behind, f"messages for {counted(len(seen.peers), 'provider')}", "/console/providers"),
        Tile(
            "KeyPackages",
            sum(each.ordinary for each in seen.stock),
            f"of {counted(seen.devices, 'device')}",
            "#stock",
        ),
        Tile("open reports", len(seen.reports), "from users and providers", "/console/reports"),
        Tile("refused", refused, f"of {number(seen.requests.total())} requests since the start", "#refused"),
    ]


def sections(seen: Overview) -> list[PageSection]:
    """Return the tables."""
    return [
        PageSection("Groups", "groups", [groups_table(seen.groups, seen.totals.groups)]),
        PageSection("Other providers", "providers", [peers_table(seen.peers, seen.now)]),
        PageSection("KeyPackages in stock", "stock", [_stock(seen.stock)]),
        PageSection("Open reports", "reports", [reports_table(seen.reports, "no open reports")]),
        PageSection("Refused since the start", "refused", [_refusals(seen.requests)]),
    ]


# --- alerts -----------------------------------------------------------------------------------------------------


def alerts(seen: Overview) -> Iterator[Alert]:
    """Yield what needs the operator, the worst first."""
    if not seen.writable:
        yield Alert("bad", "The disk takes no writes", "free space on it; the server recovers by itself")
    faults = sum(count for (_, code), count in seen.requests.items() if code == Internal.code)
    if faults:
        yield Alert(
            "bad", f"{counted(faults, 'request')} failed by an error of this server", "the log has the traceback"
        )
    for peer in seen.peers:
        yield from _of_peer(peer)
    if seen.held_groups:
        what = f"{counted(seen.held_groups, 'group')} held since a restore"
        yield Alert("warn", what, Hyperlink("waiting for answers of other providers", "/console/health#held"))
    forked = [group for group in seen.groups if group.live_forks]
    for group in forked[:3]:
        yield Alert(
            "warn",
            [group_link(group), f"has {counted(group.live_forks, 'live fork')}"],
            "check whether members still use both branches",
        )
    if len(forked) > 3:
        yield Alert("warn", f"{counted(len(forked) - 3, 'more group')} with live forks", "listed below")
    if seen.devices_without_stock:
        what = f"{counted(seen.devices_without_stock, 'device')} without KeyPackages"
        yield Alert("note", what, "nobody can add them to a group until their clients upload some")
    if seen.reports:
        yield Alert("note", counted(len(seen.reports), "open report"), Hyperlink("read them", "/console/reports"))


def _of_peer(peer: PeerSummary) -> Iterator[Alert]:
    if peer.stuck:
        what = f"permanently refuses pushes of {counted(peer.stuck, 'partition')}"
        yield Alert("bad", [provider_link(peer.provider), what], "the log of that provider may say why")
    if peer.failures >= OPEN_CIRCUIT_FAILURES:
        since = "" if peer.failing_since is None else f" since {moment(peer.failing_since)}"
        yield Alert(
            "warn",
            [provider_link(peer.provider), f"does not answer{since}"],
            ["messages for it are delivered once it answers;", CodeText("mimids check"), "shows the reason"],
        )


# --- tables -----------------------------------------------------------------------------------------------------


def groups_table(groups: Sequence[GroupSummary], total: int | None = None) -> DataTable:
    """Return a table of groups, those with live forks first; `total` is the number of all groups."""
    shown = sorted(groups, key=lambda group: (-bool(group.live_forks), -group.row))[: total and LISTED]
    rows: list[list[Cell]] = [
        [
            group_link(group),
            group.hub,
            "?" if group.epoch is None else group.epoch,
            group.messages,
            group.partitions,
            [
                *([Badge("fork", counted(group.live_forks, "live fork"))] if group.live_forks else []),
                *([Badge("detached", f"{group.detached} detached")] if group.detached else []),
                *([Badge("detached", "linear")] if group.linear else []),
                *([Badge("ended", "replaced")] if group.successor_group_id else []),
            ],
        ]
        for group in shown
    ]
    left_out = 0 if total is None else total - len(shown)
    more = Hyperlink(f"{number(left_out)} more", "/console/groups") if left_out > 0 else None
    return DataTable(("group", "hub", "epoch#", "messages#", "partitions#", "notes"), rows, "no groups yet", more)


def peers_table(peers: Sequence[PeerSummary], now: Milliseconds) -> DataTable:
    """Return a table of other providers."""
    rows: list[list[Cell]] = [
        [
            provider_link(each.provider),
            each.follows,
            each.groups,
            each.behind,
            _reachability(each, now),
            ", ".join(
                f"{count} {what}"
                for count, what in ((each.welcomes_waiting, "waiting"), (each.welcomes_refused, "refused"))
                if count
            ),
        ]
        for each in peers
    ]
    columns = ("provider", "follows#", "groups there#", "undelivered#", "reachable", "Welcomes")
    return DataTable(columns, rows, "no other provider is known yet")


def _reachability(peer: PeerSummary, now: Milliseconds) -> Cell:
    if peer.stuck:
        return Badge("bad", f"{counted(peer.stuck, 'partition')} stuck")
    if not peer.failures:
        return Badge("good", "reachable") if peer.follows or peer.groups else None
    wait = max(0, peer.next_attempt_at - now) // 1000
    again = f"next attempt in {wait} s" if wait else "next attempt now"
    tone = "bad" if peer.failures >= OPEN_CIRCUIT_FAILURES else "warn"
    since = "" if peer.failing_since is None else f" since {moment(peer.failing_since)}"
    return [Badge(tone, f"{counted(peer.failures, 'failure')} in a row{since}"), again]


def _stock(stock: Sequence[SuiteStock]) -> DataTable:
    rows: list[list[Cell]] = [
        [
            str(each.cipher_suite),
            each.ordinary,
            each.devices,
            Badge("warn", each.low) if each.low else 0,
            Badge("bad", each.last_resort_only) if each.last_resort_only else 0,
        ]
        for each in stock
    ]
    columns = ("cipher suite", "KeyPackages#", "devices#", "low on stock#", "last resort only#")
    return DataTable(columns, rows, "no device has uploaded KeyPackages yet")


def reports_table(found: Sequence[StoredReport], empty: str) -> DataTable:
    """Return a table of reports."""
    rows: list[list[Cell]] = [
        [
            Hyperlink(str(each.id), f"/console/reports/{each.id}"),
            moment(each.received_at),
            each.kind,
            each.accused,
            each.note[:200],
            len(each.evidence),
            "not yet" if each.replayed_at is None else "yes",
        ]
        for each in found
    ]
    return DataTable(("id", "received", "kind", "accused", "note", "messages#", "evidence checked"), rows, empty)


def _refusals(requests: Counter[tuple[str, str]]) -> DataTable:
    by_code: dict[str, Counter[str]] = {}
    for (route, code), count in requests.items():
        if code not in ("ok", "closed"):
            by_code.setdefault(code, Counter())[route] += count
    ordered = sorted(by_code.items(), key=lambda each: (-each[1].total(), each[0]))
    rows: list[list[Cell]] = [
        [
            CodeText(code),
            routes.total(),
            _TITLES.get(code, ""),
            ", ".join(f"{route} {number(count)}" for route, count in routes.most_common(4)),
        ]
        for code, routes in ordered
    ]
    return DataTable(("reason", "requests#", "meaning", "endpoints"), rows, "nothing was refused")
