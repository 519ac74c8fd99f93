"""Which tests run which lines of a module, found by running them once with coverage."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import attrs
import coverage
import pytest


@attrs.frozen
class Reach:
    """The lines of a module that each test runs, and how long the tests take."""

    lines: dict[str, frozenset[int]]  # by node id
    seconds: dict[str, float]

    def tests_of(self, lines: Collection[int]) -> list[str]:
        """Return the tests that run any of these lines, quickest first; all tests if none does.

        Then the lines run in another process, or in none.
        """
        found = [test for test, run in self.lines.items() if not run.isdisjoint(lines)]
        return sorted(found or self.seconds, key=lambda test: self.seconds[test])


def load_reach(file: Path) -> dict[str, Reach]:
    """Return what a `Recorder` wrote, by module; print which tests were left out because they fail as it is."""
    stored = json.loads(file.read_text())
    for test in stored["failed"]:
        print(f"  left out, because it fails without a mutant: {test}", flush=True)
    return {
        module: Reach({test: frozenset(run) for test, run in lines.items()}, stored["seconds"])
        for module, lines in stored["lines"].items()
    }


class Recorder:
    """A plugin of pytest that records the reach of the tests in modules of a package, and writes it to `file`."""

    def __init__(self, package: Path, modules: Collection[str], file: Path) -> None:
        self._paths = {module: str(package / module) for module in modules}
        self._file = file
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(data_file=None, config_file=False, include=list(self._paths.values()))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test with its node id as context."""
        started = time.monotonic()
        self._coverage.switch_context(item.nodeid)
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - started
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Leave out a test that fails: on a busy machine some do, and it would notice every mutant."""
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionstart(self) -> None:
        """Begin before the modules are imported."""
        self._coverage.start()

    def pytest_sessionfinish(self) -> None:
        """Write what was found."""
        self._coverage.stop()
        for test in self._failed:
            self._seconds.pop(test, None)
        found = {module: self._lines(path) for module, path in self._paths.items()}
        self._file.write_text(json.dumps({"lines": found, "seconds": self._seconds, "failed": sorted(self._failed)}))

    def _lines(self, path: str) -> dict[str, list[int]]:
        """Return the lines of a module that each test ran."""
        lines: dict[str, list[int]] = {}
        for line, tests in self._coverage.get_data().contexts_by_lineno(path).items():
            for test in set(tests) & set(self._seconds):
                lines.setdefault(test, []).append(line)
        return lines
