"""Check that some authority is trusted for each of the other providers that the configuration names."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from mimids.cli.check.finding import Finding, warning, wrong
from mimids.config import Config


def trust_in_peers(config: Config) -> Iterator[Finding]:
    """Find the providers whose certificates will be refused, as far as the files show.

    For a provider with a trust file of its own, only the authorities in that file are trusted. For all others, the
    authorities in `[tls] trust` are trusted or, without that key, those of the system.
    """
    unnamed = []
    for name in sorted(config.named_providers):
        peer = config.providers.get(name)
        if peer is None or peer.trust is None:
            unnamed.append(name)
        elif _ended(peer.trust):
            fix = "ask its operator for the certificate of its authority, and write that into the file"
            yield wrong("trust", f"every certificate in {peer.trust}, which is for {name}, has expired", fix)
    names = ", ".join(unnamed)
    fix = 'set trust in [providers."NAME"] to a file with the certificate of its authority'
    if not unnamed:
        return
    if config.tls.trust is None:
        if not _system_has_authorities():
            what = f"this system has no certificates of authorities, so no certificate of {names} is trusted"
            yield wrong("trust", what, f"install them (on Debian: apt install ca-certificates), or {fix}")
    elif _ended(config.tls.trust):
        yield wrong("trust", f"every certificate in {config.tls.trust}, which is for {names}, has expired", fix)
    elif alone := [name for name in unnamed if name not in config.providers and _only_ours(config)]:
        what = f"{', '.join(alone)}: trusted only with certificates of our own authority, {config.tls.trust}"
        yield warning("trust", what, f"unless that authority issued their certificates: {fix}")


def _read(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []  # the check of the certificates reports this


def _ended(path: Path) -> bool:
    """Tell whether a file has certificates, and all of them have expired."""
    found = _read(path)
    return bool(found) and all(each.not_valid_after_utc < datetime.now(UTC) for each in found)


def _only_ours(config: Config) -> bool:
    """Tell whether `[tls] trust` contains only the authority that issued our own certificate."""
    ours = _read(config.tls.presented[0])
    trusted = [] if config.tls.trust is None else _read(config.tls.trust)
    return all(each.subject == ours[0].issuer for each in trusted) if ours and trusted else False


def _system_has_authorities() -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_default_verify_paths()
    directory: str | None = ssl.get_default_verify_paths().capath
    return bool(context.get_ca_certs()) or bool(directory and os.listdir(directory))
