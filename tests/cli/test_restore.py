"""`mimids restore --replace`: what is in the newer database does not come back with the backup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mimids.config import Config
from mimids.store.engine.sqlite import read_here, write_here
from mimids.store.engine.transaction import Row
from mimids.store.welcome_outcomes import outcomes_of
from mimids.values import Milliseconds, hour_of
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, KeyPackageRef
from tests.support.cli_runs import invoke, provider

A, B = "a.example", "b.example"
ONE, OTHER = KeyPackageRef(b"1" * 32), KeyPackageRef(b"2" * 32)


def sql(config: Config, *statements: str) -> None:
    write_here(config.database, lambda tx: [tx.execute(each) for each in statements])


def rows(config: Config, query: str) -> list[Row]:
    with read_here(config.database) as tx:
        return tx.all(query)


def told(config: Config, *arguments: str | Path) -> Any:
    ran = invoke(config, *arguments, "--json")
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return a provider with two users, their devices and tokens, Welcomes, a KeyPackage, a ban, and a backup of it."""
    made = provider(tmp_path, A)
    for user in ("alice", "bob"):
        told(made, "user", "add", user)
        told(made, "device", "add", user, "phone")
        for label in ("one", "two"):
            told(made, "token", "issue", user, "--scheme", "unique", "--label", label)
    told(made, "device", "add", "alice", "laptop")
    told(made, "ban", "add", "mimi://b.example/u/lifted")
    sql(
        made,
        "INSERT OR IGNORE INTO providers (domain) VALUES ('a.example')",
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'67', 1, 1, 0)",
        "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (1, 1, 1, zeroblob(32), 0)",
        "INSERT OR IGNORE INTO providers (domain) VALUES ('b.example')",
        "INSERT INTO welcomes (id, digest, body, stored_at) VALUES (1, zeroblob(32), x'01', 0), (2, x'02', x'02', 0)",
        "INSERT INTO inbox (id, device, welcome, hub, arrived_at) SELECT 1, 1, 1, max(id), 0 FROM providers",
        "INSERT INTO key_package_refs (id, ref, init_key, device, version, cipher_suite, expires_at)"
        " VALUES (1, zeroblob(32), x'01', 1, 1, 1, 9000000000000)",
    )
    told(made, "backup", tmp_path / "copy")
    return made


def test_what_the_operator_decided_on_users_since_the_backup_stays_decided(config: Config, tmp_path: Path) -> None:
    told(config, "user", "suspend", "alice")
    told(config, "user", "remove", "bob", "--yes")
    sql(config, "UPDATE devices SET seen_on = 86400000")
    told(config, "restore", "--replace", tmp_path / "copy")
    (alice,) = told(config, "user", "list")["users"]
    assert alice["suspended_at"] is not None
    assert {each["last_seen_on"] for each in told(config, "device", "list", "alice")["devices"]} == {86_400_000}
    assert "--reuse" in invoke(config, "user", "add", "BOB").stderr
    told(config, "user", "resume", "alice")
    told(config, "restore", "--replace", tmp_path / "copy")
    assert told(config, "user", "show", "alice")["suspended_at"] is None


def test_what_was_ended_since_the_backup_stays_ended(config: Config, tmp_path: Path) -> None:
    told(config, "user", "remove", "bob", "--yes")
    told(config, "device", "remove", "alice", "laptop")
    told(config, "token", "revoke", "alice", "1")
    told(config, "ban", "remove", "mimi://b.example/u/lifted")
    told(config, "ban", "add", "mimi://b.example/u/new")
    sql(
        config,
        "UPDATE inbox SET acknowledged_at = 5",
        "INSERT INTO inbox (id, device, welcome, hub, arrived_at) SELECT 2, 1, 2, max(id), 0 FROM providers",
        "UPDATE tokens SET uses_left = 0 WHERE id = 2",
        "INSERT INTO participations (group_ref, device, joined_at, left_at) VALUES (1, 1, 2, 3)",
        "UPDATE partitions SET terminated_by = 1, terminated_at = 9, terminated_reason = 'stale'",
        "UPDATE groups SET successor_group_id = x'68', successor_hub = 'b.example'",
        "UPDATE key_package_refs SET claimed_at = 7, turn = 3, token = 2",
        "INSERT INTO key_package_refs (id, ref, init_key, device, version, cipher_suite, expires_at, claimed_at)"
        " VALUES (2, randomblob(32), x'02', 1, 1, 1, 9000000000000, 8)",
    )
    answer = told(config, "restore", tmp_path / "copy", "--replace")
    assert answer["carried_over"] == {
        "users_removed": 1,
        "devices_removed": 1,
        "tokens_ended": 1,
        "references_added": 1,
        "welcomes_added": 1,
        "welcomes_acknowledged": 1,
    }
    assert rows(config, "SELECT name FROM devices") == [("phone",)]
    assert rows(config, "SELECT id, state, uses_left FROM tokens") == [(1, "revoked", None), (2, "live", 0)]
    assert rows(config, "SELECT user_id FROM bans") == [(b"mimi://b.example/u/new",)]
    assert rows(config, "SELECT id, claimed_at, turn FROM key_package_refs ORDER BY 1") == [(1, 7, 3), (2, 8, None)]
    assert rows(config, "SELECT id, acknowledged_at FROM inbox ORDER BY 1") == [(1, 5), (2, None)]
    assert rows(config, "SELECT device, left_at FROM participations") == [(1, 3)]
    assert rows(config, "SELECT terminated_by, terminated_at FROM partitions") == [(1, 9)]
    assert rows(config, "SELECT successor_group_id, successor_hub FROM groups") == [(b"h", "b.example")]
    assert told(config, "token", "issue", "alice", "--scheme", "unique")["id"] > 1e15


