"""Prints docs/openapi-client.json and docs/openapi-operator.json: the two APIs as OpenAPI 3.1 documents.

The client API comes from the table of endpoints, the API of the operator socket from the table of commands. JSON bodies
of the client API are described by their TypedDicts, answers of commands by their examples. Bodies that are not JSON are
named by their structure in docs/wire.md.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from docs.generate.http import name_of, problems_of
from mimids.ds.commands import COMMANDS, Argument, ArgumentKind, Command
from mimids.errors import MimiError
from mimids.http.api.bodies import Body
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.media_types import JSON, OHTTP_KEYS, PROBLEM_JSON
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE

Json = dict[str, Any]

OPENAPI: Final = "3.1.0"
API_VERSION: Final = "1"  # as in the paths
_OCTETS: Final = "octets in base64url, without padding"
_IN_PATH: Final[Mapping[str, Json]] = {
    "provider": {"type": "string", "description": "the domain of a provider, in lower case", "example": "b.example"},
    "id": {"type": "integer", "minimum": 0},
    "group_id": {"type": "string", "description": f"the group id: {_OCTETS}", "example": "bWltaTovL2EuZXhhbXBsZS9nLzE"},
}
_IN_QUERY: Final[Mapping[str, Json]] = {
    "replace": {"description": "delete the rest of the device's stock", "allowEmptyValue": True, "schema": {}},
    "linear": {"description": "make a linear group: an epoch has one commit", "allowEmptyValue": True, "schema": {}},
    "bundle": {"description": "answer with a GroupInfoBundle", "allowEmptyValue": True, "schema": {}},
    "partition": {"description": f"a masked partition key: {_OCTETS}", "schema": {"type": "string"}},
}
_PROBLEM: Final[Json] = {
    "type": "object",
    "description": "A refusal (RFC 9457). docs/http.md has every type, and what to do about it.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "limit": {"type": "string", "description": "the limit that was exceeded"},
        "retry_after": {"type": "integer", "description": "seconds, as in Retry-After"},
    },
    "required": ["type", "title", "status", "detail"],
}


def client() -> str:
    """Return the OpenAPI document of the client API, as JSON."""
    server = {
        "url": "https://{address}",
        "description": "the client listener",
        "variables": {"address": {"default": "127.0.0.1:8444"}},
    }
    scheme = {"type": "http", "scheme": "bearer", "description": "the device token"}
    return _document(
        "mimids: the API for devices",
        "docs/http.md describes the client listener. Begin with docs/write-a-client.md.",
        [server],
        DEVICES,
        _operation,
        security={"deviceToken": scheme},
    )


def operator() -> str:
    """Return the OpenAPI document of the operator socket, as JSON."""
    commands = {command.path: command for command in COMMANDS}
    server = {"url": "http://localhost", "description": "the Unix socket operator.sock in the data directory"}
    return _document(
        "mimids: the operator socket",
        "docs/operator-socket.md describes this API. Access to the socket's file is the only authentication.",
        [server],
        OPERATOR_SOCKET,
        lambda row: _command(commands[row.path]),
    )


def _document(
    title: str,
    description: str,
    servers: list[Json],
    rows: Iterable[AnyEndpoint],
    operation: Callable[[AnyEndpoint], Json],
    *,
    security: Json | None = None,
) -> str:
    paths: dict[str, Json] = {}
    refusals: dict[str, Json] = {}
    for row in rows:
        made = paths.setdefault(row.path, {})[row.method.lower()] = operation(row)
        for status, (name, answer) in _refusals(problems_of(row)).items():
            refusals[name] = answer
            made["responses"][status] = {"$ref": f"#/components/responses/{name}"}
    document: Json = {
        "openapi": OPENAPI,
        "info": {"title": title, "version": API_VERSION, "description": description, "license": {"name": "Apache-2.0"}},
        "servers": servers,
        "paths": paths,
        "components": {"schemas": {"Problem": _PROBLEM}, "responses": dict(sorted(refusals.items()))},
    }
    if security is not None:
        document["components"]["securitySchemes"] = security
        document["security"] = [{name: []} for name in security]
    return json.dumps(document, indent=1) + "\n"


# --- the client API -----------------------------------------------------------------------------------------------


def _operation(row: AnyEndpoint) -> Json:
    operation: Json = {
        "operationId": row.name,
        "summary": f"{row.summary[0].upper()}{row.summary[1:]}.",
        "parameters": list(_parameters(row)),
    }
    if row.request_body is not None:
        operation["requestBody"] = {
            "description": f"At most `{row.limit}` octets.",
            "required": True,
            "content": _content(row.request_body),
        }
    if row.websocket:
        operation["responses"] = {"101": {"description": "The WebSocket is open (docs/stream.md)."}}
    else:
        operation["responses"] = {str(row.status.value): _answer(row)}
    return operation


def _parameters(row: AnyEndpoint) -> Iterator[Json]:
    for name in re.findall(r"\{(\w+)\}", row.path):
        yield {"name": name, "in": "path", "required": True, "schema": _IN_PATH[name]}
    for name in row.query:
        yield {"name": name, "in": "query"} | _IN_QUERY[name]
    if row.waits:
        yield {
            "name": "Prefer",
            "in": "header",
            "description": "`wait=N`: wait up to N seconds for something new (RFC 7240)",
            "schema": {"type": "string"},
            "example": "wait=30",
        }


def _answer(row: AnyEndpoint) -> Json:
    if row.answer_body is None:
        return {"description": "Done; no content."}
    answer: Json = {"description": f"`{row.answer_body.schema}`", "content": _content(row.answer_body)}
    if row.answer_body.media_type == OHTTP_KEYS:
        described = {"description": "docs/ohttp-keys.md", "required": True, "schema": {"type": "string"}}
        answer["headers"] = {KEYS_SIGNATURE: described}
    return answer


def _content(body: Body[object]) -> Json:
    if body.media_type != JSON:
        return {body.media_type: {"schema": {"title": body.schema, "description": "octets (docs/wire.md)"}}}
    if body.members is None:
        raise TypeError(f"give the JSON body {body.schema} a TypedDict of its members")
    return {JSON: {"schema": schema_of(body.members), "example": json.loads(body.example)}}


def _refusals(problems: Iterable[type[MimiError]]) -> dict[str, tuple[str, Json]]:
    """Return the answers for these problems by status, each with a name; the problems of one status are one answer."""
    answers = {}
    for status, kinds in groupby(sorted(problems, key=_status), key=_status):
        same = sorted(kinds, key=name_of)
        names = [name_of(kind) for kind in same]
        schema = {
            "allOf": [
                {"$ref": "#/components/schemas/Problem"},
                {"properties": {"type": {"enum": [kind.problem_type() for kind in same]}}},
            ]
        }
        described = ", ".join(f"`{name}`" for name in names)
        answer = {"description": described, "content": {PROBLEM_JSON: {"schema": schema}}}
        answers[str(status)] = "-or-".join(names), answer
    return answers


def _status(kind: type[MimiError]) -> int:
    return kind.status.value


def schema_of(kind: Any) -> Json:
    """Return the JSON Schema of a TypedDict, or of a type that occurs in one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        members = get_type_hints(kind, include_extras=True)
        return {
            "type": "object",
            "properties": {name: schema_of(member) for name, member in members.items()},
            "required": [name for name, member in members.items() if get_origin(member) is not NotRequired],
        }
    if origin is NotRequired:
        return schema_of(arguments[0])
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        schemas = [schema_of(each) for each in arguments]
        merged = {name: value for schema in schemas for name, value in schema.items()}
        return merged | {"type": [schema["type"] for schema in schemas]}
    return {"type": {str: "string", int: "integer", bool: "boolean", types.NoneType: "null"}[kind]}


