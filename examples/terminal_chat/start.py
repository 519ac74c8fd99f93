"""Start two providers on this machine, and open a chat of Alice and Bob in two panes of tmux.

    python examples/terminal_chat/start.py [--no-tmux]

Without tmux it prints the two commands, and serves until Ctrl-C. `make terminal-chat` runs it.
"""

import json
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from mimids.testing import federation

CHAT = Path(__file__).with_name("chat.py")


def person(provider, name):
    """Add a person with a device; write what their chat needs, and their contact card; return both paths."""
    account = provider.add_device(name)
    me = {"url": account.url, "token": account.token, "ca": str(account.ca_file)}
    mine = provider.directory / f"{name}.json"
    mine.write_text(json.dumps(me | {"user_id": account.user_id, "provider": provider.name}))
    card = provider.directory / f"{name}-card.json"
    card.write_text(json.dumps(provider.command("contact", user=name)))
    return mine, card


def main(tmux):
    with federation("red.example", "blue.example", links=False) as (red, blue):
        alice, alices_card = person(red, "alice")
        bob, bobs_card = person(blue, "bob")
        begin = shlex.join([sys.executable, str(CHAT), str(alice), str(bobs_card), "--begin"])
        other = shlex.join([sys.executable, str(CHAT), str(bob), str(alices_card)])
        if tmux:
            command = ["tmux", "-L", "mimids", "new-session", begin, ";", "split-window", "-h", other, ";"]
            subprocess.run([*command, "select-pane", "-L", ";", "set", "mouse", "on"], check=True)
        else:
            print(f"Run these in two terminals; Ctrl-C here ends both.\n\n{begin}\n\n{other}\n", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


if __name__ == "__main__":
    main(shutil.which("tmux") is not None and "--no-tmux" not in sys.argv)
