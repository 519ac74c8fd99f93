"""What each KiB that a hostile client sends costs the server, by endpoint (bench: abuse).

The server runs without rates, because rates bound how often a cost occurs and not how large it is. For each endpoint
the worst inputs that we know are sent one after the other, and the CPU time of the server's process is compared with
the octets sent. Most inputs are refused. The figure is in CPU milliseconds for each KiB. A request or frame of less
than one KiB counts as one KiB: answering any request at all costs about a millisecond, as it does on the echo floor.
`octets` is what was sent, in front of TLS.

    python -m bench.abuse [ENDPOINT...]

Prints every input with its answer, then the worst input of each endpoint. The bars are 5 ms a KiB for anonymous
clients, and 10 for devices and other providers. `x echo` compares a request with one of the echo floor.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from bench.attacks import anonymous, device, provider
from bench.attacks.groups import Groups, branch, make_groups
from bench.attacks.inputs import Input, covered_endpoints
from bench.floor import cpu_seconds, echo_floor
from bench.raw_client import Connection, Target
from mimids.config import Limits
from mimids.http.api.devices import DEVICES
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.testing import DeviceAccount, Provider, federation
from mimids.wire.declare import encode
from mimids.wire.messages import SEND_REQUESTS

HUB: Final = "a.example"
OTHER: Final = "b.example"
BARS: Final = {"anonymous": 5.0, "device": 10.0, "provider": 10.0}
ENOUGH_CPU_SECONDS: Final = 0.3  # the clock of a process has steps of 10 ms
MOST_SECONDS: Final = 4.0
MOST_OCTETS: Final = 64 << 20
WARM_UP: Final = 2
BRANCHES: Final = 17
SMALL_MESSAGES: Final = 20_480  # more than a page has
QUIET_SECONDS: Final = 0.06
RATES: Final = {field.name: 0 for field in attrs.fields(Limits) if "_per_" in field.name}
UNLIMITED: Final = {"limits": {**RATES, "device_streams": 0, "device_groups": 0, "device_contact_tokens": 0}}


@attrs.frozen
class Cost:
    """What one input cost."""

    input: Input
    requests: int
    octets: int
    cpu_milliseconds: float
    statuses: tuple[int, ...]

    @property
    def for_each_kib(self) -> float:
        return self.cpu_milliseconds / max(self.octets / 1024, self.requests * self.input.messages)

    @property
    def for_each_request(self) -> float:
        return self.cpu_milliseconds / self.requests

    @property
    def met(self) -> bool:
        return self.for_each_kib <= BARS[self.input.caller]

    @property
    def verdict(self) -> str:
        if self.met:
            return ""
        missed = f"   bar {BARS[self.input.caller]:g}: MISSED"
        return f"{missed}, but {self.input.bounded_by} bounds it" if self.input.bounded_by else missed


@attrs.frozen
class Server:
    """The provider under attack, and how each kind of caller reaches it."""

    provider: Provider
    public: Target
    mutual: Target  # with the certificate of another provider
    client: Target
    account: DeviceAccount
    groups: Groups

    def target(self, one: Input) -> Target:
        return {"anonymous": self.public, "provider": self.mutual, "device": self.client}[one.caller]

    def cpu(self) -> float:
        assert self.provider.pid is not None
        return cpu_seconds(self.provider.pid)


def measure(server: Server, one: Input) -> Cost:
    """Send an input until its cost is known."""
    connection = Connection(server.target(one))
    statuses = {one.send(connection, number) for number in range(WARM_UP)}
    connection.sent = 0
    before, began, number = server.cpu(), time.monotonic(), WARM_UP
    while time.monotonic() - began < MOST_SECONDS and connection.sent < MOST_OCTETS:
        statuses.add(one.send(connection, number))
        number += 1
        if server.cpu() - before > ENOUGH_CPU_SECONDS:
            break
    sent = connection.sent
    wait_quiet(server)
    spent = (server.cpu() - before) * 1000
    connection.close()
    return Cost(one, number - WARM_UP, sent, spent, tuple(sorted(statuses)))


def wait_quiet(server: Server) -> None:
    """Wait until the server has done what it had left to do."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        before = server.cpu()
        time.sleep(QUIET_SECONDS)
        if server.cpu() - before < 0.2 * QUIET_SECONDS:
            return


