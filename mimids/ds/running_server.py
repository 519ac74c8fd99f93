"""What commands need from the process of a running server: addresses, age, and a reload of the configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs

from mimids.errors import NotFound
from mimids.values import Milliseconds


@attrs.frozen
class Reloaded:
    """What a reload did: keys by section, such as `[limits] message_bytes`."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]  # changed keys that take effect only after a restart
    certificates: str | None  # why certificates could not be read; the old ones stay in use then


async def _no_reload() -> Reloaded:
    raise NotFound("this server has no configuration file")


@attrs.define
class RunningServer:
    """The process of a provider; `app.run` fills it in."""

    started_at: Milliseconds = attrs.field(default=Milliseconds(0))
    addresses: Mapping[str, str] = attrs.field(factory=dict)  # by listener
    reload: Callable[[], Awaitable[Reloaded]] = _no_reload  # raises `ConfigError`, and then changes nothing
