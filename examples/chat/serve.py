"""Start three providers and a web server on loopback, and print a link for each of three people.

    make chat        or        python -m examples.chat.serve

Everything is plain HTTP on 127.0.0.1, which browsers treat as safe, so there is no certificate to accept. Ctrl-C ends
and deletes the providers.
"""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mimids.testing import Federation, Session, federation
from mimids.wire.base64url import base64url

HERE = Path(__file__).parent
FILES = {"/": "index.html", "/style.css": "style.css", "/dist/chat.js": "dist/chat.js"}
PEOPLE = {"alice": "red.example", "bob": "green.example", "carol": "blue.example"}
# No scripts and styles but the page's own, and no connections but to providers on this machine.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
    " connect-src http://127.0.0.1:* ws://127.0.0.1:*; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of the page, and nothing else."""

    def do_GET(self) -> None:
        self.path = self.path.partition("?")[0]
        if self.path not in FILES:
            self.send_error(404)
            return
        self.path = "/" + FILES[self.path]
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


def build() -> None:
    """Make dist/chat.js; install the packages first, if they are not there."""
    if shutil.which("npm") is None:
        sys.exit("The chat is built with npm, which is not installed: apt install npm, or see https://nodejs.org")
    if not (HERE / "node_modules" / "esbuild").is_dir():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, check=True)
    subprocess.run(["node", "build.mjs"], cwd=HERE, check=True)


@contextmanager
def chat(session: Session | None = None) -> Iterator[tuple[Federation, dict[str, str]]]:
    """Run the providers and the web server for a block; give the federation, and the link of each person by name."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=HERE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        config = {"listen": {"client_tls": False, "web_origins": [origin]}, "limits": {"device_sends_per_second": 0}}
        try:
            with federation(*PEOPLE.values(), config=config, links=False, session=session) as providers:
                yield providers, links(origin, providers)
        finally:
            server.shutdown()


def links(origin: str, providers: Federation) -> dict[str, str]:
    """Add the people, and return each person's link: after the # is what only the page reads, their token too."""
    accounts = {name: providers[home].add_device(name) for name, home in PEOPLE.items()}
    cards = {name: providers[home].command("contact", user=name) for name, home in PEOPLE.items()}
    made = {}
    for name, account in accounts.items():
        others = [card for other, card in cards.items() if other != name]
        link = {"name": f"{account.user_id} {account.token[-8:]}", "url": account.url, "token": account.token}
        made[name] = f"{origin}/#{base64url(json.dumps(link | {'contacts': others}).encode())}"
    return made


def main() -> None:
    build()
    with chat() as (_, people):
        print("Open each link in a window of its own: three people, each at another provider.\n")
        for name, link in people.items():
            print(f"{name} at {PEOPLE[name]}\n{link}\n", flush=True)
        print("Ctrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