# --- the operator socket ------------------------------------------------------------------------------------------

_KINDS: Final[Mapping[ArgumentKind, Json]] = {
    ArgumentKind.TEXT: {"type": "string"},
    ArgumentKind.NUMBER: {"type": "integer"},
    ArgumentKind.TIME: {"type": "integer", "format": "int64"},
    ArgumentKind.FLAG: {"type": "boolean"},
    ArgumentKind.DOCUMENT: {"type": "object"},
    ArgumentKind.NAMES: {"type": "array", "items": {"type": "string"}},
}


_OPEN: Final = frozenset({"arguments"})  # members whose own members are different each time


def _command(command: Command) -> Json:
    answer = json.loads(command.answer)
    return {
        "operationId": command.name.replace(" ", "-"),
        "summary": command.summary,
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": _arguments(command), "example": command.sample()}},
        },
        "responses": {
            "200": {
                "description": "Done, and on disk if the command writes.",
                "content": {JSON: {"schema": schema_like(answer), "example": answer}},
            }
        },
    }


def _arguments(command: Command) -> Json:
    schema: Json = {
        "type": "object",
        "properties": {argument.name: _argument(argument) for argument in command.arguments},
        "required": [each.name for each in command.arguments if each.required and each.unless is None],
    }
    either = [[each.name, each.unless] for each in command.arguments if each.required and each.unless is not None]
    if either:
        schema["allOf"] = [{"anyOf": [{"required": [name]} for name in names]} for names in either]
    return schema


def _argument(argument: Argument) -> Json:
    schema = dict(_KINDS[argument.kind])
    if argument.choices:
        schema["enum"] = [*argument.choices]
    if not argument.required:  # null means the same as a missing member
        schema["type"] = [schema["type"], "null"]
        if argument.choices:
            schema["enum"] += [None]
    unit = "; milliseconds since the epoch" if argument.kind is ArgumentKind.TIME else ""
    return schema | {"description": argument.help + unit}


def schema_like(example: object) -> Json:
    """Return a JSON Schema that values like the example fulfil; a member may also be null or missing.

    An empty object in the example stands for any object, and the first item of a list for all items.
    """
    if example == {}:
        return {"type": "object"}
    if isinstance(example, dict):
        members = {name: {"type": "object"} if name in _OPEN else _nullable(each) for name, each in example.items()}
        return {"type": "object", "properties": members}
    if isinstance(example, list):
        return {"type": "array", "items": schema_like(example[0])} if example else {"type": "array"}
    if example is None:
        return {}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[type(example)]}


def _nullable(example: object) -> Json:
    schema = schema_like(example)
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema
