"""The OpenAPI documents: valid, complete, and true of what is answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from docs.generate import openapi
from mimids.cli.refusals import CommandRefused
from mimids.ds.commands import COMMANDS
from mimids.errors import MimiError
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.media_types import JSON
from mimids.testing import PretendGroup, Session, federation
from mimids.wire.ids import GroupId
from tests.support.plain_client import plain_client

validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
jsonschema = pytest.importorskip("jsonschema")  # which it brings

DOCS = Path(__file__).parents[2] / "docs"
CLIENT: dict[str, Any] = json.loads(openapi.client())
OPERATOR: dict[str, Any] = json.loads(openapi.operator())
BOTH = pytest.mark.parametrize("document", [CLIENT, OPERATOR], ids=["client", "operator"])


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def contents(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from operation.get("requestBody", {}).get("content", {}).values()
    for answer in operation["responses"].values():
        yield from answer.get("content", {}).values()


def answer_schema(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    answers = document["paths"][path][method]["responses"]
    (content,) = next(answer["content"] for status, answer in answers.items() if status.startswith("2")).values()
    schema: dict[str, Any] = content["schema"]
    return schema


def closed(schema: Any) -> Any:
    """Return a schema that allows no members but those that it names."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(each) for name, each in schema.items()}
    return inner | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else inner


def faults(schema: dict[str, Any], value: object) -> list[str]:
    found = jsonschema.Draft202012Validator(closed(schema)).iter_errors(value)
    return [f"{each.json_path}: {each.message}" for each in found]


@BOTH
def test_a_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validator.validate(document)


def test_a_document_that_is_not_valid_is_refused() -> None:
    wrong = json.loads(openapi.client())
    wrong["paths"]["/client/v1/me"]["get"]["parameters"] = [{"name": "x", "in": "nowhere"}]
    with pytest.raises(Exception, match="nowhere"):
        validator.validate(wrong)


def test_the_documents_are_where_they_are_printed() -> None:
    assert (DOCS / "openapi-client.json").read_text() == openapi.client()
    assert (DOCS / "openapi-operator.json").read_text() == openapi.operator()


def test_every_endpoint_and_every_command_is_there() -> None:
    endpoints = {(row.path, row.method) for row in DEVICES}
    assert {(path, method.upper()) for path, method, _ in operations(CLIENT)} == endpoints
    assert [path for path, _, _ in operations(OPERATOR)] == [command.path for command in COMMANDS]


@BOTH
def test_operations_have_names_of_their_own_and_declare_the_parts_of_their_paths(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, _, operation in operations(document):
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


@BOTH
def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        for content in contents(operation):
            if "example" in content:
                assert faults(content["schema"], content["example"]) == []


@pytest.mark.parametrize("row", [row for row in DEVICES if row.request_body], ids=lambda row: row.name)
def test_the_required_members_of_a_request_are_those_that_reading_needs(row: AnyEndpoint) -> None:
    body = row.request_body
    assert body is not None
    if body.media_type != JSON:
        return
    example = json.loads(body.example)
    schema = openapi.schema_of(body.members)
    assert set(example) == set(schema["properties"])
    for name in example:
        without = json.dumps({key: value for key, value in example.items() if key != name}).encode()
        if name in schema["required"]:
            with pytest.raises((ValueError, MimiError)):
                body.read(without)
        else:
            body.read(without)
            body.read(json.dumps({**example, name: None}).encode())


def test_what_devices_are_answered_fits(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        account = a.add_device("alice")
        api = plain_client().Api(account.url, account.token, account.ca_file, 20)
        for path, method, body, media_type in [
            ("me", "get", None, ""),
            ("key-packages", "post", b"\0", "application/mimi-ds"),
            ("contact-tokens", "post", b'{"scheme": "shared"}', JSON),
            ("reports", "post", b'{"hub": "b.example", "accused": "b.example", "kind": "spam"}', JSON),
        ]:
            _, answer = api(method.upper(), path, body, media_type)
            assert faults(answer_schema(CLIENT, f"/client/v1/{path}", method), json.loads(answer)) == []
        api.connection.close()


def test_what_commands_answer_fits(mimids_session: Session) -> None:
    """Commands that are refused here, for example because there is no report 7, are left out."""
    with federation("a.example", "b.example", session=mimids_session) as (a, _):
        group = attrs.evolve(PretendGroup.at("a.example"), group_id=GroupId(b"mimi://a.example/g/1"))
        a.add_device("creator").ask(lambda device: device.create_group(group.creation()))
        answered = 0
        for number, command in enumerate(COMMANDS):
            with suppress(CommandRefused):
                a.add_device("alice", "phone" if command.name != "device add" else f"phone{number}")
            with suppress(CommandRefused):
                answer = a.command(command.name, **command.sample())
                answered += 1
                assert faults(answer_schema(OPERATOR, command.path, "post"), answer) == [], command.name
        assert answered > 20
