"""The figures of SECURITY.md. Other tests take the bounds from the code, so they pass with any bound."""

from __future__ import annotations

import pytest

from mimids.ds import peer_answers
from mimids.ds.devices import hub_calls, streams
from mimids.ds.following import following, intake, outgoing_welcomes, recovery_as_hub
from mimids.ds.limits import call_slots
from mimids.http.api import parameters
from mimids.http.peers import calls, dialling
from mimids.http.server import buffers, listener_state, protocols, shares, transport, waits
from mimids.wire import ids, messages


@pytest.mark.parametrize(
    ("bound", "figure"),
    [
        (shares.SHARE, 4),
        (shares.RESERVE, 8),
        (waits.OF_CONNECTIONS, 2),
        (listener_state.NOT_YET_ADMITTED, 32),
        (listener_state.ConnectionLimits().head_bytes, 16_384),
        (protocols.HEADER_LINES, 128),
        (protocols.SMALL_FRAMES_BURST, 200),
        (protocols.SMALL_FRAMES_PER_SECOND, 20),
        (buffers.UNCOUNTED_OCTETS, 4096),
        (transport.FIRST_BYTES, 32_768),
        (parameters.PREFERENCES, 16),
        (ids.GROUP_ID_OCTETS, 256),
        (messages.FRAME_ITEMS, 4096),
        (streams.PRESENTED_KEYS, 32_768),
        (hub_calls.WORKERS, 16),
        (following.WAITS_OF_A_DEVICE, 4),
        (intake.EMPTY_PARTITIONS, 1000),
        (peer_answers.WORKERS, 4),
        (messages.MOST_BUNDLED, 1024),
        (messages.MOST_JOINERS, 4096),
        (intake.RESTORED_JUMP, 1 << 20),
        (recovery_as_hub.MOST_NAMED_GROUPS, 10_000),
        (call_slots.QUICK_CALLS, 112),
        (call_slots.SLOW_CALLS, 32),
        (calls.CALLS, 1024),
        (calls.CALLS_TO_ONE, 64),
        (calls.WAITS_AT_ONE, 32),
        (dialling.MAX_ADDRESSES, 4),
        (dialling.LOOKUPS_OF_ONE, 8),
        (dialling.LOOKUP_THREADS, 32),
    ],
)
def test_a_bound_is_no_larger_than_it_is_said_to_be(bound: float, figure: int) -> None:
    assert bound <= figure


def test_the_tasks_of_the_job_that_sends_welcomes() -> None:
    assert outgoing_welcomes.TASKS_OF_A_SENDER <= 16