def test_a_device_that_was_added_since_the_backup_and_uploaded_does_not_come_along(
    config: Config, tmp_path: Path
) -> None:
    told(config, "user", "add", "zoe")
    told(config, "device", "add", "zoe", "phone")
    sql(config, "INSERT INTO device_signature_keys (device, digest) SELECT id, randomblob(32) FROM devices")
    kept = len(rows(config, "SELECT 1 FROM devices")) - 1
    told(config, "restore", tmp_path / "copy", "--replace")
    assert (
        len(rows(config, "SELECT 1 FROM device_signature_keys")) == len(rows(config, "SELECT 1 FROM devices")) == kept
    )


def ends_of_tokens(config: Config) -> set[int]:
    return {row[0] for row in rows(config, "SELECT ended_at FROM tokens WHERE ended_at IS NOT NULL")}


def test_keys_that_others_know_since_the_backup_stay(config: Config, tmp_path: Path) -> None:
    sql(
        config,
        "INSERT INTO settings (name, value)"
        " VALUES ('vapid_private', x'07'), ('ohttp_identity', x'07'), ('ohttp_identity_public', x'07')",
    )
    told(config, "restore", tmp_path / "copy", "--replace")
    assert len(rows(config, "SELECT 1 FROM settings WHERE value = x'07'")) == 3


def test_tokens_that_a_restore_ends_get_the_hour_of_their_end(config: Config, tmp_path: Path) -> None:
    sql(config, "DELETE FROM tokens WHERE id = 2")
    told(config, "restore", tmp_path / "copy", "--replace")
    (ended,) = ends_of_tokens(config)
    config.database.unlink()
    told(config, "restore", tmp_path / "copy")
    told(config, "restored", "--revoke", "tokens")
    assert all(each == hour_of(Milliseconds(each)) for each in (ended, *ends_of_tokens(config)))


def test_what_became_of_a_welcome_since_the_backup_is_known(config: Config, tmp_path: Path) -> None:
    """One reference was accepted and delivered, and the other was refused; Welcomes that were queued since are lost."""
    one, other = (vector(KEY_PACKAGE_REF).encode(refs).hex() for refs in ((ONE,), (OTHER,)))
    both = vector(KEY_PACKAGE_REF).encode((ONE, OTHER)).hex()
    columns = "INSERT INTO outgoing_welcomes (id, welcome, partition, provider, refs, state, created_at, sender) "
    sql(config, f"{columns} VALUES (1, 1, 1, 2, x'{both}', 'due', 0, 1)")
    told(config, "backup", tmp_path / "later")
    sql(
        config,
        f"UPDATE outgoing_welcomes SET refs = x'{one}', state = 'delivered', sender = 0",  # noqa: S608
        f"{columns} VALUES (2, 1, 1, 2, x'{other}', 'refused', 0, 0), (3, 2, 1, 2, x'{one}', 'delivered', 0, 0)",
    )
    told(config, "restore", tmp_path / "later", "--replace")
    with read_here(config.database) as tx:
        found = [(each.refs, each.state) for each in outcomes_of(tx, 1)]
    assert found == [((ONE,), "delivered"), ((OTHER,), "refused")]
    assert rows(config, "SELECT DISTINCT sender FROM outgoing_welcomes") == [(0,)]


def test_a_database_without_the_backups_rows_deletes_nothing(config: Config, tmp_path: Path) -> None:
    """A new, empty database is no proof that all users were removed."""
    config.database.unlink()
    told(config, "migrate")
    assert told(config, "restore", tmp_path / "copy", "--replace")["carried_over"] is None
    assert rows(config, "SELECT count(*) FROM users") == [(2,)]


