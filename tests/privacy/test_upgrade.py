"""The migration to privacy at rest removes from an older database what is not stored any more."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mimids.store.engine.migrate import REWRITTEN_AFTER, migrate, shipped
from tests.support.curious import octets_of, tables_of

AT = 1_900_000_123_456
HOUR = AT - AT % 3_600_000
DELETED = b"deleted by a build without secure_delete".ljust(3000, b".")
DIGEST = bytes(32)

OLD = (
    ("INSERT INTO providers (domain) VALUES ('a.example')", ()),
    ("INSERT INTO users (user_id, created_at) VALUES (x'61', ?)", (AT,)),
    ("INSERT INTO devices (owner, name, token_digest, created_at) VALUES (1, 'phone', ?, ?)", (DIGEST, AT)),
    (
        "INSERT INTO tokens (owner, digest, scheme, label, issuer_device, created_at, rate_started_at, rate_used,"
        " abuse_started_at, unanswered_claims) VALUES (1, ?, 'unique', 'bob', 9, ?, ?, 1, ?, 0)",
        (DIGEST, AT, AT, AT),
    ),
    (
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, claimed_at, token)"
        " VALUES (?, x'01', 1, 1, 1, 1, ?, NULL), (?, x'02', 1, 1, 1, 1, ?, 1), (?, x'03', 9, 1, 1, 1, NULL, NULL)",
        (DIGEST, AT, b"1" * 32, AT, b"2" * 32),
    ),
    (
        "INSERT INTO groups (hub, group_id, version, cipher_suite, creator_device, created_at)"
        " VALUES (1, x'67', 1, 1, 9, ?)",
        (AT,),
    ),
    (
        "INSERT INTO partitions (group_ref, hub, masked_key, opened_at, opener_provider, opener_device)"
        " VALUES (1, 1, ?, ?, 1, 9)",
        (DIGEST, AT),
    ),
    (
        "INSERT INTO messages (seq, partition, counter, accepted_at, kind, digest, digest_key, next_masked_key,"
        " sender_provider, sender_device, body) VALUES (1, 1, 0, ?, 3, ?, 0, ?, 1, 1, x'00')",
        (AT, DIGEST, b"1" * 32),
    ),
    (
        "INSERT INTO partitions (group_ref, hub, masked_key, parent, opened_by, opened_at) VALUES (1, 1, ?, 1, 1, ?)",
        (b"1" * 32, AT),
    ),
    ("INSERT INTO participations (group_ref, device, joined_at) VALUES (1, 9, ?)", (AT,)),
    ("INSERT INTO welcomes (digest, body, stored_at) VALUES (x'01', x'ff', ?), (x'02', x'ff', ?)", (AT, AT)),
    (
        "INSERT INTO inbox (device, welcome, hub, arrived_at, acknowledged_at)"
        " VALUES (1, 1, 1, ?1, ?1), (1, 2, 1, ?1, NULL)",
        (AT,),
    ),
    ("INSERT INTO device_cursors (device, partition, next_counter, seen_at) VALUES (1, 1, 1, ?)", (AT,)),
    (
        "INSERT INTO rate_buckets VALUES ('user_fetches_per_minute', 'a', 1.5, ?1),"
        " ('device_bytes_per_day', '1', 1.5, ?1)",
        (AT,),
    ),
    ("CREATE TABLE other (body BLOB)", ()),
    ("INSERT INTO other VALUES (?)", (DELETED,)),
    ("DROP TABLE other", ()),
)


def test_an_older_database_is_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite3"
    migrate(path, shipped()[: REWRITTEN_AFTER - 1])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        for statement, values in OLD:
            connection.execute(statement, values)
    assert DELETED in octets_of(path)

    migrate(path)
    assert DELETED not in octets_of(path)
    found = tables_of(path)
    assert found["key_package_refs"].column("claimed_at") == [0, HOUR, None]
    assert found["key_package_refs"].column("device") == [1, 1, 0]
    assert found["groups"].column("creator_device") == [None]
    assert found["groups"].column("departed") == [1]
    assert list(
        zip(found["partitions"].column("opener_provider"), found["partitions"].column("opener_device"), strict=True)
    ) == [(1, None), (1, 1)]
    assert found["participations"].rows == ()
    assert found["welcomes"].column("body") == [b"", b"\xff"]
    assert found["rate_buckets"].rows == (("device_bytes_per_day", "1", 1.0, HOUR),)
    (token,) = found["tokens"].rows
    assert (
        dict(zip(found["tokens"].columns, token, strict=True)).items()
        >= {"rate_started_at": 0, "rate_used": 0, "abuse_started_at": 0, "issuer_device": None}.items()
    )
    precise = {
        f"{name}.{column}" for name, table in found.items() for column in table.columns if AT in table.column(column)
    }
    assert precise == {
        "users.created_at",
        "devices.created_at",
        "tokens.created_at",
        "groups.created_at",
        "partitions.opened_at",
        "messages.accepted_at",
    }
