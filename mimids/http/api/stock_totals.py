"""How many KeyPackages the devices have in stock.

They are counted only now and then, because counting reads the stock of all devices, and because somebody who looks
every second must not see when a single KeyPackage was fetched.
"""

from __future__ import annotations

from typing import Final

import attrs

from mimids.ds.services import Services
from mimids.http.api.kept_page import KeptPage
from mimids.store import overview
from mimids.store.engine.transaction import Tx
from mimids.store.overview import SuiteStock
from mimids.telemetry import COUNT_SECONDS

QUICK_SECONDS: Final = 0.005
SHARE: Final = 1000  # at most a thousandth of a core


@attrs.frozen
class StockTotals:
    """The number of devices, the number without a KeyPackage to hand out, and the stock of each cipher suite."""

    devices: int
    devices_empty: int
    suites: tuple[SuiteStock, ...]


_KEPT: Final = KeptPage[StockTotals](quick_seconds=QUICK_SECONDS, share=SHARE, period_seconds=COUNT_SECONDS)


async def stock_totals(services: Services) -> StockTotals:
    """Return the totals as of the first call in a period of COUNT_SECONDS; a large stock is counted less often."""
    now, low = services.clock.now(), services.config.key_packages.low_stock_packages

    def read(tx: Tx) -> StockTotals:
        return StockTotals(*overview.devices_without_stock(tx, now), tuple(overview.stock_by_suite(tx, now, low=low)))

    return await _KEPT.read(services.store, read)
