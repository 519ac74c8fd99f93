"""How many streams each device has at the provider's other processes, and which process ends one of too many.

Each process tells the others when the number of streams that a device has there changes. It tells all numbers again
when another process begins, or was cut off. If a device has too many streams in all processes together, every process
computes which process must end one, and that process does. What a process knows of the others may be out of date for a
moment. Then too many or too few streams end; a device whose stream ended connects again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mimids.values import DeviceRow


class StreamsElsewhere:
    """The numbers of streams at other processes, as those processes told them last."""

    def __init__(self) -> None:
        self._of: dict[DeviceRow, dict[str, int]] = {}

    def note(self, process: str, device: DeviceRow, streams: int) -> bool:
        """Record how many streams a device has at another process; return whether it has more than before."""
        known = self._of.setdefault(device, {})
        before = known.pop(process, 0)
        if streams:
            known[process] = streams
        elif not known:
            del self._of[device]
        return streams > before

    def forget_all_but(self, processes: Collection[str]) -> None:
        """Forget what was told by processes that are not among these."""
        for device, known in list(self._of.items()):
            kept = {process: streams for process, streams in known.items() if process in processes}
            if kept:
                self._of[device] = kept
            else:
                del self._of[device]

    def of(self, device: DeviceRow) -> Mapping[str, int]:
        """Return how many streams a device has at each other process that has any."""
        return self._of.get(device, {})


def surplus_at(process: str, newest: str, streams: Mapping[str, int], limit: int) -> int:
    """Return how many streams of a device this process must end, if there are more than `limit` at all processes.

    `newest` is the process at which a stream has just begun; it ends none. The other processes end one stream after the
    other, each time the process that has the most.
    """
    left, here = dict(streams), 0
    older = [each for each in left if each != newest]
    for _ in range(sum(left.values()) - limit):
        most = max(older, key=lambda each: (left[each], each), default=None)
        if most is None or not left[most]:
            break
        left[most] -= 1
        here += most == process
    return here
