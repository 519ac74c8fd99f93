"""A bounded mapping, against a list that is kept in the order of use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mimids.ds.lru import LeastRecentlyUsed

LIMIT = 3
steps = st.lists(st.tuples(st.sampled_from(["get", "peek", "put", "pop", "in"]), st.integers(0, 5)), max_size=40)


def test_the_entry_that_was_not_used_for_longest_is_evicted() -> None:
    cache = LeastRecentlyUsed[str, int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert list(cache) == ["a", "c"]
    assert (cache.get("b"), "b" in cache, len(cache)) == (None, False, 2)


def test_a_value_of_none_counts_as_an_entry() -> None:
    cache = LeastRecentlyUsed[str, None](2)
    cache.put("a", None)
    cache.put("b", None)
    cache.get("a")
    assert cache.pop_oldest() == ("b", None)


@given(steps)
def test_it_behaves_as_a_list_in_the_order_of_use(steps: list[tuple[str, int]]) -> None:
    cache = LeastRecentlyUsed[int, int](LIMIT)
    model: list[tuple[int, int]] = []
    for number, (step, key) in enumerate(steps):
        known = dict(model).get(key)
        others = [each for each in model if each[0] != key]
        if step == "put":
            cache.put(key, number)
            model = [*others, (key, number)][-LIMIT:]
        elif step == "get":
            assert cache.get(key) == known
            model = model if known is None else [*others, (key, known)]
        elif step == "pop":
            assert cache.pop(key) == known
            model = others
        elif step == "peek":
            assert cache.peek(key) == known
        else:
            assert (key in cache) == (known is not None)
        assert list(cache) == [each for each, _ in model]
        assert len(cache) == len(model)
    cache.clear()
    assert list(cache) == []
