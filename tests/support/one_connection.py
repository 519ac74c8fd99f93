"""A store without threads, for tests that trace statements or take many small steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimids.errors import MimiError
from mimids.store.engine.locks import Locks
from mimids.store.engine.transaction import Ahead, Tx


class OneConnection:
    """A `Store` that runs each work at once, on one connection. Nothing begins or ends a transaction."""

    reads_ahead = False

    def __init__(self, connection: Any) -> None:
        self._tx = Tx(connection)

    async def write(self, work: Callable[[Tx], Any], *, locks: Locks | None = None, ahead: Ahead | None = None) -> Any:
        return work(self._tx)

    read = write_shielded = write

    async def write_or_refuse(
        self, work: Callable[[Tx], Any], *, locks: Locks | None = None, ahead: Ahead | None = None
    ) -> Any:
        answer = await self.write(work)
        if isinstance(answer, MimiError):
            raise answer
        return answer
