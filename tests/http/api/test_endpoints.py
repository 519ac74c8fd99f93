"""Rows of the tables as mypy sees them: a handler that does not fit its row is an error."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from docs.generate.http import every_endpoint
from mimids.ds.services import Services
from mimids.http.api import devices, operator, providers, public
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.api.operator_socket import OPERATOR_SOCKET

ROOT = Path(__file__).parent.parent.parent.parent
MIMIDS = ROOT / "mimids"

# What is changed in the row of an endpoint, and what mypy must say about it.
CHANGES = {
    "nothing": ("", "", None),
    "body": ("request=mimi_ds(SendRequest)", "request=mimi_ds(ReceiveRequest)", "Call[Follower, ReceiveRequest]"),
    "no_body": ("request=mimi_ds(SendRequest)", "request=NO_BODY", 'type parameter "In"'),
    "caller": ("caller=Follower", "caller=Device", "Call[Device, SendRequest]"),
    "answer": ("answer=mimi_ds(SendResponse)", "answer=mimi_ds(PushResponse)", "Awaitable[PushResponse"),
    "no_answer": ("answer=mimi_ds(SendResponse)", "answer=NO_BODY", 'type parameter "Out"'),
    "handler": ("handler=handlers.send", "handler=handlers.receive", "Call[Follower, ReceiveRequest]"),
}


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_refuses_a_row_whose_handler_does_not_fit(tmp_path: Path) -> None:
    source = (MIMIDS / "http/api/providers.py").read_text()
    begin = source.index('name="send",')
    end = source.index('name="send-batch",')
    files = {}
    for name, (old, new, _) in CHANGES.items():
        assert old in source[begin:end]
        changed = source[:begin] + source[begin:end].replace(old, new) + source[end:]
        files[name] = tmp_path / f"row_with_another_{name}.py"
        files[name].write_text(changed.replace("values import Follower", "values import Device, Follower"))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *map(str, files.values())]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    for name, (_, _, wanted) in CHANGES.items():
        said = re.findall(rf"{files[name].name}:\d+: error: (.*)", ran.stdout)
        if wanted is None:
            assert said == []
        else:
            assert len(said) == 1, (name, ran.stdout)
            assert wanted in said[0]


@pytest.mark.parametrize("module", [devices, operator, providers, public], ids=lambda module: module.__name__)
def test_a_table_is_written_so_that_mypy_checks_it(module: object) -> None:
    """With an annotation, mypy would take its `Any` for the types of each row."""
    source = Path(str(getattr(module, "__file__", ""))).read_text()
    assert re.search(r"^_ROWS = \(\n    Endpoint\(", source, re.MULTILINE)
    assert len(re.findall(r"\bEndpoint\(", source)) == len(re.findall(r"^    Endpoint\(\n", source, re.MULTILINE))


@pytest.mark.parametrize("row", [*every_endpoint(), *OPERATOR_SOCKET], ids=lambda row: row.name)
def test_a_handler_is_annotated_with_the_types_of_its_row(row: AnyEndpoint) -> None:
    hints = get_type_hints(row.handler)
    caller, body = get_args(hints["call"])
    assert (hints["services"], caller) == (Services, row.caller)
    assert (body is type(None)) == (row.request_body is None and not row.websocket)
    assert Any not in (body, hints["return"])
