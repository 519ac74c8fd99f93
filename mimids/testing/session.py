"""The things that all federations of a test process share: the fork server, and the certificate authority."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimids.cli.certificates import Authority, IssuedCertificate, new_authority
from mimids.testing.starting import Forking, Process, Spawning, Starter, new_starter


class Session:
    """Starts processes and issues certificates. The fork server and the authority are made when first needed."""

    def __init__(self, method: str | None = None) -> None:
        """Use `fork` or `spawn` as method; by default `mimids.testing.starting` chooses."""
        self._method = method
        self._starter: Starter | None = None
        self._authority: Authority | None = None
        self._lock = threading.Lock()
        self._directory: Path | None = None

    def preload(self) -> None:
        """Start the fork server without waiting for it."""
        with self._lock:
            self._begin()

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """Start a process; see `starting.Starter`."""
        with self._lock:
            starter = self._begin()
            if isinstance(starter, Forking) and not starter.is_safe():
                starter.close()
                starter = self._starter = Spawning()
        return starter.start(what, log)

    @property
    def ca_file(self) -> Path:
        """The certificate file of the authority that issues the certificates of this session's providers."""
        self._issuer()
        assert self._directory is not None  # noqa: S101  # made with the issuer
        return self._directory / "ca.pem"

    def issue(self, name: str) -> IssuedCertificate:
        """Return a certificate for a provider, valid for loopback addresses too."""
        return self._issuer().issue([name], ["127.0.0.1", "::1"])

    def close(self) -> None:
        """End all processes and remove the authority."""
        with self._lock:
            if self._starter is not None:
                self._starter.close()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._starter = self._authority = self._directory = None

    def _begin(self) -> Starter:
        if self._starter is None:
            self._starter = new_starter(self._method)
        return self._starter

    def _issuer(self) -> Authority:
        with self._lock:
            if self._authority is None or self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="mimids-ca-"))
                self._authority = new_authority("mimids.testing")
                self._authority.write(self._directory / "ca.pem", self._directory / "ca.key")
            return self._authority


_sessions: dict[int, Session] = {}


def default_session() -> Session:
    """Return the session of this process, which ends with the process. A forked child gets a session of its own."""
    session = _sessions.get(os.getpid())
    if session is None:
        session = _sessions[os.getpid()] = Session()
        atexit.register(_close, os.getpid())
    return session


def _close(pid: int) -> None:
    """Close the session when its process ends; a forked child runs this too, and does nothing."""
    if os.getpid() == pid:
        _sessions.pop(pid).close()
