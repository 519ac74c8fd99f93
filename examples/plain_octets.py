"""The octets of a client of mimids, without I/O: structures, Binary HTTP, HPKE and OHTTP.

`plain_client.py` uses it. The documents that a part follows are named above it.
"""

import base64
import hmac
import json
import random
import re
import time
from dataclasses import dataclass
from email.utils import formatdate

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

MIMI_DS = "application/mimi-ds"


# --- octets: docs/wire.md -----------------------------------------------------------------------------------------


def uint(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


def vector(content: bytes) -> bytes:
    """Return `opaque<V>`: the length in 1, 2 or 4 octets, the shortest that fits, then the content."""
    for bits, size in ((6, 1), (14, 2), (30, 4)):
        if len(content) < 1 << bits:
            return uint(size, (size >> 1) << (8 * size - 2) | len(content)) + content
    raise ValueError("too long")


def optional(value: bytes | None) -> bytes:
    return b"\0" if value is None else b"\1" + value


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def length(self) -> int:
        """Read a length as in `<V>`. Binary HTTP has the same form, with 8 octets too."""
        size = 1 << (self.data[self.at] >> 6)
        return self.uint(size) & ((1 << (8 * size - 2)) - 1)

    def vector(self) -> bytes:
        return self.take(self.length())

    @property
    def left(self) -> bool:
        return self.at < len(self.data)

    def mls_message(self) -> tuple[bytes, int | None]:
        """Read an MLSMessage, which has no length before it; return its octets, and its content type if it has one.

        The end of a PrivateMessage, a Welcome and a GroupInfo is found here. For PublicMessages an MLS library is
        needed (RFC 9420 section 6).
        """
        begin, content_type = self.at, None
        self.uint(2)
        wire_format = self.uint(2)
        if wire_format == 2:  # PrivateMessage: group_id, epoch, content_type, then three vectors
            self.vector()
            self.uint(8)
            content_type = self.uint(1)
            for _ in range(3):
                self.vector()
        elif wire_format == 3:  # Welcome: cipher_suite, secrets, encrypted_group_info
            self.uint(2)
            self.vector()
            self.vector()
        elif wire_format == 4:  # GroupInfo: version, suite, group_id, epoch, 3 vectors; 2 vectors, signer, signature
            self.uint(4)
            self.vector()
            self.uint(8)
            for _ in range(5):
                self.vector()
            self.uint(4)
            self.vector()
        else:
            raise ValueError(f"this client does not parse wire format {wire_format}")
        return self.data[begin : self.at], content_type


# --- refusals: docs/http.md ---------------------------------------------------------------------------------------


class Problem(Exception):
    def __init__(self, status: int, document: bytes) -> None:
        self.status, self.members = status, json.loads(document)
        self.code = re.sub(r"^urn:mimids:problem:|^.*#", "", self.members["type"])
        super().__init__(f"{status} {self.code}: {self.members['detail']}")

    @classmethod
    def of(cls, document: bytes) -> "Problem":
        """Return the problem in a frame, whose status is in the document."""
        return cls(json.loads(document)["status"], document)


# --- Binary HTTP: RFC 9292, docs/ohttp.md -------------------------------------------------------------------------


def http_length(content: bytes) -> bytes:
    """Return a length and the content, as in RFC 9000 section 16; its forms up to 4 octets are those of `<V>`."""
    return vector(content)


def binary_request(authority: str, path: str, fields: dict[str, str], content: bytes) -> bytes:
    control = b"".join(http_length(each.encode()) for each in ("POST", "https", authority, path))
    lines = b"".join(http_length(name.encode()) + http_length(value.encode()) for name, value in fields.items())
    return b"\0" + control + http_length(lines) + http_length(content) + http_length(b"")


def binary_response(message: bytes) -> tuple[int, dict[str, str], bytes]:
    reader = Reader(message)
    if reader.length() != 1:
        raise ValueError("not a response of known length")
    while (status := reader.length()) < 200:
        reader.vector()  # the fields of an informational response
    lines, fields = Reader(reader.vector()), {}
    while lines.left:
        name = lines.vector().decode()
        fields[name] = lines.vector().decode()
    return status, fields, reader.vector()  # the rest is trailers and padding


def padded(message: bytes) -> bytes:
    size = (
        max(1024, 1 << (len(message) - 1).bit_length()) if len(message) <= 65536 else -(-len(message) // 65536) * 65536
    )
    return message.ljust(size, b"\0")


# --- HPKE and OHTTP: RFC 9180, RFC 9458, docs/ohttp.md ------------------------------------------------------------


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), secret, "sha256")


def expand(key: bytes, info: bytes, size: int) -> bytes:
    out = block = b""
    while len(out) < size:
        block = hmac.digest(key, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:size]


