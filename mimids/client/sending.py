"""The messages that a stream has to send, and the sent messages that have no answer yet.

Each message stays here until it is answered, so that it can be sent again on a new connection. The hub answers a repeat
as it answered the first copy (semantics: sequencing). Messages to one hub keep their order.
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
from mimids.wire.messages import Frame, FrameType, Send, SendRequest, SendResponse, SendResult

HEAD_OCTETS: Final = 512  # kept free in a frame for its id, type, hub and lengths


@attrs.frozen
class SendLimits:
    """How much the provider accepts in one frame, as `Device.me` says."""

    frame_octets: int
    batch_messages: int


class Sending:
    """Messages that are being sent; `wait` returns their answers."""

    def __init__(self, count: int) -> None:
        self._results: list[SendResponse | Problem | None] = [None] * count
        self._left = count
        self._failure: Exception | None = None
        self._done = anyio.Event()
        if not count:
            self._done.set()

    async def wait(self) -> tuple[SendResponse | Problem, ...]:
        """Wait for all answers, one for each message in order; if the stream closes first, raise the cause."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return tuple(result for result in self._results if result is not None)

    def settle(self, index: int, result: SendResponse | Problem) -> None:
        """Store the answer to one message."""
        self._results[index] = result
        self._left -= 1
        if not self._left:
            self._done.set()

    def fail(self, failure: Exception) -> None:
        """Wake the waiting task: there will be no more answers."""
        self._failure = failure
        self._done.set()


@attrs.frozen(eq=False)
class _Item:
    """One message that is being sent."""

    request: SendRequest
    octets: int
    sending: Sending
    index: int

    def settle(self, result: SendResponse | Problem) -> None:
        self.sending.settle(self.index, result)


class Outbox:
    """All messages of a stream that have no answer."""

    def __init__(self) -> None:
        self._waiting: dict[ProviderId, deque[_Item]] = {}
        self._unanswered: dict[int, tuple[ProviderId, list[_Item]]] = {}  # by the id of the frame that carried them
        self._closed_by: Exception | None = None

    def __len__(self) -> int:
        """Return how many messages have no answer."""
        return sum(map(len, self._waiting.values())) + sum(len(items) for _, items in self._unanswered.values())

    def put(self, hub: ProviderId, requests: Sequence[SendRequest]) -> Sending:
        """Add messages, to be sent after all earlier messages to that hub."""
        sending = Sending(len(requests))
        if self._closed_by is not None:
            sending.fail(self._closed_by)
        else:
            items = (_Item(each, len(encode(each)), sending, index) for index, each in enumerate(requests))
            self._waiting.setdefault(hub, deque()).extend(items)
        return sending

    def next_frames(self, limits: SendLimits, numbers: Iterator[int]) -> Iterator[Frame]:
        """Yield one frame for each hub that has messages waiting, with as many messages as fit.

        A message that fits into no frame is refused here, because the provider would close the connection without a
        reason.
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
                number = next(numbers)
                self._unanswered[number] = hub, items
                yield Frame(number, FrameType.SEND, Send(hub, tuple(item.request for item in items)))

    def answer(self, frame: int, results: Sequence[SendResult]) -> None:
        """Store the answers to a frame; raise `Unreachable` unless there is one for each message."""
        _, items = self._unanswered.get(frame, (None, []))
        if len(items) != len(results):
            raise Unreachable(f"the provider sent {len(results)} answers to {len(items)} messages")
        for item, result in zip(items, results, strict=True):
            outcome = result.outcome
            item.settle(Problem.from_json(None, outcome) if isinstance(outcome, bytes) else outcome)
        self._unanswered.pop(frame, None)

    def refuse(self, frame: int, problem: Problem) -> bool:
        """Store the refusal of a whole frame; return False if no messages were sent in that frame."""
        hub_and_items = self._unanswered.pop(frame, None)
        if hub_and_items is None:
            return False
        for item in hub_and_items[1]:
            item.settle(problem)
        return True

    def requeue_unanswered(self) -> None:
        """Put the messages without an answer back in front: the connection on which they were sent is lost."""
        unanswered, self._unanswered = self._unanswered, {}
        for hub, items in reversed(unanswered.values()):
            self._waiting.setdefault(hub, deque()).extendleft(reversed(items))

    def close(self, failure: Exception) -> None:
        """Make every task that waits for an answer, now or later, raise `failure`."""
        self._closed_by = failure
        self.requeue_unanswered()
        for items in self._waiting.values():
            for item in items:
                item.sending.fail(failure)


def _too_large(octets: int) -> Problem:
    return Problem(413, {"type": "urn:mimids:problem:too-large", "limit": "frame_bytes", "octets": octets})
