"""What tests of pages share: axe-core, which finds what some people cannot use, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.imports import ROOT

AXE = ROOT / "tests" / "support" / "node" / "node_modules" / "axe-core" / "axe.min.js"
AXE_RUN = """axe.run().then(found => ({passes: found.passes.length,
  violations: found.violations.map(each => [each.id, each.nodes.map(node => node.html)])}))"""


def wait(check: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `check` returns something true."""
    ends = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < ends
        time.sleep(0.1)
