"""SIGHUP and `mimids reload`: what a running provider reads again, and what it says about the rest."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import attrs
import pytest

from mimids.config import Config, ConfigError, keys, load
from mimids.config_limits import Limits
from mimids.ds.running_server import Reloaded
from mimids.reload import AT_START
from mimids.wire.ids import ProviderId
from tests.support.cli_runs import ENVIRONMENT, provider, run, serving, stop
from tests.support.doubles import SpyLog
from tests.support.provider import Authority, running

UNIT_SECONDS = (1, 60, 3600, 86_400)
LARGE = 1e12  # no limit is so large


class Reloading:
    """The configuration of a provider that runs in this process, and may be changed."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self) -> Config:
        return self.config

    def change(self, section: str, **values: Any) -> None:
        self.config = attrs.evolve(self.config, **{section: attrs.evolve(getattr(self.config, section), **values)})


def test_the_keys_that_wait_for_a_restart_are_few() -> None:
    assert {("limits", "frame_bytes"), ("limits", "body_seconds")} == AT_START


def reachable(root: object) -> Iterator[tuple[str, int]]:
    """Yield every whole number that the parts of a provider hold, with where it is."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("provider", root)]
    while waiting:
        place, each = waiting.pop()
        if isinstance(each, bool | str | bytes | type(None)) or id(each) in seen:
            continue
        if isinstance(each, int):
            yield place, each
            continue
        if isinstance(each, float):  # a rate, by the second
            yield from ((place, round(each * seconds)) for seconds in UNIT_SECONDS if abs(each) < LARGE)
            continue
        seen.add(id(each))
        module = type(each).__module__
        if isinstance(each, dict):
            waiting += [(f"{place}[{key!r}]", value) for key, value in each.items()]
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += [(f"{place}[]", value) for value in each]
        elif module.startswith("mimids"):
            names = [
                *getattr(each, "__dict__", ()),
                *(name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())),
            ]
            for name in names:
                if name != "__weakref__" and hasattr(each, name):
                    waiting.append((f"{place}.{name}", getattr(each, name)))
        elif isinstance(each, partial):
            waiting += [(f"{place}()", part) for part in (each.func, each.args, each.keywords)]
        elif isinstance(each, MethodType):
            waiting.append((f"{place}.__self__", each.__self__))
        elif isinstance(each, FunctionType):
            waiting += [(f"{place}()", cell.cell_contents) for cell in each.__closure__ or ()]


async def test_no_part_keeps_a_limit_from_before_a_reload(tmp_path: Path) -> None:
    names = [name for name in keys(Limits) if ("limits", name) not in AT_START]
    old = {name: 40_000_003 + 2 * number for number, name in enumerate(names)}
    new = {name: 50_000_003 + 2 * number for number, name in enumerate(names)}
    config = Authority(tmp_path).config(limits=old)
    reloading = Reloading(config)
    async with running(config, telemetry=SpyLog().telemetry, load_config=reloading.load) as bound:
        values = {value: name for name, value in old.items()}

        def held() -> dict[str, str]:
            return {place: values[number] for place, number in reachable(bound.provider) if number in values}

        assert set(held().values()) == set(names), "the search reaches every limit"
        reloading.change("limits", **new)
        done = await bound.provider.services.server.reload()
        assert set(done.changed) == {f"[limits] {name}" for name in names}
        assert held() == {}
        assert config.limits.message_bytes == new["message_bytes"]


async def test_what_changed_and_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    config = Authority(tmp_path).config(federation={"allow": ["b.example"]})
    reloading, log = Reloading(attrs.evolve(config, limits=attrs.evolve(config.limits))), SpyLog()
    async with running(config, telemetry=log.telemetry, load_config=reloading.load) as bound:
        server = bound.provider.services.server
        assert await server.reload() == Reloaded((), (), None)
        reloading.change("federation", allow=("c.example",), answer_seconds=7)
        reloading.change("limits", message_bytes=4096, frame_bytes=8192)
        reloading.change("log", level="error")
        reloading.change("listen", connections=7)
        reloading.change("ohttp", rotate_days=3)
        done = await server.reload()
        assert done.changed == (
            "[federation] allow", "[federation] answer_seconds", "[limits] message_bytes", "[log] level",
        )  # fmt: skip
        assert done.needs_restart == ("[listen] connections", "[ohttp] rotate_days", "[limits] frame_bytes")
        assert config.limits.frame_bytes != 8192, "what it says that it allows is what it allows"
        again = await server.reload()
        assert again == attrs.evolve(done, changed=()), "what needs a restart is said again until then"
        services = bound.provider.services
        assert config.federation.allows(services.config.federation.allow[0], us=config.provider)
        services.telemetry.log.warning("not shown")
        services.telemetry.log.error("shown")
    assert "not shown" not in log.text
    assert "shown" in log.text


async def test_other_providers_get_terms_with_the_new_rates(tmp_path: Path) -> None:
    config = Authority(tmp_path).config(federation={"allow": ["b.example"]})
    reloading, follower = Reloading(attrs.evolve(config, limits=attrs.evolve(config.limits))), ProviderId("b.example")
    async with running(config, telemetry=SpyLog().telemetry, load_config=reloading.load) as bound:
        services = bound.provider.services
        await services.offered_terms.load(follower)
        before = services.offered_terms.revision(follower)
        reloading.change("limits", device_sends_per_second=7)
        await services.server.reload()
        await services.offered_terms.load(follower)
        after = services.offered_terms.revision(follower)
        assert before is not None
        assert after == before + 1
        assert (await services.offered_terms.terms_for(follower)).rates["device_sends_per_second"] == 7


async def test_a_certificate_that_cannot_be_read_keeps_the_old_one_and_changes_the_rest(tmp_path: Path) -> None:
    config = Authority(tmp_path).config()
    reloading = Reloading(attrs.evolve(config, limits=attrs.evolve(config.limits)))
    async with running(config, telemetry=SpyLog().telemetry, load_config=reloading.load) as bound:
        config.tls.certificate.write_text("nothing")
        reloading.change("limits", message_bytes=4096)
        done = await bound.provider.services.server.reload()
        assert done.changed == ("[limits] message_bytes",)
        assert str(config.tls.certificate) in (done.certificates or "")


async def test_a_configuration_that_is_not_valid_changes_nothing(tmp_path: Path) -> None:
    config = Authority(tmp_path).config()

    def fail() -> Config:
        raise ConfigError(["[log] level: write one of ..."])

    async with running(config, telemetry=SpyLog().telemetry, load_config=fail) as bound:
        with pytest.raises(ConfigError):
            await bound.provider.services.server.reload()


def write(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def wait_for(log: Path, text: str, times: int = 1) -> None:
    give_up_at = time.monotonic() + 20
    while log.read_text().count(text) < times:
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_sighup_and_the_command_reload_a_server_that_goes_on_serving(tmp_path: Path) -> None:
    config = provider(tmp_path)
    file, log = tmp_path / "mimids.toml", tmp_path / "serve.log"
    assert run("reload", cwd=tmp_path).err.splitlines() == [
        "mimids: no server runs on this data directory",
        "  start it with `mimids serve`; it reads the configuration then",
    ]
    with serving("--config", "mimids.toml", cwd=tmp_path) as (process, _):
        write(file, "allow = []", 'allow = ["b.example"]')
        process.send_signal(signal.SIGHUP)
        wait_for(log, 'configuration reloaded provider=a.example changed="[federation] allow"')
        write(file, '["b.example"]', '["B"]')
        process.send_signal(signal.SIGHUP)
        wait_for(log, "configuration not reloaded")
        refused = run("reload", cwd=tmp_path)
        assert refused.code == 1
        assert "[federation] allow: write a domain name" in refused.err
        write(file, '["B"]', '["b.example", "c.example"]')
        write(file, 'client = "127.0.0.1:0"', 'client = "127.0.0.1:1"')
        done = run("reload", "--json", cwd=tmp_path).json
        assert done == {"changed": ["[federation] allow"], "needs_restart": ["[listen] client"], "certificates": None}
        said = run("reload", cwd=tmp_path).out
        assert said.splitlines() == ["changed: nothing", "needs a restart: [listen] client", "certificates: read again"]
        assert process.poll() is None
        entries = run("audit", "--json", cwd=tmp_path).json["entries"]
        assert [(each["actor"], each["command"]) for each in entries] == [(f"shell {os.geteuid()}", "reload")] * 2
        status = run("status", "--json", cwd=tmp_path).json
        assert (status["running"], status["process"]) == (True, process.pid)
        assert [each["listener"] for each in status["listeners"]] == ["public", "client", "operator", "operator-socket"]
        assert stop(process) == 0
    assert run("status", "--json", cwd=tmp_path).json["running"] is False
    assert load(file).federation.allow == ("b.example", "c.example")
    assert config.database.exists()


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_the_server(tmp_path: Path) -> None:
    provider(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:  # a session of its own, with this terminal
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "mimids", "serve", "--config", "mimids.toml"], ENVIRONMENT)  # noqa: S606
    said = b""
    while b"console" not in said:
        said += os.read(terminal, 4096)
    os.kill(pid, signal.SIGHUP)  # by somebody else: the terminal is still there
    while b"configuration reloaded" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
