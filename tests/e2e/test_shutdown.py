"""Graceful shutdown and renewed certificates: every request that has arrived is answered.

That each job's crash ends the process, and that stalled readers do not hold it, is tests/test_app.py's.
"""

from __future__ import annotations

import http.client
import signal
import ssl
import time
from contextlib import AsyncExitStack
from itertools import count

import pytest
import trio

from mimids.app import EXIT_OK
from mimids.client import Device, Problem, Unreachable
from mimids.testing import DeviceAccount, PretendGroup, Provider, Session, federation, open_federation
from mimids.wire.declare import encode
from mimids.wire.messages import SendRequest, SendResponse
from tests.support.stage import AWAY

pytestmark = [pytest.mark.slow, AWAY]

SENDERS = 8  # at each provider
WAITING = 4
REQUESTS = 30


async def send_until_refused(device: Device, group: PretendGroup, sent: list[tuple[SendRequest, SendResponse]]) -> None:
    for number in count():
        request = group.message(b"%d" % number)
        try:
            sent.append((request, await device.send(group.hub, request)))
        except (Unreachable, Problem):
            return


async def test_a_stop_under_load_is_in_time_and_loses_no_acknowledged_message(mimids_session: Session) -> None:
    sent: list[tuple[SendRequest, SendResponse]] = []
    waited: list[int] = []
    async with (
        open_federation("a.example", "b.example", session=mimids_session) as (a, b),
        AsyncExitStack() as stack,
    ):

        async def device(provider: Provider, user: str) -> Device:
            return await stack.enter_async_context(provider.add_device(user).client())

        group = PretendGroup.at(a.name)
        creator = await device(a, "alice")
        await creator.create_group(group.creation())
        commit, silent = group.commit()
        await creator.send(group.hub, commit)

        async def wait(waiting: Device) -> None:
            waited.append(len(await waiting.receive(group.hub, silent.key, wait_seconds=50)))

        async with trio.open_nursery() as load:
            for number in range(WAITING):
                load.start_soon(wait, await device(a, f"waiting-{number}"))
            for number in range(SENDERS):
                load.start_soon(send_until_refused, await device(a, f"sender-{number}"), group, sent)
                load.start_soon(send_until_refused, await device(b, f"sender-{number}"), group, sent)
            await trio.sleep(1)
            began = time.monotonic()
            a.signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(a.wait_ended) == EXIT_OK
            assert time.monotonic() - began < 10
        assert waited == [0] * WAITING
        await trio.to_thread.run_sync(a.start)
        stored = a.stored(group.key)
        for request, answer in sent:
            assert stored[answer.counter] == request.message.encoded
        assert len(sent) > 2 * SENDERS
        assert len(set(stored)) == len(stored)


def test_every_request_that_has_arrived_is_answered(mimids_session: Session) -> None:
    """The server has read none of the requests when it is told to stop."""
    with federation("a.example", session=mimids_session) as (a,):
        alice, group = a.add_device("alice"), PretendGroup.at(a.name)
        alice.ask(lambda device: device.create_group(group.creation()))
        connections = [connect(alice) for _ in range(REQUESTS)]
        assert [me(connection, alice) for connection in connections] == [200] * REQUESTS
        a.stop()
        for number, connection in enumerate(connections):
            body = encode(group.message(b"%d" % number))
            headers = {"Authorization": f"Bearer {alice.token}", "Content-Type": "application/mimi-ds"}
            connection.request("POST", f"/client/v1/hubs/{a.name}/send", body, headers)
        a.signal(signal.SIGTERM)
        a.cont()
        answers = [connection.getresponse() for connection in connections]
        assert [answer.status for answer in answers] == [200] * REQUESTS
        assert a.wait_ended() == EXIT_OK
        assert len(a.stored(group.key)) == REQUESTS
        for connection in connections:
            connection.close()


def shown(account: DeviceAccount) -> bytes:
    """Return the certificate that the server shows to a new connection."""
    connection = connect(account)
    try:
        assert isinstance(connection.sock, ssl.SSLSocket)
        return connection.sock.getpeercert(binary_form=True) or b""
    finally:
        connection.close()


def connect(account: DeviceAccount) -> http.client.HTTPSConnection:
    host, _, port = account.url.removeprefix("https://").rpartition(":")
    trust = ssl.create_default_context(cafile=account.ca_file)
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=10)
    connection.connect()
    return connection


def me(connection: http.client.HTTPSConnection, account: DeviceAccount) -> int:
    connection.request("GET", "/client/v1/me", headers={"Authorization": f"Bearer {account.token}"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_renewed_certificates_are_shown_and_no_connection_is_dropped(mimids_session: Session) -> None:
    watched = {"tls": {"watch_seconds": 3600}}
    with federation("a.example", "b.example", config=watched, session=mimids_session) as (a, b):
        alice, bob = a.add_device("alice"), b.add_device("bob")
        group = PretendGroup.at(a.name)
        alice.ask(lambda device: device.create_group(group.creation()))
        bob.ask(lambda device: device.send(group.hub, group.message(b"before")))  # b has a connection to a from now on
        old = shown(alice)
        kept = connect(alice)
        assert me(kept, alice) == 200
        socket = kept.sock
        for provider in (a, b):
            for path in (provider.config.tls.certificate, provider.config.tls.private_key):
                path.unlink()
            mimids_session.issue(provider.name).write(provider.config.tls.certificate, provider.config.tls.private_key)
            provider.clock.advance(3600)
            give_up_at = time.monotonic() + 10
            while "certificates reloaded" not in provider.log:
                assert time.monotonic() < give_up_at, provider.log
        assert shown(alice) != old
        assert me(kept, alice) == 200
        assert kept.sock is socket
        kept.close()
        bob.ask(lambda device: device.send(group.hub, group.message(b"after")))
        assert len(a.stored(group.key)) == 2
