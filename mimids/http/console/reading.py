"""The pages that only read, by path. Each is made from one snapshot of the database, in a thread that reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from quart import request

from mimids.ds.commands.declare import Context, Running
from mimids.ds.services import Services
from mimids.http.console import account_pages, group_pages, overview, policy_pages, provider_pages
from mimids.http.console.health import health_page, machine_section
from mimids.http.console.rendering import render
from mimids.http.console.requests import current_frame
from mimids.http.console.snapshot import Snapshot

if TYPE_CHECKING:
    from quart_trio import QuartTrio


class ReadingPages:
    """The handlers of the pages that only read."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, app: QuartTrio) -> None:
        """Add the routes."""
        for path, name, page in (
            ("/console/groups", "groups", group_pages.groups),
            ("/console/groups/<hub>/<group_id>", "group", group_pages.group),
            ("/console/groups/<hub>/<group_id>/contents", "group-contents", group_pages.contents),
            ("/console/providers", "providers", provider_pages.providers),
            ("/console/providers/<provider>", "provider", provider_pages.provider),
            ("/console/users", "users", account_pages.users),
            ("/console/tokens", "tokens", account_pages.tokens),
            ("/console/reports", "reports", policy_pages.reports),
            ("/console/reports/<int:report>", "report", policy_pages.report),
            ("/console/policy", "policy", policy_pages.policy),
            ("/console/audit", "audit", policy_pages.audit),
        ):
            app.add_url_rule(path, name, partial(self._show, page), methods=["GET"])
        app.add_url_rule("/console/users/<user>", "user", self._user, methods=["GET"])
        app.add_url_rule("/console", "overview", self._overview, methods=["GET"])
        app.add_url_rule("/console/health", "health", self._health, methods=["GET"])

    async def _overview(self) -> str:
        frame = current_frame(self._services)
        seen = await overview.read_overview(self._services)
        page = partial(
            render,
            "overview.html",
            frame,
            f"{frame.provider}: mimids",
            alerts=list(overview.alerts(seen)),
            tiles=overview.tiles(seen),
            sections=overview.sections(seen),
        )
        return await trio.to_thread.run_sync(page)

    async def _user(self, *, user: str) -> str:
        await self._services.last_seen.save()  # the page shows when each device was seen
        return await self._show(account_pages.user, user=user)

    async def _health(self) -> str:
        return await self._show(partial(health_page, machine=await machine_section(self._services)))

    async def _show(self, page: Callable[..., str], **path: Any) -> str:
        """Return a page that is made from one snapshot; `path` has the values in its path."""
        services, frame, query = self._services, current_frame(self._services), request.args.to_dict()
        context = Context.of(services.config, frame.now, "console", Running(services.streams.open_of))
        return await services.store.read_apart(lambda tx: page(Snapshot(tx, context, frame, query), **path))
