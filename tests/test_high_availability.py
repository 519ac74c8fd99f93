"""The files of `examples/ha/`: each is checked by its program, and together they run a provider that survives a kill.

Only addresses, paths and owners are replaced in them.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
import trio

from mimids.client import Device, open_device
from mimids.config import parse
from mimids.testing import PretendGroup, content_of
from tests.support import postgresql
from tests.support.cli_runs import provider, run, serving
from tests.support.provider import Authority
from tests.support.proxies import free_ports

if TYPE_CHECKING:
    import psycopg

EXAMPLES: Final = Path(__file__).parent.parent / "examples" / "ha"
START_SECONDS: Final = 60
PASSWORD: Final = "change-me-4"
MACHINES: Final = ("db1", "db2", "db3")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"apt install {package}")


needs_haproxy = needs("haproxy", "haproxy")
needs_patroni = needs("patroni", "patroni")
needs_etcd = needs("etcd", "etcd-server")
needs_postgresql = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root, so the tests cannot run programs as other users")


@attrs.frozen
class Network:
    """Three machines with addresses in 127.0.0.0/8, which all are this machine's."""

    home: Path
    prefix: str

    def place(self, example: str, machine: int = 1) -> str:
        """Return an example's text for a machine: 1, 2 or 3."""
        text = (EXAMPLES / example).read_text()
        head, separator, members = text.partition("ETCD_INITIAL_CLUSTER=")  # the list of members is the same everywhere
        lines = [
            line if "    - 1" in line else line.replace("10.0.0.11", f"10.0.0.1{machine}") for line in head.splitlines()
        ]
        text = "\n".join([*lines, separator + members])
        text = text.replace("name: db1", f"name: db{machine}").replace("ETCD_NAME=db1", f"ETCD_NAME=db{machine}")
        text = text.replace("/var/lib/etcd/mimids", str(self.home / f"db{machine}" / "etcd"))
        for path in ("/var/lib/postgresql/15", "/var/lib/postgresql", "/etc/patroni"):
            text = text.replace(path, str(self.home / f"db{machine}"))
        text = text.replace("10.0.0.0/24", "127.0.0.0/8")  # a connection to any such address comes from 127.0.0.1
        directory = postgresql.programs()
        return text.replace("/usr/lib/postgresql/15/bin", str(directory)).replace("10.0.0.", self.prefix)

    def address(self, machine: int) -> str:
        return f"{self.prefix}1{machine}"


@pytest.fixture
def network() -> Iterator[Network]:
    """Machines whose files may be read by the user that PostgreSQL runs as."""
    home = Path(tempfile.mkdtemp(prefix="mimids-ha-"))
    chance = random.Random(os.getpid())
    found = Network(home, f"127.{chance.randrange(1, 255)}.{chance.randrange(1, 255)}.")
    authority = Authority(home)
    home.chmod(0o755)
    authority.trust.chmod(0o644)
    for name in MACHINES:
        (home / name).mkdir()
        for file in authority.certify(name):
            file.rename(home / name / file.name)
    if os.geteuid() == 0:
        for path in home.glob("db*/**"):
            for each in (path, *path.iterdir()):
                shutil.chown(each, "postgres" if _is_user("postgres") else "nobody")
                each.chmod(0o700 if each.is_dir() else 0o600)
    yield found
    shutil.rmtree(home, ignore_errors=True)


