"""`mimids welcome`: the Welcomes that are not delivered, and giving one up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.store.engine.access import read_here, write_here
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, KeyPackageRef
from tests.support.cli_runs import invoke, provider

REFS = vector(KEY_PACKAGE_REF).encode((KeyPackageRef(bytes(32)), KeyPackageRef(b"\1" * 32))).hex()
MADE = (
    "INSERT INTO providers (id, domain) VALUES (1, 'a.example'), (2, 'b.example'), (3, 'c.example')",
    "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at)"
    " VALUES (1, 1, CAST('g' AS BLOB), 1, 1, 0)",
    "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at, held_welcomes) VALUES"
    " (1, 1, 1, zeroblob(32), 0, 2)",
    "INSERT INTO welcomes (id, digest, body, stored_at) VALUES (1, x'00', x'aabbcc', 0), (2, x'01', x'dd', 0)",
    "INSERT INTO outgoing_welcomes"
    " (id, welcome, partition, provider, refs, state, outcome, failures, created_at, sender) VALUES"
    " (11, 1, 1, 2, x'REFS', 'due', 'peer-unavailable', 4, 5, 9), (12, 1, 1, 3, x'REFS', 'held', NULL, 0, 6, 9),"
    " (13, 2, 1, 2, x'REFS', 'held', NULL, 0, 7, 9), (14, 2, 1, 2, x'REFS', 'delivered', NULL, 0, 8, 0)",
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = provider(tmp_path)
    write_here(made.database, lambda tx: [tx.execute(sql.replace("REFS", REFS)) for sql in MADE])
    return made


def listed(config: Config, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(invoke(config, "welcome", "list", "--json", *more).stdout)["welcomes"]
    return found


def test_the_list_has_what_is_not_delivered_and_why(config: Config) -> None:
    found = listed(config)
    assert [each["id"] for each in found] == [11, 12, 13]
    assert [each["id"] for each in listed(config, "--provider", "b.example")] == [11, 13]
    assert set(found[0]) == set(json.loads(command_named("welcome list").answer)["welcomes"][0])
    first = {key: found[0][key] for key in ("name", "provider", "key_packages", "state", "octets", "reason")}
    assert first == {
        "name": "g",
        "provider": "b.example",
        "key_packages": 2,
        "state": "due",
        "octets": 3,
        "reason": "peer-unavailable",
    }
    line = invoke(config, "welcome", "list").stdout.splitlines()[1]
    assert line.split()[:6] == ["11", "b.example", "2", "due", "4", "peer-unavailable"]


def test_a_dropped_welcome_is_cancelled_and_the_body_goes_with_the_last_that_needs_it(config: Config) -> None:
    for number in (11, 12):
        assert invoke(config, "welcome", "drop", str(number)).exit_code == 0
    assert [each["id"] for each in listed(config)] == [13]
    with read_here(config.database) as tx:
        rows = tx.all("SELECT state, sender FROM outgoing_welcomes ORDER BY id")
        assert rows == [("cancelled", 0), ("cancelled", 0), ("held", 9), ("delivered", 0)]
        assert tx.all("SELECT held_welcomes FROM partitions") == [(1,)]
        assert tx.all("SELECT length(body) FROM welcomes ORDER BY id") == [(0,), (1,)]


@pytest.mark.parametrize("number", ["11", "14", "99"])
def test_what_does_not_wait_cannot_be_dropped(config: Config, number: str) -> None:
    invoke(config, "welcome", "drop", "11")
    refused = invoke(config, "welcome", "drop", number)
    assert refused.exit_code == 1
    assert "welcome list" in refused.stderr
