"""Pin what development installs, with hashes, for every supported Python at once.

    python requirements/lock.py python3.11 python3.12 python3.13   writes requirements/dev.txt and fuzz.txt
    python requirements/lock.py --floors                           prints requirements at their floors
    python requirements/lock.py --newest                           prints requirements as pyproject.toml has them

The wishes stand in pyproject.toml and nowhere else; this resolves them under each interpreter named (oldest
first) and merges the answers: a pin that differs carries a marker. No index, no address is written, so that
whoever installs chooses where from and the hashes decide what.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"]


def group(name: str) -> list[str]:
    """List a dependency group with those it includes (the pip that Python 3.11 brings knows no groups)."""
    found: list[str] = []
    for entry in PROJECT["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(entry["include-group"])
    return found


def floors() -> list[str]:
    """List the wishes with each runtime dependency at its floor: `name>=1.2` becomes `name==1.2.*`."""
    return [re.sub(r">=([\w.]+)", r"==\1.*", wish) for wish in RUNTIME] + group("dev")


def resolve(python: str, work: Path, wanted: list[str]) -> tuple[str, dict[str, str]]:
    """Resolve under one interpreter: its version as in `3.11`, and for each `name==version` its lines of hashes."""
    subprocess.run([python, "-m", "venv", "--clear", work], check=True)
    subprocess.run([work / "bin/pip", "install", "--quiet", *group("lock")], check=True)
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", say], check=True, capture_output=True, text=True).stdout.strip()
    wishes, pins = work / "wishes.in", work / "pins.txt"
    wishes.write_text("\n".join(wanted) + "\n")
    quiet = ["--quiet", "--no-header", "--no-annotate", "--no-emit-options", "--no-emit-index-url"]
    quiet += ["--no-emit-find-links", "--no-emit-trusted-host", "--strip-extras", "--allow-unsafe"]
    subprocess.run([work / "bin/pip-compile", "--generate-hashes", *quiet, "-o", pins, wishes], check=True)
    blocks = re.findall(r"^(\S+==[^\s\\]+(?: ; [^\\\n]+)?)((?: \\\n +--hash=\S+)+)", pins.read_text(), re.MULTILINE)
    return version, dict(blocks)


def marker(versions: list[str], every: list[str]) -> str:
    """Say for which interpreters a pin holds; the newest named stands for those to come."""
    if versions == every:
        return ""
    first, last = f'python_version >= "{versions[0]}"', f'python_version <= "{versions[-1]}"'
    said = [first] if versions[0] != every[0] else []
    said += [last] if versions[-1] != every[-1] else []
    return " ; " + " and ".join(said)


def lock(pythons: list[str], wanted: list[str]) -> str:
    """Return the merged pins of these wishes, sorted by name."""
    with tempfile.TemporaryDirectory() as work:
        answers = [resolve(python, Path(work) / python.replace("/", "_"), wanted) for python in pythons]
    every = [version for version, _ in answers]
    hashes: dict[str, str] = {}
    holds: dict[str, list[str]] = {}
    for version, pins in answers:
        hashes |= pins
        for pin in pins:
            holds.setdefault(pin, []).append(version)
    return "".join(f"{_marked(pin, marker(holds[pin], every))}{hashes[pin]}\n" for pin in sorted(hashes))


def _marked(pin: str, versions: str) -> str:
    """Add the marker of the versions to a pin, which may have one of its own: `pip-compile` keeps that of a wish."""
    name, own, wish = pin.partition(" ; ")
    return f"{name} ; ({wish}) and {versions.removeprefix(' ; ')}" if own and versions else pin + versions


if __name__ == "__main__":
    if sys.argv[1:] == ["--floors"]:
        print("\n".join(floors()))
    elif sys.argv[1:] == ["--newest"]:
        print("\n".join(RUNTIME + group("dev")))
    else:
        for name, wanted in (("dev", RUNTIME + group("dev")), ("fuzz", group("fuzz"))):
            (HERE / f"{name}.txt").write_text(lock(sys.argv[1:] or [sys.executable], wanted))
