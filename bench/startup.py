"""The time from a provider's start to its first answer, and its memory while idle (bench: programs-and-bars).

python -m bench.startup
"""

from __future__ import annotations

import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx

PROVIDER: Final = "a.example"
ROUNDS: Final = 5


def measure(directory: Path) -> tuple[float, float, float]:
    """Return seconds until the first answer, CPU seconds until then, and resident megabytes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    flags = ["--provider", PROVIDER, "--public", address, "--client", "127.0.0.1:0", "--operator", "127.0.0.1:0"]
    subprocess.run([sys.executable, "-m", "mimids", "init", str(directory), *flags], check=True, capture_output=True)
    url, context = f"https://{address}/.well-known/mimi-ds", ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    began = time.perf_counter()
    command = [sys.executable, "-m", "mimids", "serve", "--config", str(next(directory.glob("*.toml")))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    httpx.get(url, headers={"host": PROVIDER}, verify=context).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.01)
            took = time.perf_counter() - began
            status = Path(f"/proc/{server.pid}/status").read_text()
            fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
            return took, (int(fields[11]) + int(fields[12])) / 100, int(status.partition("VmRSS:")[2].split()[0]) / 1024
        finally:
            server.terminate()


def main() -> None:
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as directory:
            found.append(measure(Path(directory) / "a"))
    took, cpu, megabytes = map(statistics.median, zip(*found, strict=True))
    print(f"start-up {took:.2f} s (aim 1), {cpu:.2f} s of CPU; idle {megabytes:.0f} MB resident (aim 80)")


if __name__ == "__main__":
    main()
