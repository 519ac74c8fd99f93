"""Two processes of one provider on one database in PostgreSQL, within a test's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.ds.commands.performing import perform
from tests.support import postgresql
from tests.support.provider import Assembled, Authority, assembled

A = "a.example"


def shared_config(directory: Path, **sections: dict[str, Any]) -> Config:
    """Return the configuration of a provider that is stored in an empty database of its own."""
    sections["store"] = {"url": postgresql.database_of(directory / "shared")}
    sections["limits"] = {"device_sends_per_second": 0, "device_streams": 0, **sections.get("limits", {})}
    return Authority(directory).config(A, **sections)


@asynccontextmanager
async def twins(
    directory: Path, *, together: bool = True, **sections: dict[str, Any]
) -> AsyncIterator[tuple[Assembled, Assembled]]:
    """Run two processes of a provider for the block; without `together` they tell each other nothing."""
    config = shared_config(directory, **sections)
    async with assembled(config, is_member=together) as one, assembled(config, is_member=together) as other:
        yield one, other


async def ran(at: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run an operator's command in a process, with all its effects there."""
    command = command_named(name)
    return await perform(at.services, command, command.given(arguments), "shell 0")
