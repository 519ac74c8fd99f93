"""The console's endpoints. Each page is read from one snapshot of the database."""

from __future__ import annotations

from typing import Final

from mimids.ds.services import Services
from mimids.errors import Malformed, NotFound
from mimids.http.api.bodies import NO_BODY, octets
from mimids.http.api.endpoints import Answer, AnyEndpoint, Call, Endpoint, Listener
from mimids.http.api.public import installed_version
from mimids.http.console import pages
from mimids.http.console.markup import Markup
from mimids.http.console.parts import HEADERS
from mimids.store import overview, recoveries, reports
from mimids.store.engine.transaction import Tx
from mimids.values import Operator
from mimids.wire.base64url import from_base64url
from mimids.wire.ids import GroupId, ProviderId

HTML: Final = "text/html; charset=utf-8"
REPORTS: Final = 50


async def console(services: Services, call: Call[Operator, None]) -> Answer[bytes]:
    """Return the overview: alerts, groups, providers, stock, reports, refusals."""
    config, now = services.config, services.clock.now()

    def read(tx: Tx) -> Markup:
        devices, without_stock = overview.devices_without_stock(tx, now)
        return pages.overview_page(
            pages.Overview(
                config.provider,
                installed_version(),
                now,
                services.store.statistics().writable,
                overview.group_summaries(tx),
                overview.peer_summaries(tx, config.provider),
                overview.stock_by_suite(tx, now, low=config.key_packages.low_stock_packages),
                devices,
                without_stock,
                recoveries.held_groups(tx),
                reports.newest(tx, closed=False, limit=REPORTS),
                services.telemetry.requests(),
            )
        )

    return _answer(await services.store.read(read))


async def console_group(services: Services, call: Call[Operator, None]) -> Answer[bytes]:
    """Return the page of one group, with its partitions drawn as a tree."""
    provider, now = services.config.provider, services.clock.now()
    try:
        group_id = GroupId(from_base64url(call.path["group_id"]))
    except ValueError:
        raise Malformed("the group id in the path is not base64url") from None

    def read(tx: Tx) -> Markup:
        group = overview.group_summary(tx, ProviderId(call.path["provider"]), group_id)
        if group is None:
            raise NotFound("there is no group with this hub and id")
        partitions = overview.partition_summaries(tx, group.row)
        waits_for = recoveries.waited_for(tx, group.row)
        return pages.group_page(provider, installed_version(), now, group, partitions, waits_for)

    return _answer(await services.store.read(read))


def _answer(page: Markup) -> Answer[bytes]:
    return Answer(page.encode(), headers=HEADERS)


# Not annotated, so that mypy checks each handler against its row (see `endpoints.AnyEndpoint`).
_ROWS = (
    Endpoint(
        name="console",
        listener=Listener.OPERATOR,
        method="GET",
        path="/console",
        caller=Operator,
        request=NO_BODY,
        answer=octets(HTML),
        handler=console,
        summary="a web page: alerts, groups, providers, stock, reports, refusals",
    ),
    Endpoint(
        name="console-group",
        listener=Listener.OPERATOR,
        method="GET",
        path="/console/groups/{provider}/{group_id}",
        caller=Operator,
        request=NO_BODY,
        answer=octets(HTML),
        handler=console_group,
        summary="a web page: the partitions of a group; the path has the hub, and the group id in base64url",
    ),
)
CONSOLE: Final[tuple[AnyEndpoint, ...]] = _ROWS
