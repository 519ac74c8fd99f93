"""Each act of the console in a browser, with arguments for which it succeeds, in an order in which it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from mimids.ds.commands import COMMANDS, Command
from mimids.testing import Federation, PretendGroup, Provider
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId
from mimids.wire.messages import WelcomeData
from tests.support.barriers import wait
from tests.support.cli_runs import run
from tests.support.mls_makers import replace
from tests.support.welcomes import REF, welcome_to

Fields = Mapping[str, str | bool]
GROUP = PretendGroup.at(ProviderId("a.example"))
MANUAL = {"a.example": {"arrangement": {"accept": "manual"}}}
BANNED = "mimi://a.example/u/mallory"  # by b.example
MESSAGE_BYTES = 300_000  # what the reload sets


def stage(federation: Federation) -> None:
    """Give a.example what all acts need; its configuration has MANUAL.

    It was restored from a backup that had a device since removed. It then asked b.example what was lost, and was
    offered terms. It has a group with two partitions, a Welcome that b.example does not get, and a report, all sent by
    alice's phone.
    """
    a, b = federation["a.example"], federation["b.example"]
    b.command("ban add", subject=BANNED, reason="spam")
    _restore(a, "zoe")
    wait(lambda: a.command("provider show", provider=b.name)["their_terms"])
    federation.link(a, b).cut()
    phone = a.add_device("alice")
    phone.ask(lambda device: device.create_group(GROUP.creation()))
    commit, _ = GROUP.commit()
    assert commit.commit_data is not None
    data = replace(commit.commit_data, welcome_data=WelcomeData(welcome_to(REF), (ProviderId(b.name),)))
    phone.ask(lambda device: device.send(GROUP.hub, replace(commit, commit_data=data)))
    phone.ask(lambda device: device.report(GROUP.hub, "mimi://b.example/u/bob", "spam", note="pills"))


def _restore(a: Provider, user: str) -> None:
    """Restore a provider from a backup in which a user has a device, as if the machine had been lost after it."""
    a.add_device(user)
    backup = a.directory / "backup.sqlite3"
    _command(a, "backup", backup)
    a.command("device remove", user=user, name="phone")
    a.terminate()
    shutil.rmtree(a.data_dir)
    _command(a, "restore", backup)
    a.start()


def _command(a: Provider, command: str, file: Path) -> None:
    ran = run(command, file, "--config", a.config_file, cwd=a.directory)
    assert ran.code == 0, ran.err


def _change_limit(a: Provider) -> Fields:
    """Change the configuration file, so that a reload finds something."""
    written = a.config_file.read_text(encoding="utf-8")
    a.config_file.write_text(f"{written}\n[limits]\nmessage_bytes = {MESSAGE_BYTES}\n", encoding="utf-8")
    return {}


def _first(a: Provider, command: str, member: str, **arguments: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = a.command(command, **arguments)[member][0]
    return found


# In the order in which they are done; what is not here is done last, with the arguments of its example.
FIELDS: Mapping[str, Callable[[Provider], Fields]] = {
    "restored": lambda a: {"revoke": "devices"},
    "provider accept": lambda a: {"provider": "b.example"},
    "welcome drop": lambda a: {"id": str(_first(a, "welcome list", "welcomes")["id"])},
    "user add": lambda a: {"name": "zed", "users": "yan\nxia"},
    "device add": lambda a: {"user": "zed", "name": "laptop"},
    "token issue": lambda a: {"user": "zed", "scheme": "unique", "label": "bob", "expires_at": "90d"},
    "contact": lambda a: {"user": "zed"},
    "token revoke": lambda a: {"user": "zed", "id": str(_first(a, "token list", "tokens", user="zed")["id"])},
    "device rotate-token": lambda a: {"user": "zed", "name": "laptop"},
    "device remove": lambda a: {"user": "zed", "name": "laptop"},
    "user suspend": lambda a: {"user": "zed"},
    "user resume": lambda a: {"user": "zed"},
    "user remove": lambda a: {"user": "zed"},
    "forget": lambda a: {"user": "yan"},
    "ban add": lambda a: {"subject": "mimi://b.example/u/bob", "reason": "spam", "expires_at": "30d"},
    "ban remove": lambda a: {"subject": "mimi://b.example/u/bob"},
    "limit mute": lambda a: {"user": "mimi://b.example/u/bob"},
    "limit unmute": lambda a: {"user": "mimi://b.example/u/bob"},
    "report pass-on": lambda a: {"report": str(_first(a, "report list", "reports")["id"]), "provider": "b.example"},
    "report close": lambda a: {"report": str(_first(a, "report list", "reports")["id"]), "outcome": "passed on"},
    "group terminate": lambda a: {
        "group": base64url(GROUP.group_id),
        "partition": GROUP.key.mask(32).hex(),
        "why": "test",
    },
    "group replace": lambda a: {
        "group": base64url(GROUP.group_id),
        "successor_group": "mimi://b.example/g/2",
        "successor_hub": "b.example",
    },
    "group release": lambda a: {"group": base64url(GROUP.group_id)},
    "clock confirm": lambda a: {},
    "ohttp rotate": lambda a: {},
    "console": lambda a: {},
    "provider allow": lambda a: {"provider": "d.example"},
    "provider remove": lambda a: {"provider": "d.example"},
    "group delete": lambda a: {"group": base64url(GROUP.group_id)},
    "reload": _change_limit,
}


def acts(a: Provider) -> Iterator[tuple[Command, Fields]]:
    """Yield every act with its fields, each when it is its turn."""
    by_name = {each.name: each for each in COMMANDS if each.writes}
    for name, fields in FIELDS.items():
        if name in by_name:
            yield by_name.pop(name), fields(a)
    for command in by_name.values():
        yield command, {name: str(value) for name, value in command.sample().items()}


@contextmanager
def other_origin(page: str) -> Iterator[str]:
    """Serve a page on another port of 127.0.0.1, as another user of the machine could; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
