"""Imports point one way: each part of the program may know what its row here names, and nothing else of ours.

Read from the source, so that imports inside functions and for types only count as well.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.support.imports import MODULES, ROOT, imports

ENGINE = ("wire.base64url", "wire.codec", "wire.compiled", "wire.declare", "wire.ids", "wire.varint")
PURE = ("wire", "mls", "ohttp", "policy", "web_push")
BELOW_DS = (*PURE, "errors", "values", "config", "metrics", "printable", "store", "telemetry", "tracebacks")
# What every package of ds/ may use: the ports and the modules beside them.
DS = (
    *BELOW_DS,
    "ds.backoff",
    "ds.clock",
    "ds.early_retries",
    "ds.elapsed",
    "ds.lru",
    "ds.notifier",
    "ds.peer_answers",
    "ds.ports",
    "ds.saving",
)
GROUPS = (*DS, "ds.limits", "ds.groups", "ds.key_packages")  # what the packages above both may use
BELOW_HTTP = (*BELOW_DS, "ds")
HTTP = ("http.header_names", "http.media_types")

# One row for each package, and for each module beside packages; the longest name that a module's name begins with
# decides. A name allows all that begins with it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "": (),
    "wire": ENGINE,
    "wire.messages": ("wire", "mls"),  # an MLSMessage has no length of its own: only its parser finds its end
    "errors": ("wire.ids",),
    "values": ("wire.ids",),
    "config_keys": ("wire.ids", "mls.suite_table"),
    "config_mls": ("config_keys",),
    "config_limits": ("config_keys",),
    "config": ("config_keys", "config_limits", "config_mls", "wire.ids"),
    "causes": ("values",),
    "metrics": (),
    "owners": (),
    "printable": (),
    "tracebacks": (),
    "telemetry": ("values", "config", "metrics", "printable", *ENGINE),
    "mls": ("mls", "errors", *ENGINE),
    "mls.tree": ("mls.tree", "mls.code_points", "mls.leaf_node", "mls.suites", "mls.support", *ENGINE),
    "mls.rules": ("mls", "errors", *ENGINE),
    "replay": ("replay", "mls", "errors", *ENGINE),
    "ohttp": ("ohttp", "errors", *ENGINE),
    "web_push": ("web_push", "ohttp.hkdf", *ENGINE),
    "policy": ("policy", "mls", "values", *ENGINE),
    "store.engine": ("store.engine", "owners", "values", "errors", "tracebacks"),
    "store.engine.postgresql": ("store.engine", "values", "errors", "tracebacks"),
    "store": ("store", "values", "errors", *ENGINE),
    "ds.ports": ("values", "wire", "web_push"),
    "ds": DS,
    "ds.limits": (*DS, "ds.limits"),
    "ds.groups": (*DS, "ds.limits", "ds.groups"),
    "ds.groups.sequencing": (*DS, "ds.limits", "ds.groups"),
    "ds.key_packages": (*DS, "ds.limits", "ds.key_packages"),
    "ds.following": (*GROUPS, "ds.following"),
    "ds.terms": (*GROUPS, "ds.terms"),
    "ds.departures": (*GROUPS, "ds.terms", "ds.departures"),
    "ds.upkeep": (*GROUPS, "ds.upkeep"),
    "ds.devices": (*GROUPS, "ds.following", "ds.terms", "ds.devices"),
    "ds.wake_ups": (*GROUPS, "ds.following", "ds.wake_ups"),
    "ds.commands": (*BELOW_HTTP, "__version__"),
    "ds.services": BELOW_HTTP,
    "http": (),  # media types and header names, which every package of http/ may use
    "http.server": ("errors", "owners", "wire.ids", "http.server"),
    "http.api": (*BELOW_HTTP, *HTTP, "owners", "http.server", "http.api"),
    "http.peers": (*BELOW_HTTP, *HTTP, "owners", "http.server", "http.peers"),
    "http.console": (*BELOW_HTTP, *HTTP, "http.api", "http.console"),
    "client": ("client", "ds.backoff", *PURE),
    **dict.fromkeys(
        (
            "app",
            "assembly",
            "listeners",
            "memory",
            "process",
            "reload",
            "cli",
            "cli.check",
            "cli.demo",
            "testing",
            "__main__",
        ),
        ("",),
    ),
}

# Packages that only these parts may know.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "aiosqlite": ("store.engine.driver",),
    "sqlite3": (
        "store.engine.sqlite",
        "store.engine.migrate",
        "store.engine.tables",
        "store.engine.translation",
        "store.backup",
        "cli",
        "testing",
    ),
    "psycopg": ("store.engine.postgresql",),
    "trio_asyncio": ("store.engine.driver",),
    "quart": ("http.console",),
    "quart_trio": ("http.console",),
    "werkzeug": ("http.console",),
    "jinja2": ("http.console",),
    "hypercorn": ("http",),
    "httpcore": (),
    "httptools": ("http.server", "http.peers"),
    "httpx": ("client",),
    "prometheus_client": ("telemetry",),
    "click": ("cli",),
}

# The pure layers neither wait, nor open, nor look at a clock, nor throw dice.
# fmt: off
IMPURE = {"asyncio", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
          "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "time", "trio", "urllib"}
# fmt: on


def part(name: str, rows: tuple[str, ...] | dict[str, tuple[str, ...]]) -> str | None:
    """Return the longest of the rows that stands for this module (without `mimids.`) or for a package above it."""
    return max((row for row in rows if row in ("", name) or name.startswith(f"{row}.")), key=len, default=None)


def refused(module: str, source: str) -> list[str]:
    """Say which imports of a module point the wrong way."""
    name = module.removeprefix("mimids").removeprefix(".")
    row = part(name, MAY_IMPORT)
    assert row is not None
    faults = []
    for imported in imports(ast.parse(source)):
        if imported.partition(".")[0] == "mimids":
            other = imported.removeprefix("mimids").removeprefix(".")
            if part(other, MAY_IMPORT[row]) is None:
                faults.append(f"{module} imports {imported}")
        elif imported in ONLY_IN and part(name, ONLY_IN[imported]) is None:
            faults.append(f"{module} imports {imported}")
        elif imported in IMPURE and part(name, PURE) is not None:
            faults.append(f"{module} is pure and imports {imported}")
    return faults


def test_every_package_has_a_row() -> None:
    packages = {
        ".".join(path.parent.relative_to(ROOT / "mimids").parts)
        for path in MODULES.values()
        if path.name == "__init__.py"
    }
    assert packages - set(MAY_IMPORT) == set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert refused(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mimids.wire.codec", "import mimids.errors"),
        ("mimids.wire.codec", "from mimids import errors"),
        ("mimids.mls.tree.ratchet_tree", "def later():\n    from mimids.wire.messages import SendRequest"),
        ("mimids.mls.tree.ratchet_tree", "import time"),
        ("mimids.ohttp.hpke", "from os import urandom"),
        ("mimids.policy.rules", "import trio.lowlevel"),
        ("mimids.store.groups", "from mimids.mls import tree"),
        ("mimids.store.groups", "import aiosqlite"),
        ("mimids.store.engine.store", "import sqlite3"),
        ("mimids.ds.groups.hub", "from mimids.ds.following import delivery"),
        ("mimids.ds.following.delivery", "from mimids.ds.terms.report import Report"),
        ("mimids.ds.limits.rates", "from mimids.ds.groups.hub import LocalHub"),
        ("mimids.ds.following.delivery", "from mimids.http.peers.calls import Peer"),
        ("mimids.ds.following.delivery", "import httpcore"),
        ("mimids.http.peers.calls", "from mimids.http.api import problems"),
        ("mimids.http.server.listener", "import mimids.app"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_seen(module: str, source: str) -> None:
    assert len(refused(module, source)) == 1


def test_no_module_needs_itself_to_be_imported() -> None:
    """Among the imports that run when a module is loaded there is no circle."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        at_load = ast.parse(path.read_text())
        for node in ast.walk(at_load):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                node.body = []
        graph[module] = {name for name in imports(at_load) if name in MODULES and name != module}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("command", ["import mimids.client", "import mimids.testing", "import mimids.cli", "--help"])
def test_only_serving_imports_the_server(command: str) -> None:
    """Embedding, clients and every command but `serve` start without the web framework and the asyncio bridge."""
    module = command.removeprefix("import ") if command.startswith("import ") else "mimids.cli"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    if command == "--help":
        if not hasattr(importlib.import_module(module), "main"):
            pytest.skip("mimids.cli has no main yet")
        command = "import mimids.cli\ntry: mimids.cli.main(['--help'])\nexcept SystemExit as end: assert not end.code"
    report = "import sys; print(sorted({'quart', 'quart_trio', 'trio_asyncio', 'hypercorn'} & set(sys.modules)))"
    program = f"{command}\n{report}"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_server_imports_the_console_only_when_a_page_is_asked_for() -> None:
    modules = "{'quart', 'quart_trio', 'jinja2', 'mimids.http.console.app'} & set(sys.modules)"
    program = (
        f"import sys, mimids.app, mimids.process; print(sorted({modules}))\n"
        f"import mimids.http.console.app; print(len({modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["[]", "4"], ran.stderr
