"""How long a test waits for what must come. The limit ends a test that would hang; it measures nothing.

It is below the 30 seconds after which a call to another provider ends, so that a test fails if something waits for a
provider that does not answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import trio

PATIENCE_SECONDS: Final = 25.0


def patience() -> AbstractContextManager[trio.CancelScope]:
    """Raise `trio.TooSlowError` if the block takes longer than PATIENCE_SECONDS."""
    return trio.fail_after(PATIENCE_SECONDS)
