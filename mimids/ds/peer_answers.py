"""Checking and decoding what another provider answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import trio

from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed
from mimids.wire.codec import Codec
from mimids.wire.declare import codec
from mimids.wire.ids import ProviderId

T = TypeVar("T")

LONG_OCTETS: Final = 16 * 1024  # a longer answer is decoded in a worker thread: hostile octets take a second for a MiB
WORKERS: Final = 4


class AnswerDecoder:
    """Decodes the answers of other providers: long ones in worker threads, one at a time for each provider."""

    def __init__(self) -> None:
        self._workers = trio.CapacityLimiter(WORKERS)
        self._turns: dict[ProviderId, trio.Lock] = {}

    async def decode(self, cls: type[T], octets: bytes, *, of: ProviderId) -> T:
        """Decode a provider's answer; raise `PeerFailed` if it is not a `cls`."""
        return await self.decode_by(codec(cls), octets, f"a {cls.__name__}", of=of)

    async def decode_by(self, by: Codec[T], octets: bytes, what: str, *, of: ProviderId) -> T:
        """Decode a provider's answer with a codec; raise `PeerFailed` if it is not `what`."""
        return await self.read_by(by.decode, octets, f"the answer is not {what}", of=of)

    async def read_by(self, read: Callable[[bytes], T], octets: bytes, fault: str, *, of: ProviderId) -> T:
        """Return `read(octets)`; raise `PeerFailed` if it raises `ValueError`, or `RecursionError` as `json` does."""
        try:
            if len(octets) <= LONG_OCTETS:
                return read(octets)
            return await self.run(partial(read, octets), of=of)
        except (ValueError, RecursionError) as error:
            raise PeerFailed(fault) from error

    async def run(self, work: Callable[[], T], *, of: ProviderId) -> T:
        """In a worker thread, do work on an answer of a provider."""
        async with self._turn(of):
            return await trio.to_thread.run_sync(work, limiter=self._workers)

    @asynccontextmanager
    async def _turn(self, provider: ProviderId) -> AsyncIterator[None]:
        lock = self._turns.setdefault(provider, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(provider, None)


def decode_answer(cls: type[T], answer: PeerAnswer) -> T:
    """Decode an answer that has only few items; raise `PeerFailed` if it is not a `cls`."""
    try:
        return codec(cls).decode(answer.body)
    except ValueError as error:
        raise PeerFailed(f"the answer is not a {cls.__name__}") from error


def expect_empty(answer: PeerAnswer) -> None:
    """Raise `PeerFailed` unless an answer is empty, as an answer with status 204 is.

    A proxy between us and the peer may answer 200 to everything. If we took such an answer for the peer's answer, a
    Welcome would be lost.
    """
    if answer.body:
        raise PeerFailed("the answer has a body, but must be empty")
