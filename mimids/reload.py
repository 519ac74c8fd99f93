"""Reload the configuration of a running provider: certificates, `[federation]`, `[limits]` and `[log]`.

All parts of a provider share one record of each section. A reload replaces the values of that record in place, so a
part that reads a value when it needs one sees the new value. This module updates values that were derived from values
of the record. All other sections, and the keys in `AT_START`, are read at the start only. A reload reports which of
these have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from mimids.assembly import AssembledProvider, use_limits
from mimids.config import Config, keys
from mimids.ds.running_server import Reloaded
from mimids.http.server.tls import CertificateFileError

SECTIONS: Final = ("federation", "limits", "log")
AT_START: Final = frozenset({("limits", "frame_bytes"), ("limits", "body_seconds")})  # listeners are made with them


async def reload(provider: AssembledProvider, load: Callable[[], Config]) -> Reloaded:
    """Read the configuration again, and apply the parts that a running provider can change; log what changed.

    Raises the `ConfigError` of `load`; nothing has changed then. If a certificate file cannot be used, the old
    certificate stays in use, and all other changes are applied.
    """
    services = provider.services
    config, new = services.config, load()
    before = {name for name in new.federation.allow if config.federation.allows(name, us=config.provider)}
    changed: list[str] = []
    restart: list[str] = []
    for section, key, place in _differences(config, new):
        (changed if section in SECTIONS and (section, key) not in AT_START else restart).append(place)
    for section in SECTIONS:
        _replace(getattr(config, section), getattr(new, section), section)
    use_limits(provider)
    services.telemetry.log.configure(format=config.log.format, level=config.log.level)
    for name in set(config.federation.allow) - before:
        services.callers.note(name)  # deliveries to this provider start at once, without waiting for the back-off
    failure = None
    try:
        await provider.reload_certificates()
    except CertificateFileError as error:
        failure = str(error)
        services.telemetry.log.error("certificates not reloaded", reason=failure)
    done = Reloaded(tuple(changed), tuple(restart), failure)
    services.telemetry.log.info(
        "configuration reloaded", changed=", ".join(changed) or "nothing", needs_restart=", ".join(restart) or None
    )
    return done


def _differences(old: Config, new: Config) -> Iterator[tuple[str, str, str]]:
    """Yield section, key and place of each key that differs; an operator finds the key in the file by its place."""
    for field in attrs.fields(Config):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "providers":
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) != after.get(name):
                    yield "providers", name, f'[providers."{name}"]'
        elif attrs.has(type(before)) and keys(type(before)):
            for key in keys(type(before)):
                if getattr(before, key) != getattr(after, key):
                    yield field.name, key, f"[{field.name}] {key}"
        elif before != after:
            yield "", field.name, field.name


def _replace(section: attrs.AttrsInstance, new: Any, name: str) -> None:
    """Replace the values of a section, which nothing else may change."""
    for key in keys(type(section)):
        if (name, key) not in AT_START:
            object.__setattr__(section, key, getattr(new, key))