class Hpke:
    """The sender's side of base mode with DHKEM(X25519, HKDF-SHA256) and HKDF-SHA256, for one message."""

    def __init__(self, public_key: bytes, info: bytes, aead_id: int, ephemeral: bytes) -> None:
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        self.enc = private.public_key().public_bytes_raw()
        self.aead_id, self.key_size = aead_id, 16 if aead_id == 1 else 32
        kem = b"KEM" + uint(2, 0x0020)
        self.suite = b"HPKE" + uint(2, 0x0020) + uint(2, 1) + uint(2, aead_id)
        dh = private.exchange(X25519PublicKey.from_public_bytes(public_key))
        eae_prk = self.labeled_extract(kem, b"", b"eae_prk", dh)
        shared = self.labeled_expand(kem, eae_prk, b"shared_secret", self.enc + public_key, 32)
        context = b"\0" + self.labeled_extract(self.suite, b"", b"psk_id_hash", b"")
        context += self.labeled_extract(self.suite, b"", b"info_hash", info)
        secret = self.labeled_extract(self.suite, shared, b"secret", b"")
        self.key = self.labeled_expand(self.suite, secret, b"key", context, self.key_size)
        self.nonce = self.labeled_expand(self.suite, secret, b"base_nonce", context, 12)
        self.exporter = self.labeled_expand(self.suite, secret, b"exp", context, 32)

    @staticmethod
    def labeled_extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return extract(salt, b"HPKE-v1" + suite + label + secret)

    @staticmethod
    def labeled_expand(suite: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
        return expand(key, uint(2, size) + b"HPKE-v1" + suite + label + info, size)

    def aead(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        return AESGCM(key) if self.aead_id == 1 else ChaCha20Poly1305(key)

    def seal(self, plaintext: bytes) -> bytes:
        return self.aead(self.key).encrypt(self.nonce, plaintext, b"")

    def export(self, label: bytes, size: int) -> bytes:
        return self.labeled_expand(self.suite, self.exporter, b"sec", label, size)


class SealedRequest:
    """A `message/ohttp-req` for the first key of an `application/ohttp-keys` that this client can use."""

    def __init__(self, keys: bytes, request: bytes, ephemeral: bytes) -> None:
        configs = Reader(keys)
        while configs.left:
            config = Reader(configs.take(configs.uint(2)))
            key_id, kem_id = config.uint(1), config.uint(2)
            if kem_id != 0x0020:
                continue
            public_key = config.take(32)
            pairs = Reader(config.take(config.uint(2)))
            while pairs.left:
                kdf_id, aead_id = pairs.uint(2), pairs.uint(2)
                if kdf_id == 1 and aead_id in (1, 3):
                    header = uint(1, key_id) + uint(2, kem_id) + uint(2, kdf_id) + uint(2, aead_id)
                    self.hpke = Hpke(public_key, b"message/bhttp request\0" + header, aead_id, ephemeral)
                    self.message = header + self.hpke.enc + self.hpke.seal(request)
                    return
        raise ValueError("no usable key")

    def open(self, answer: bytes) -> bytes:
        size = max(12, self.hpke.key_size)
        nonce, sealed = answer[:size], answer[size:]
        prk = extract(self.hpke.enc + nonce, self.hpke.export(b"message/bhttp response", size))
        key, iv = expand(prk, b"key", self.hpke.key_size), expand(prk, b"nonce", 12)
        return self.hpke.aead(key).decrypt(iv, sealed, b"")


def from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check_keys(card: dict, keys: bytes, header: str) -> None:
    """Check the signature of key configurations (docs/ohttp-keys.md); raise if they must not be used."""
    found = re.fullmatch(r"not_after=([0-9]{1,15}), signature=:([A-Za-z0-9+/]{86}==):", header)
    if found is None:
        raise ValueError("the key configurations are not signed")
    covered = vector(b"mimids ohttp keys 1") + vector(card["provider"].encode()) + vector(keys) + uint(8, int(found[1]))
    identity = Ed25519PublicKey.from_public_bytes(from_base64url(card["ohttp_identity"]))
    identity.verify(base64.b64decode(found[2]), covered)
    if time.time() > int(found[1]):
        raise ValueError("the key configurations have expired")


def blurred_date() -> str:
    """Return the time in whole minutes, up to two of them off, so that it does not identify this client's clock."""
    return formatdate(60 * (round(time.time() / 60) + random.SystemRandom().randint(-2, 2)), usegmt=True)


def key_package_request(card: dict, suite: int) -> bytes:
    return vector(card["user_id"].encode()) + vector(from_base64url(card["bearer_token"])) + uint(2, 1) + uint(2, suite)


# --- sending: docs/wire.md ----------------------------------------------------------------------------------------


@dataclass
class Commit:
    """What is sent with a commit; `welcome` has the provider of each of its secrets beside it."""

    next_key: bytes
    group_info: bytes | None = None
    welcome: tuple[bytes, list[str]] | None = None

    def encode(self) -> bytes:
        welcome = None
        if self.welcome is not None:
            message, providers = self.welcome
            welcome = message + vector(b"".join(vector(each.encode()) for each in providers))
        return self.next_key + optional(self.group_info) + optional(welcome)


def send_request(message: bytes, key: bytes, commit: Commit | None = None) -> bytes:
    return message + key + (b"" if commit is None else commit.encode())


# --- what a stream brings: docs/wire.md, docs/stream.md -----------------------------------------------------------


@dataclass
class Page:
    """Messages of one partition, from `counter` on; a commit has the masked key of the epoch that it starts."""

    hub: str
    partition: bytes  # the masked key
    counter: int
    messages: list[tuple[bytes, bytes | None]]

    @property
    def next_counter(self) -> int:
        return self.counter + len(self.messages)


def read_results(reader: Reader) -> list[int]:
    """Return the counter of each message of a `send`; raise the first refusal."""
    results, counters = Reader(reader.vector()), []
    while results.left:
        if results.uint(1) == 1:
            raise Problem.of(results.vector())
        counters.append(results.uint(4))
        results.uint(8)  # accepted_at
        results.vector()  # partition
        results.uint(1)  # detached
        results.vector()  # earlier_commits
    return counters


def read_page(reader: Reader) -> Page:
    hub = reader.vector().decode()
    reader.vector()  # group_id
    partition, counter = reader.vector(), reader.uint(4)
    if reader.uint(1):
        raise ValueError("`opening` is always absent on a stream")
    epoch, messages = Reader(reader.vector()), []
    while epoch.left:
        message, content_type = epoch.mls_message()
        hint = None
        if content_type == 3:  # a commit
            hint = epoch.vector()
            if epoch.uint(1):
                epoch.mls_message()  # the GroupInfo
        messages.append((message, hint))
    return Page(hub, partition, counter, messages)
