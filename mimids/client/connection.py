"""HTTP to the device's own provider: one pool, one token, problems as exceptions."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
import httpx

from mimids.wire.base64url import from_base64url
from mimids.wire.ids import GroupId, MaskedPartitionKey, Secret

MIMI_DS: Final = "application/mimi-ds"
TIMEOUT_SECONDS: Final = 30.0
CONNECTIONS: Final = 100  # connections open at a time, and kept for later requests; httpx would keep 20


class Unreachable(Exception):
    """The provider did not answer. The request may or may not have been processed; it is safe to send it again."""


class Problem(Exception):
    """A refusal (RFC 9457). `code` is the last part of its type, such as `wrong-epoch`; `members` is the document."""

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        self.status = status
        self.members = members
        self.type = str(members.get("type", "about:blank"))
        self.code = self.type.removeprefix("urn:mimids:problem:").rpartition("#")[2]
        super().__init__(f"{self.code}: {members.get('detail') or members.get('title') or f'status {status}'}")

    @property
    def is_temporary(self) -> bool:
        """Tell whether the same request may succeed later."""
        return self.status >= 500 or self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

    @staticmethod
    def from_json(status: int | None, document: bytes) -> Problem:
        """Return the problem that a document describes; an unreadable document becomes a problem too.

        If `status` is None, the document's member `status` is used, or 500 if the document has none.
        """
        try:
            members = json.loads(document)
        except (ValueError, RecursionError):  # deeply nested JSON makes the parser recurse
            members = None
        if not isinstance(members, dict):
            members = {}
        if status is None:
            named = members.get("status")
            status = named if isinstance(named, int) else HTTPStatus.INTERNAL_SERVER_ERROR.value
        kinds = {kind.TYPE: kind for kind in (BranchTerminated, CommitSuperseded, CounterAhead, GroupReplaced)}
        return kinds.get(str(members.get("type")), Problem)(status, members)


class BranchTerminated(Problem):
    """The hub terminated this branch: it accepts no more messages; receiving still works.

    A client MUST NOT automatically join from outside because of this (DS draft, "Fork Termination"): otherwise a member
    who forks a group could move all others to a branch of their choice. Show it to the user, who has to decide.
    """

    TYPE: Final = "urn:mimids:problem:branch-terminated"

    def __str__(self) -> str:
        return f"{super().__str__()} (do not rejoin automatically; let the user decide)"


class CommitSuperseded(Problem):
    """The group is linear, and another commit of this epoch came first (semantics: linear-groups).

    Apply the commit that came first, and commit again in its epoch, as `commit_with_retry` does.
    """

    TYPE: Final = "urn:mimids:problem:commit-superseded"

    @property
    def counter(self) -> int:
        """Return the counter of the commit that came first, in the partition to which the refused commit was sent."""
        counter = self.members.get("counter")
        return counter if isinstance(counter, int) and counter >= 0 else 0

    @property
    def next_masked_key(self) -> MaskedPartitionKey:
        """Return the masked key of the partition that the first commit leads to; empty if the problem names none."""
        return MaskedPartitionKey(_octets(self.members.get("next_masked_key")))


class GroupReplaced(Problem):
    """Another group replaces this one, whose branches are all terminated (semantics: replaced-groups).

    Nothing in this package joins it. Show it to the user, who has to decide.
    """

    TYPE: Final = "urn:mimids:problem:group-replaced"

    @property
    def group_id(self) -> GroupId:
        """Return the id of the other group; empty if the problem names none."""
        return GroupId(_octets(self.members.get("group_id")))

    @property
    def hub(self) -> str:
        """Return the hub of the other group, as the problem names it."""
        return str(self.members.get("hub", ""))

    def __str__(self) -> str:
        return f"{super().__str__()} (do not join automatically; let the user decide)"


def _octets(written: object) -> bytes:
    try:
        return from_base64url(written) if isinstance(written, str) else b""
    except ValueError:
        return b""


class CounterAhead(Problem):
    """The partition ends before the counter that was asked for: its hub lost messages in a restore.

    Ask again from `next_counter`. The hub gives that counter and all later ones to new messages. They are not the
    messages that the device received before with the same counters.
    """

    TYPE: Final = "urn:mimids:problem:counter-ahead"

    @property
    def next_counter(self) -> int:
        """Return the counter to start again at."""
        counter = self.members.get("next_counter")
        return counter if isinstance(counter, int) and counter >= 0 else 0


@attrs.frozen
class Address:
    """Where a device's provider is, the device's token, the trusted authorities, and the time limit for an answer."""

    url: str
    token: Secret
    trust: ssl.SSLContext
    timeout_seconds: float


@attrs.frozen
class Reply:
    """An answer with status 2xx, or with a status that the caller expected."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _HandshakeTrace:
    """Follows a request's events in httpcore, and closes the socket if the TLS handshake is cancelled.

    httpcore itself leaves that socket open.
    """

    def __init__(self) -> None:
        self._stream: Any = None  # httpcore's stream before TLS

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
        elif event == "connection.start_tls.failed":
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()


class Connection:
    """HTTP from one device to the client listener of its provider."""

    def __init__(self, url: str, token: Secret, trust: ssl.SSLContext | Path | None, *, timeout_seconds: float) -> None:
        """`trust` has the authorities that may certify the provider: a context, a PEM file, or None (the system's)."""
        if not isinstance(trust, ssl.SSLContext):
            trust = ssl.create_default_context(cafile=trust)
        self.address = Address(url, token, trust, timeout_seconds)
        self._client = httpx.AsyncClient(
            base_url=url,
            verify=trust,
            trust_env=False,
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=CONNECTIONS),
            headers={"Authorization": f"Bearer {token.reveal().decode()}"},
        )
        self._timeout_seconds = timeout_seconds

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        media_type: str = MIMI_DS,
        wait_seconds: int = 0,
        expected: frozenset[int] = frozenset(),
    ) -> Reply:
        """Send one request below `/client/v1/` and return the answer.

        Raises `Problem` if the request is refused, and `Unreachable` if no answer comes.

        With `wait_seconds` the provider may wait that long for something new before it answers. Answers with a status
        in `expected` are returned like answers with 2xx.
        """
        headers = {} if body is None else {"Content-Type": media_type}
        if wait_seconds:
            headers["Prefer"] = f"wait={wait_seconds}"
        try:
            response = await self._client.request(
                method,
                f"/client/v1/{path}",
                content=body,
                headers=headers,
                timeout=self._timeout_seconds + wait_seconds,
                extensions={"trace": _HandshakeTrace()},
            )
        except httpx.TransportError as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if not response.is_success and response.status_code not in expected:
            raise Problem.from_json(response.status_code, response.content)
        return Reply(response.status_code, response.headers, response.content)

    async def exchange_json(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send JSON, or nothing, and return the JSON object of the answer."""
        encoded = None if body is None else json.dumps(body).encode()
        reply = await self.exchange(method, path, encoded, media_type="application/json")
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
