"""Commands run as a user runs them, as processes, and servers that are always stopped in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from types import MappingProxyType
from typing import Any

import attrs
from click.testing import CliRunner, Result

from mimids.cli.main import main
from mimids.cli.setup import SetupPlan, make_provider
from mimids.config import Config
from mimids.wire.ids import ProviderId

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 60
START_SECONDS = 30

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MIMIDS_")} | {
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}


@attrs.frozen
class Ran:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def run(*arguments: str | Path, cwd: Path, input: str = "") -> Ran:
    """Run `mimids ...` and wait for its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "mimids", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        input=input,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def invoke(config: Config, *arguments: str | Path) -> Result:
    """Run `mimids ...` for a provider in this process."""
    file = config.tls.certificate.parent / "mimids.toml"
    return CliRunner().invoke(main, [*map(str, arguments), "--config", str(file)])


@contextmanager
def serving(
    *arguments: str | Path,
    cwd: Path,
    program: Sequence[str] = (sys.executable, "-m", "mimids"),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run `mimids serve ...` for the block, which starts once it serves; give the process and its output."""
    with (cwd / "serve.log").open("w") as log:
        process = subprocess.Popen(
            ["/usr/bin/env", *program, "serve", *arguments],
            cwd=cwd,
            env={**ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    patience = Timer(START_SECONDS, process.kill)
    patience.start()
    try:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("  operator "):
                break
        patience.cancel()
        assert said, (cwd / "serve.log").read_text()
        yield process, said
    finally:
        patience.cancel()
        stop(process)


def stop(process: subprocess.Popen[str], *, seconds: float = 15) -> int:
    """Terminate a server and return its exit code; one that does not end is killed, which returns -9."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def provider(directory: Path, name: str = "a.example", **more: Any) -> Config:
    """Make a provider that listens on free ports."""
    free = {listener: "127.0.0.1:0" for listener in ("public", "client", "operator")}
    return make_provider(directory, SetupPlan(provider=ProviderId(name), **free | more))
