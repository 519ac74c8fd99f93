"""Where tests are, and names that may occur only once: rules of the source tree that no other test needs to know."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest

from tests.support.imports import MODULES, ROOT

TESTS = ROOT / "tests"

# The test file of each module without a `tests/<same path>/test_<name>.py`; paths below tests/. A row for a package
# holds for all its modules without a row of their own. A reason stands beside rows that are not obvious.
TESTED_IN = {
    "__main__": "cli/test_serve.py",  # it starts `python -m mimids`
    "assembly": "test_app.py",  # runs whole providers
    "listeners": "test_app.py",  # the same
    "cli.certificates": "cli/test_setup.py",
    "cli.check": "cli/test_check.py",
    "cli.completion": "cli/test_nouns.py",
    "cli.demo": "cli/test_demo.py",
    "cli.main": "cli/test_nouns.py",
    "cli.refusals": "cli/test_nouns.py",
    "cli.running": "cli/test_nouns.py",
    "client.contacts": "client/test_key_packages.py",
    "ds.key_packages.batches": "privacy/test_batches.py",
    "client.key_sets": "privacy/test_key_sets.py",
    "client.events": "client/test_stream.py",
    "client.ohttp": "client/test_key_packages.py",
    "client.requests": "client/test_duties.py",
    "config_keys": "test_config.py",
    "config_limits": "test_config.py",
    "config_mls": "test_config.py",
    "mls.suite_table": "mls/test_suites.py",
    "ohttp.request_heads": "ohttp/test_bhttp.py",
    "ds.key_packages.gateway_messages": "ds/key_packages/test_gateway.py",
    "ds.commands": "cli/test_nouns.py",  # runs commands of the table; policy has its own file
    "ds.commands.groups": "cli/test_groups.py",
    "ds.commands.reports": "ds/commands/test_policy.py",
    "ds.running_server": "test_reload.py",
    "ds.following.look_ahead": "ds/test_look_ahead.py",
    "ds.limits.kept_rates": "ds/test_processes.py",  # between restarts: privacy/test_joins.py
    "ds.devices.gate": "ds/limits/test_budgets.py",
    "ds.devices.hub_router": "ds/following/test_following.py",  # sends and receives at other hubs
    "printable": "abuse/test_terminal.py",
    "http.server.messages": "http/api/test_asgi.py",
    "http.server.phases": "http/server/test_connection.py",
    "ds.devices.sessions": "abuse/test_removed_devices.py",
    "ds.devices.hub_calls": "ds/devices/test_streams.py",
    "ds.devices.stream_session": "ds/devices/test_streams.py",
    "ds.groups.appending": "ds/groups/test_sequencing.py",
    "http.api.group_bodies": "http/api/test_bad_input.py",
    "ds.groups.outsiders": "e2e/test_removal.py",
    "ds.groups.sequencing": "ds/groups/test_sequencing.py",
    "ds.following.outgoing_welcomes": "ds/following/test_welcomes.py",
    "ds.following.recovery_as_follower": "ds/following/test_recovery.py",
    "ds.following.recovery_as_hub": "ds/following/test_recovery.py",
    "ds.groups.branches": "ds/limits/test_budgets.py",
    "ds.groups.contradiction": "ds/terms/test_reports.py",  # a contradiction becomes a report
    "ds.groups.hub": "ds/groups/test_conversations.py",
    "ds.groups.reading": "ds/groups/test_conversations.py",
    "ds.groups.pages": "ds/groups/test_recent.py",
    "ds.groups.creation": "ds/groups/test_sequencing.py",
    "ds.groups.judging": "ds/groups/test_sequencing.py",
    "ds.groups.restrictions": "ds/groups/test_policy.py",
    "ds.groups.states": "ds/groups/test_sequencing.py",
    "ds.groups.submission": "ds/groups/test_sequencing.py",
    "ds.groups.visible_proposals": "ds/groups/test_sequencing.py",
    "ds.groups.welcome_rows": "ds/following/test_welcomes.py",
    "ds.limits.quotas": "ds/limits/test_budgets.py",
    "ds.limits.sizes": "ds/limits/test_budgets.py",
    "ds.ports": "ds/test_clock.py",  # with http/peers/test_calls.py, the contract tests of the ports
    "ds.services": "test_app.py",  # a record without code
    "ds.terms.evidence": "ds/terms/test_reports.py",
    "ds.terms.report": "ds/terms/test_reports.py",
    "errors": "http/api/test_problems.py",
    "http.api": "http/api/test_table.py",  # the endpoints' own rules are tested with the services they call
    "http.header_names": "http/api/test_table.py",  # names only
    "http.media_types": "http/api/test_table.py",  # names only
    "http.console": "http/console/test_console.py",
    "http.server.buffers": "http/server/test_shares.py",
    "http.server.waits": "abuse/test_connections.py",
    "http.server.exchange": "http/server/test_connection.py",
    "http.server.holding": "http/server/test_shares.py",
    "http.server.transport": "http/server/test_connection.py",
    "mls": "mls/test_public_group.py",  # structures and rules that a conversation uses
    "mls.faults": "mls/test_key_package.py",
    "mls.rules": "mls/rules/test_verdict.py",
    "mls.tree": "mls/tree/test_ratchet_tree.py",
    "ohttp": "ohttp/test_rfc9458.py",
    "policy": "policy/test_rules.py",
    "replay": "replay/test_replay.py",
    "ds.wake_ups.own_messages": "ds/wake_ups/test_job.py",
    "ds.wake_ups.vapid_key": "ds/wake_ups/test_job.py",
    "ds.elapsed": "abuse/test_clock_jumps.py",
    "ds.commands.clock": "abuse/test_clock_jumps.py",
    "http.peers.addresses": "abuse/test_addresses.py",
    "store": "ds/test_statements.py",  # every statement of a request; results are tested with the services
    "store.acknowledged": "abuse/test_storage.py",
    "store.arrangements": "ds/terms/test_offered.py",
    "ds.key_packages.replays": "abuse/test_replay.py",
    "ds.limits.call_slots": "abuse/test_delivery.py",
    "ds.limits.new_providers": "abuse/test_welcomes.py",
    "ds.limits.welcomes": "abuse/test_welcomes.py",
    "store.backup": "cli/test_backup.py",
    "store.bans": "ds/groups/test_policy.py",
    "store.cursors": "ds/upkeep/test_retention.py",
    "store.damage": "abuse/test_storage.py",
    "store.departures": "ds/departures/test_departures.py",
    "store.provider_keys": "ds/departures/test_provider_keys.py",
    "ds.departures.leaves": "ds/departures/test_departures.py",
    "ds.departures.searching": "ds/departures/test_departures.py",
    "store.engine": "store/engine/test_store.py",
    "store.key_packages": "ds/key_packages/test_stock.py",
    "store.ohttp": "ds/key_packages/test_gateway_keys.py",
    "store.rates": "ds/limits/test_rates.py",
    "store.recoveries": "ds/following/test_recovery.py",
    "store.reports": "ds/terms/test_reports.py",
    "store.retention": "ds/upkeep/test_retention.py",
    "store.open_branches": "ds/groups/test_linear.py",
    "store.openers": "ds/limits/test_budgets.py",
    "store.terminations": "store/test_partitions.py",
    "store.tips": "store/test_partitions.py",
    "store.trees": "ds/upkeep/test_tree_sweep.py",
    "store.tokens": "ds/key_packages/test_tokens.py",
    "store.welcomes": "ds/following/test_welcomes.py",
    "testing": "testing/test_federations.py",
    "testing.pytest_plugin": "testing/test_embedding.py",
    "values": "test_structs.py",  # records without code
    "wire.base64url": "ds/key_packages/test_contact_card.py",
}

_CLIENT = "the client library has its own public class for the same thing, and imports nothing from the server"
# Public classes whose name occurs more than once, with the reason.
SAME_NAME = {
    "CounterAhead": _CLIENT,
    "BranchTerminated": _CLIENT,
    "CommitSuperseded": _CLIENT,
    "GroupReplaced": _CLIENT,
    "Device": _CLIENT,
    "LowStock": _CLIENT,
    "Stock": _CLIENT,
    "StreamStatistics": _CLIENT,
    "Kept": "one is a row of store/retention.py, the other the declaration of a field in wire/declare.py",
}


def row_of(module: str) -> str | None:
    """Return the longest row of TESTED_IN that is the module or a package around it."""
    rows = (row for row in TESTED_IN if module == row or module.startswith(f"{row}."))
    return max(rows, key=len, default=None)


def names_of_modules() -> list[str]:
    return [
        name.removeprefix("mimids.") for name, path in MODULES.items() if path.name != "__init__.py" and "." in name
    ]


@pytest.mark.parametrize("module", names_of_modules())
def test_every_module_has_a_test_file(module: str) -> None:
    package, _, name = module.rpartition(".")
    own = TESTS / package.replace(".", "/") / f"test_{name}.py"
    row = row_of(module)
    if own.exists():
        assert row != module, (
            f"{own.relative_to(ROOT)} exists: remove {module!r} from TESTED_IN in tests/test_layout.py"
        )
        return
    assert row is not None, (
        f"mimids.{module} has no test file: add {own.relative_to(ROOT)}, or a row to TESTED_IN in tests/test_layout.py"
        " that names the file which tests it"
    )
    assert (TESTS / TESTED_IN[row]).exists(), (
        f"TESTED_IN in tests/test_layout.py: tests/{TESTED_IN[row]} does not exist"
    )


@pytest.mark.parametrize("row", TESTED_IN)
def test_every_row_of_the_table_is_needed(row: str) -> None:
    modules = [module for module in names_of_modules() if row_of(module) == row]
    assert modules, f"no module of the name {row!r}: remove or rename this row of TESTED_IN in tests/test_layout.py"


def test_no_test_module_imports_from_another() -> None:
    found = {}
    for path in sorted(TESTS.rglob("*.py")):
        wrong = [name for name in _imported_test_modules(path.read_text(encoding="utf-8"))]
        if wrong:
            found[str(path.relative_to(ROOT))] = wrong
    assert not found, "move what these share to tests/support/"


def _imported_test_modules(source: str) -> list[str]:
    tree = ast.parse(source)
    froms = [
        f"{node.module}.{each.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    ]
    plain = [each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names]
    return [
        name
        for name in froms + plain
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    ]


@pytest.mark.parametrize(
    "source",
    ["from tests.test_layers import imports", "from tests import test_layers", "import tests.ds.test_clock as clock"],
)
def test_an_import_from_a_test_module_is_found(source: str) -> None:
    assert len(_imported_test_modules(source)) == 1


def test_a_public_class_name_occurs_once() -> None:
    where: defaultdict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(module)
    repeated = {name: modules for name, modules in where.items() if len(modules) > 1}
    new = {name: modules for name, modules in repeated.items() if name not in SAME_NAME}
    assert not new, "rename one of each, or add it to SAME_NAME in tests/test_layout.py with a reason"
    assert not set(SAME_NAME) - set(repeated), "these occur once now: remove them from SAME_NAME"
