"""The pages on reports and policy, and on what operators did."""

from __future__ import annotations

from typing import Final

import attrs

from mimids.http.console import offers
from mimids.http.console.answers import table_of
from mimids.http.console.overview import reports_table
from mimids.http.console.parts import Hyperlink, PageSection
from mimids.http.console.snapshot import PER_PAGE, Snapshot
from mimids.store import reports as stored

REPORTS: Final = 200


def reports(seen: Snapshot) -> str:
    """Return the newest open reports, or the newest reports of all kinds."""
    every = seen.text("all") == "yes"
    found = stored.newest(seen.tx, closed=every, limit=REPORTS)
    table = reports_table(found, "no reports" if every else "no open reports")
    other = Hyperlink("only open reports", "?") if every else Hyperlink("closed reports too", "?all=yes")
    section = PageSection("All reports" if every else "Open reports", "reports", [attrs.evolve(table, more=other)])
    return seen.page("Reports", [section])


def report(seen: Snapshot, *, report: int) -> str:
    """Return one report with its evidence; raise `NotFound` if there is no such report."""
    answer = seen.answer("report read", {"report": report})
    known = {"report": str(report), "subject": answer["accused"]}
    acts = offers.of_page(known, (), seen.back, without=("ban remove",))
    return seen.page(f"Report {report}", [seen.section_of("What was reported", "report", answer, acts)])


def policy(seen: Snapshot) -> str:
    """Return bans, muted users, and the rate limits."""
    limits = seen.answer("limit list")
    banned = seen.answer("ban list")["bans"]
    bans = seen.table_with_acts("ban", "bans", banned, {"subject": "subject"})
    mutes = seen.table_with_acts("limit", "mutes", limits["mutes"], {"user": "user_id", "group": "group_id"})
    sections = [
        PageSection("Bans", "bans", [bans], acts=offers.named(("ban add",), seen.back)),
        PageSection("Muted users", "mutes", [mutes], acts=offers.named(("limit mute",), seen.back)),
        PageSection("Rate limits", "rates", [table_of("rates", limits["rates"], seen.ours)]),
    ]
    return seen.page("Policy", sections)


def audit(seen: Snapshot) -> str:
    """Return what operators did, the newest first."""
    rows = seen.answer("audit", {"limit": PER_PAGE, "before": seen.number("before")})["entries"]
    older = seen.older(rows, "before", rows[-1]["id"]) if rows else None
    section = PageSection("What operators did", "audit", [table_of("entries", rows, seen.ours)])
    return seen.page("Audit", [section], older=older)
