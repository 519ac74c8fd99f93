"""What another provider answers over a connection: who is trusted, for how long, and what is passed on to clients."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

import pytest
import trio
import trustme

from mimids.errors import CertificateMismatch, MimiError, PeerFailed, PeerUnavailable, Unauthenticated
from mimids.http.peers.answers import HEADER_CHARS, HttpAnswer, relayed_answer
from mimids.http.peers.calls import open_peers
from mimids.http.server.tls import CertificateFileError, ServerTls, Trust
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE
from mimids.testing.clock import MovableClock
from tests.support.other_provider import Asked, B, World


@pytest.fixture
def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    return World(tmp_path, trustme.CA(), nursery)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthenticated), (401, None), (407, None), (400, Unauthenticated), (403, CertificateMismatch)],
)
async def test_a_gateways_refusal_of_us_is_not_passed_on_to_the_device(
    world: World, status: int, kind: type[MimiError] | None
) -> None:
    async def refuse(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        problem = {"type": kind.problem_type() if kind else "about:blank", "status": status}
        return status, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode()

    _, url = await world.other(refuse)
    async with world.peers(url) as peers:
        with pytest.raises(PeerFailed, match=str(status)):
            await peers.call_plainly(B, "POST", "/x", b"y", media_type="message/ohttp-req")


@pytest.mark.parametrize("value", ["5\x01", "\x7f", "5\t6", "\x85", "\xff", "9" * (HEADER_CHARS + 1)])
def test_headers_with_control_octets_are_not_passed_on(value: str) -> None:
    headers = {"retry-after": value, KEYS_SIGNATURE.lower(): value, "content-type": f"a/b{value}"}
    relayed = relayed_answer(HttpAnswer(503, headers, b""))
    assert (relayed.retry_after, relayed.keys_signature, relayed.media_type) == ("", "", "")


# --- connections that are kept --------------------------------------------------------------------------------------


async def test_a_trust_file_that_is_removed_ends_trust(world: World) -> None:
    other, url = await world.other()
    pinned = world.directory / "b-ca.pem"
    world.ca.cert_pem.write_to_path(pinned)
    async with world.peers(url, trust=str(pinned)) as peers:
        await peers.call(B, "POST", "/x")
        await trio.Path(pinned).unlink()
        with pytest.raises(CertificateFileError, match="removed"):
            await peers.reload()
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
        assert len(other.asked) == 1
        world.ca.cert_pem.write_to_path(pinned)
        await peers.reload()
        await peers.call(B, "POST", "/x")


async def test_a_kept_connection_ends_with_the_certificate_of_the_peer(world: World) -> None:
    other, url = await world.other()
    clock = MovableClock()
    async with open_peers(world.config(url), clock) as peers:
        for _ in range(2):
            await peers.call(B, "POST", "/x")
        assert len({asked.connection for asked in other.asked}) == 1
        clock.jump(400_000 * 86_400)
        await peers.call(B, "POST", "/x")  # the new connection is verified by the machine's clock
        assert len({asked.connection for asked in other.asked}) == 2


def handshake(server: ServerTls, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.current.context.wrap_bio(to_server, to_client, server_side=True)
    two = client.wrap_bio(to_client, to_server, server_hostname="a.example")
    for _ in range(4):
        for each in (two, one):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return one, two


async def test_a_clients_certificate_holds_until_it_ends_or_its_trust_file_changes(world: World) -> None:
    trust = world.directory / "clients.pem"
    world.ca.cert_pem.write_to_path(trust)
    ours, theirs = world.pair("a.example"), world.pair("b.example")
    server = ServerTls(ours, clients=Trust(trust))
    client = ssl.create_default_context(cafile=str(world.trust))
    client.load_cert_chain(theirs.certificate, theirs.private_key)
    one, two = handshake(server, client)
    credentials = server.current
    peer = credentials.peer(one)
    assert peer is not None
    assert peer.names == {B}
    now = time.time()
    assert server.still_trusts(peer, credentials, now)
    assert not server.still_trusts(peer, credentials, now + 400_000 * 86_400)
    server.reload()
    assert server.still_trusts(peer, credentials, now)  # the same trusted certificates: only ours were renewed
    trustme.CA().cert_pem.write_to_path(trust)
    server.reload()
    assert not server.still_trusts(peer, credentials, now)
    trust.unlink()
    with pytest.raises(CertificateFileError, match="removed"):
        server.reload()
    assert not server.still_trusts(peer, credentials, now)
    assert two.version() == "TLSv1.3"


@pytest.mark.parametrize("direct", [False, True])
async def test_a_kept_connection_of_a_peer_that_is_not_trusted_any_more_is_closed(world: World, direct: bool) -> None:
    """The listener reads another trust file; the kept connection is not answered, and a new one is refused."""
    other, url = await world.other(direct=direct)
    async with world.peers(url) as peers:
        await peers.call(B, "POST", "/x")
        await peers.call(B, "POST", "/x")
        assert len({asked.connection for asked in other.asked}) == 1
        trustme.CA().cert_pem.write_to_path(world.directory / "ca.crt")  # of the listener
        world.tls[0].reload()
        with pytest.raises(PeerUnavailable):
            await peers.call(B, "POST", "/x")
        assert len(other.asked) == 2


async def test_a_pair_that_cannot_be_read_keeps_the_old_one(world: World) -> None:
    ours = world.pair("a.example")
    server = ServerTls(ours, clients=Trust(world.trust))
    before = server.current
    ours.private_key.unlink()
    with pytest.raises(CertificateFileError):
        server.reload()
    assert server.current is before
