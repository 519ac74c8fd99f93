"""Commands on reports from users and other providers."""

from __future__ import annotations

import json
from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, Hints, JsonObject
from mimids.errors import Malformed, NotFound
from mimids.store import reports
from mimids.store.engine.transaction import Tx
from mimids.store.reports import StoredReport
from mimids.wire.base64url import base64url
from mimids.wire.ids import provider_id

LISTED: Final = 200


def _list(tx: Tx, _: Context, *, all: bool = False) -> JsonObject:
    return {"reports": [_summary(each) for each in reports.newest(tx, closed=all, limit=LISTED)]}


def _read(tx: Tx, _: Context, *, report: int) -> JsonObject:
    found = _find(tx, report)
    return {
        **_summary(found),
        "note": found.note,
        "evidence": [
            {"message": base64url(octets), **finding}
            for octets, finding in zip(found.evidence, _findings(found), strict=True)
        ],
        "passed_on_to": found.passed_on_to,
        "passed_on_at": found.passed_on_at,
        "outcome": found.outcome,
    }


def _pass_on(tx: Tx, context: Context, *, report: int, provider: str) -> JsonObject:
    found = _find(tx, report)
    try:
        to = provider_id(provider)
    except ValueError:
        raise Malformed("provider: expected a domain in lower case, such as c.example") from None
    if to == context.config.provider:
        raise Malformed("provider: this is our own domain; give another provider's domain")
    reports.pass_on(tx, found.id, to)
    return {"id": found.id, "passed_on_to": to}


def _close(tx: Tx, context: Context, *, report: int, outcome: str = "") -> JsonObject:
    found = _find(tx, report)
    reports.close(tx, found.id, outcome, context.now)
    return {"id": found.id}


def _find(tx: Tx, report: int) -> StoredReport:
    found = reports.find(tx, report)
    if found is None:
        raise NotFound("there is no report with this number")
    return found


def _findings(report: StoredReport) -> list[JsonObject]:
    """Return the finding on each piece of evidence; before the evidence is replayed, the findings are empty objects."""
    found: list[JsonObject] = json.loads(report.findings)
    return found if report.replayed_at is not None else [{} for _ in report.evidence]


def _summary(report: StoredReport) -> JsonObject:
    user, provider = report.reporter_user, report.reporter_provider
    return {
        "id": report.id,
        "reference": reports.reference_of(report.digest),
        "received_at": report.received_at,
        "kind": report.kind,
        "accused": report.accused,
        "hub": report.hub,
        "group_id": None if report.group_id is None else base64url(report.group_id),
        "reporter": provider if user is None else user.decode("utf-8", "replace"),
        "messages": len(report.evidence),
        "replayed_at": report.replayed_at,
        "closed_at": report.closed_at,
    }


_SUMMARY: Final = (
    '"id": 7, "reference": 153862790184721, "received_at": 1764000000000, "kind": "spam",'
    ' "accused": "mimi://c.example/u/carol", "hub": "a.example",'
    ' "group_id": null, "reporter": "mimi://b.example/u/bob", "messages": 1, "replayed_at": 1764000001000,'
    ' "closed_at": null'
)
_EVIDENCE: Final = (
    '{"message": "AAEAAg", "wire_format": "private_message", "epoch": 3, "partition": "8c5a", "counter": 4,'
    ' "state": "derived", "verdict": "valid", "why": null}'
)
_REPORT: Final = Argument(
    "report", "the report's number, or the reference that its reporter got", 7, ArgumentKind.NUMBER
)
_HINTS: Final[Hints] = {NotFound: "run `mimids report list --all` to see all reports"}

REPORTS: Final = (
    Command(
        name="report list",
        summary="List the newest reports.",
        arguments=(Argument("all", "list closed reports too", True, ArgumentKind.FLAG, required=False, flag="--all"),),
        work=_list,
        answer=f'{{"reports": [{{{_SUMMARY}}}]}}',
        example="mimids report list",
        writes=False,
    ),
    Command(
        name="report read",
        summary="Show a report with its evidence, and what is known here of each message.",
        arguments=(_REPORT,),
        work=_read,
        answer=f'{{{_SUMMARY}, "note": "", "evidence": [{_EVIDENCE}], "passed_on_to": null, "passed_on_at": null,'
        ' "outcome": null}',
        example="mimids report read 7",
        writes=False,
        hints=_HINTS,
    ),
    Command(
        name="report pass-on",
        summary="Pass a report on to another provider, without the reporter's name.",
        arguments=(_REPORT, Argument("provider", "the other provider's domain", "c.example")),
        work=_pass_on,
        answer='{"id": 7, "passed_on_to": "c.example"}',
        example="mimids report pass-on 7 c.example",
        effects=(Effect.REPORTS,),
        hints=_HINTS,
    ),
    Command(
        name="report close",
        summary="Close a report.",
        arguments=(
            _REPORT,
            Argument("outcome", "a note on the outcome", "banned", required=False, flag="--outcome", secret=True),
        ),
        work=_close,
        answer='{"id": 7}',
        example="mimids report close 7 --outcome banned",
        hints=_HINTS,
    ),
)
