"""Providers in tests: they start quickly, end without leftovers, and can be killed, stopped and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from mimids.cli.places import load_config
from mimids.cli.refusals import CommandRefused
from mimids.client import CaughtUp, Device, Problem, Unreachable
from mimids.process import EXIT_CRASHED, EXIT_OK
from mimids.testing import PretendGroup, ProviderFailed, Session, content_of, federation
from mimids.wire.base64url import base64url
from mimids.wire.ids import PartitionKey, ProviderId

ROOT = Path(__file__).parents[2]


def test_ten_lines_send_a_message_between_three_providers(mimids_session: Session) -> None:
    mimids_session.start({"links": {}}, Path(os.devnull)).kill()  # so that the fork server runs
    began = time.monotonic()
    with federation("a.example", "b.example", "c.example", session=mimids_session) as (a, b, c):
        alice, bob, carol = a.add_device("alice"), b.add_device("bob"), c.add_device("carol")
        group = PretendGroup.at(a.name)
        alice.ask(lambda device: device.create_group(group.creation()))
        bob.ask(lambda device: device.send(group.hub, group.message(b"hello")))
        for account in alice, bob, carol:
            (message,) = account.ask(lambda device: device.receive(group.hub, group.key))
            assert content_of(message) == b"hello"
    assert time.monotonic() - began < 10, "three seconds are the bar; a busy machine gets ten"


def test_providers_end_with_the_block_and_leave_nothing_behind(mimids_session: Session) -> None:
    with federation("a.example", "b.example", session=mimids_session) as made:
        pids = [provider.pid for provider in made]
        assert made.directory.is_dir()
    assert not made.directory.exists()
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_are_forked_or_spawned(method: str) -> None:
    session = Session(method)
    try:
        with federation("a.example", session=session) as (a,):
            assert a.add_device("alice").ask(lambda device: device.me())["user_id"] == "mimi://a.example/u/alice"
            assert a.terminate() == EXIT_OK
    finally:
        session.close()


def test_without_tls_devices_and_pages_reach_a_provider_by_its_client_url(mimids_session: Session) -> None:
    page = "http://127.0.0.1:9000"
    config = {"listen": {"client_tls": False, "web_origins": [page]}}
    with federation("a.example", config=config, session=mimids_session) as (a,):
        assert a.client_url.startswith("http://127.0.0.1:")
        alice = a.add_device("alice")
        group = PretendGroup.at(a.name)
        alice.ask(lambda device: device.create_group(group.creation()))

        async def sent_by_a_stream(device: Device) -> int:
            async with device.stream(caught_up=True) as stream:
                assert await anext(aiter(stream)) == CaughtUp(())
                return (await stream.send(group.hub, group.message(b"hello"))).counter

        assert alice.ask(sent_by_a_stream) == 0
        url = f"{alice.url}/client/v1/me"
        answer = httpx.get(url, headers={"Origin": page, "Authorization": f"Bearer {alice.token}"})
        assert answer.json()["ohttp_identity"] == base64url(a.contact("alice").ohttp_identity)
        assert answer.headers["access-control-allow-origin"] == page
        asked = {"Origin": page, "Access-Control-Request-Method": "GET"}
        assert httpx.options(url, headers=asked).headers["access-control-allow-methods"] == "GET"


def test_an_unknown_start_method_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMIDS_TESTING_START", "borrow")
    with pytest.raises(ValueError, match="fork or spawn"):
        Session().start({"links": {}}, tmp_path / "log")


def test_a_process_ends_with_the_test_that_started_it(tmp_path: Path) -> None:
    """This holds even if the test is killed while its providers are frozen."""
    script = (
        "import os, signal, sys\n"
        "from mimids.testing import federation\n"
        "with federation('a.example', 'b.example') as (a, b):\n"
        "    print(a.pid, b.pid, flush=True)\n"
        "    b.stop()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    give_up_at = time.monotonic() + 10
    for pid in map(int, done.stdout.split()):
        while state(pid) != "Z":  # a zombie, because its parent is gone
            assert time.monotonic() < give_up_at


def state(pid: int | None) -> str:
    """Return the state letter of a process; "Z" also if there is none any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_provider_is_the_same_after_a_restart(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        alice = a.add_device("alice")
        group = PretendGroup.at(a.name)
        alice.ask(lambda device: device.create_group(group.creation()))
        ends: list[Callable[[], object]] = [a.kill, a.terminate, a.is_running]
        for number, end in enumerate(ends):
            request = group.message(b"%d" % number)
            alice.ask(lambda device, request=request: device.send(group.hub, request))  # type: ignore[misc]
            end()
            if not a.is_running():
                with pytest.raises(Unreachable):
                    alice.ask(lambda device: device.me())
            a.restart()
        got = alice.ask(lambda device: device.receive(group.hub, group.key))
        assert list(map(content_of, got)) == [b"0", b"1", b"2"]
        assert a.stored(group.key) == [message.message.encoded for message in got]
        assert a.read("SELECT count(*) FROM messages WHERE counter >= ?", [1]) == [(2,)]
        assert a.stored(PartitionKey(bytes(16))) == []


def test_a_frozen_provider_answers_when_it_continues(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        alice = a.add_device("alice")
        a.stop()
        give_up_at = time.monotonic() + 10
        while state(a.pid) != "T":
            assert time.monotonic() < give_up_at
        a.cont()
        assert alice.ask(lambda device: device.me())["device_id"] == "phone"


def test_users_devices_tokens_and_cards_can_be_made_whether_it_runs_or_not(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        a.add_user("alice")
        a.terminate()
        offline = a.add_device("alice", "tablet")
        card = a.contact("alice")
        assert card.user_id == b"mimi://a.example/u/alice"
        assert a.issue_token("alice", "shared", label="all") != a.issue_token("alice")
        a.start()
        assert offline.ask(lambda device: device.me())["device_id"] == "tablet"
        assert {each["label"] for each in a.command("token list", user="alice")["tokens"]} >= {"all"}


def test_a_command_that_does_not_exist_is_refused_with_the_one_that_was_meant(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        with pytest.raises(CommandRefused) as refused:
            a.command("user ad", name="alice")
        assert refused.value.message == "there is no command `user ad`"
        assert (refused.value.fix or "").startswith("did you mean `user add`?")
        assert refused.value.exit_code == 1


def test_a_job_can_be_made_to_crash(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        a.crash("sweeper")
        assert a.wait_ended() == EXIT_CRASHED
        assert "sweeper was told to crash" in a.log
        assert not a.is_running()
        a.start()


def test_a_failed_start_is_reported_with_the_log(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        a.terminate()
        a.config.tls.private_key.write_text("no key")
        with pytest.raises(ProviderFailed, match=r"(?s)a\.example ended \(1\) before it served.*provider\.key"):
            a.start()


def test_a_configuration_is_for_all_or_for_one(mimids_session: Session) -> None:
    common, own = {"limits": {"device_groups": 7}}, {"b.example": {"limits": {"device_streams": 2}}}
    with federation("a.example", "b.example", config=common, configs=own, session=mimids_session) as (a, b):
        assert [provider.config.limits.device_groups for provider in (a, b)] == [7, 7]
        assert [provider.config.limits.device_streams for provider in (a, b)] == [4, 2]
        assert load_config(b.config_file) == b.config
        assert a.config.providers[ProviderId(b.name)].url != b.public_url  # there is a link between them
    with pytest.raises(ValueError, match=r"c\.example"), federation("a.example", configs={"c.example": {}}):
        raise AssertionError


def test_metrics_and_files_can_be_read(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        a.add_device("alice").ask(lambda device: device.me())
        assert a.metrics()['mimids_requests_total{code="ok",route="me"}'] == 1
        assert {path.name for path in a.files()} >= {"log", "mimids.sqlite3", "mimids.sqlite3-wal", "lock"}
        assert "provider=a.example" in a.log


def test_synchronous_code_gets_the_problem_of_a_refusal(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,), pytest.raises(Problem, match="unknown-partition"):
        a.add_device("alice").ask(lambda device: device.receive(PretendGroup.at(a.name).hub, PartitionKey(bytes(16))))
