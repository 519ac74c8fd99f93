"""A queue that serves its owners in turn."""

from __future__ import annotations

from mimids.owners import FairQueue


def test_owners_are_served_in_turn_and_each_in_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for item in range(4):
        queue.add("greedy", item)
    queue.add(None, 10)
    queue.add("modest", 20)
    queue.add("modest", 21)
    assert (len(queue), queue.owners()) == (7, ["greedy", None, "modest"])
    assert [queue.pop() for _ in range(7)] == [0, 10, 20, 1, 21, 2, 3]
    assert not queue


def test_an_owner_has_items_until_the_last_is_removed() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add("a", 1)
    queue.add("a", 2)
    queue.add("b", 3)
    queue.remove("a", 1)
    assert queue.pop_of("a") == 2
    assert not queue.has("a")
    queue.remove("b", 3)
    assert not queue.has("b")
    assert len(queue) == 0