def test_a_damaged_database_is_replaced_all_the_same(config: Config, tmp_path: Path) -> None:
    config.database.write_bytes(b"no database" * 1000)
    assert told(config, "restore", tmp_path / "copy", "--replace")["carried_over"] is None
    assert rows(config, "SELECT count(*) FROM users") == [(2,)]


def test_a_restored_database_that_is_restored_again_carries_over(config: Config, tmp_path: Path) -> None:
    told(config, "restore", tmp_path / "copy", "--replace")
    told(config, "user", "remove", "bob", "--yes")
    assert told(config, "restore", tmp_path / "copy", "--replace")["carried_over"]["users_removed"] == 1


def test_a_database_that_was_restored_from_an_older_backup_does_not(config: Config, tmp_path: Path) -> None:
    """What it lacks may have been added between its backup and this one."""
    told(config, "user", "add", "carol")
    told(config, "backup", tmp_path / "later")
    told(config, "restore", tmp_path / "copy", "--replace")
    assert told(config, "restore", tmp_path / "later", "--replace")["carried_over"] is None
    assert rows(config, "SELECT count(*) FROM users") == [(3,)]


def test_no_id_is_given_out_twice(config: Config, tmp_path: Path) -> None:
    later = told(config, "token", "issue", "alice", "--scheme", "unique")["id"]
    given = {told(config, "ohttp", "rotate")["key_id"] for _ in range(5)}
    keep = tmp_path / "elsewhere"
    shutil.move(config.database, keep)
    ids = set()
    for _ in range(2):  # two restores of one backup
        config.database.unlink(missing_ok=True)
        given.add(told(config, "restore", tmp_path / "copy")["ohttp_key_id"])
        ids.add(told(config, "token", "issue", "alice", "--scheme", "unique")["id"])
    assert len({later, *ids}) == 3
    assert len(given) >= 6


def test_two_restores_of_one_backup_give_out_different_ids_when_the_clock_stands_still(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose clock begins in 1970 at each start."""
    monkeypatch.setattr("mimids.cli.backup._now", lambda: Milliseconds(1000))
    sql(config, "INSERT INTO offered_terms (provider, revision, digest, changed_at) VALUES (2, 1, zeroblob(32), 0)")
    told(config, "backup", tmp_path / "again")
    seen = set()
    for _ in range(3):
        config.database.unlink()
        told(config, "restore", tmp_path / "again")
        ((user,),) = rows(config, "SELECT seq FROM sqlite_sequence WHERE name = 'users'")
        ((revision,),) = rows(config, "SELECT revision FROM offered_terms")
        seen |= {("user", user), ("revision", revision)}
    assert len(seen) == 6


def test_restored_shows_what_may_have_come_back_and_revokes_it(config: Config, tmp_path: Path) -> None:
    assert "was never restored" in invoke(config, "restored").stderr
    config.database.unlink()
    assert "`mimids restored` shows them" in invoke(config, "restore", tmp_path / "copy").stdout
    told(config, "user", "add", "carol")
    told(config, "device", "add", "carol", "phone")
    told(config, "token", "issue", "carol", "--scheme", "unique")
    shown = told(config, "restored")
    assert not shown["carried_over"]
    assert [(each["user_id"][-5:], each["device_id"]) for each in shown["devices"]] == [
        ("alice", "phone"),
        ("alice", "laptop"),
        ("u/bob", "phone"),
    ]
    assert [each["id"] for each in shown["tokens"]] == [1, 2, 3, 4]
    assert "`mimids restored --revoke all`" in invoke(config, "restored").stdout
    revoked = told(config, "restored", "--revoke", "tokens")
    assert (revoked["tokens_revoked"], revoked["tokens"], len(revoked["devices"])) == (4, [], 3)
    revoked = told(config, "restored", "--revoke", "all")
    assert (revoked["tokens_revoked"], revoked["devices_removed"], revoked["devices"]) == (0, 3, [])
    assert rows(config, "SELECT name FROM devices") == [("phone",)], "the device that was added since"
    assert len(rows(config, "SELECT 1 FROM tokens WHERE state = 'live'")) == 1


def test_nothing_came_back_if_it_was_carried_over(config: Config, tmp_path: Path) -> None:
    told(config, "restore", tmp_path / "copy", "--replace")
    shown = told(config, "restored", "--revoke", "all")
    assert (shown["carried_over"], shown["devices"], shown["tokens"], shown["devices_removed"]) == (True, [], [], 0)
    assert len(rows(config, "SELECT 1 FROM devices")) == 3
