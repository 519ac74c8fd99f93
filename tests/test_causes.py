"""What the operating system refuses, in words: what happened, and what to do."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from mimids.causes import of_file, of_listener, sudo_user, user_name
from tests.support.other_user import NOBODY, needs_root, open_directory, run_as


def error(number: int, path: Path | str | None = None) -> OSError:
    return OSError(number, os.strerror(number), None if path is None else str(path))


@pytest.mark.parametrize(
    ("name", "address", "failure", "what", "fix"),
    [
        ("public", "127.0.0.1:8443", error(errno.EADDRINUSE), "Address already in use", "change public in [listen]"),
        ("public", "0.0.0.0:443", error(errno.EACCES), "Permission denied", "CAP_NET_BIND_SERVICE"),
        ("client", "[::]:1023", error(errno.EPERM), "Operation not permitted", "forward 1023 to it"),
        ("client", "10.9.8.7:8444", error(errno.EADDRNOTAVAIL), "Cannot assign", "no interface"),
        ("operator", "nowhere:1", socket.gaierror(-2, "Name or service not known"), "not known", "an IP address"),
        ("client", "unix:/gone/c.sock", error(errno.ENOENT, "/gone/c.sock"), "No such file", "create /gone"),
        ("client", "unix:/c.sock", FileExistsError("unix:/c.sock: another process listens there"), "another", "stop"),
        ("operator", "0.0.0.0:1", ValueError("only loopback addresses"), "only loopback", "change operator"),
    ],
)
def test_a_listener_that_cannot_listen(name: str, address: str, failure: Exception, what: str, fix: str) -> None:
    cause = of_listener(name, address, failure)
    assert cause.what.startswith(f"cannot listen on {address} ({name}): ")
    assert what in cause.what
    assert fix in cause.fix


def test_sudo_gets_the_number_of_a_user_without_a_name() -> None:
    assert sudo_user(0) == "root"
    assert user_name(3_999_999) == "3999999"
    assert sudo_user(3_999_999) == "'#3999999'"


@pytest.mark.parametrize(
    ("failure", "what", "fix"),
    [
        (error(errno.EROFS, "/data/lock"), "/data/lock: Read-only file system", "mount the file system writable"),
        (error(errno.ENOSPC, "/data"), "/data: No space left on device", "free some space"),
        (error(errno.ENOENT, "/no/such/place"), "No such file", "create /no,"),
        (error(errno.ENOTDIR, "/etc/passwd/x"), "Not a directory", "name another path"),
        (error(errno.EIO), "Input/output error", "mimids check"),
        (OSError("odd"), "odd", "mimids check"),
    ],
)
def test_a_file_that_cannot_be_used(failure: OSError, what: str, fix: str) -> None:
    cause = of_file(failure)
    assert what in cause.what
    assert fix in cause.fix


OF_FILE = """
from mimids.causes import of_file
try:
    os.open(sys.argv[1], os.O_RDWR)
except OSError as error:
    cause = of_file(error)
    print(cause.what, cause.fix, sep="\\n")
"""


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_file_of_another_user_is_named_with_its_owner(mode: int) -> None:
    with open_directory() as directory:
        above = directory / "above"
        above.mkdir()
        file = above / "file"
        file.touch(mode=0o600)
        above.chmod(mode)
        refusing = above if mode == 0o700 else file
        what, fix = run_as(NOBODY, file, cwd=directory, program=OF_FILE).out.splitlines()
        assert f"{refusing} belongs to root, and this process runs as {user_name(NOBODY)}" in what
        assert fix.startswith("run it as that user (sudo -u root ...)")
