"""The console's pages as HTML. The functions here only format; endpoints.py reads the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from mimids.ds.following.delivery import OPEN_CIRCUIT_FAILURES
from mimids.ds.groups.tree_layout import PartitionTree, TreeRow, lay_out
from mimids.errors import Internal, every_error
from mimids.http.console.markup import Child, Markup, element
from mimids.http.console.parts import (
    badge,
    command,
    counted,
    group_title,
    header,
    link,
    moment,
    number,
    page,
    section,
    table,
    tile,
)
from mimids.http.console.tree import draw
from mimids.store.overview import GroupSummary, PartitionSummary, PeerSummary, SuiteStock
from mimids.store.reports import StoredReport
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId

LISTED: Final = 200  # groups on the overview; those with live forks come first
KEY_DIGITS: Final = 8  # hex digits shown of a masked partition key

_TITLES: Final[Mapping[str, str]] = {kind.code: kind.title for kind in every_error()}


@attrs.frozen
class Overview:
    """The data of the overview page."""

    provider: ProviderId
    version: str
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


@attrs.frozen
class Alert:
    """A message to the operator: what happened, and what to do."""

    tone: str  # "bad", "warn", "note"
    what: Child
    advice: Child


def overview_page(seen: Overview) -> Markup:
    """Return the overview page: alerts first, then the tables."""
    refused = sum(count for (_, code), count in seen.requests.items() if code not in ("ok", "closed"))
    behind = sum(each.behind for each in seen.peers)
    tiles = [
        tile("groups", len(seen.groups), f"{number(sum(each.messages for each in seen.groups))} messages"),
        tile("live forks", sum(each.live_forks for each in seen.groups), "forks with messages on several branches"),
        tile("undelivered", behind, f"messages for {counted(len(seen.peers), 'provider')}"),
        tile("KeyPackages", sum(each.ordinary for each in seen.stock), f"of {counted(seen.devices, 'device')}"),
        tile("open reports", len(seen.reports), "from users and providers"),
        tile("refused", refused, f"of {number(seen.requests.total())} requests since the start"),
    ]
    return page(
        f"{seen.provider}: mimids",
        header(seen.provider, seen.version, seen.now),
        _alert_list(list(_alerts(seen))),
        element("div", tiles, class_="tiles"),
        section("Groups", _groups(seen.groups), id_="groups"),
        section("Other providers", _peers(seen.peers, seen.now), id_="providers"),
        section("KeyPackages in stock", _stock(seen.stock), id_="stock"),
        section("Open reports", _reports(seen.reports), id_="reports"),
        section("Refused since the start", _refusals(seen.requests), id_="refused"),
    )


def group_page(
    provider: ProviderId,
    version: str,
    now: Milliseconds,
    group: GroupSummary,
    partitions: Sequence[PartitionSummary],
    waits_for: Sequence[str],
) -> Markup:
    """Return the page of one group, with its partitions drawn."""
    forks, ended = group.live_forks, sum(each.terminated for each in partitions)
    alerts = []
    if forks and group.hub == provider:
        advice = [
            "if it persists, ask the members, and terminate the branch to give up: ",
            command("mimids group terminate"),
        ]
        alerts.append(Alert("warn", counted(forks, "live fork"), advice))
    if waits_for:
        held = f"held since a restore, waiting for answers from {', '.join(waits_for)}"
        alerts.append(
            Alert("warn", held, [command("mimids group release"), " ends the wait for a provider that will not answer"])
        )
    facts: list[tuple[str, Child]] = [
        ("hub", group.hub + (" (this provider)" if group.hub == provider else "")),
        ("cipher suite", group.cipher_suite),
        ("since", moment(group.created_at)),
        ("messages", number(group.messages)),
        ("partitions", f"{number(group.partitions)}, {group.detached} detached, {ended} terminated"),
        ("group id", element("code", base64url(group.group_id))),
    ]
    return page(
        f"{group_title(group)}: {provider}",
        header(provider, version, now, up=True),
        element("h1", group_title(group), class_="name"),
        _alert_list(alerts) if alerts else None,
        element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts]),
        section("Partitions", _drawing(lay_out(partitions), group, provider), _legend()),
    )


# --- alerts -----------------------------------------------------------------------------------------------------


def _alerts(seen: Overview) -> Iterator[Alert]:
    if not seen.writable:
        yield Alert("bad", "The disk takes no writes", "free space on it; the server recovers by itself")
    faults = sum(count for (_, code), count in seen.requests.items() if code == Internal.code)
    if faults:
        yield Alert(
            "bad", f"{counted(faults, 'request')} failed by an error of this server", "the log has the traceback"
        )
    for peer in seen.peers:
        if peer.stuck:
            what = f"{peer.provider} permanently refuses pushes of {counted(peer.stuck, 'partition')}"
            yield Alert("bad", what, command(f"mimids provider show {peer.provider}"))
        if peer.failures >= OPEN_CIRCUIT_FAILURES:
            since = "" if peer.failing_since is None else f" since {moment(peer.failing_since)}"
            what = f"{peer.provider} does not answer{since}"
            yield Alert(
                "warn",
                what,
                ["messages for it are delivered once it answers; ", command("mimids check"), " shows the reason"],
            )
    if seen.held_groups:
        yield Alert(
            "warn",
            f"{counted(seen.held_groups, 'group')} held since a restore",
            ["waiting for answers of other providers; ", command("mimids group show GROUP"), " lists them"],
        )
    forked = [group for group in seen.groups if group.live_forks]
    for group in forked[:3]:
        yield Alert(
            "warn",
            [link(group), f" has {counted(group.live_forks, 'live fork')}"],
            "check whether members still use both branches",
        )
    if len(forked) > 3:
        yield Alert("warn", f"{counted(len(forked) - 3, 'more group')} with live forks", "listed below")
    if seen.devices_without_stock:
        what = f"{counted(seen.devices_without_stock, 'device')} without KeyPackages"
        yield Alert("note", what, "nobody can add them to a group until their clients upload some")
    if seen.reports:
        yield Alert("note", counted(len(seen.reports), "open report"), command("mimids report list"))


def _alert_list(alerts: Sequence[Alert]) -> Markup:
    if not alerts:
        return element("p", "No alerts: nothing here needs your attention.", class_="all-good")
    items = [
        element("li", element("b", each.what), " ", element("span", each.advice), class_=each.tone) for each in alerts
    ]
    return element("ul", items, class_="alerts")


# --- sections of the overview -----------------------------------------------------------------------------------


def _groups(groups: Sequence[GroupSummary]) -> Iterator[Markup]:
    shown = sorted(groups, key=lambda group: (-group.live_forks, -group.row))[:LISTED]
    rows = [
        (
            link(group),
            group.hub,
            "?" if group.epoch is None else group.epoch,
            group.messages,
            group.partitions,
            [
                badge("fork", counted(group.live_forks, "live fork")) if group.live_forks else None,
                badge("detached", f"{group.detached} detached") if group.detached else None,
            ],
        )
        for group in shown
    ]
    yield table(("group", "hub", "epoch#", "messages#", "partitions#", ""), rows, "no groups yet")
    if len(groups) > len(shown):
        more = f"{number(len(groups) - len(shown))} more: "
        yield element("p", more, command("mimids group list"), class_="more")


def _peers(peers: Sequence[PeerSummary], now: Milliseconds) -> Markup:
    rows = [
        (
            each.provider,
            each.follows,
            each.groups,
            each.behind,
            _reachability(each, now),
            [
                f"{each.welcomes_waiting} waiting" if each.welcomes_waiting else None,
                ", " if each.welcomes_waiting and each.welcomes_refused else None,
                f"{each.welcomes_refused} refused" if each.welcomes_refused else None,
            ],
        )
        for each in peers
    ]
    columns = ("provider", "follows#", "groups there#", "undelivered#", "", "Welcomes")
    return table(columns, rows, "no other provider is known yet")


def _reachability(peer: PeerSummary, now: Milliseconds) -> Child:
    if peer.stuck:
        return badge("bad", f"{counted(peer.stuck, 'partition')} stuck")
    if not peer.failures:
        return badge("good", "reachable") if peer.follows or peer.groups else None
    wait = max(0, peer.next_attempt_at - now) // 1000
    again = f"next attempt in {wait} s" if wait else "next attempt now"
    tone = "bad" if peer.failures >= OPEN_CIRCUIT_FAILURES else "warn"
    since = "" if peer.failing_since is None else f" since {moment(peer.failing_since)}"
    return [badge(tone, f"{counted(peer.failures, 'failure')} in a row{since}"), " ", element("small", again)]


def _stock(stock: Sequence[SuiteStock]) -> Markup:
    rows = [
        (
            each.cipher_suite,
            each.ordinary,
            each.devices,
            badge("warn", each.low) if each.low else 0,
            badge("bad", each.last_resort_only) if each.last_resort_only else 0,
        )
        for each in stock
    ]
    columns = ("cipher suite", "KeyPackages#", "devices#", "low on stock#", "last resort only#")
    return table(columns, rows, "no device has uploaded KeyPackages yet")


def _reports(reports: Sequence[StoredReport]) -> Markup:
    rows = [
        (
            each.id,
            moment(each.received_at),
            each.kind,
            each.accused,
            each.note[:200],
            len(each.evidence),
            "not yet" if each.replayed_at is None else "yes",
        )
        for each in reports
    ]
    columns = ("id#", "received", "kind", "accused", "note", "messages#", "evidence checked")
    return table(columns, rows, "no open reports")


def _refusals(requests: Counter[tuple[str, str]]) -> Markup:
    by_code: dict[str, Counter[str]] = {}
    for (route, code), count in requests.items():
        if code not in ("ok", "closed"):
            by_code.setdefault(code, Counter())[route] += count
    ordered = sorted(by_code.items(), key=lambda each: (-each[1].total(), each[0]))
    rows = [
        (
            element("code", code),
            routes.total(),
            _TITLES.get(code, ""),
            ", ".join(f"{route} {number(count)}" for route, count in routes.most_common(4)),
        )
        for code, routes in ordered
    ]
    return table(("reason", "requests#", "", "endpoints"), rows, "nothing was refused")


# --- the drawing ------------------------------------------------------------------------------------------------


def _drawing(tree: PartitionTree, group: GroupSummary, provider: ProviderId) -> Iterator[Markup]:
    if tree.left_out:
        yield element("p", f"{counted(tree.left_out, 'older partition')} not drawn", class_="more")
    if not tree.rows:
        yield element("p", "no partitions", class_="empty")
        return
    most = max((row.messages for row in tree.rows if not row.folded), default=0)
    head = ("", "epoch", "key", "messages", "", "state", "", "followers")
    picture = element("td", draw(tree), rowspan=len(tree.rows), class_="drawing")
    rows = [element("tr", picture if n == 0 else None, _described(row, most)) for n, row in enumerate(tree.rows)]
    rows_beside = element(
        "table",
        element("thead", element("tr", [element("th", each) for each in head])),
        element("tbody", rows),
        class_="partitions",
    )
    yield element("div", rows_beside, class_="wide")


def _described(row: TreeRow, most: int) -> Iterator[Markup]:
    each = row.partition
    epoch = "?" if each.epoch is None else str(each.epoch)
    if row.folded:
        until = "" if each.epoch is None else f"to {each.epoch}"
        epoch, key = f"{number(row.folded)} epochs", element("td", until, class_="dim")
    else:
        full = f"{each.masked_key.hex()}, opened {moment(each.opened_at)}"
        key = element("td", element("code", each.masked_key.hex()[:KEY_DIGITS], title=full))
    yield element("td", epoch, class_="epoch")
    yield key
    yield element("td", number(row.messages), class_="number")
    yield element("td", None if row.folded else _bar(row.messages, most))
    yield element("td", each.knowledge, class_="dim")
    notes = [
        badge("fork", "live fork") if row.partition.live_fork else None,
        badge("detached", "detached") if each.detached else None,
        badge("ended", "terminated" + (f": {each.terminated_reason}" if each.terminated_reason else ""))
        if each.terminated
        else None,
        badge("note", f"{counted(each.held_welcomes, 'Welcome')} held") if each.held_welcomes else None,
    ]
    yield element("td", notes)
    yield element("td", ", ".join(each.followers), class_="dim")


def _bar(value: int, most: int) -> Markup:
    width = 0 if not value else max(2, round(96 * value / most))
    return element("svg", element("rect", width=width, height=8, rx=2), width=96, height=8, class_="bar")


def _legend() -> Markup:
    kinds = (
        ("derived", "state known from the group's own commits"),
        ("claimed", "state known from a GroupInfo only"),
        ("unknown", "state not known to the server, only to members"),
        ("fork", "live fork: more than one branch below carries messages"),
        ("terminated", "terminated: can be read, but takes no new messages"),
        ("detached", "detached: no known commit leads there"),
    )
    return element("p", [element("span", _sample(kind), text) for kind, text in kinds], class_="legend")


def _sample(kind: str) -> Markup:
    classes = f"node lane0 {kind if kind in ('claimed', 'unknown', 'terminated', 'detached') else 'derived'}"
    inner = [element("circle", cx=10, cy=10, r=6)]
    if kind == "fork":
        inner.insert(0, element("circle", cx=10, cy=10, r=9, class_="fork"))
    if kind == "claimed":
        inner.append(element("circle", cx=10, cy=10, r=3, class_="core"))
    if kind == "terminated":
        inner.append(element("path", d="M7 7l6 6m0 -6l-6 6", class_="cross"))
    return element("svg", element("g", inner, class_=classes), width=20, height=20)
