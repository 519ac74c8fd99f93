"""Fixtures for listeners.

`start` runs a test with and without TLS, on the direct path and on the ASGI path; `start_asgi` on the ASGI path only.
`start_plain` and `start_tls` run it once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.listening import (
    Authority,
    Start,
    starter,
)

if TYPE_CHECKING:
    import trio


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


@pytest.fixture(params=["plain", "tls", "direct plain", "direct tls"])
def start(request: pytest.FixtureRequest, nursery: trio.Nursery, authority: Authority) -> Start:
    tls = authority if request.param.endswith("tls") else None
    return starter(nursery, tls, direct=request.param.startswith("direct"))


@pytest.fixture(params=["plain", "tls"])
def start_asgi(request: pytest.FixtureRequest, nursery: trio.Nursery, authority: Authority) -> Start:
    return starter(nursery, authority if request.param == "tls" else None)


@pytest.fixture
def start_plain(nursery: trio.Nursery) -> Start:
    return starter(nursery, None)


@pytest.fixture
def start_tls(nursery: trio.Nursery, authority: Authority) -> Start:
    return starter(nursery, authority)


@pytest.fixture
def start_direct(nursery: trio.Nursery) -> Start:
    return starter(nursery, None, direct=True)
