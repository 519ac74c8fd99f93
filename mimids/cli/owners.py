"""Checks who owns the data directory, so that a command creates no files that the server cannot read.

The server runs as the user to whom the data directory belongs. The server could not open a file that another user, such
as root, makes there. So a command that writes must run as the directory's owner, unless `MIMIDS_ANY_USER` is set.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from mimids.causes import group_name, sudo_user, user_name
from mimids.cli.places import program
from mimids.cli.refusals import CommandRefused
from mimids.config import Config

ANY_USER: Final = "MIMIDS_ANY_USER"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def require_owner(config: Config) -> None:
    """Raise `CommandRefused` if this process must not write to the data directory, or cannot."""
    owner = config.data_dir.stat().st_uid
    if owner != os.geteuid() and not os.environ.get(ANY_USER):
        raise CommandRefused(
            f"{config.data_dir} belongs to {user_name(owner)}, and this command runs as {user_name(os.geteuid())}:"
            " the server could not use files that this command makes",
            f"run it as that user: {_as(owner)}\nto run it as this user anyway, set {ANY_USER}=1",
        )
    try:
        try_to_write(config.data_dir)
        for file in config.data_dir.iterdir():
            if file.is_file() and not os.access(file, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    except OSError as error:
        if error.errno not in FULL:  # reads still work, and the store reports a full disk
            raise


def try_to_write(directory: Path) -> None:
    """Write a temporary file and delete it again; raise `OSError` if the directory takes no files."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"mimids\n")
        file.flush()
        os.fsync(file.fileno())


def make_data_dir(config: Config) -> None:
    """Create the data directory if there is none, readable by this user only; then require that it is ours.

    Raises `CommandRefused` if the server runs as another user. The owner and group of the private key show which user
    that is.
    """
    directory = config.data_dir
    if not directory.exists():
        server = _server_user(config.tls.private_key)
        if server is not None and not os.environ.get(ANY_USER):
            raise CommandRefused(
                f"{directory} does not exist, and the server could not read it if {user_name(os.geteuid())} made it",
                f"create it for {server[0]}: install -d -m 0700 -o {server[1]} {shlex.quote(str(directory))}\n"
                f"to make it for this user anyway, set {ANY_USER}=1",
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_owner(config)


def _server_user(private_key: Path) -> tuple[str, str] | None:
    """Return the server's user, in words and as an argument of `install`; None if the server may run as this user."""
    try:
        status = private_key.stat()
    except OSError:
        return None  # reported when the key is needed
    if status.st_uid != os.geteuid():
        return (f"the user {user_name(status.st_uid)}, who owns the private key", user_name(status.st_uid))
    if os.geteuid() == 0 and status.st_gid != 0 and status.st_mode & stat.S_IRGRP:
        return (f"the server's user, who is in the group {group_name(status.st_gid)} of the private key", "USER")
    return None


def _as(uid: int) -> str:
    """Return the command line that runs this command as another user."""
    variables = [f"MIMIDS_CONFIG={os.environ['MIMIDS_CONFIG']}"] if "MIMIDS_CONFIG" in os.environ else []
    return " ".join(["sudo", "-u", sudo_user(uid), *map(shlex.quote, variables), program(), shlex.join(sys.argv[1:])])
