"""How far partitions go, and whether a reader's counter still fits its partition (semantics: restore)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mimids.errors import CounterAhead, Recovering
from mimids.store import groups, messages, partitions, restored_positions
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import Device, Sender
from mimids.wire.ids import FIRST_COUNTER, Counter, PartitionKey
from mimids.wire.messages import MOST_SUCCESSORS, Position

NOT_SAID: Final = Position(0, FIRST_COUNTER, FIRST_COUNTER, 0, ())


def check_position(tx: Tx, partition: Partition, counter: Counter, caller: Sender) -> bool:
    """Check the counter from which a reader asks; return whether the reader must be recorded (`note_reader`).

    Raises `CounterAhead` if the counter is beyond the partition's end, or if the reader may know the counter from a
    message that was lost in a restore. Raises `Recovering` if the messages before the counter may still come back from
    other providers.
    """
    if counter > partition.next_counter and groups.group_by_row(tx, partition.group).held:
        if isinstance(caller, Device):
            raise Recovering
        return False
    end, unnoted = partition.next_counter, False
    if isinstance(caller, Device) and partition.restored_end is not None:
        unnoted = not restored_positions.has_read(tx, partition, caller.row)
        end = min(end, partition.restored_end) if unnoted else end
    if counter > end:
        raise CounterAhead(end)
    return unnoted


def positions_of(tx: Tx, hub: int, keys: Iterable[PartitionKey], device: Device) -> tuple[Position, ...]:
    """Return for each key up to which counter we have its messages; `hub` is the hub's row, 0 if unknown."""
    return tuple(_position(tx, partitions.find_partition(tx, hub, key.masks()), device) for key in keys)


def _position(tx: Tx, partition: Partition | None, device: Device) -> Position:
    """Return a partition's position, or `NOT_SAID`.

    The result is `NOT_SAID` if the partition is unknown, or if its group was replaced. It is also `NOT_SAID` if the
    partition was restored and the device has not read it since, because counters may then stand for other messages than
    the device knows. If the group was replaced or the partition restored, the device learns this when it calls
    `receive`.
    """
    if partition is None or groups.group_by_row(tx, partition.group).successor is not None:
        return NOT_SAID
    if partition.restored_end is not None and not restored_positions.has_read(tx, partition, device.row):
        return NOT_SAID
    first = messages.first_kept(tx, partition.id, FIRST_COUNTER)
    successors = partitions.masks_of_children(tx, partition.id, limit=MOST_SUCCESSORS)
    return Position(1, first, partition.next_counter, int(partition.terminated), tuple(successors))
