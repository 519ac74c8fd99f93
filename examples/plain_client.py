"""A client of mimids that was written from its documents alone: Python's standard library, and `cryptography`.

It has no MLS inside: it plays a recorded conversation, whose MLS objects are bytes. Bob uploads a KeyPackage at one
provider. Alice, at another one, fetches it over OHTTP, creates a group and adds him, and they write to each other on
streams.

    python examples/plain_client.py --ca a/ca.pem --card bob.json --recording private.jsonl \\
        --alice https://127.0.0.1:8444 TOKEN --bob https://127.0.0.1:9444 TOKEN

docs/write-a-client.md is where to begin. The documents that a part follows are named above it.
"""

import argparse
import base64
import hashlib
import http.client
import json
import os
import re
import secrets
import socket
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from plain_octets import (
    MIMI_DS,
    Commit,
    Page,
    Problem,
    Reader,
    SealedRequest,
    binary_request,
    binary_response,
    blurred_date,
    check_keys,
    key_package_request,
    optional,
    padded,
    read_page,
    read_results,
    send_request,
    uint,
    vector,
)

# --- HTTP: docs/http.md -------------------------------------------------------------------------------------------


class Api:
    """The requests of one device to the client listener of its provider."""

    def __init__(self, url: str, token: str, ca: str | None, timeout: float = 60) -> None:
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port or 443
        self.headers = {"Authorization": f"Bearer {token}"}
        self.tls = ssl.create_default_context(cafile=ca)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self.connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=timeout)

    def __call__(
        self, method: str, path: str, body: bytes | None = None, media_type: str = MIMI_DS
    ) -> tuple[http.client.HTTPMessage, bytes]:
        headers = self.headers | ({"Content-Type": media_type} if body is not None else {})
        try:
            self.connection.request(method, f"/client/v1/{path}", body, headers)
            response = self.connection.getresponse()
        except ConnectionError:  # closed meanwhile; every request may be repeated
            self.connection.close()
            self.connection.request(method, f"/client/v1/{path}", body, headers)
            response = self.connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise Problem(response.status, content)
        return response.headers, content

    def me(self) -> dict:
        return json.loads(self("GET", "me")[1])

    def upload(self, *key_packages: bytes) -> dict:
        return json.loads(self("POST", "key-packages", vector(b"".join(key_packages)))[1])

    def create_group(self, group_id: bytes, suite: int, key: bytes, group_info: bytes | None) -> None:
        head = vector(group_id) + uint(2, 1) + uint(2, suite) + key
        self("POST", "groups", head + optional(group_info) + optional(None) + optional(None))


# --- KeyPackages: docs/ohttp.md ----------------------------------------------------------------------------------


def key_configurations(api: Api, card: dict) -> bytes:
    headers, keys = api("GET", f"providers/{card['provider']}/ohttp-keys")
    check_keys(card, keys, headers["Mimids-Keys-Signature"])
    return keys


def fetch_key_package(api: Api, card: dict, suite: int) -> bytes:
    """Return a KeyPackage of the user of a contact card; the own provider does not learn whose it is."""
    fields = {"content-type": MIMI_DS, "date": blurred_date()}
    request = binary_request(card["provider"], "/key-packages", fields, key_package_request(card, suite))
    sealed = SealedRequest(key_configurations(api, card), padded(request), secrets.token_bytes(32))
    _, answer = api("POST", f"providers/{card['provider']}/ohttp", sealed.message, "message/ohttp-req")
    status, _, content = binary_response(sealed.open(answer))
    if status != 200:
        raise Problem(status, content)
    return content


# --- the stream: RFC 6455, docs/stream.md -------------------------------------------------------------------------

PRESENT, SEND, ACK, RESULT, MESSAGES, WELCOME, STOCK, PROBLEM = 1, 3, 4, 5, 6, 7, 8, 9


