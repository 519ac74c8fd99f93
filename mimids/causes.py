"""Errors of the operating system, in sentences for the operator: what happened, and what to do."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import socket
from pathlib import Path
from typing import Final

from mimids.values import Cause

FIRST_FREE_PORT: Final = 1024  # a lower one needs a privilege
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_PRIVILEGE: Final = (errno.EACCES, errno.EPERM)


class StartRefused(Exception):
    """A provider cannot start, because of something that its operator can change.

    Its message is the message of `error`.
    """

    def __init__(self, cause: Cause, error: Exception) -> None:
        super().__init__(str(error))
        self.cause = cause


def of_listener(name: str, address: str, error: Exception) -> Cause:
    """Say why the listener `name` (a key of `[listen]`) cannot listen at `address`."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    what = f"cannot listen on {address} ({name}): {reason}"
    port = address.rpartition(":")[2]
    if number in _NO_PRIVILEGE and port.isdigit() and int(port) < FIRST_FREE_PORT:
        return Cause(
            what,
            f"ports below {FIRST_FREE_PORT} need CAP_NET_BIND_SERVICE: start the server with it, as"
            f" examples/mimids.service does, or listen on a port such as 8443, and forward {port} to it",
        )
    if number == errno.EADDRNOTAVAIL:
        return Cause(what, f"no interface of this machine has that address; change {name} in [listen]")
    if isinstance(error, socket.gaierror):
        return Cause(what, f"write an IP address, or a name that this machine can resolve, as {name} in [listen]")
    if address.startswith("unix:") and isinstance(error, OSError) and number not in (None, errno.EADDRINUSE):
        path = address.removeprefix("unix:")
        return Cause(what, of_file(OSError(number, reason, path)).fix)
    return Cause(what, f"stop the process that listens there, or change {name} in [listen]")


def of_file(error: OSError) -> Cause:
    """Say why a file or directory cannot be used."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    what = f"{'' if path is None else f'{path}: '}{error.strerror or error}"
    if error.errno == errno.EROFS:
        return Cause(
            what,
            "mount the file system writable, or use a directory on another file system (for the database: data_dir)",
        )
    if error.errno in _NO_SPACE:
        return Cause(what, "free some space on this disk: `mimids check` says how much there is")
    if error.errno == errno.ENOENT and path is not None:
        return Cause(what, f"create {_first_missing(path)}, or name another path")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return Cause(what, "there is a file where a directory should be, or the reverse: move it, or name another path")
    if error.errno in _NO_PRIVILEGE and path is not None:
        return _of_permissions(what, path)
    return Cause(what, "run `mimids check`: it looks at the files and their permissions")


def _of_permissions(what: str, path: Path) -> Cause:
    refusing, owner = _refusing(path)
    named = shlex.quote(str(refusing))
    if owner == os.geteuid():
        return Cause(what, f"chmod u+rwX {named}")
    us = user_name(os.geteuid())
    return Cause(
        f"{what}; {refusing} belongs to {user_name(owner)}, and this process runs as {us}",
        f"run it as that user (sudo -u {sudo_user(owner)} ...), or give the files away: chown -R {us} {named}",
    )


def _refusing(path: Path) -> tuple[Path, int]:
    """Return the first file or directory on the way to `path` that refuses access, and its owner."""
    found = Path("/"), 0
    for each in (*reversed(path.absolute().parents), path):
        try:
            found = each, each.stat().st_uid
        except OSError:
            return found
        if not os.access(each, os.X_OK if each.is_dir() and each != path else os.R_OK | os.W_OK):
            return found
    return found


def _first_missing(path: Path) -> Path:
    """Return the outermost directory on the way to `path` that does not exist, else `path`."""
    return next((each for each in (*reversed(path.absolute().parents), path) if not os.path.lexists(each)), path)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def sudo_user(uid: int) -> str:
    """Return a user as an argument of `sudo -u` in a shell."""
    name = user_name(uid)
    return f"'#{uid}'" if name == str(uid) else shlex.quote(name)


def group_name(gid: int) -> str:
    """Return the name of a group, or the number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
