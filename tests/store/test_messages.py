"""A page of messages ends at its limits, however large the messages are and however many are read at once."""

from __future__ import annotations

import hashlib
import random
from contextlib import closing
from pathlib import Path

from mimids.store import messages
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter

BESIDE_A_BODY = 80  # octets that count for each message


def expected(sizes: list[int], start: int, limit_octets: int, limit_messages: int) -> list[int]:
    """Return the counters of the page, found one by one."""
    found: list[int] = []
    for counter in range(start, len(sizes)):
        limit_octets -= sizes[counter] + BESIDE_A_BODY
        if found and (limit_octets < 0 or len(found) >= limit_messages):
            break
        found.append(counter)
    return found


def test_a_page_has_as_many_messages_as_fit(tmp_path: Path) -> None:
    chance = random.Random(13)
    sizes = [10] * 300 + [chance.choice((0, 10, 3000)) for _ in range(300)] + [10] * 100
    migrate(tmp_path / "db")
    with closing(connect(tmp_path / "db", synchronous="NORMAL")) as connection:
        connection.execute("INSERT INTO providers (id, domain) VALUES (1, 'a')")
        connection.execute(
            "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'', 1, 1, 0)"
        )
        connection.execute(
            "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (1, 1, 1, randomblob(32), 0)"
        )
        tx = Tx(connection)
        digests = [hashlib.sha256(b"%d" % number).digest() for number in range(len(sizes))]
        messages.append(
            tx,
            [
                messages.NewMessage(n + 1, 1, Counter(n), Milliseconds(0), 1, digests[n], n, None, b"m" * size, None)
                for n, size in enumerate(sizes)
            ],
        )
        for start in (0, 1, 250, 290, 400, 690, 700):
            for octets in (1, 100, 6000, 20_000, 200_000, 1 << 20):
                for most in (1, 63, 64, 65, 200, 1024):
                    page = messages.messages_from(tx, 1, Counter(start), limit_octets=octets, limit_messages=most)
                    assert [each.counter for each in page] == expected(sizes, start, octets, most)