class WebSocket:
    def __init__(self, api: Api) -> None:
        plain = socket.create_connection((api.host, api.port), api.connection.timeout)
        self.socket = api.tls.wrap_socket(plain, server_hostname=api.host)
        nonce = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /client/v1/stream HTTP/1.1",
            f"Host: {api.host}:{api.port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {nonce}",
            *(f"{name}: {value}" for name, value in api.headers.items()),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.file = self.socket.makefile("rb")
        status = int(self.file.readline().split()[1])
        headers = http.client.parse_headers(self.file)
        if status != 101:
            document = self.file.read(int(headers["Content-Length"]))
            self.close()
            raise Problem(status, document)
        accept = hashlib.sha1(nonce.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        if headers["Sec-WebSocket-Accept"] != base64.b64encode(accept).decode():
            raise ValueError("not a WebSocket")

    def write(self, payload: bytes, opcode: int = 2) -> None:
        """Send a frame; opcode 2 is a binary message. A client masks what it sends."""
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, 0x80 | size])
        elif size < 1 << 16:
            head = bytes([0x80 | opcode, 0xFE]) + struct.pack(">H", size)
        else:
            head = bytes([0x80 | opcode, 0xFF]) + struct.pack(">Q", size)
        mask = os.urandom(4)
        stream = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")
        self.socket.sendall(head + mask + masked)

    def read(self) -> bytes:
        """Return the next binary message; answer pings meanwhile. Raise `ConnectionError` when it is closed."""
        message = b""
        while True:
            head = self.file.read(2)
            if len(head) < 2:
                raise ConnectionError("the connection was lost")
            final, opcode, size = head[0] & 0x80, head[0] & 0x0F, head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(self.file.read(2 if size == 126 else 8), "big")
            payload = self.file.read(size)
            if opcode == 9:
                self.write(payload, 10)
            elif opcode == 8:
                raise ConnectionError(f"closed with {int.from_bytes(payload[:2], 'big')}")
            elif opcode in (0, 2):
                message += payload
                if final:
                    return message

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Stream:
    """A stream; `next` returns what arrived, as (frame type, id, content)."""

    def __init__(self, api: Api) -> None:
        self.api, self.socket, self.last_id = api, WebSocket(api), 0

    def close(self) -> None:
        self.socket.close()

    def write(self, kind: int, body: bytes) -> int:
        self.last_id += 1
        self.socket.write(uint(4, self.last_id) + uint(1, kind) + body)
        return self.last_id

    def present(self, hub: str, key: bytes, counter: int = 0) -> int:
        return self.write(PRESENT, vector(hub.encode()) + vector(key + uint(4, counter)))

    def send(self, hub: str, *requests: bytes) -> int:
        return self.write(SEND, vector(hub.encode()) + vector(b"".join(requests)))

    def acknowledge(self, *welcome_ids: int) -> int:
        return self.write(ACK, vector(b"".join(uint(8, each) for each in welcome_ids)))

    def next(self) -> tuple[int, int, object]:
        reader = Reader(self.socket.read())
        frame, kind = reader.uint(4), reader.uint(1)
        if kind == RESULT:
            return kind, frame, read_results(reader)
        if kind == MESSAGES:
            return kind, frame, read_page(reader)
        if kind == WELCOME:
            return kind, frame, (reader.uint(8), reader.vector().decode(), reader.mls_message()[0])
        if kind == STOCK:
            return kind, frame, (reader.uint(2), reader.uint(2), reader.uint(4))
        if kind == PROBLEM:
            return kind, frame, Problem.of(reader.vector())
        raise ValueError(f"unknown frame type {kind}")


# --- the recorded conversation ------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What MLS clients made: tests/vectors/README.md has the format."""

    path: str
    lines: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = [json.loads(line) for line in Path(self.path).read_text().splitlines()]

    def find(self, kind: str, **members: object) -> dict:
        return next(each for each in self.lines if each["kind"] == kind and members.items() <= each.items())

    def key_package(self, name: str) -> bytes:
        return bytes.fromhex(self.find("key_package", name=name)["bytes"])[4:]  # without the head of the MLSMessage

    def welcome(self, key: str) -> tuple[bytes, list[str]]:
        """Return a Welcome, and for each of its secrets the provider in the credential of the KeyPackage."""
        line = self.find("welcome", partition_key=key)
        packages = [self.find("key_package", key_package_ref=ref)["bytes"] for ref in line["key_package_refs"]]
        homes = [re.search(rb"mimi://([a-z0-9.-]+)/u/", bytes.fromhex(each)) for each in packages]
        return bytes.fromhex(line["bytes"]), [home[1].decode() for home in homes]

    def group_info(self, key: str) -> bytes | None:
        lines = [each for each in self.lines if each["kind"] == "group_info" and each["partition_key"] == key]
        whole = [each for each in lines if "ratchet_tree" in each["extensions"]]
        return bytes.fromhex(whole[0]["bytes"]) if whole else None


