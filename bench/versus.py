"""This tree beside another version, in CPU microseconds (bench: compare-with-another-version).

Both versions run at the same time, and short rounds of the same load alternate between them. Only the CPU time of the
servers' processes counts, so a busy machine slows a run down and hardly changes a ratio. Rows with two providers count
both. The other version is taken from a git worktree, and runs with the same Python. If it pins other packages than this
one, it gets an environment of its own, which takes about a minute to make.

    python -m bench.versus d946acc                      all rows
    python -m bench.versus d946acc "send, 16 in flight" only this row
    python -m bench.versus --rounds 9 d946acc           more rounds than usual
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from bench.versus_side import FETCHED_BY
from mimids.mls.code_points import CredentialType
from mimids.mls.leaf_node import Credential, HpkePublicKey, Lifetime
from tests.support.mls_makers import Signer, key_package, leaf_node

HERE: Final = Path(__file__).resolve().parent
ROUNDS: Final = 5


@attrs.frozen
class Row:
    """A load, how many requests or messages one round has, and the ratio to d946acc that is aimed at."""

    name: str
    requests: int
    aim: float = 0.95
    key_packages: int = 0  # that one request takes


ROWS: Final = (
    Row("send, 1 in flight", 200, 1.5),
    Row("send, 16 in flight", 600, 1.8),
    Row("send, 256 in flight", 1000, 1.8),
    Row("send-batch", 1024),
    Row("stream", 800),
    Row("receive of 16 messages", 400),
    Row("fetch", 300, 1.8, key_packages=1),
    Row("relayed fetch", 300, 3.5, key_packages=1),
    Row("forwarded send", 300, 2.6),
    Row("push", 1024),
)


class Version:
    """The process of `versus_side.py` for one version."""

    def __init__(self, tree: Path, key_packages: Path, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, "-P", str(HERE / "versus_side.py"), str(key_packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        self._answer()

    def measure(self, row: Row) -> float:
        """Return CPU microseconds for each request of one round."""
        assert self._process.stdin is not None
        print(json.dumps([row.name, row.requests]), file=self._process.stdin, flush=True)
        return float(self._answer()["microseconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """Check a revision out for the block."""
    with tempfile.TemporaryDirectory(prefix="mimids-versus-") as directory:
        tree = Path(directory) / "tree"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def python_for(tree: Path) -> str:
    """Return a Python that has the packages which a checked out version pins."""
    pins = Path("requirements/dev.txt")
    if (tree / pins).read_bytes() == (HERE.parent / pins).read_bytes():
        return sys.executable
    environment = tree.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = ["install", "--quiet", "--require-hashes", "--requirement", str(tree / pins)]
    subprocess.run([python, "-m", "pip", *install], check=True)
    return python


def make_key_packages(count: int, file: Path) -> None:
    """Write KeyPackages of one user, a line of hex each."""
    now, signer = int(time.time()), Signer.of(1)
    credential = Credential(CredentialType.BASIC, FETCHED_BY.encode())
    leaf = leaf_node(signer, credential=credential, origin=Lifetime(now - 3600, now + 86_400))
    made = (key_package(signer, leaf, init_key=HpkePublicKey(secrets.token_bytes(32))) for _ in range(count))
    file.write_text("\n".join(each.encoded.hex() for each in made))


def compare(row: Row, old: Version, new: Version, rounds: int) -> str:
    """Return the line of one row: the median of each version, and the median, least and largest ratio of a round."""
    pairs = []
    for number in range(rounds + 1):
        order = (old, new) if number % 2 else (new, old)
        found = {version: version.measure(row) for version in order}
        if number:  # the first round warms up
            pairs.append((found[old], found[new]))
    before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(one / two for one, two in pairs)
    ratio = statistics.median(ratios)
    aim = f"aim {row.aim:g}: {'met' if ratio >= row.aim else 'MISSED'}"
    return f"{row.name:<24} {before:>7.0f} {after:>7.0f} {ratio:>7.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}   {aim}"


def main(arguments: Sequence[str]) -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench.versus")
    parser.add_argument("revision")
    parser.add_argument("rows", nargs="*", metavar="row", help=f"one of {', '.join(map(repr, names))}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    chosen = [row for row in ROWS if not options.rows or row.name in options.rows]
    with worktree(options.revision) as tree, tempfile.TemporaryDirectory() as directory:
        packages = Path(directory) / "key-packages"
        needed = sum(row.requests * row.key_packages for row in chosen) * (options.rounds + 1)
        make_key_packages(max(needed, 1), packages)
        old, new = Version(tree, packages, python_for(tree)), Version(HERE.parent, packages)
        try:
            print(
                f"{'CPU microseconds':<24} {options.revision[:7]:>7} {'now':>7} {'ratio':>7}   of the rounds",
                flush=True,
            )
            for row in chosen:
                print(compare(row, old, new, options.rounds), flush=True)
        finally:
            old.close()
            new.close()


if __name__ == "__main__":
    main(sys.argv[1:])
