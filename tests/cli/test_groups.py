"""`mimids group`: naming groups and partitions, terminating branches and opening them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mimids.cli.main import main
from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.store.engine.access import read_here, write_here
from tests.support.cli_runs import provider

# main - fork - two branches; another hub has a group of the same id
MADE = (
    "INSERT INTO providers (id, domain) VALUES (1, 'a.example'), (2, 'b.example')",
    "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at)"
    " VALUES (1, 1, CAST('g' AS BLOB), 1, 1, 0), (2, 2, CAST('g' AS BLOB), 1, 1, 0),"
    " (3, 1, x'ff00', 1, 1, 0), (4, 2, CAST('only there' AS BLOB), 1, 1, 0)",
    "INSERT INTO partitions (id, group_ref, hub, masked_key, parent, opened_by, epoch, next_counter, opened_at)"
    " VALUES (1, 1, 1, unhex_32('aaaaaa'), NULL, NULL, 0, 2, 0), (2, 1, 1, unhex_32('aaaaab'), 1, 1, 1, 1, 0),"
    " (3, 1, 1, unhex_32('bbbbbb'), 1, 2, 1, 1, 0), (4, 1, 1, unhex_32('cccccc'), 2, 3, 2, 0, 0)",
    "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (5, 4, 2, unhex_32('dddddd'), 0)",
    "INSERT INTO welcomes (id, digest, body, stored_at) VALUES (1, x'00', x'00', 0)",
    "INSERT INTO outgoing_welcomes (id, welcome, partition, provider, refs, state, created_at)"
    " VALUES (1, 1, 2, 2, x'00', 'due', 0), (2, 1, 3, 2, x'00', 'held', 0)",
    "UPDATE partitions SET held_welcomes = 1 WHERE id = 3",
)


def key(start: str) -> str:
    return start.ljust(64, "0")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = provider(tmp_path)

    def make(tx: Any) -> None:
        for sql in MADE:
            for start in ("aaaaaa", "aaaaab", "bbbbbb", "cccccc", "dddddd"):
                sql = sql.replace(f"unhex_32('{start}')", f"x'{key(start)}'")
            tx.execute(sql)

    write_here(config.database, make)
    return config


def invoke(config: Config, *arguments: str) -> Result:
    file = config.tls.certificate.parent / "mimids.toml"
    return CliRunner().invoke(main, ["group", *arguments, "--config", str(file)])


def answer(config: Config, *arguments: str) -> dict[str, Any]:
    result = invoke(config, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def welcomes(config: Config) -> list[str]:
    with read_here(config.database) as tx:
        return [row[0] for row in tx.all("SELECT state FROM outgoing_welcomes ORDER BY id")]


def ended(config: Config) -> list[str]:
    shown = answer(config, "show", "g", "--hub", "a.example")
    return [partition["partition"][:6] for partition in shown["tree"] if partition["terminated"]]


def test_lists_and_trees_contain_what_the_table_says(config: Config) -> None:
    listed = answer(config, "list")["groups"]
    assert [(group["name"], group["hub"], group["live_forks"]) for group in listed] == [
        ("g", "a.example", 1),
        ("g", "b.example", 0),
        (None, "a.example", 0),
        ("only there", "b.example", 0),
    ]
    shown = answer(config, "show", "g", "--hub", "a.example")
    for name, found in (("group list", {"groups": listed}), ("group show", shown)):
        said = json.loads(command_named(name).answer)
        assert set(found) == set(said)
        inner = "groups" if name == "group list" else "tree"
        assert set(found[inner][0]) == set(said[inner][0])
    assert [partition["parent"] for partition in shown["tree"]] == [None, key("aaaaaa"), key("aaaaaa"), key("aaaaab")]
    drawn = invoke(config, "show", "g", "--hub", "a.example").stdout
    assert "├─ ● epoch 1  aaaaab00" in drawn
    assert "│  ● epoch 2  cccccc00" in drawn


def test_a_group_is_named_by_text_or_base64url_and_its_hub_where_needed(config: Config) -> None:
    assert answer(config, "show", "_wA")["group_id"] == "_wA"
    both = invoke(config, "show", "g")
    assert both.exit_code == 1
    assert "a.example, b.example" in both.stderr
    assert answer(config, "show", "g", "--hub", "b.example")["tree"] == []


def test_terminating_a_branch_terminates_all_below_it_and_makes_the_next_one_first(config: Config) -> None:
    done = answer(config, "terminate", "g", "aaaaab", "--hub", "a.example", "--why", "stale")
    assert (done["partition"][:6], done["partitions"]) == ("aaaaab", 2)
    assert ended(config) == ["aaaaab", "cccccc"]
    assert welcomes(config) == ["cancelled", "due"]
    assert "TERMINATED (stale)" in invoke(config, "show", "g", "--hub", "a.example").stdout
    assert answer(config, "terminate", "g", "aaaaab", "--hub", "a.example", "--undo")["partitions"] == 2
    assert ended(config) == []
    assert welcomes(config) == ["cancelled", "due"], "what was cancelled stays so"


def test_a_group_is_replaced_once_all_its_branches_are_terminated(config: Config) -> None:
    by = ("mimi://b.example/g/2", "b.example", "--yes")
    refused = invoke(config, "replace", "g", *by)
    assert refused.exit_code == 1
    assert "group terminate" in refused.stderr
    answer(config, "terminate", "g", "aaaaaa", "--hub", "a.example")
    assert invoke(config, "replace", "g", "not base64url!", "b.example", "--yes").exit_code == 1
    named = {"group_id": "bWltaTovL2IuZXhhbXBsZS9nLzI", "hub": "b.example"}
    assert answer(config, "replace", "g", *by)["successor"] == named
    assert answer(config, "show", "g", "--hub", "a.example")["successor"] == named
    assert answer(config, "replace", "g", named["group_id"], named["hub"], "--yes")["successor"] == named
    assert invoke(config, "replace", "g", "Zw", "b.example", "--yes").exit_code == 1
    assert invoke(config, "terminate", "g", "aaaaaa", "--hub", "a.example", "--undo").exit_code == 1


def test_a_branch_within_a_terminated_one_stays_terminated(config: Config) -> None:
    answer(config, "terminate", "g", "cccccc", "--hub", "a.example")
    answer(config, "terminate", "g", "aaaaab", "--hub", "a.example")
    answer(config, "terminate", "g", "cccccc", "--hub", "a.example", "--undo")
    assert ended(config) == ["aaaaab", "cccccc"]
    answer(config, "terminate", "g", "aaaaab", "--hub", "a.example", "--undo")
    assert ended(config) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["terminate", "_wA", "aaaaaa"], "no partition of this group"),
        (["terminate", "g", "aaaa", "--hub", "a.example"], "no partition of this group"),
        (["terminate", "g", "eeeeee", "--hub", "a.example"], "`mimids group show GROUP`"),
        (["terminate", "only there", "dddddd"], "the hub of this group is b.example"),
        (["terminate", "g", "bbbbbb", "--hub", "a.example", "--undo"], "no branch that begins"),
        (["show", "nothing"], "`mimids group list`"),
    ],
)
def test_a_name_that_fits_nothing_or_several_things_is_refused(config: Config, arguments: list[str], says: str) -> None:
    refused = invoke(config, *arguments)
    assert refused.exit_code == 1
    assert says in refused.stderr
    assert ended(config) == []