def await_page(stream: Stream, key: bytes) -> Page:
    while True:
        kind, _, content = stream.next()
        if kind == PROBLEM:
            raise content
        if kind == MESSAGES and content.partition == hashlib.sha256(key).digest():
            return content


def play(alice: Api, bob: Api, card: dict, recording: Recording) -> None:
    created = recording.find("group_created")
    group_id, suite = bytes.fromhex(created["group_id"]), created["ciphersuite"]
    key = bytes.fromhex(created["state"]["partition_key"])

    uploaded = bob.upload(recording.key_package("bob"))
    print(f"Bob uploaded {uploaded['accepted']} KeyPackage, refused: {uploaded['refused']}")
    fetched = fetch_key_package(alice, card, suite)
    print(f"Alice fetched a KeyPackage of {card['user_id']} over OHTTP: {len(fetched)} octets")
    assert fetched == recording.key_package("bob")
    alice.create_group(group_id, suite, key, recording.group_info(key.hex()))
    print(f"Alice created {group_id.decode()}")

    hers, his, hub = Stream(alice), Stream(bob), alice.me()["provider"]
    next_key = add_bob(hers, his, hub, key, recording)
    write_to_each_other(hers, his, hub, next_key, recording)


def add_bob(hers: Stream, his: Stream, hub: str, key: bytes, recording: Recording) -> bytes:
    """Send the commit that adds Bob, and let him take his Welcome; return the key of the epoch that it starts."""
    commit = recording.find("commit", partition_key=key.hex())
    next_key = bytes.fromhex(commit["next"]["partition_key"])
    data = Commit(next_key, recording.group_info(next_key.hex()), recording.welcome(next_key.hex()))
    frame = hers.send(hub, send_request(bytes.fromhex(commit["bytes"]), key, data))
    assert hers.next() == (RESULT, frame, [0])
    print("Alice's commit is number 0 of its epoch")

    kind, _, content = his.next()
    while kind != WELCOME:
        kind, _, content = his.next()  # a warning that his KeyPackages run out
    welcome_id, hub, welcome = content
    print(f"Bob has his Welcome, for a group at {hub}: {len(welcome)} octets")
    his.acknowledge(welcome_id)
    return next_key


def write_to_each_other(hers: Stream, his: Stream, hub: str, key: bytes, recording: Recording) -> None:
    """Let Alice write to Bob, and Bob to Alice on another stream, where he continues."""
    said = [recording.find("application", partition_key=key.hex(), by=name) for name in ("alice", "bob")]
    from_alice, from_bob = (bytes.fromhex(each["bytes"]) for each in said)
    his.present(hub, key)
    hers.present(hub, key)
    hers.send(hub, send_request(from_alice, key))
    page = await_page(his, key)
    assert page.messages == [(from_alice, None)]
    print(f"Bob has what Alice wrote, number {page.counter}")

    his.close()
    his = Stream(his.api)
    his.present(hub, key, page.next_counter)
    his.send(hub, send_request(from_bob, key))
    page = await_page(hers, key)
    while (from_bob, None) not in page.messages:
        page = await_page(hers, key)  # one's own messages come back too
    print(f"Alice has what Bob wrote on his second stream, number {page.next_counter - 1}")
    assert await_page(his, key).messages == [(from_bob, None)]
    hers.close()
    his.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Play a recorded conversation through two providers.")
    parser.add_argument("--ca", help="PEM file of the authority that certifies the providers; default: the system's")
    parser.add_argument("--card", required=True, help="Bob's contact card, a JSON file")
    parser.add_argument(
        "--recording", required=True, help="JSON lines, such as tests/vectors/conversations/private.jsonl"
    )
    parser.add_argument("--alice", required=True, nargs=2, metavar=("URL", "TOKEN"))
    parser.add_argument("--bob", required=True, nargs=2, metavar=("URL", "TOKEN"))
    given = parser.parse_args()
    alice, bob = Api(*given.alice, given.ca), Api(*given.bob, given.ca)
    play(alice, bob, json.loads(Path(given.card).read_text()), Recording(given.recording))


if __name__ == "__main__":
    main()
