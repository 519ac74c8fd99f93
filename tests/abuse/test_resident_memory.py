"""Uploads that break off or never end: how much the process of a real provider grows."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mimids.testing import Provider, Session, federation

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
BODY = b"x" * (MIB - 1)
ROUNDS = 12  # in which the process grew by 293 MB on earlier code
OF_A_ROUND = 100
AT_ONCE = 20
MOST_GROWTH_MEGABYTES = 150
MOST_GROWTH_LATER_MEGABYTES = 30  # from the third round on: a plateau
UNFINISHED = 300


def resident_megabytes(provider: Provider) -> float:
    status = Path(f"/proc/{provider.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def begin_upload(provider: Provider, context: ssl.SSLContext) -> ssl.SSLSocket | None:
    """Send all of a body but its last octet; the server may close the connection or stop reading."""
    host, port = provider.public_url.removeprefix("https://").rsplit(":", 1)
    head = (
        f"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: {provider.name}\r\n"
        f"Content-Type: message/ohttp-req\r\nContent-Length: {MIB}\r\n\r\n"
    )
    with suppress(OSError):
        connected = context.wrap_socket(
            socket.create_connection((host, int(port)), timeout=5), server_hostname=provider.name
        )
        with suppress(OSError):
            connected.sendall(head.encode() + BODY)
        return connected
    return None


def break_off(provider: Provider, context: ssl.SSLContext, number: int) -> None:
    connected = begin_upload(provider, context)
    if connected is not None:
        connected.close()


@pytest.mark.soak
def test_uploads_that_break_off_do_not_grow_the_process(mimids_session: Session) -> None:
    """100 connections a round: 252 to 1,509 MB in 36 rounds."""
    with federation("a.example", session=mimids_session) as (provider,):
        context = ssl.create_default_context(cafile=str(provider.ca_file))
        before, grown = resident_megabytes(provider), []
        with ThreadPoolExecutor(AT_ONCE) as clients:
            for _ in range(ROUNDS):
                list(clients.map(partial(break_off, provider, context), range(OF_A_ROUND)))
                grown.append(resident_megabytes(provider) - before)
        print([f"{megabytes:+.0f} MB" for megabytes in grown])
        assert max(grown) < MOST_GROWTH_MEGABYTES
        assert max(grown[3:]) < max(grown[:3]) + MOST_GROWTH_LATER_MEGABYTES
        assert "Traceback" not in provider.log


@pytest.mark.soak
def test_uploads_that_never_end_are_bounded(mimids_session: Session) -> None:
    """300 of 1 MiB from one address took 570 MB."""
    with federation("a.example", session=mimids_session) as (provider,):
        context = ssl.create_default_context(cafile=str(provider.ca_file))
        before = resident_megabytes(provider)
        with ThreadPoolExecutor(UNFINISHED) as clients:
            begun = list(clients.map(lambda _: begin_upload(provider, context), range(UNFINISHED)))
        grown = resident_megabytes(provider) - before
        print(f"{grown:+.0f} MB")
        assert grown < MOST_GROWTH_MEGABYTES
        for connected in begun:
            if connected is not None:
                connected.close()
