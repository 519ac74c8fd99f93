"""The timer of idle connections."""

from __future__ import annotations

import trio

from tests.support.listening import GET, Start, echo, ends, read_answer


async def test_connections_are_closed_in_the_order_in_which_they_became_idle(start: Start) -> None:
    server = await start(echo, idle_seconds=1)
    streams = [await server.connect() for _ in range(3)]
    closed: list[int] = []

    async def use(number: int) -> None:
        for _ in range(number + 1):
            await streams[number].send_all(GET)
            assert (await read_answer(streams[number]))[0] == 200
            await trio.sleep(0.25)
        assert await ends(streams[number])
        closed.append(number)
        await streams[number].aclose()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(use, number)
    assert closed == [0, 1, 2]
    await server.wait_for(open=0, timed_out=0, failed=0)


async def test_a_head_that_has_begun_within_the_idle_time_gets_the_time_for_a_head(start: Start) -> None:
    server = await start(echo, head_seconds=10, idle_seconds=0.6)
    async with await server.connect() as stream:
        await stream.send_all(GET)
        assert (await read_answer(stream))[0] == 200
        await trio.sleep(0.4)
        await stream.send_all(GET[:20])
        await trio.sleep(0.6)
        await stream.send_all(GET[20:])
        assert (await read_answer(stream))[0] == 200


async def test_empty_lines_do_not_prolong_the_time_for_the_first_request(start: Start) -> None:
    server = await start(echo, head_seconds=0.3, idle_seconds=60)
    async with await server.connect() as stream, trio.open_nursery() as nursery:

        async def send_lines() -> None:
            while True:
                await stream.send_all(b"\r\n")
                await trio.sleep(0.05)

        nursery.start_soon(send_lines)
        assert await ends(stream)
        nursery.cancel_scope.cancel()
    await server.wait_for(open=0, failed=0)
