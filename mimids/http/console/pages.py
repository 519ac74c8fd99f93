"""The console's pages: from what was read to HTML. Nothing here waits or reads."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

import attrs

from mimids.ds.commands.groups import group_name
from mimids.ds.following.delivery import OPEN_CIRCUIT_FAILURES
from mimids.ds.groups.tree_layout import PartitionTree, TreeRow, lay_out
from mimids.errors import Internal, every_error
from mimids.http.console.markup import Child, Markup, element
from mimids.http.console.tree import draw
from mimids.store.overview import GroupSummary, PartitionSummary, PeerSummary, SuiteStock
from mimids.store.reports import StoredReport
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId

LISTED: Final = 200  # groups on the first page; those that need a look come first
KEY_DIGITS: Final = 8  # of a masked partition key

STYLE: Final = files("mimids.http.console").joinpath("console.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# Nothing is fetched, run, framed or sent from these pages, whatever a peer managed to have written into one.
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TITLES: Final[Mapping[str, str]] = {kind.code: kind.title for kind in every_error()}


@attrs.frozen
class Overview:
    """What the first page shows."""

    provider: ProviderId
    version: str
    now: Milliseconds
    writable: bool
    groups: Sequence[GroupSummary]
    peers: Sequence[PeerSummary]
    stock: Sequence[SuiteStock]
    devices: int
    devices_without_stock: int
    held_groups: int  # since a restore
    reports: Sequence[StoredReport]  # open ones, newest first
    requests: Counter[tuple[str, str]]  # by route and code, since the start


@attrs.frozen
class Alert:
    """Something for the operator: what is, and what to do."""

    tone: str  # "bad", "warn", "note"
    what: Child
    mend: Child


def overview_page(seen: Overview) -> Markup:
    """Return the first page: what needs somebody, then everything."""
    refused = sum(count for (_, code), count in seen.requests.items() if code not in ("ok", "closed"))
    behind = sum(each.behind for each in seen.peers)
    tiles = [
        _tile("groups", len(seen.groups), f"{_number(sum(each.messages for each in seen.groups))} messages"),
        _tile("live forks", sum(each.live_forks for each in seen.groups), "branches that all carry messages"),
        _tile("due to others", behind, f"messages, to {_many(len(seen.peers), 'provider')}"),
        _tile("KeyPackages", sum(each.ordinary for each in seen.stock), f"of {_many(seen.devices, 'device')}"),
        _tile("open reports", len(seen.reports), "from users and providers"),
        _tile("refused", refused, f"of {_number(seen.requests.total())} requests since the start"),
    ]
    return _page(
        f"{seen.provider}: mimids",
        _header(seen.provider, seen.version, seen.now),
        _matters(list(_what_matters(seen))),
        element("div", tiles, class_="tiles"),
        _section("Groups", _groups(seen.groups), id_="groups"),
        _section("Other providers", _peers(seen.peers, seen.now), id_="providers"),
        _section("KeyPackages in stock", _stock(seen.stock), id_="stock"),
        _section("Open reports", _reports(seen.reports), id_="reports"),
        _section("Refused since the start", _refusals(seen.requests), id_="refused"),
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
    matters = []
    if forks and group.hub == provider:
        mend = ["should it stay, ask its members, and end the branch that lost: ", _code("mimids group terminate")]
        matters.append(Alert("warn", _many(forks, "live fork"), mend))
    if waits_for:
        until = f"held since a restore, until {', '.join(waits_for)} say what they have"
        matters.append(Alert("warn", until, [_code("mimids group release"), " ends the wait for one that never will"]))
    facts: list[tuple[str, Child]] = [
        ("hub", group.hub + (" (this provider)" if group.hub == provider else "")),
        ("cipher suite", group.cipher_suite),
        ("since", _moment(group.created_at)),
        ("messages", _number(group.messages)),
        ("partitions", f"{_number(group.partitions)}, {group.detached} detached, {ended} terminated"),
        ("group id", element("code", base64url(group.group_id))),
    ]
    return _page(
        f"{_called(group)}: {provider}",
        _header(provider, version, now, up=True),
        element("h1", _called(group), class_="name"),
        _matters(matters) if matters else None,
        element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts]),
        _section("Partitions", _tree(lay_out(partitions), group, provider), _legend()),
    )


# --- what needs somebody ----------------------------------------------------------------------------------------


def _what_matters(seen: Overview) -> Iterator[Alert]:
    if not seen.writable:
        yield Alert("bad", "The disk takes no writes", "make room; it goes on by itself")
    faults = sum(count for (_, code), count in seen.requests.items() if code == Internal.code)
    if faults:
        yield Alert("bad", f"{_many(faults, 'request')} ended in a fault of this server", "the log has the traceback")
    for peer in seen.peers:
        if peer.stuck:
            what = f"{peer.provider} refuses {_many(peer.stuck, 'partition')} for good"
            yield Alert("bad", what, _code(f"mimids provider show {peer.provider}"))
        if peer.failures >= OPEN_CIRCUIT_FAILURES:
            since = "" if peer.failing_since is None else f" since {_moment(peer.failing_since)}"
            what = f"{peer.provider} does not answer{since}"
            yield Alert("warn", what, ["it gets what it is owed once it does; ", _code("mimids check"), " says more"])
    if seen.held_groups:
        yield Alert(
            "warn",
            f"{_many(seen.held_groups, 'group')} held since a restore",
            ["until others say what they have; ", _code("mimids group show GROUP"), " says who"],
        )
    forked = [group for group in seen.groups if group.live_forks]
    for group in forked[:3]:
        yield Alert("warn", [_link(group), f" has {_many(group.live_forks, 'live fork')}"], "look whether it stays")
    if len(forked) > 3:
        yield Alert("warn", f"{_many(len(forked) - 3, 'more group')} with live forks", "listed below")
    if seen.devices_without_stock:
        what = f"{_many(seen.devices_without_stock, 'device')} without KeyPackages"
        yield Alert("note", what, "nobody can add them to a group until their client uploads some")
    if seen.reports:
        yield Alert("note", _many(len(seen.reports), "open report"), _code("mimids report list"))


def _matters(matters: Sequence[Alert]) -> Markup:
    if not matters:
        return element("p", "All is well: nothing here needs you.", class_="well")
    items = [
        element("li", element("b", each.what), " ", element("span", each.mend), class_=each.tone) for each in matters
    ]
    return element("ul", items, class_="matters")


# --- the sections of the first page -----------------------------------------------------------------------------


def _groups(groups: Sequence[GroupSummary]) -> Iterator[Markup]:
    shown = sorted(groups, key=lambda group: (-group.live_forks, -group.row))[:LISTED]
    rows = [
        (
            _link(group),
            group.hub,
            "?" if group.epoch is None else group.epoch,
            group.messages,
            group.partitions,
            [
                _badge("fork", _many(group.live_forks, "live fork")) if group.live_forks else None,
                _badge("detached", f"{group.detached} detached") if group.detached else None,
            ],
        )
        for group in shown
    ]
    yield _table(("group", "hub", "epoch#", "messages#", "partitions#", ""), rows, "no groups yet")
    if len(groups) > len(shown):
        more = f"{_number(len(groups) - len(shown))} more: "
        yield element("p", more, _code("mimids group list"), class_="more")


def _peers(peers: Sequence[PeerSummary], now: Milliseconds) -> Markup:
    rows = [
        (
            each.provider,
            each.follows,
            each.groups,
            each.behind,
            _standing(each, now),
            [
                f"{each.welcomes_waiting} waiting" if each.welcomes_waiting else None,
                ", " if each.welcomes_waiting and each.welcomes_refused else None,
                f"{each.welcomes_refused} refused" if each.welcomes_refused else None,
            ],
        )
        for each in peers
    ]
    columns = ("provider", "follows#", "groups of its#", "messages due#", "", "Welcomes")
    return _table(columns, rows, "no other provider is known yet")


def _standing(peer: PeerSummary, now: Milliseconds) -> Child:
    if peer.stuck:
        return _badge("bad", f"{_many(peer.stuck, 'partition')} stuck")
    if not peer.failures:
        return _badge("good", "answers") if peer.follows or peer.groups else None
    wait = max(0, peer.next_attempt_at - now) // 1000
    again = f"tried again in {wait} s" if wait else "tried again now"
    tone = "bad" if peer.failures >= OPEN_CIRCUIT_FAILURES else "warn"
    since = "" if peer.failing_since is None else f" since {_moment(peer.failing_since)}"
    return [_badge(tone, f"failed {_many(peer.failures, 'time')}{since}"), " ", element("small", again)]


def _stock(stock: Sequence[SuiteStock]) -> Markup:
    rows = [
        (
            each.cipher_suite,
            each.ordinary,
            each.devices,
            _badge("warn", each.low) if each.low else 0,
            _badge("bad", each.last_resort_only) if each.last_resort_only else 0,
        )
        for each in stock
    ]
    columns = ("cipher suite", "KeyPackages#", "devices#", "of these low#", "with a last resort only#")
    return _table(columns, rows, "no device has uploaded KeyPackages yet")


def _reports(reports: Sequence[StoredReport]) -> Markup:
    rows = [
        (
            each.id,
            _moment(each.received_at),
            each.kind,
            each.accused,
            each.note[:200],
            len(each.evidence),
            "not yet" if each.replayed_at is None else "yes",
        )
        for each in reports
    ]
    columns = ("id#", "received", "kind", "accused", "note", "messages#", "evidence looked at")
    return _table(columns, rows, "no open reports")


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
            ", ".join(f"{route} {_number(count)}" for route, count in routes.most_common(4)),
        )
        for code, routes in ordered
    ]
    return _table(("reason", "requests#", "", "where"), rows, "nothing was refused")


# --- the drawing ------------------------------------------------------------------------------------------------


def _tree(tree: PartitionTree, group: GroupSummary, provider: ProviderId) -> Iterator[Markup]:
    if tree.left_out:
        yield element("p", f"{_many(tree.left_out, 'older partition')} not drawn", class_="more")
    if not tree.rows:
        yield element("p", "no partitions", class_="empty")
        return
    most = max((row.messages for row in tree.rows if not row.folded), default=0)
    head = ("", "epoch", "key", "messages", "", "state", "", "followers")
    picture = element("td", draw(tree), rowspan=len(tree.rows), class_="drawing")
    rows = [element("tr", picture if n == 0 else None, _described(row, most)) for n, row in enumerate(tree.rows)]
    table = element(
        "table",
        element("thead", element("tr", [element("th", each) for each in head])),
        element("tbody", rows),
        class_="partitions",
    )
    yield element("div", table, class_="wide")


def _described(row: TreeRow, most: int) -> Iterator[Markup]:
    each = row.partition
    epoch = "?" if each.epoch is None else str(each.epoch)
    if row.folded:
        until = "" if each.epoch is None else f"to {each.epoch}"
        epoch, key = f"{_number(row.folded)} epochs", element("td", until, class_="dim")
    else:
        full = f"{each.masked_key.hex()}, opened {_moment(each.opened_at)}"
        key = element("td", element("code", each.masked_key.hex()[:KEY_DIGITS], title=full))
    yield element("td", epoch, class_="epoch")
    yield key
    yield element("td", _number(row.messages), class_="number")
    yield element("td", None if row.folded else _bar(row.messages, most))
    yield element("td", each.knowledge, class_="dim")
    notes = [
        _badge("fork", "live fork") if row.partition.live_fork else None,
        _badge("detached", "detached") if each.detached else None,
        _badge("ended", "terminated" + (f": {each.terminated_reason}" if each.terminated_reason else ""))
        if each.terminated
        else None,
        _badge("note", f"{_many(each.held_welcomes, 'Welcome')} held") if each.held_welcomes else None,
    ]
    yield element("td", notes)
    yield element("td", ", ".join(each.followers), class_="dim")


def _bar(value: int, most: int) -> Markup:
    width = 0 if not value else max(2, round(96 * value / most))
    return element("svg", element("rect", width=width, height=8, rx=2), width=96, height=8, class_="bar")


def _legend() -> Markup:
    kinds = (
        ("derived", "state known from the group's own commits"),
        ("claimed", "known from a GroupInfo only"),
        ("unknown", "not known: members are, to each other"),
        ("fork", "live fork: more than one branch below carries messages"),
        ("terminated", "terminated: may be read, not sent to"),
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


# --- pieces -----------------------------------------------------------------------------------------------------


def _page(title: str, *content: Child) -> Markup:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    return Markup(f"<!doctype html>\n{element('html', head, element('body', element('main', *content)), lang='en')}\n")


def _header(provider: ProviderId, version: str, now: Milliseconds, *, up: bool = False) -> Markup:
    name = element("a", provider, href="/console", class_="home") if up else element("span", provider, class_="home")
    return element("header", name, element("small", f"mimids {version}, {_moment(now)}; load again for what is new"))


def _section(title: str, *content: Child, id_: str | None = None) -> Markup:
    return element("section", element("h2", title), *content, id_=id_)


def _tile(name: str, value: int, more: str) -> Markup:
    classes = "tile" if value else "tile none"
    return element("div", element("span", name), element("b", _number(value)), element("small", more), class_=classes)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Child]], empty: str) -> Markup:
    """Return a table; a column whose name ends in # holds numbers."""
    classes = ["number" if column.endswith("#") else None for column in columns]
    body = [
        element(
            "tr",
            [
                element("td", _number(cell) if isinstance(cell, int) else cell, class_=class_)
                for cell, class_ in zip(row, classes, strict=True)
            ],
        )
        for row in rows
    ]
    if not body:
        return element("p", empty, class_="empty")
    titles = zip(columns, classes, strict=True)
    head = element("tr", [element("th", column.rstrip("#"), class_=class_) for column, class_ in titles])
    return element("div", element("table", element("thead", head), element("tbody", body)), class_="wide")


def _badge(tone: str, text: Child) -> Markup:
    return element("span", text, class_=f"badge {tone}")


def _code(command: str) -> Markup:
    return element("code", command)


def _link(group: GroupSummary) -> Markup:
    return element("a", _called(group), href=f"/console/groups/{group.hub}/{base64url(group.group_id)}")


def _called(group: GroupSummary) -> str:
    return group_name(group.group_id) or base64url(group.group_id)


def _many(count: int, what: str) -> str:
    return f"{_number(count)} {what}{'' if count == 1 else 's'}"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _moment(at: Milliseconds) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}Z"
