"""Members of MLS groups that run released MLS libraries: the program of tests/stacks, built and driven.

Its protocol is documented in tests/stacks/README.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.imports import ROOT
from tests.support.played import MLS_RS, OPENMLS, note

SOURCE: Final = ROOT / "tests" / "stacks"
PINS: Final = SOURCE / "Cargo.pins"
BUILT: Final = "MIMIDS_STACKS"  # the variable that names a program which is built already
OLDEST_CARGO: Final = (1, 91)  # what OpenMLS 0.9 needs
LIBRARIES: Final = {"openmls": OPENMLS, "mls-rs": MLS_RS}
_OPS: Final = {
    "create": "create",
    "join_external": "external join",
    "propose_join": "external proposal",
    "encrypt": "messages",
}
_CHANGES: Final = {
    "add": "add",
    "update": "update",
    "remove": "remove",
    "self_remove": "leave",
    "psk": "PSK",
    "app_data": "application data",
}
_BUILD_SECONDS: Final = 900
_FETCH_SECONDS: Final = 300
_SOURCE_LINE: Final = re.compile(r'^source = ".*"$', re.MULTILINE)


def build_stacks() -> Path:
    """Build the program, if it is not up to date, and return its path; skip the test where that is not possible."""
    named = os.environ.get(BUILT)
    if named:
        return Path(named)
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed")
    version = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"cargo (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_CARGO:
        pytest.skip(f"cargo is older than {OLDEST_CARGO[0]}.{OLDEST_CARGO[1]}: {version.strip()}")
    with (SOURCE / "Cargo.toml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # CI builds it beside the first tests
        return _build(cargo)


def _build(cargo: str) -> Path:
    manifest = str(SOURCE / "Cargo.toml")
    _write_lock(cargo)
    fetched = _run([cargo, "fetch", "--quiet", "--locked", "--manifest-path", manifest], _FETCH_SECONDS)
    if fetched.returncode:
        pytest.skip(f"the crates cannot be downloaded: {fetched.stderr.strip()[-200:]}")
    built = _run([cargo, "build", "--quiet", "--frozen", "--manifest-path", manifest], _BUILD_SECONDS)
    assert built.returncode == 0, built.stderr
    target = Path(os.environ.get("CARGO_TARGET_DIR") or SOURCE / "target")
    return target / "debug" / "stacks"


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)


def _write_lock(cargo: str) -> None:
    """Write Cargo.lock from the pins: names, versions and checksums, to which cargo wants to see the registry added."""
    lock = SOURCE / "Cargo.lock"
    if lock.exists() and _SOURCE_LINE.sub("", lock.read_text(encoding="utf-8")).split() == _pins().split():
        return
    lock.unlink(missing_ok=True)
    made = _run([cargo, "generate-lockfile", "--quiet", "--manifest-path", str(SOURCE / "Cargo.toml")], _FETCH_SECONDS)
    source = _SOURCE_LINE.search(lock.read_text(encoding="utf-8")) if lock.exists() else None
    if made.returncode or source is None:
        pytest.skip(f"the index of crates cannot be read: {made.stderr.strip()[-200:]}")
    lock.write_text(_pins().replace("\nchecksum = ", f"\n{source[0]}\nchecksum = "), encoding="utf-8")


def _pins() -> str:
    return PINS.read_text(encoding="utf-8")


class StackRefused(Exception):
    """The MLS library refused a request; the text is its own."""


class StackMember:
    """One client, in a process of its own. Every call waits for the answer."""

    def __init__(self, program: Path, stack: str, identity: str, suite: int, **settings: object) -> None:
        self.stack = stack
        self.identity = identity
        self.suite = suite
        self.live: tuple[str, ...] | None = None  # its settings, once it sends through live providers
        self._process = subprocess.Popen(
            [program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )
        self.ask("client", stack=stack, identity=identity, suite=suite, **settings)

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        """Send a request and return its answer; octets are given as bytes, and come back as hex.

        Raise `StackRefused` if the library refuses it.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **fields}, default=bytes.hex) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process of {self.identity} has ended"
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise StackRefused(answer["error"])
        if self.live is not None:
            note(LIBRARIES[self.stack], self.suite, *self.live, *_words(op, fields))
        return answer

    def octets(self, op: str, field: str, **fields: object) -> bytes:
        """Send a request and return one field of its answer as bytes."""
        return bytes.fromhex(self.ask(op, **fields)[field])

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(timeout=10)


def _words(op: str, fields: Mapping[str, Any]) -> list[str]:
    """Return what an answered request is called in docs/interop.md."""
    changes = fields.get("changes") or ([fields["change"]] if "change" in fields else [])
    found = [_CHANGES[change["type"]] for change in changes]
    return [*found, _OPS[op]] if op in _OPS else found


@contextmanager
def stack_members(program: Path) -> Iterator[Any]:
    """Provide a function that starts a `StackMember`; all of them end with the block."""
    started: list[StackMember] = []

    def start(stack: str, identity: str, suite: int, **settings: object) -> StackMember:
        started.append(StackMember(program, stack, identity, suite, **settings))
        return started[-1]

    try:
        yield start
    finally:
        for member in started:
            member.close()


if __name__ == "__main__":
    build_stacks()
