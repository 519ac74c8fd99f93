"""The Python and TypeScript libraries send the same requests for the same calls: those of clients/cases.json.

The file has one row for each call: the name in Python, arguments with octets in hex, and the request that is sent.
`python -m tests.clients.test_cases` writes the requests of the Python library into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest

from mimids.client import Device, Problem, requests
from mimids.client.connection import Connection
from mimids.client.device import DeviceToken
from mimids.wire.ids import CipherSuite, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from tests.support.typescript import HOME, run_node

CASES: Final = HOME.parent / "cases.json"
Args = dict[str, Any]


def octets(args: Args, name: str) -> bytes | None:
    return None if args.get(name) is None else bytes.fromhex(args[name])


def key(args: Args, name: str = "partition_key") -> PartitionKey:
    return PartitionKey(bytes.fromhex(args[name]))


def for_joiners(args: Args) -> Args:
    providers = [ProviderId(name) for name in args.get("service_providers", ())]
    return {
        "group_info": octets(args, "group_info"),
        "welcome": octets(args, "welcome"),
        "service_providers": providers,
    }


def message(args: Args) -> Any:
    mls = bytes.fromhex(args["message"])
    if "next_partition_key" in args:
        return requests.commit(mls, key(args), key(args, "next_partition_key"), **for_joiners(args))
    return requests.message(mls, key(args))


def creation(args: Args) -> Any:
    tree = octets(args, "ratchet_tree")
    group, suite = GroupId(bytes.fromhex(args["group_id"])), CipherSuite(args["cipher_suite"])
    return requests.creation(group, suite, key(args), ratchet_tree=tree, **for_joiners(args))


def external_join(args: Args) -> Any:
    mls, following = bytes.fromhex(args["message"]), key(args, "next_partition_key")
    return requests.external_join(mls, following, group_info=octets(args, "group_info"))


def external_proposal(args: Args) -> Any:
    partition = octets(args, "partition")
    masked = None if partition is None else MaskedPartitionKey(partition)
    return requests.external_proposal(bytes.fromhex(args["message"]), partition=masked)


def group(args: Args) -> GroupId:
    return GroupId(bytes.fromhex(args["group_id"]))


def group_info(device: Device, args: Args) -> Any:
    partition = octets(args, "partition")
    masked = None if partition is None else MaskedPartitionKey(partition)
    return device.group_info(args["hub"], group(args), partition=masked)


def report(device: Device, args: Args) -> Any:
    group_id = octets(args, "group_id")
    return device.report(
        args["hub"],
        args["accused"],
        args["kind"],
        group_id=None if group_id is None else GroupId(group_id),
        note=args["note"],
        evidence=[bytes.fromhex(each) for each in args["evidence"]],
    )


def issue_token(device: Device, args: Args) -> Any:
    rate = (args["rate"]["claims"], args["rate"]["seconds"]) if args["rate"] else None
    more = {name: args[name] for name in ("label", "expires_at", "uses")}
    return device.issue_token(args["scheme"], **more, rate=rate)


CALLS: Final[dict[str, Callable[[Device, Args], Any]]] = {
    "me": lambda device, _: device.me(),
    "upload": lambda device, args: device.upload(map(bytes.fromhex, args["key_packages"]), replace=args["replace"]),
    "drop_stock": lambda device, _: device.drop_stock(),
    "issue_token": issue_token,
    "revoke_token": lambda device, args: device.revoke_token(args["token_id"]),
    "create_group": lambda device, args: device.create_group(creation(args), linear=args["linear"]),
    "replace_group": lambda device, args: device.replace_group(
        group(args), GroupId(bytes.fromhex(args["successor"])), args["hub"]
    ),
    "send": lambda device, args: device.send(args["hub"], message(args)),
    "send_batch": lambda device, args: device.send_batch(args["hub"], [message(each) for each in args["requests"]]),
    "receive": lambda device, args: device.receive(
        args["hub"], key(args), args["counter"], wait_seconds=args["wait_seconds"]
    ),
    "group_info": group_info,
    "join": lambda device, args: device.join(args["hub"], external_join(args)),
    "propose": lambda device, args: device.propose(args["hub"], external_proposal(args)),
    "leave": lambda device, args: device.leave(args["hub"], group(args)),
    "report": report,
    "welcome_status": lambda device, args: device.welcome_status(args["hub"], key(args)),
    "siblings": lambda device, args: device.siblings(CipherSuite(args["cipher_suite"])),
    "positions": lambda device, args: device.positions(
        args["hub"], [PartitionKey(bytes.fromhex(each)) for each in args["partition_keys"]]
    ),
    "subscribe": lambda device, args: device.subscribe(
        args["endpoint"], bytes.fromhex(args["p256dh"]), bytes.fromhex(args["auth"])
    ),
    "unsubscribe": lambda device, _: device.unsubscribe(),
    "welcomes": lambda device, _: device.welcomes(),
    "acknowledge": lambda device, args: device.acknowledge(int(args["welcome_id"])),
}


def sent_by_python(call: str, args: Args) -> Args:
    """Return the request that a call sends; its answer is a 500."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(500)

    async def run() -> None:
        connection = Connection("http://a.example", DeviceToken(b"token"), None, timeout_seconds=5)
        await connection.close()
        connection._client = httpx.AsyncClient(
            base_url="http://a.example",
            transport=httpx.MockTransport(answer),
            headers={"Authorization": "Bearer token"},
        )
        with suppress(Problem):  # the 500 of `answer`
            await CALLS[call](Device(connection), args)
        await connection.close()

    anyio.run(run)
    (request,) = seen
    return {
        "method": request.method,
        "path": request.url.raw_path.decode(),
        "authorization": request.headers["authorization"],
        "content_type": request.headers.get("content-type"),
        "prefer": request.headers.get("prefer"),
        "body": _body(request),
    }


def _body(request: httpx.Request) -> object:
    """Return JSON as its value, since spaces and the order of members do not matter; other octets in hex."""
    if request.headers.get("content-type") == "application/json":
        return json.loads(request.content)
    return request.content.hex()


ROWS: Final[list[Args]] = json.loads(CASES.read_text(encoding="utf-8"))
NAMES: Final = [f"{row['call']}-{number}" for number, row in enumerate(ROWS)]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_python_sends_the_request_of_the_case(row: Args) -> None:
    assert sent_by_python(row["call"], row["args"]) == row["request"]


def test_typescript_sends_the_request_of_each_case() -> None:
    answers = json.loads(run_node("test/cases.mjs", str(CASES)))
    assert answers == [row["request"] for row in ROWS]


def test_each_call_has_a_case() -> None:
    assert {row["call"] for row in ROWS} == set(CALLS)
    calls = {name for name in vars(Device) if not name.startswith("_")}
    composed = {"fetch_key_package", "fetch_key_packages", "compare_keys", "receive_all", "find_group", "stream"}
    by_me = {"provider_keys", "external_senders", "push_public_key"}
    assert calls - composed - by_me == set(CALLS)


def main() -> None:
    """Write the requests of the Python library."""
    rows = [{**row, "request": sent_by_python(row["call"], row["args"])} for row in ROWS]
    Path(CASES).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
