"""Federations for tests under trio and asyncio; blocking calls run in worker threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from anyio.to_thread import run_sync

from mimids.testing.federations import Federation, Table, new_federation
from mimids.testing.session import Session


@asynccontextmanager
async def open_federation(
    *names: str,
    config: Table | None = None,
    configs: Mapping[str, Table] | None = None,
    links: bool = True,
    session: Session | None = None,
) -> AsyncIterator[Federation]:
    """Run providers that know each other; it takes the same arguments as `federation`."""
    made = await run_sync(new_federation, session)
    try:
        await run_sync(lambda: made.begin(names, config or {}, configs or {}, links=links))
        await run_sync(made.wait_ready)
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(made.close)
