"""Sending for devices that may be woken: a device's own messages do not wake it (semantics: waking-devices)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from mimids.ds.wake_ups.listening import Listening
from mimids.errors import MimiError
from mimids.store import partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device
from mimids.wire.declare import decode
from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId
from mimids.wire.messages import SendRequest, SendResponse


class SequencingHub(Protocol):
    """The part of `ds.devices.hubs.Hub` that is needed here."""

    @property
    def provider(self) -> ProviderId:
        """The provider that is the hub."""
        ...

    async def send(self, device: Device, request: SendRequest, /) -> bytes:
        """Sequence a message; return a SendResponse."""
        ...

    async def send_batch(self, device: Device, requests: Sequence[SendRequest], /) -> list[SendResponse | bytes]:
        """Sequence messages in order; return for each its answer, or the JSON of its problem."""
        ...


class OwnMessages:
    """Sends the messages of devices. They are remembered if the device may be woken, so that they do not wake it.

    A message is not remembered if the hub put somebody else's message before it, and that other message is not stored
    here yet: the other message is news to the device.
    """

    def __init__(self, store: Store, listening: Listening) -> None:
        self._store = store
        self._listening = listening

    async def send(self, device: Device, hub: SequencingHub, request: SendRequest) -> bytes:
        """Sequence a message; see `Hub.send`."""
        if device.row not in self._listening:
            return await hub.send(device, request)
        ends = await self._ends(hub.provider, [request.partition_key.masks()])
        answer = await hub.send(device, request)
        self._note(device, ends, [decode(SendResponse, answer)])
        return answer

    async def send_batch(
        self, device: Device, hub: SequencingHub, requests: Sequence[SendRequest]
    ) -> list[SendResponse | bytes]:
        """Sequence messages in order; see `Hub.send_batch`."""
        if device.row not in self._listening:
            return await hub.send_batch(device, requests)
        ends = await self._ends(
            hub.provider, {each.partition_key: each.partition_key.masks() for each in requests}.values()
        )
        outcomes = await hub.send_batch(device, requests)
        self._note(device, ends, [each for each in outcomes if not isinstance(each, bytes)])
        return outcomes

    async def note_from_outside(self, device: Device, hub: SequencingHub, answer: bytes) -> bytes:
        """Remember a message from outside a group, whose partition is in the hub's `answer`; return the answer."""
        if device.row in self._listening:
            sent = decode(SendResponse, answer)
            self._note(device, await self._ends(hub.provider, [[sent.partition]]), [sent])
        return answer

    async def _ends(
        self, hub: ProviderId, partition_masks: Iterable[Sequence[MaskedPartitionKey]]
    ) -> dict[MaskedPartitionKey, Counter]:
        """Return the end of each partition as stored here, under each mask of its key."""

        def read(tx: Tx) -> dict[MaskedPartitionKey, Counter]:
            row, found = providers.provider_row(tx, hub) or 0, {}
            for masks in partition_masks:
                partition = partitions.find_partition(tx, row, masks)
                end = Counter(0 if partition is None else partition.next_counter)
                found.update(dict.fromkeys(masks, end))
            return found

        with suppress(MimiError):  # then the device's own message may wake it, which is harmless
            return await self._store.read(read)
        return {}

    def _note(self, device: Device, ends: dict[MaskedPartitionKey, Counter], sent: Sequence[SendResponse]) -> None:
        for each in sent:
            if each.counter <= ends.get(each.partition, -1):
                ends[each.partition] = Counter(max(ends[each.partition], each.counter + 1))
                self._listening.sent(device.row, each.partition, each.counter)
