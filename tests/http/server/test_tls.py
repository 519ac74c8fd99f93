"""Certificates and trust, tested by handshakes in memory between two ends of OpenSSL.

The file is long because it has all tests of one module, which share the helpers at its top.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from mimids.errors import CertificateMismatch, CertificateRequired
from mimids.http.server.tls import (
    CertificateFileError,
    ClientTls,
    Pair,
    PeerCertificate,
    ServerTls,
    Trust,
    caller,
    certificates_end,
    dns_names,
)
from mimids.wire.ids import ProviderId

A, B, C = map(ProviderId, ("a.example", "b.example", "c.example"))


class Authority:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.ca = trustme.CA()
        self.file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def pair(self, *names: str) -> Pair:
        issued = self.ca.issue_cert(*names)
        pair = Pair(self.directory / f"{names[0]}.pem", self.directory / f"{names[0]}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        pair.private_key.write_bytes(issued.private_key_pem.bytes())
        return pair


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs")


def join(server: ssl.SSLContext, client: ssl.SSLContext, name: str = A) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Do a handshake in memory; raise `ssl.SSLError` if either side refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname=name),
    )
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:
        try:
            end.read()
        except ssl.SSLWantReadError:
            continue
    return ends


def peer_seen(server: ServerTls, client: ssl.SSLContext) -> PeerCertificate | None:
    return server.current.peer(join(server.current.context, client)[0])


def names_seen(server: ServerTls, client: ssl.SSLContext) -> frozenset[ProviderId]:
    peer = peer_seen(server, client)
    assert peer is not None
    return peer.names


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issued", "expected"),
    [
        (["b.example"], {B}),
        (["B.Example", "c.example"], {B, C}),
        (["*.example", "*.b.example"], set()),  # (http: between-providers): wildcards never match
        (["127.0.0.1", "b.example"], {B}),
        (["someone@b.example"], set()),
        (["localhost"], {ProviderId("localhost")}),
    ],
)
def test_only_exact_dns_names_can_name_a_provider(issued: list[str], expected: set[ProviderId]) -> None:
    pem = trustme.CA().issue_cert(*issued).cert_chain_pems[0].bytes()
    assert dns_names(ssl.PEM_cert_to_DER_cert(pem.decode())) == expected


def test_a_certificate_without_names_names_no_provider() -> None:
    pem = trustme.CA().cert_pem.bytes()
    assert dns_names(ssl.PEM_cert_to_DER_cert(pem.decode())) == frozenset()


@given(st.binary(max_size=200))
def test_octets_that_are_no_certificate_name_no_provider(octets: bytes) -> None:
    assert dns_names(octets) == frozenset()


@pytest.mark.parametrize(
    ("names", "from_header", "expected"),
    [
        ({B}, None, B),
        ({B}, "mimi@b.example", B),
        ({B, C}, "mimi@c.example", C),
        ({B}, " mimi@B.EXAMPLE ", B),
    ],
)
def test_the_caller_is_the_one_in_from_or_the_only_name(
    names: set[ProviderId], from_header: str | None, expected: ProviderId
) -> None:
    assert caller(frozenset(names), from_header) == expected


@pytest.mark.parametrize(
    ("names", "from_header"),
    [
        (set(), None),
        (set(), "mimi@b.example"),
        ({B, C}, None),
        ({B}, "mimi@c.example"),
        ({B}, "mimi@sub.b.example"),
        ({B}, "mimi@example"),
        ({B}, "mimi@*.example"),
        ({B}, "alice@b.example"),
        ({B}, "b.example"),
        ({B}, "mimi@b.example, mimi@c.example"),
        ({B}, "<mimi@b.example>"),
        ({B}, "mimi@b.example."),
        ({B}, ""),
    ],
)
def test_any_other_from_is_a_mismatch(names: set[ProviderId], from_header: str | None) -> None:
    with pytest.raises(CertificateMismatch):
        caller(frozenset(names), from_header)


@pytest.mark.parametrize("from_header", [None, "mimi@b.example"])
def test_a_missing_certificate_is_a_problem_of_its_own(from_header: str | None) -> None:
    with pytest.raises(CertificateRequired):
        caller(None, from_header)


# --- trust --------------------------------------------------------------------------------------------------------


def test_a_client_need_not_present_a_certificate(ours: Authority) -> None:
    server = ServerTls(ours.pair(A), clients=Trust(ours.file))
    assert peer_seen(server, ClientTls(Trust(ours.file)).context(A)) is None
    assert names_seen(server, ClientTls(Trust(ours.file), ours.pair(B)).context(A)) == {B}


def test_a_listener_without_clients_asks_for_no_certificate(ours: Authority) -> None:
    assert peer_seen(ServerTls(ours.pair(A)), ClientTls(Trust(ours.file), ours.pair(B)).context(A)) is None


def test_an_untrusted_certificate_ends_the_handshake(ours: Authority, theirs: Authority) -> None:
    server = ServerTls(ours.pair(A), clients=Trust(ours.file))
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        peer_seen(server, ClientTls(Trust(ours.file), theirs.pair(B)).context(A))


@pytest.mark.parametrize("system", [False, True])
def test_the_trust_file_of_a_provider_is_the_only_one_for_it_and_for_no_other(
    ours: Authority, theirs: Authority, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    if system:
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))
    clients = Trust(None if system else ours.file, {B: theirs.file})
    server = ServerTls(ours.pair(A), clients=clients)
    trust = Trust(ours.file)
    assert names_seen(server, ClientTls(trust, ours.pair(B, C)).context(A)) == {C}
    assert names_seen(server, ClientTls(trust, theirs.pair(B, C)).context(A)) == {B}


def test_one_trust_file_may_be_general_and_of_one_provider(ours: Authority) -> None:
    server = ServerTls(ours.pair(A), clients=Trust(ours.file, {B: ours.file}))
    assert names_seen(server, ClientTls(Trust(ours.file), ours.pair(B, C)).context(A)) == {B, C}


def test_a_trust_file_may_hold_the_certificate_of_the_provider_itself(ours: Authority, theirs: Authority) -> None:
    pinned = theirs.pair(B)
    server = ServerTls(ours.pair(A), clients=Trust(ours.file, {B: pinned.certificate}))
    assert names_seen(server, ClientTls(Trust(ours.file), pinned).context(A)) == {B}


def test_without_a_trust_file_the_roots_of_the_system_are_trusted_also_after_a_reload(
    ours: Authority, theirs: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(ours.file.parent / "none"))
    client = ClientTls(Trust(None, {B: theirs.file}))
    for _ in range(2):
        assert peer_seen(ServerTls(ours.pair(A)), client.context(A)) is None
        with pytest.raises(ssl.SSLCertVerificationError):
            peer_seen(ServerTls(theirs.pair(A)), client.context(A))
        with pytest.raises(ssl.SSLCertVerificationError):
            peer_seen(ServerTls(ours.pair(B)), client.context(B))  # it has a trust file of its own
        client.reload()


def test_a_client_context_checks_the_provider_name_and_its_trust_file(ours: Authority, theirs: Authority) -> None:
    client = ClientTls(Trust(ours.file, {B: theirs.file}))
    join(ServerTls(ours.pair(A)).current.context, client.context(A), A)
    join(ServerTls(theirs.pair(B)).current.context, client.context(B), B)
    with pytest.raises(ssl.SSLCertVerificationError):
        join(ServerTls(ours.pair(B)).current.context, client.context(B), B)
    with pytest.raises(ssl.SSLCertVerificationError):
        join(ServerTls(theirs.pair(A)).current.context, client.context(A), A)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        join(ServerTls(ours.pair(C)).current.context, client.context(A), A)


def test_providers_without_a_trust_file_share_a_context(ours: Authority, theirs: Authority) -> None:
    client = ClientTls(Trust(ours.file, {B: theirs.file}))
    assert client.context(A) is client.context(C)
    assert client.context(A) is not client.context(B)


def test_a_verified_certificate_that_cannot_be_parsed_counts_as_ended(ours: Authority) -> None:
    """OpenSSL takes any octet but 0 for TRUE, as BER allows; `cryptography` requires DER."""
    pair = Pair(ours.directory / "odd.pem", ours.directory / "odd.key")
    key = ec.generate_private_key(ec.SECP256R1())
    pair.private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.certificate.write_text(ssl.DER_cert_to_PEM_cert(odd_certificate(ours, key)))
    client = ClientTls(Trust(ours.file)).context(A)
    connections = join(ServerTls(pair).current.context, client)
    assert certificates_end(connections[1]) == -inf
    seen = peer_seen(ServerTls(ours.pair(A), clients=Trust(ours.file)), ClientTls(Trust(ours.file), pair).context(A))
    assert seen is not None
    assert (seen.names, seen.valid_until) == (frozenset(), -inf)


def odd_certificate(authority: Authority, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate of a.example in which a BOOLEAN is 01 01 01, with a good signature."""
    signer = load_pem_private_key(authority.ca.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(A)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    body = made.tbs_certificate_bytes
    odd = body.replace(bytes.fromhex("551d130101ff"), bytes.fromhex("551d13010101"))
    assert odd != body
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    content = odd + algorithm + tlv(3, b"\0" + signer.sign(odd, ec.ECDSA(hashes.SHA256())))
    return tlv(0x30, content)


def tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")) + value


def test_tls_1_3_is_required(ours: Authority) -> None:
    old = ssl.create_default_context(cafile=str(ours.file))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        join(ServerTls(ours.pair(A)).current.context, old)


@pytest.mark.parametrize("trusted", [A, B])
def test_calls_out_require_tls_1_3_too(ours: Authority, trusted: str) -> None:
    """Of every provider, with a trust file of its own or without."""
    old = ServerTls(ours.pair(trusted)).current.context
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    client = ClientTls(Trust(ours.file, {B: ours.file}), ours.pair(C))
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        join(old, client.context(ProviderId(trusted)), trusted)


def test_only_http_1_1_is_negotiated(ours: Authority) -> None:
    client = ClientTls(Trust(ours.file)).context(A)
    client.set_alpn_protocols(["h2", "http/1.1"])
    server, _ = join(ServerTls(ours.pair(A)).current.context, client)
    assert server.selected_alpn_protocol() == "http/1.1"


def test_no_session_tickets_are_issued(ours: Authority) -> None:
    _, client = join(ServerTls(ours.pair(A)).current.context, ClientTls(Trust(ours.file)).context(A))
    assert client.session is None or not client.session.has_ticket


# --- files --------------------------------------------------------------------------------------------------------


def test_a_renewed_pair_is_used_and_a_broken_one_is_not(ours: Authority) -> None:
    pair = ours.pair(A)
    server = ServerTls(pair)
    client = ClientTls(Trust(ours.file)).context(A)

    def shown() -> bytes | None:
        return join(server.current.context, client)[1].getpeercert(binary_form=True)

    first = shown()
    assert shown() == first
    ours.pair(A)
    server.reload()
    second = shown()
    assert second != first
    pair.private_key.write_bytes(ours.pair(B).private_key.read_bytes())  # a renewal seen half done
    with pytest.raises(CertificateFileError, match=f"{pair.private_key} is not the key of {pair.certificate}"):
        server.reload()
    assert shown() == second
    other_kind = Ed25519PrivateKey.generate()  # OpenSSL has another error for it
    pair.private_key.write_bytes(other_kind.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(CertificateFileError, match=f"{pair.private_key} is not the key of {pair.certificate}"):
        server.reload()


def test_a_renewed_trust_file_is_used(ours: Authority, theirs: Authority) -> None:
    client = ClientTls(Trust(ours.file))
    server = ServerTls(theirs.pair(A)).current.context
    with pytest.raises(ssl.SSLCertVerificationError):
        join(server, client.context(A))
    ours.file.write_bytes(theirs.file.read_bytes())
    client.reload()
    join(server, client.context(A))


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def encrypted(path: Path) -> None:
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")))


@pytest.mark.parametrize("spoil", [missing, empty, garbage])
@pytest.mark.parametrize("which", ["certificate", "private_key", "trust"])
def test_a_file_that_cannot_be_used_is_named(ours: Authority, which: str, spoil: Callable[[Path], None]) -> None:
    pair = ours.pair(A)
    path: Path = ours.file if which == "trust" else getattr(pair, which)
    spoil(path)
    with pytest.raises(CertificateFileError) as refused:
        ServerTls(pair, clients=Trust(ours.file))
    assert str(path) in str(refused.value)
    with pytest.raises(CertificateFileError):
        ClientTls(Trust(ours.file), pair)


def test_an_encrypted_key_is_refused_without_asking_for_the_password(ours: Authority) -> None:
    pair = ours.pair(A)
    encrypted(pair.private_key)
    with pytest.raises(CertificateFileError, match=str(pair.private_key)):
        ServerTls(pair)
    on_a_terminal = "import pty, sys; pty.spawn(sys.argv[1:])"  # OpenSSL asks only where there is one
    make = "import sys; from mimids.http.server.tls import Pair, ServerTls; ServerTls(Pair(*sys.argv[1:]))"
    said = subprocess.run(
        [sys.executable, "-c", on_a_terminal, sys.executable, "-c", make, pair.certificate, pair.private_key],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    ).stdout
    assert "CertificateFileError" in said
    assert "pass phrase" not in said