def _is_user(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def check(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@needs_haproxy
def test_haproxy_accepts_its_file() -> None:
    assert "valid" in check("haproxy", "-c", "-f", EXAMPLES / "haproxy.cfg")


@needs_patroni
@needs_postgresql
def test_patroni_accepts_its_file(network: Network) -> None:
    file = network.home / "patroni.yml"
    file.write_text(network.place("patroni.yml"))
    with ExitStack() as stack:  # it connects to etcd, and asks nothing
        for machine in (1, 2, 3):
            stack.enter_context(socket.create_server((network.address(machine), 2379)))
        assert check("patroni", "--validate-config", file) == ""


def test_mimids_accepts_its_file(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    config = parse({"provider": "a.example", **tomllib.loads((EXAMPLES / "mimids.toml").read_text())}, tmp_path)
    assert config.store.replicated


# --- all together -----------------------------------------------------------------------------------------------


@contextmanager
def started(
    *command: str | Path, log: Path, user: str | None = None, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the block, with all processes that it starts."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env={**os.environ, **variables},
            user=user,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes], also: Path | None = None) -> None:
    """Kill a program and its children, and the one whose process a file names, as the end of a machine would."""
    if process.poll() is not None:
        return
    found, left = list[int](), [process.pid]
    if also is not None:
        left.append(int(also.read_text().split()[0]))
    while left:
        pid = left.pop()
        found.append(pid)
        with suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
            left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def stop_postgresql(file: Path) -> None:
    """End the PostgreSQL that Patroni has started."""
    with suppress(OSError):
        os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


def until(check: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        with suppress(Exception):
            if check():
                return
        assert time.monotonic() < give_up_at, what
        time.sleep(0.2)


def primary(network: Network) -> int | None:
    """Return the number of the machine whose Patroni says that it is the primary."""
    from urllib.request import urlopen

    for machine in (1, 2, 3):
        with suppress(OSError), urlopen(f"http://{network.address(machine)}:8008/primary", timeout=2):
            return machine
    return None


def connected(network: Network) -> psycopg.Connection[Any]:
    """Connect to the primary as its superuser."""
    import psycopg

    host = network.address(primary(network) or 1)
    password = re.findall(r"password: (change-me-\d)", (EXAMPLES / "patroni.yml").read_text())[0]
    return psycopg.connect(f"postgresql://postgres@{host}/postgres?sslmode=require", password=password, autocommit=True)


@pytest.mark.soak
@needs_haproxy
@needs_patroni
@needs_etcd
@needs_postgresql
@as_root
async def test_a_provider_survives_the_end_of_the_machine_with_the_primary(network: Network, tmp_path: Path) -> None:
    config = provider(tmp_path)
    home = config.tls.certificate.parent
    run("user", "add", "alice", cwd=home)
    token = run("device", "add", "alice", "phone", "--json", cwd=home).json["token"]
    with ExitStack() as stack:
        patronis = begin(network, stack)
        url = store_url(network)
        for statement in (f"CREATE ROLE mimids LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE mimids OWNER mimids"):
            with connected(network) as connection:
                connection.execute(statement.encode())
        moved = run("move", "--to", url, cwd=home)
        assert moved.code == 0, moved.err
        ports = serve_twice(network, home, url, stack)
        balance(network, ports, stack)
        group = PretendGroup.at(config.provider)
        async with open_device(f"https://127.0.0.1:{ports['balancer']}", token, trust=home / "ca.pem") as device:
            await device.create_group(group.creation())
            await device.send(group.hub, group.message(b"before"))
            victim = primary(network)
            assert victim is not None
            kill(patronis[victim], also=network.home / f"db{victim}" / "mimids" / "postmaster.pid")
            killed_at = time.monotonic()
            await send_until_accepted(device, group, b"after")
            print(f"writes resumed {time.monotonic() - killed_at:.1f} s after the kill")
            texts = [content_of(message) async for message in device.receive_all(group.hub, group.key)]
            assert texts == [b"before", b"after"]


async def send_until_accepted(device: Device, group: PretendGroup, text: bytes) -> None:
    request = group.message(text)
    with trio.fail_after(120):
        while True:
            try:
                await device.send(group.hub, request)
            except Exception as error:  # 503, or the connection was cut
                print(repr(error))
                await trio.sleep(0.5)
            else:
                return


def begin(network: Network, stack: ExitStack) -> dict[int, subprocess.Popen[bytes]]:
    """Start etcd and Patroni on three machines; return Patroni's processes once both standbys can take over."""
    user = postgresql.server_user()
    for machine in (1, 2, 3):
        lines = [line for line in network.place("etcd.env", machine).splitlines() if line.startswith("ETCD_")]
        variables = dict(line.split("=", 1) for line in lines)
        log = network.home / f"db{machine}" / "etcd.log"
        stack.enter_context(started("etcd", log=log, **variables))
    patronis = {}
    for machine in (1, 2, 3):
        file = network.home / f"db{machine}" / "patroni.yml"
        text = network.place("patroni.yml", machine).replace("mode: automatic", "mode: off")
        text = text.replace("ssl: ", f"unix_socket_directories: {file.parent}\n    ssl: ")  # both have the same port
        file.write_text(text.replace("db1.", f"db{machine}."))
        shutil.chown(file, user or "root")
        log = file.with_name("patroni.log")
        variables = {"HOME": str(file.parent)}
        stack.callback(stop_postgresql, file.with_name("mimids") / "postmaster.pid")
        patronis[machine] = stack.enter_context(started("/usr/bin/patroni", file, log=log, user=user, **variables))
        until(lambda: primary(network), "no primary")

    def are_standbys() -> bool:
        query = "SELECT sync_state FROM pg_stat_replication WHERE application_name LIKE 'db_' ORDER BY 1"
        with connected(network) as connection:
            return [state for (state,) in connection.execute(query.encode())] == ["async", "sync"]

    until(are_standbys, "no standbys")
    return patronis


def store_url(network: Network) -> str:
    """Return the URL of `mimids.toml`, whose host names do not resolve here."""
    example = tomllib.loads((EXAMPLES / "mimids.toml").read_text())["store"]["url"]
    passfile = network.home / "pgpass"
    passfile.write_text(f"*:*:*:mimids:{PASSWORD}\n")
    passfile.chmod(0o600)
    addresses = ",".join(network.address(machine) for machine in (1, 2, 3))
    trusted = example.replace("/etc/mimids/db-ca.pem", str(network.home / "ca.pem"))
    return f"{trusted}&hostaddr={addresses}&passfile={passfile}"


def serve_twice(network: Network, home: Path, url: str, stack: ExitStack) -> dict[str, int]:
    """Run two processes of a provider; return the ports of their client listeners, and of their public ones."""
    file = home / "mimids.toml"
    file.write_text(f'{file.read_text()}\n[store]\nurl = "{url}"\nreplicated = true\n')
    (home / "second.toml").write_text(file.read_text().replace('data_dir = "data"', 'data_dir = "second"'))
    ports = {}
    for name, config in (("ds1", file), ("ds2", home / "second.toml")):
        _, said = stack.enter_context(serving("--config", str(config), cwd=home))
        for listener in ("client", "public"):
            (line,) = [line for line in said if line.startswith(f"  {listener} ")]
            ports[f"{name} {listener}"] = int(line.split()[-1].rpartition(":")[2])
    return ports


def balance(network: Network, ports: dict[str, int], stack: ExitStack) -> None:
    """Run the balancer before the client listeners; its port becomes one of `ports`."""
    text = (EXAMPLES / "haproxy.cfg").read_text()
    head, _, rest = text.partition("# Other providers.")
    client = rest[rest.index("# The devices") :]
    for number, name in enumerate(("ds1", "ds2"), start=1):
        addresses = f"127.0.0.1:{ports[f'{name} client']} port {ports[f'{name} public']}"
        client = client.replace(f"10.0.0.1{number}:8444 port 8443", addresses)
    (ports["balancer"],) = free_ports(1)
    client = client.replace("bind :8444", f"bind 127.0.0.1:{ports['balancer']}")
    file = network.home / "haproxy.cfg"
    file.write_text(head + client)
    stack.enter_context(started("haproxy", "-f", file, log=network.home / "haproxy.log"))
    until(lambda: _accepts(ports["balancer"]), "no balancer")


def _accepts(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)):
        return True
