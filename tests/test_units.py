"""The systemd unit and the container file of `examples/`, as far as the machine can try them without being theirs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "examples/mimids.service"
BACKUP, TIMER = ROOT / "examples/mimids-backup.service", ROOT / "examples/mimids-backup.timer"
EXPOSURE = 20  # of 100, by systemd's own reckoning
START_SECONDS = 60

# What the unit takes away, taken away without systemd: the file system but for the data, capabilities, new privileges,
# memory that is both writable and executable. systemd's own way there is not to be had without being its child.
SANDBOX = """\
import ctypes, os, sys
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0)  # from Linux 6.3 on; else it does nothing
os.umask(0o077)
os.execv(sys.argv[1], sys.argv[1:])
"""


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """Return what stands in a unit, by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: apt install {package}")
    return found


@pytest.mark.parametrize("example", [UNIT, BACKUP, TIMER], ids=lambda path: path.name)
def test_systemd_understands_every_line_of_a_unit(example: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    for each in (UNIT, BACKUP, TIMER):
        text = each.read_text().replace("/opt/mimids/bin/mimids", shutil.which("true") or "/bin/true")
        (tmp_path / each.name).write_text(text)
    unit = tmp_path / example.name
    ran = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    said = [line for line in ran.stderr.splitlines() if "mimids" in line]
    assert said == [], ran.stderr
    setting = "OnCalendar=*" if example is TIMER else "ProtectSystem=strict"
    unit.write_text(unit.read_text().replace(setting, f"{setting}ly"))
    ran = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert setting.partition("=")[2] + "ly" in ran.stderr  # it looks


def test_the_units_belong_together() -> None:
    server, backup = settings(), settings(BACKUP)
    assert server["ExecReload"] == ["/opt/mimids/bin/mimids reload --config /etc/mimids/mimids.toml"]
    assert backup["User"] == server["User"], "only the server's user can read the database"
    assert f"/var/lib/{server['StateDirectory'][0]}" in backup["ReadWritePaths"][0].split()
    (command,) = backup["ExecStart"]
    assert re.fullmatch(r"/opt/mimids/bin/mimids backup (\S+) --keep \d+ --config /etc/mimids/mimids.toml", command)
    assert command.split()[2] in backup["ReadWritePaths"][0].split()


def test_systemd_thinks_the_unit_is_little_exposed() -> None:
    command: list[str | Path] = [
        tool("systemd-analyze", "systemd"),
        "security",
        "--offline=true",
        f"--threshold={EXPOSURE}",
        UNIT,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in ran.stderr or "Unknown option" in ran.stderr:
        pytest.skip("this systemd-analyze looks at running units only")
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr


def test_the_unit_and_the_configuration_beside_it_name_the_same_places() -> None:
    unit, config = settings(), (ROOT / "examples/mimids.toml").read_text()
    (command,) = unit["ExecStart"]
    assert command.endswith(" serve --config /etc/mimids/mimids.toml")
    assert f'data_dir = "/var/lib/{unit["StateDirectory"][0]}"' in config
    sockets = set(re.findall(r'"(?:unix:)?/run/([^/]+)/', config))
    assert sockets == set(unit["RuntimeDirectory"])


def test_a_stop_waits_longer_than_the_server_drains() -> None:
    reference = (ROOT / "config.example.toml").read_text()
    (drain,) = re.findall(r"^drain_seconds = (\d+)", reference, re.MULTILINE)
    assert int(settings()["TimeoutStopSec"][0]) > int(drain) + 5


@pytest.fixture
def provider(tmp_path: Path) -> Path:
    anywhere = [part for each in ("public", "client", "operator") for part in (f"--{each}", "127.0.0.1:0")]
    init: list[str | Path] = [
        sys.executable,
        "-m",
        "mimids",
        "init",
        tmp_path / "a",
        "--provider",
        "a.example",
        *anywhere,
    ]
    subprocess.run(init, check=True, capture_output=True, cwd=ROOT)
    return tmp_path / "a/mimids.toml"


def serve_until_it_listens(command: Sequence[str | Path]) -> tuple[int, str]:
    """Serve, stop as systemd does, and return exit code and what was said."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = list(_until_it_serves(server.stdout))
            server.send_signal(signal.SIGTERM)
            rest = server.stdout.read()
            return server.wait(START_SECONDS), "".join(said) + rest
        finally:
            server.send_signal(signal.SIGKILL)


def _until_it_serves(output: Iterator[str]) -> Iterator[str]:
    for line in output:
        yield line
        if "operator" in line:
            return


def test_it_serves_with_a_read_only_system_and_neither_capabilities_nor_executable_memory(provider: Path) -> None:
    unshare, setpriv = tool("unshare", "util-linux"), tool("setpriv", "util-linux")
    probe = [unshare, "--mount", "--map-root-user", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    data = provider.parent / "data"
    script = (
        "set -e; mount --make-rprivate /; "
        f"mount --bind {data} {data}; mount -o remount,bind,ro /; "
        f"if touch {provider.parent}/x 2>/dev/null; then exit 9; fi; touch {data}/x; "
        'exec "$@"'
    )
    dropped = [setpriv, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    python: list[str | Path] = [
        sys.executable,
        "-c",
        SANDBOX,
        sys.executable,
        "-m",
        "mimids",
        "serve",
        "--config",
        provider,
    ]
    shell = [unshare, "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    code, said = serve_until_it_listens([*shell, *dropped, *python])
    assert code == 0, said


def test_it_makes_no_system_call_that_the_unit_forbids(provider: Path, tmp_path: Path) -> None:
    strace, analyze = tool("strace", "strace"), tool("systemd-analyze", "systemd")
    trace = tmp_path / "trace"
    serve: list[str | Path] = [sys.executable, "-m", "mimids", "serve", "--config", provider]
    code, said = serve_until_it_listens([strace, "-D", "-f", "-qq", "-o", trace, "-e", "signal=none", *serve])
    assert code == 0, said
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert {"fdatasync", "listen"} <= made  # it was followed
    allowed: set[str] = set()
    for line in settings()["SystemCallFilter"]:
        named = set().union(*(expanded(analyze, name) for name in line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    if os.getuid() == 0:
        made.discard("fchown")  # SQLite gives its log the owner of the database, where it may
    assert "mount" not in allowed
    assert made - allowed == set()


def expanded(analyze: str, name: str) -> set[str]:
    """Return the system calls of a group, with those of the groups in it."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run([analyze, "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    members = [line.strip() for line in listed.splitlines()[1:] if line.strip() and "#" not in line]
    return set().union(*(expanded(analyze, member) for member in members))


def test_the_container_file_copies_what_the_build_needs_and_no_more() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.+) /src", (ROOT / "examples/Containerfile").read_text(), re.MULTILINE))
    files = {name for line in copied for name in line.split()}
    assert files == {"pyproject.toml", "README.md", "LICENSE", "mimids", "migrations"}
    assert all((ROOT / name).exists() for name in files)


def test_the_container_serves(tmp_path: Path) -> None:
    engine = shutil.which("podman") or shutil.which("docker")
    if engine is None or subprocess.run([engine, "info"], capture_output=True, check=False).returncode:
        pytest.skip("neither podman nor docker works here")
    build: list[str | Path] = [engine, "build", "-q", "-t", "mimids-test", "-f", ROOT / "examples/Containerfile", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    said = subprocess.run(
        [engine, "run", "--rm", "mimids-test", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("mimids, version")
