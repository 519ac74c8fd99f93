"""A push service on loopback, over HTTPS: it records the pushes that a provider sends, and answers as the test says."""

from __future__ import annotations

import secrets
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.testing.session import Session, default_session

HOST: Final = "localhost"
BODY_OCTETS: Final = 4096  # RFC 8030 section 7.2


@attrs.frozen
class ReceivedPush:
    """A push as the service received it; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@attrs.frozen
class PushEndpoint:
    """What a browser would get from the service: pass `url`, `p256dh` and `auth` to `Device.subscribe`."""

    url: str
    p256dh: bytes
    auth: bytes
    private_key: EllipticCurvePrivateKey = attrs.field(repr=False)  # decrypts pushes, with `auth`


class PushService:
    """The service; `push_service` runs one."""

    def __init__(self, session: Session) -> None:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as directory:
            certificate, private_key = Path(directory, "pem"), Path(directory, "key")
            session.issue(HOST).write(certificate, private_key)
            context.load_cert_chain(certificate, private_key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.origin = f"https://{HOST}:{self._server.server_address[1]}"
        self._changed = threading.Condition()
        self._pushes: list[ReceivedPush] = []
        self._answer: tuple[int, Mapping[str, str], bytes] | None = (201, {}, b"")
        self._closing = threading.Event()
        threading.Thread(target=self._server.serve_forever, name="mimids.testing push service", daemon=True).start()

    @property
    def pushes(self) -> list[ReceivedPush]:
        """The pushes so far, also those that were not accepted."""
        with self._changed:
            return list(self._pushes)

    def endpoint(self) -> PushEndpoint:
        """Return a new endpoint with new keys."""
        key = generate_private_key(SECP256R1())
        public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return PushEndpoint(f"{self.origin}/{secrets.token_urlsafe(16)}", public, secrets.token_bytes(16), key)

    def answer(self, status: int | None, *, body: str = "", **headers: str) -> None:
        """Answer with this status from now on (None: do not answer); `retry_after="60"` adds a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answer = None if status is None else (status, named, body.encode())

    def wait(self, number: int, seconds: float = 10) -> list[ReceivedPush]:
        """Wait until `number` pushes have come, and return all pushes; raise `TimeoutError` after `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._pushes) >= number, seconds):
                raise TimeoutError(f"{len(self._pushes)} pushes, not {number}, after {seconds} s")
            return list(self._pushes)

    def close(self) -> None:
        """Stop the service."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(min(int(request.headers.get("content-length", 0)), BODY_OCTETS))
        answer = self._answer
        push = ReceivedPush(request.path, {name.lower(): value for name, value in request.headers.items()}, body)
        with self._changed:
            self._pushes.append(push)
            self._changed.notify_all()
        if answer is None:
            self._closing.wait()
            request.close_connection = True
            return
        status, headers, content = answer
        request.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)


@contextmanager
def push_service(session: Session | None = None) -> Iterator[PushService]:
    """Run a push service for the block.

    A provider calls it if its `origin` is listed: `config={"push": {"endpoints": [service.origin]}}`.
    """
    service = PushService(session or default_session())
    try:
        yield service
    finally:
        service.close()
