"""Settings for all tests; shared helpers are in tests/support/.

HYPOTHESIS_PROFILE=ci makes runs repeatable; `soak` runs many more examples. MIMIDS_TEST_STORE=postgresql stores every
provider in PostgreSQL. MIMIDS_TEST_SHARE="5 SEED" runs one test of five, chosen by SEED.
"""

import os
import traceback
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import played, postgresql

# No deadline: a test may be slow because the machine is busy.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

ON_POSTGRESQL = os.environ.get("MIMIDS_TEST_STORE") == "postgresql"
if ON_POSTGRESQL:
    postgresql.use_for_every_provider()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any("::" in argument for argument in config.args):
        played.check_collected(item.nodeid for item in items)
    one_of, _, seed = os.environ.get("MIMIDS_TEST_SHARE", "").partition(" ")
    if one_of:
        others = [item for item in items if zlib.crc32(f"{seed} {item.nodeid}".encode()) % int(one_of)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
    for item in items if ON_POSTGRESQL else ():
        if marker := item.get_closest_marker("sqlite_file"):
            item.add_marker(pytest.mark.skip(f"for SQLite only: {marker.args[0]}"))


@pytest.fixture(autouse=ON_POSTGRESQL)
def databases_are_empty_for_each_test(tmp_path: Path) -> Iterator[None]:
    yield
    postgresql.empty_databases(tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    played.begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield
    played.check(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for error in _innermost(call.excinfo.value) if call.excinfo is not None else ():
        report.sections.append(("innermost error", "".join(traceback.format_exception(error, limit=-8))))
    return report


def _innermost(error: BaseException) -> Iterator[BaseException]:
    """Return the errors in nested groups: Python prints ten levels, and a test with several providers has more."""
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        if isinstance(each, BaseExceptionGroup):
            yield from _innermost(each)
        else:
            yield each
