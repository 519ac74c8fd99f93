"""Pytest fixtures for federations. Pytest loads this in every run, so it imports nothing until a test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mimids.testing import Federation, Provider, Session

    MakeFederation = Callable[..., Federation]

LOG_LINES = 60
_running = pytest.StashKey[list[Any]]()


@pytest.fixture(scope="session")
def mimids_session() -> Iterator[Session]:
    """Provide what all providers of the run share: the fork server and a throw-away certificate authority."""
    from mimids.testing import Session

    session = Session()
    session.preload()
    yield session
    session.close()


@pytest.fixture
def mimids_federation(mimids_session: Session, request: pytest.FixtureRequest) -> Iterator[MakeFederation]:
    """Provide a function that makes federations, with the arguments of `mimids.testing.federation`.

    They end with the test. The report of a failed test contains the end of each provider's log.
    """
    from mimids.testing import federation

    with ExitStack() as stack:
        running = request.node.stash.setdefault(_running, [])

        def make(*names: str, **more: Any) -> Federation:
            made = stack.enter_context(federation(*names, session=mimids_session, **more))
            running.append(made)
            return made

        yield make
        running.clear()


@pytest.fixture
def mimids_provider(mimids_federation: MakeFederation) -> Provider:
    """Run one provider, a.example, for the test."""
    (provider,) = mimids_federation("a.example")
    return provider


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add the providers' logs to the report of a test that failed."""
    report: pytest.TestReport = yield
    if report.failed:
        for name, log in _logs(item.stash.get(_running, [])).items():
            report.sections.append((f"log of {name}", "\n".join(log.splitlines()[-LOG_LINES:])))
    return report


def _logs(federations: list[Federation]) -> Mapping[str, str]:
    return {provider.name: provider.log for federation in federations for provider in federation}
