"""Messages on their way down a stream: what is to be sent, and what has no answer yet.

Everything stays here until it is answered, so a new connection can send it again; a repeat is answered as the first
was (semantics: sequencing). Messages to one hub keep their order. Nothing here opens anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import anyio
import attrs

from mimids.client.connection import Problem, Unreachable
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import Send, SendRequest, SendResponse, SendResult

HEAD_OCTETS: Final = 512  # of a frame that sends: id, type, hub and lengths take less


@attrs.frozen
class SendLimits:
    """What the provider takes in one frame (`Device.me`)."""

    frame_octets: int
    batch_messages: int


class Sending:
    """Messages on their way; `wait` for what becomes of them."""

    def __init__(self, count: int) -> None:
        self._results: list[SendResponse | Problem | None] = [None] * count
        self._left = count
        self._end: Exception | None = None
        self._done = anyio.Event()
        if not count:
            self._done.set()

    async def wait(self) -> tuple[SendResponse | Problem, ...]:
        """Wait for all answers, one for each message in order; raise what ended the stream if that came first."""
        await self._done.wait()
        if self._end is not None:
            raise self._end
        return tuple(result for result in self._results if result is not None)

    def settle(self, index: int, result: SendResponse | Problem) -> None:
        """Note an answer."""
        self._results[index] = result
        self._left -= 1
        if not self._left:
            self._done.set()

    def end(self, why: Exception) -> None:
        """Wake who waits, though there will be no more answers."""
        self._end = why
        self._done.set()


@attrs.frozen(eq=False)
class _Item:
    """One message on its way."""

    request: SendRequest
    octets: int
    sending: Sending
    index: int

    def settle(self, result: SendResponse | Problem) -> None:
        self.sending.settle(self.index, result)


class Outbox:
    """All that a stream sends."""

    def __init__(self) -> None:
        self._waiting: dict[ProviderId, deque[_Item]] = {}
        self._unanswered: dict[int, tuple[ProviderId, list[_Item]]] = {}  # by the frame that carried them
        self._end: Exception | None = None

    def __len__(self) -> int:
        """Return how many messages have no answer."""
        return sum(map(len, self._waiting.values())) + sum(len(items) for _, items in self._unanswered.values())

    def put(self, hub: ProviderId, requests: Sequence[SendRequest]) -> Sending:
        """Take messages that are to follow all others to that hub."""
        sending = Sending(len(requests))
        if self._end is not None:
            sending.end(self._end)
        else:
            items = (_Item(each, len(encode(each)), sending, index) for index, each in enumerate(requests))
            self._waiting.setdefault(hub, deque()).extend(items)
        return sending

    def next_frames(self, limits: SendLimits, first_frame: int) -> Iterator[tuple[int, Send]]:
        """Give one frame for each hub that is to be sent to, with as many messages as fit; ids from `first_frame` on.

        A message that fits into no frame is refused here, as the provider would: by hanging up it could not say why.
        """
        room = limits.frame_octets - HEAD_OCTETS
        for hub in list(self._waiting):
            items: list[_Item] = []
            left, waiting = room, self._waiting[hub]
            while waiting and len(items) < limits.batch_messages:
                item = waiting[0]
                if item.octets > room:
                    item.settle(_too_large(item.octets))
                elif item.octets > left:
                    break
                else:
                    left -= item.octets
                    items.append(item)
                waiting.popleft()
            if not waiting:
                del self._waiting[hub]
            if items:
                self._unanswered[first_frame] = hub, items
                yield first_frame, Send(hub, tuple(item.request for item in items))
                first_frame += 1

    def answer(self, frame: int, results: Sequence[SendResult]) -> None:
        """Take the answers to a frame; raise `Unreachable` if they are not one for each message."""
        _, items = self._unanswered.get(frame, (None, []))
        if len(items) != len(results):
            raise Unreachable("another number of answers than of messages")
        for item, result in zip(items, results, strict=True):
            outcome = result.outcome
            item.settle(Problem.from_json(None, outcome) if isinstance(outcome, bytes) else outcome)
        self._unanswered.pop(frame, None)

    def refuse(self, frame: int, problem: Problem) -> bool:
        """Take a refusal of a whole frame; False if the frame is none of these."""
        hub_and_items = self._unanswered.pop(frame, None)
        if hub_and_items is None:
            return False
        for item in hub_and_items[1]:
            item.settle(problem)
        return True

    def take_back(self) -> None:
        """Put what has no answer in front again: the connection it went over is lost."""
        unanswered, self._unanswered = self._unanswered, {}
        for hub, items in reversed(unanswered.values()):
            self._waiting.setdefault(hub, deque()).extendleft(reversed(items))

    def end(self, why: Exception) -> None:
        """Wake all who wait for answers that will not come, now or later."""
        self._end = why
        self.take_back()
        for items in self._waiting.values():
            for item in items:
                item.sending.end(why)


def _too_large(octets: int) -> Problem:
    return Problem(413, {"type": "urn:mimids:problem:too-large", "limit": "frame_bytes", "octets": octets})