def inputs(server: Server) -> Iterator[Input]:
    yield from anonymous.inputs(server.provider)
    yield from provider.inputs(HUB, server.groups)
    yield from device.inputs(HUB, OTHER, server.account.token, server.groups)


def start(hub: Provider, other: Provider) -> Server:
    """Prepare the provider: groups, a device, and the certificates of callers."""
    account = hub.add_device("mallory")
    plain = ssl.create_default_context(cafile=str(hub.ca_file))
    mutual = ssl.create_default_context(cafile=str(hub.ca_file))
    mutual.load_cert_chain(other.directory / "provider.pem", other.directory / "provider.key")
    public, client = hub.public_url.removeprefix("https://"), hub.client_url.removeprefix("https://")
    groups = make_groups(HUB)
    owner, follower = Connection(Target(client, HUB, plain)), Connection(Target(public, HUB, mutual))

    def post(path: str, body: bytes) -> None:
        status = owner.ask(device.posted(HUB, account.token, path, body))
        assert status in (200, 201), (path, status)

    for group in groups.with_state:
        post("groups", group.creation)
    branches = [branch(groups.branched) for _ in range(BRANCHES)]
    post(f"hubs/{HUB}/send-batch", SEND_REQUESTS.encode([request for request, _ in branches]))
    groups = attrs.evolve(groups, branched=branches[0][1])
    post("groups", encode(groups.long.creation()))
    for _ in range(SMALL_MESSAGES // 1024):
        post(f"hubs/{HUB}/send-batch", SEND_REQUESTS.encode([groups.long.message(b"") for _ in range(1024)]))
    for key in (*(group.key for group in groups.with_state), groups.long.key):
        assert follower.ask(provider.receiving(HUB, key)) == 200
    owner.close()
    follower.close()
    hub.restart()  # so that nothing is in its caches
    return Server(
        hub, Target(public, HUB, plain), Target(public, HUB, mutual), Target(client, HUB, plain), account, groups
    )


def report(costs: Sequence[Cost], echo_milliseconds: float) -> bool:
    """Print the worst input of each endpoint; return whether all bars are met."""
    worst: dict[tuple[str, str], Cost] = {}
    for cost in costs:
        place = (cost.input.caller, cost.input.endpoint)
        if place not in worst or cost.for_each_kib > worst[place].for_each_kib:
            worst[place] = cost
    print(f"\nthe worst of each endpoint; a request of the echo floor costs {echo_milliseconds:.2f} ms\n")
    print(f"{'caller':<10} {'endpoint':<22} {'ms/KiB':>8} {'ms each':>9} {'x echo':>8}  input")
    for (caller, endpoint), cost in worst.items():
        ratio = cost.for_each_request / echo_milliseconds
        print(
            f"{caller:<10} {endpoint:<22} {cost.for_each_kib:>8.2f} {cost.for_each_request:>9.2f} {ratio:>8.1f}"
            f"  {cost.input.name}{cost.verdict}"
        )
    return all(cost.met or cost.input.bounded_by for cost in costs)


def main(chosen: Sequence[str]) -> int:
    costs = []
    echo = 1000 / echo_floor(2).per_cpu_second
    with federation(HUB, OTHER, config=UNLIMITED, links=False) as (hub, other):
        server = start(hub, other)
        found = [one for one in inputs(server) if not chosen or one.endpoint in chosen]
        if not chosen:
            missing = covered_endpoints((*PUBLIC, *PROVIDERS, *DEVICES)) - {one.endpoint for one in found}
            assert not missing, f"no inputs for {', '.join(sorted(missing))}"
        for one in found:
            cost = measure(server, one)
            costs.append(cost)
            answers = ",".join(map(str, cost.statuses))
            print(
                f"{one.caller:<10} {one.endpoint:<22} {cost.for_each_kib:>8.2f} ms/KiB"
                f" {cost.octets / cost.requests:>10,.0f} octets {cost.for_each_request:>9.2f} ms"
                f"  {answers:<12} {one.name}",
                flush=True,
            )
        log = hub.log
    if "Traceback" in log:
        print(log[-4000:], file=sys.stderr)
    return 0 if report(costs, echo) and "Traceback" not in log else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
