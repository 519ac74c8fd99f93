"""Checks of the files: whether this user can write the data, who owns the files, and who else can read them."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from mimids import causes
from mimids.causes import sudo_user, user_name
from mimids.cli.check.finding import Finding, ok, warning, wrong
from mimids.cli.owners import FULL, try_to_write
from mimids.config import Config
from mimids.store import acknowledged
from mimids.store.engine import lock
from mimids.store.engine.sqlite import OPEN_TO_OTHERS, files_of

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0


def unusable(config: Config) -> Finding | None:
    """Return a fault if this user cannot read and write the data directory; else return None."""
    directory = config.data_dir
    try:
        os.listdir(directory)
        try_to_write(directory)
    except FileNotFoundError:
        return wrong("data", f"the directory {directory} does not exist", "`mimids migrate` creates it")
    except OSError as error:
        if error.errno in FULL:
            return None  # the check of the disk says so
        error.filename = error.filename if isinstance(error.filename, str) else str(directory)
        cause = causes.of_file(error)
        return wrong("data", f"cannot write to {directory}: {cause.what}", cause.fix)
    return None


def data(config: Config) -> Iterator[Finding]:
    """Check that the data directory belongs to this user, and that nobody else can write to it."""
    directory, us = config.data_dir, os.geteuid()
    status = directory.stat()
    owner = status.st_uid
    if owner != us:
        yield warning(
            "data",
            f"{directory} belongs to {user_name(owner)}, and this check runs as {user_name(us)}: it cannot tell which"
            " files the server has no right to use",
            f"run it as that user: sudo -u {sudo_user(owner)} mimids check ...",
        )
    if status.st_mode & WRITABLE_BY_OTHERS:
        what = f"other users of this machine can write to {directory}, so they can replace the database"
        yield wrong("data", what, f"chmod go-w {shlex.quote(str(directory))}")
    elif owner == us:
        yield ok("data", f"{user_name(us)} can write to {directory}")


def files(config: Config) -> Iterator[Finding]:
    """Check that the server's user can use each file, and that no other user of this machine can read the secret files.

    The server's user is the one to whom the data directory belongs.
    """
    server = config.data_dir.stat().st_uid
    ours = [file for file in _of_database(config) if file.exists()]
    strange = [file for file in ours if file.stat().st_uid != server]
    if strange:
        owners = ", ".join(sorted({user_name(file.stat().st_uid) for file in strange}))
        names = ", ".join(map(str, strange))
        what = f"{names} belongs to {owners}, but the server runs as {user_name(server)}, who owns {config.data_dir}"
        yield wrong("files", what, f"chown {user_name(server)} {shlex.join(map(str, strange))}")
    yield from _unreadable(config, server)
    if config.ohttp.key_file is not None and config.ohttp.key_file.exists():
        ours.append(config.ohttp.key_file)
    shared = [file for file in ours if file.stat().st_mode & OPEN_TO_OTHERS]
    if shared:
        what = f"other users of this machine can read or write {', '.join(map(str, shared))}"
        yield warning("files", what, f"chmod 600 {shlex.join(map(str, shared))}")
    elif not strange:
        yield ok("files", "only their owner can read the files of the database")


def _of_database(config: Config) -> list[Path]:
    database = config.database
    return [*files_of(database), acknowledged.file_of(database), config.data_dir / lock.LOCK_FILE]


def _unreadable(config: Config, server: int) -> Iterator[Finding]:
    """Find the files of the configuration that the server's user cannot read; only root can tell."""
    if os.geteuid() != ROOT or server == ROOT:
        return
    tls = config.tls
    named = [tls.certificate, tls.private_key, *tls.presented, tls.trust, config.ohttp.key_file]
    for file in dict.fromkeys(file for file in named if file is not None and file.exists()):
        if not _readable(file, server):
            user = user_name(server)
            fix = f"chown {user} {shlex.quote(str(file))}"
            yield wrong("files", f"the server runs as {user}, who cannot read {file}", fix)


def _readable(file: Path, uid: int) -> bool:
    """Tell whether the mode of a file lets a user read the file; this does not check the directories above it."""
    status = file.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IRUSR)
    try:
        user = pwd.getpwuid(uid)
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
    except KeyError:
        groups = []
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid in groups else stat.S_IROTH))
