"""Put one fault after another into a copy of the package, and count those that the tests notice."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.reach import Reach, Recorder, load_reach
from tests.mutation.swapping import swap
from tests.mutation.targets import TARGETS

ROOT = Path(__file__).parents[2]
COPIED = ("mimids", "tests", "docs", "migrations", "examples", "pyproject.toml", "config.example.toml", "README.md")
# Imported once; each run is a fork.
WARM = ("attrs", "trio", "trio_asyncio", "aiosqlite", "cryptography.x509")
SHORTEST_LIMIT_SECONDS = 30
RUNS_PER_LIMIT = 5  # a mutant may take so many times as long as its tests do without it
BASELINE_LIMIT_SECONDS = 900
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")
PASSED, FAILED, WRONG_CALL, NOTHING_RUN = 0, 1, 4, 5  # exit codes of pytest


def main() -> int:
    """Run the mutants that the command line asks for, and print what was noticed."""
    arguments = _arguments()
    for name in WARM:
        importlib.import_module(name)
    noticed = run = 0
    modules = arguments.modules or list(TARGETS)
    with _copy() as copy:
        for tests in dict.fromkeys(TARGETS[module] for module in modules):
            reach = _find_reach(copy, tests, [module for module in modules if TARGETS[module] == tests])
            for survivors, sampled in _run_modules(copy, reach, arguments.sample, arguments.seeds):
                noticed += sampled - survivors
                run += sampled
    print(f"noticed {noticed} of {run}: {noticed / max(run, 1):.1%}")
    return 0 if noticed >= arguments.floor * run else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="paths below mimids/, as in tests/mutation/targets.py; default: all")
    parser.add_argument("--sample", type=int, default=12, help="mutants of each module, 0 for all")
    parser.add_argument("--seed", dest="seeds", default="1", help="which ones are drawn; several, with commas between")
    parser.add_argument("--floor", type=float, default=0.92, help="share that must be noticed")
    return parser.parse_args()


def _find_reach(copy: Path, tests: Sequence[str], modules: Sequence[str]) -> dict[str, Reach]:
    """Run tests without a mutant, and return which lines of the modules each of them runs."""
    recorder = Recorder(copy / "mimids", modules, copy / "reach")
    code = _run_tests(copy, [f"tests/{each}" for each in tests], BASELINE_LIMIT_SECONDS, recorder)
    if code not in (PASSED, FAILED):
        raise SystemExit(f"{(copy / 'output').read_text()}\nthe tests did not run to their end without a mutant")
    return load_reach(copy / "reach")


def _run_modules(copy: Path, reach: dict[str, Reach], sample: int, seeds: str) -> list[tuple[int, int]]:
    """Return for each module and seed how many mutants no test noticed, and how many were run.

    This is done in a process that has imported the tests, and with them the package. Each mutant is a fork of it.
    """
    results = copy / "results"
    results.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _enter(copy)
            _import_tests(copy, [test for each in reach.values() for test in each.seconds])
            runs = [(each, seed) for each in reach for seed in seeds.split(",")]
            results.write_text(json.dumps([_run_module(copy, each, reach[each], sample, seed) for each, seed in runs]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    return [(survivors, run) for survivors, run in json.loads(results.read_text())]


def _run_module(copy: Path, module: str, reach: Reach, sample: int, seed: str) -> tuple[int, int]:
    """Return how many of the mutants of a module no test noticed, and how many were run."""
    path = copy / "mimids" / module
    source = path.read_text()
    mutants = mutants_of(source)
    if 0 < sample < len(mutants):
        drawn = set(random.Random(f"{seed} {module}").sample(range(len(mutants)), sample))
        mutants = [mutant for number, mutant in enumerate(mutants) if number in drawn]
    survivors = 0
    for mutant in mutants:
        _write(copy, module, mutant.source)  # for processes that the tests start
        wanted = reach.tests_of(mutant.lines)
        limit = SHORTEST_LIMIT_SECONDS + RUNS_PER_LIMIT * sum(reach.seconds[test] for test in wanted)
        code = _run_tests(copy, wanted, limit, change=partial(_swap_or_import_again, path, source, mutant))
        if code in (WRONG_CALL, NOTHING_RUN):
            raise SystemExit(f"{module}:{mutant.line}: pytest ended with {code}")
        if code == PASSED:
            survivors += 1
            print(f"  survived: mimids/{module}:{mutant.line}: {mutant.description}", flush=True)
    _write(copy, module, source)
    print(f"{module}, seed {seed}: noticed {len(mutants) - survivors} of {len(mutants)}", flush=True)
    return survivors, len(mutants)


@contextmanager
def _copy() -> Iterator[Path]:
    """Give a copy of what the tests need, so that this working tree stays as it is."""
    with tempfile.TemporaryDirectory(prefix="mimids-mutants-") as directory:
        copy = Path(directory)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
            elif source.exists():
                shutil.copy(source, copy / name)
        yield copy


def _write(copy: Path, module: str, source: str) -> None:
    path = copy / "mimids" / module
    path.write_text(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()  # it may be of the same second and size


def _enter(copy: Path) -> None:
    """Make this process use the copy."""
    os.chdir(copy)
    _forget_imports()
    sys.path[:] = [str(copy), *(each for each in sys.path if Path(each or ".").resolve() != ROOT)]
    vectors = os.environ.get("MIMIDS_VECTORS", str(ROOT.parent / "shared" / "vectors"))
    os.environ |= {"PYTHONPATH": str(copy), "MIMIDS_VECTORS": vectors, "HYPOTHESIS_PROFILE": "ci"}


def _forget_imports() -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] in ("mimids", "tests")]:
        del sys.modules[name]


def _import_tests(copy: Path, tests: Sequence[str]) -> None:
    """Collect tests, which imports them."""
    out, terminal = _output(copy), os.dup(1)
    os.dup2(out, 1)
    pytest.main([*OPTIONS, "--collect-only", *dict.fromkeys(test.partition("::")[0] for test in tests)])
    sys.stdout.flush()
    os.dup2(terminal, 1)


def _swap_or_import_again(path: Path, source: str, mutant: Mutant) -> None:
    if not swap(path, source, mutant):
        _forget_imports()  # the file has the mutant


def _output(copy: Path) -> int:
    return os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _run_tests(
    copy: Path, tests: list[str], limit: float, *plugins: object, change: Callable[[], None] = lambda: None
) -> int | None:
    """Run tests in a process group of their own, after `change`; return pytest's exit code, None after `limit`."""
    child = os.fork()
    if not child:
        _run_tests_and_exit(copy, tests, plugins, change)
    end = time.monotonic() + limit
    code: int | None = None
    done = 0
    try:
        while not done and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with the processes that the tests started
        if not done:
            os.waitpid(child, 0)
    return code


def _run_tests_and_exit(copy: Path, tests: list[str], plugins: Sequence[object], change: Callable[[], None]) -> None:
    code: int = FAILED
    try:
        os.setsid()
        output = _output(copy)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if plugins:
            _enter(copy)
        change()
        code = pytest.main([*([] if plugins else ["-x"]), *OPTIONS, *tests], plugins)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
