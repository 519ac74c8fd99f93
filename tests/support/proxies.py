"""The proxies of `examples/`, as processes; only ports, paths and names are replaced in their files."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from mimids.config import Config
from mimids.wire.ids import ProviderId
from tests.support.patience import patience
from tests.support.provider import HOST, Authority

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NAME = "localhost"  # in place of chat.a.example: it has to resolve
A, B = ProviderId("a.example"), ProviderId("b.example")


@attrs.frozen
class Stage:
    """A provider's certificates and sockets, and free ports for the proxies."""

    authority: Authority
    sockets: Path
    config: Config
    https: int
    behind: int
    public: int

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.https}"


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def staged(directory: Path) -> Iterator[Stage]:
    """Prepare a provider behind a proxy for the block; nothing is started yet."""
    authority = Authority(directory)
    https, behind, public = free_ports(3)
    sockets = Path(tempfile.mkdtemp(prefix="mimids-"))  # as the unit's RuntimeDirectory: for the server's group
    sockets.chmod(0o750)
    listen = {"public": f"{HOST}:{public}", "client": f"unix:{sockets}/client.sock"}
    authority.certify(NAME)
    yield Stage(
        authority, sockets, authority.config(A, listen=listen, federation={"allow": [B]}), https, behind, public
    )
    shutil.rmtree(sockets)


def placed(example: str, places: Mapping[str, str]) -> str:
    """Return an example with these texts replaced; each text must be in it."""
    text = (EXAMPLES / example).read_text()
    for there, here in places.items():
        assert there in text, f"{example}: {there}"
        text = text.replace(there, here)
    return text


@asynccontextmanager
async def process(*command: str | Path, port: int, log: Path) -> AsyncIterator[None]:
    """Run a proxy for the block; it serves when its port answers.

    A connection of another program may have its port for a moment: then the proxy is started again.
    """
    async with await trio.open_file(log, "ab") as output, trio.open_nursery() as nursery:
        run = partial(trio.run_process, list(command), stdout=output.wrapped, stderr=output.wrapped, check=False)
        proxy: trio.Process = await nursery.start(run)
        try:
            with patience():
                while not await _listens(port):
                    if proxy.poll() is not None:
                        assert "in use" in await trio.Path(log).read_text(), f"it ended; {log} says why"
                        proxy = await nursery.start(run)
                    await trio.sleep(0.05)
            yield
        finally:
            proxy.terminate()


async def _listens(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream(HOST, port)).aclose()
    except OSError:
        return False
    return True


def nginx(stage: Stage, directory: Path, *, passes_through: bool = True) -> list[str | Path]:
    """Return the command of nginx with client.conf on the port `behind`, and with passthrough.conf on `https`."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("nginx is not here: apt install nginx-light")
    if passes_through and not STREAM_MODULE.exists():
        pytest.skip("this module of nginx is not here: apt install libnginx-mod-stream")
    client = {
        "unix:/run/mimids/client.sock": f"unix:{stage.sockets}/client.sock",
        "127.0.0.1:4443": f"{HOST}:{stage.behind}",
        "chat.a.example;": f"{NAME};",
        "/etc/nginx/chat.a.example": str(directory / NAME),
    }
    (directory / "client.conf").write_text(placed("nginx/client.conf", client))
    passthrough = {
        "127.0.0.1:8443": f"{HOST}:{stage.public}",
        "127.0.0.1:4443": f"{HOST}:{stage.behind}",
        "listen 443;": f"listen {HOST}:{stage.https};",
        "listen [::]:443;": "",
    }
    (directory / "passthrough.conf").write_text(placed("nginx/passthrough.conf", passthrough))
    load, include = f"load_module {STREAM_MODULE};\n", f"include {directory}/passthrough.conf;\n"
    # In production the proxy's user is in the group of the server; here its group is that of this test.
    user = "user nobody root;" if os.getuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {stage.sockets}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"{load * passes_through}{user}\ndaemon off;\npid {directory}/pid;\nworker_processes 1;\n"
        f"error_log {directory}/error.log info;\nevents {{}}\n"
        f"http {{\naccess_log {directory}/access.log;\n{temporary}include {directory}/client.conf;\n}}\n"
        f"{include * passes_through}"
    )
    return [program, "-p", directory, "-c", directory / "nginx.conf"]


def caddy(stage: Stage, directory: Path) -> list[str | Path]:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("Caddy is not here: apt install caddy")
    options = (
        f"{{\n\tdebug\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n"
        f"\tstorage file_system {directory}/storage\n"
    )
    places = {
        "\n{\n": f"\n{options}",
        "chat.a.example:8444 {": f"{NAME}:{stage.https} {{",
        "# tls /etc/caddy/chat.a.example.pem /etc/caddy/chat.a.example.key": f"tls {directory}/{NAME}.pem"
        f" {directory}/{NAME}.key",
        "unix//run/mimids/client.sock": f"unix/{stage.sockets}/client.sock",
    }
    (directory / "Caddyfile").write_text(placed("Caddyfile", places))
    return [program, "run", "--config", directory / "Caddyfile", "--adapter", "caddyfile"]
