"""The wheel is complete: it works when installed with only the declared dependencies."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import Distribution, PathDistribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mimids
from tests.support.imports import imports

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = "\n".join((ROOT / "requirements" / name).read_text().strip() for name in ("dev.txt", "fuzz.txt"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without isolation, so without network access."""
    where = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", where], cwd=ROOT, check=True)
    (built,) = where.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a separate environment, which has the dependencies but not this source tree."""
    venv = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    pip = f"{sys.executable} -m pip --python {python} install --quiet --no-deps --no-index".split()
    subprocess.run([*pip, wheel], check=True)
    (site,) = venv.glob("lib/python3.*/site-packages")
    # Paths that a .pth file names are searched last, and .pth files found there (an editable install's) are not read.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return venv


def run(bare: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, *rest = arguments
    return subprocess.run(
        [bare / "bin" / command, *rest], cwd=cwd, env=plain_environment(), capture_output=True, text=True, check=False
    )


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_the_wheel_holds_the_package_its_types_and_its_migrations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "mimids").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    migrations = {f"mimids/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").glob("*.sql")}
    assert migrations
    assert "mimids/py.typed" in sources
    assert names >= sources | migrations
    assert not [name for name in names if not re.match(r"mimids/|mimids-[\d.]+\.dist-info/", name)]


def test_the_installed_package_is_the_one_that_runs(bare: Path, tmp_path: Path) -> None:
    ran = run(bare, "python", "-c", "import mimids, trio; print(mimids.__file__)", cwd=tmp_path)
    assert Path(ran.stdout.strip()).is_relative_to(bare), ran.stderr


def test_every_module_can_be_imported_from_the_wheel(bare: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, mimids\n"
        "for module in pkgutil.walk_packages(mimids.__path__, 'mimids.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
    )
    ran = run(bare, "python", "-c", program, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_the_command_explains_itself(bare: Path, tmp_path: Path) -> None:
    ran = run(bare, "mimids", "--help", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "serve" in ran.stdout
    assert run(bare, "mimids", "--version", cwd=tmp_path).stdout.split()[-1] == mimids.__version__


def test_a_provider_is_made_migrated_and_served_from_the_wheel_alone(bare: Path, tmp_path: Path) -> None:
    anywhere = [part for listener in ("public", "client", "operator") for part in (f"--{listener}", "127.0.0.1:0")]
    commands = [["init", "a", "--provider", "a.example", *anywhere], ["migrate", "--config", "a/mimids.toml"]]
    if "\n  check " in run(bare, "mimids", "--help", cwd=tmp_path).stdout:
        commands.append(["check", "--config", "a/mimids.toml"])
    for command in commands:
        ran = run(bare, "mimids", *command, cwd=tmp_path)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    serving = [str(bare / "bin/mimids"), "serve", "--config", "a/mimids.toml"]
    with subprocess.Popen(serving, cwd=tmp_path, env=plain_environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = next(line for line in server.stdout if "public" in line)
            host, _, port = said.split()[-1].rpartition(":")
            tls = ssl.create_default_context(cafile=tmp_path / "a/ca.pem")
            with (
                socket.create_connection((host, int(port)), timeout=10) as tcp,
                tls.wrap_socket(tcp, server_hostname="a.example") as connection,
            ):
                connection.sendall(b"GET /.well-known/mimi-ds HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200")
            assert b'"provider":"a.example"' in answer
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
        finally:
            server.kill()


def test_the_metadata_names_licence_and_dependencies(bare: Path) -> None:
    (info,) = bare.glob("lib/python3.*/site-packages/mimids-*.dist-info")
    installed: Distribution = PathDistribution(info)
    assert installed.version == mimids.__version__
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    extras = {
        Requirement(f'{line}; extra == "{name}"')
        for name, lines in PROJECT["project"]["optional-dependencies"].items()
        for line in lines
    }
    assert {Requirement(line) for line in installed.requires or ()} == extras | {
        Requirement(line) for line in PROJECT["project"]["dependencies"]
    }


def wishes() -> list[Requirement]:
    groups = PROJECT["dependency-groups"].values()
    named = [line for group in groups if group is not PROJECT["dependency-groups"]["lock"] for line in group]
    return [Requirement(line) for line in PROJECT["project"]["dependencies"] + named if isinstance(line, str)]


@pytest.mark.parametrize("wish", wishes(), ids=str)
def test_every_dependency_is_pinned_within_its_bounds(wish: Requirement) -> None:
    pinned = re.findall(r"^([\w.-]+)==([^\s\\]+)", PINS, re.MULTILINE)
    versions = [version for name, version in pinned if canonicalize_name(name) == canonicalize_name(wish.name)]
    assert versions, "`make lock` pins it"
    assert all(wish.specifier.contains(version) for version in versions)


def test_every_pin_has_hashes_and_no_address() -> None:
    blocks = re.split(r"\n(?=\w)", PINS.strip())
    assert all(re.fullmatch(r"\S+==[^\n]+( \\\n    --hash=sha256:[0-9a-f]{64})+", block) for block in blocks)
    assert "://" not in PINS


@pytest.mark.parametrize("directory", ["clients/typescript", "examples/chat", "tests/support/node"])
def test_every_pin_for_node_has_a_hash_and_no_address(directory: str) -> None:
    text = (ROOT / directory / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text
    assert all("integrity" in pin for place, pin in json.loads(text)["packages"].items() if "node_modules/" in place)


def test_exactly_the_imported_packages_are_declared() -> None:
    """A dependency of a dependency may disappear with it, so it has to be declared."""
    provided = packages_distributions()
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    used: set[str] = set()
    for path in (ROOT / "mimids").rglob("*.py"):
        # Users of the fixtures have pytest; psycopg comes with the extra `postgresql`.
        free = {"testing": {"pytest"}, "postgresql": {"psycopg"}}.get(path.parent.name, set())
        for name in set(imports(ast.parse(path.read_text()))) - sys.stdlib_module_names - free:
            if not name.startswith("mimids"):
                givers = declared & {canonicalize_name(giver) for giver in provided[name]}
                assert givers, (path, name)
                used |= givers
    assert used == declared


def test_dependencies_say_why_they_are_here() -> None:
    source = (ROOT / "pyproject.toml").read_text()
    for line in PROJECT["project"]["dependencies"]:
        assert re.search(rf'"{re.escape(line)}",? +# \w.+', source), line
        assert ">=" in line
