"""The configuration: TOML is read into a frozen `Config`; every key but `provider` has a default.

`config.example.toml` is the reference for operators; a test compares it with this file. All faults are reported at
once, each with file, section, key, and what to write instead. Defaults are written here as in the file (with relative
paths) and read by the same code. For a secret, the configuration has the path of a file, never the value.

The file is a little long because every section is declared in it, in the order of the reference.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast, get_type_hints

import attrs

from mimids.config_keys import (
    METADATA,
    Contact,
    Key,
    StoreUrl,
    TcpAddress,
    UnixAddress,
    Url,
    WebOrigin,
    domain,
    key,
    read,
)
from mimids.config_limits import Limits as Limits  # a section like those below
from mimids.config_mls import MlsSettings
from mimids.wire.ids import ProviderId


class ConfigError(Exception):
    """The configuration is not valid; `faults` has a sentence for each key, saying what to change."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@attrs.frozen(kw_only=True)
class ListenSettings:
    """Addresses of the listeners, and the limits of their connections."""

    public: TcpAddress = key("127.0.0.1:8443")
    public_url: Url = key("https://{provider}")
    client: TcpAddress | UnixAddress = key("127.0.0.1:8444")
    client_tls: bool = key(True)
    web_origins: tuple[WebOrigin, ...] = key([])
    operator: TcpAddress = key("127.0.0.1:8445")
    operator_socket: Path | None = key(None)
    connections: int = key(2000)
    buffered_bytes: int = key(134_217_728)
    stall_seconds: int = key(20)
    drain_seconds: int = key(8)

    @property
    def client_is_plain(self) -> bool:
        """Tell whether the client listener uses plain HTTP, as it always does on a Unix socket."""
        return isinstance(self.client, UnixAddress) or not self.client_tls


@attrs.frozen(kw_only=True)
class TlsSettings:
    """Certificates; files that are renewed are read again."""

    certificate: Path = key("{provider}.pem")
    private_key: Path = key("{provider}.key")
    client_certificate: Path | None = key(None)
    client_private_key: Path | None = key(None)
    trust: Path | None = key(None)
    watch_seconds: int = key(60)

    @property
    def presented(self) -> tuple[Path, Path]:
        """Return the certificate and private key for calls to other providers."""
        return self.client_certificate or self.certificate, self.client_private_key or self.private_key


@attrs.frozen(kw_only=True)
class StoreSettings:
    """Where the provider is stored: in a SQLite file in data_dir, or in PostgreSQL."""

    url: StoreUrl | None = key(None)
    read_connections: int = key(4)
    replicated: bool = key(False)


@attrs.frozen(kw_only=True)
class FederationSettings:
    """Which other providers are allowed, and how long they may take."""

    mode: Literal["allow-list", "open"] = key("allow-list")
    allow: tuple[ProviderId, ...] = key([])
    connect_seconds: int = key(10)
    answer_seconds: int = key(30)
    # The operator's decisions while the server ran (store/federation_rules.py); they take precedence over `mode` and
    # `allow`.
    decided: dict[ProviderId, bool] = attrs.field(factory=dict, init=False, eq=False)

    def allows(self, provider: ProviderId, *, us: ProviderId) -> bool:
        """Tell whether `provider` is allowed, for calls in both directions; our own name is never allowed."""
        return provider != us and self.decided.get(provider, self.allows_by_itself(provider))

    def allows_by_itself(self, provider: ProviderId) -> bool:
        """Tell whether the configuration itself allows a provider.

        What the operator decided by commands does not count.
        """
        return self.mode == "open" or provider in self.allow

    def decide(self, rules: Mapping[ProviderId, bool]) -> None:
        """Replace the decisions that the operator made by commands."""
        self.decided.clear()
        self.decided.update(rules)

    def names(self, provider: ProviderId) -> bool:
        """Tell whether `provider` is allowed by its name, in the configuration or by the operator."""
        return self.decided.get(provider, provider in self.allow)

    def every_name(self) -> set[ProviderId]:
        """Return the providers that are allowed by their names."""
        return {provider for provider in (*self.allow, *self.decided) if self.names(provider)}


@attrs.frozen(kw_only=True)
class PeerSettings:
    """Settings for one other provider: `[providers."b.example"]`."""

    url: Url | None = key(None)
    trust: Path | None = key(None)


@attrs.frozen(kw_only=True)
class KeyPackageSettings:
    """The stock of KeyPackages."""

    max_lifetime_days: int = key(366)
    low_stock_packages: int = key(10, at_least=0)
    device_packages: int = key(500)


@attrs.frozen(kw_only=True)
class TokenSettings:
    """What happens if KeyPackages are claimed with a bearer token, but no Welcome follows."""

    abuse: Literal["warn", "revoke", "off"] = key("warn")
    abuse_claims: int = key(50)
    abuse_window_hours: int = key(24)


@attrs.frozen(kw_only=True)
class OhttpSettings:
    """The gateway's keys, and its protection against replays."""

    rotate_days: int = key(1)
    grace_days: int = key(2)
    key_file: Path | None = key(None)
    replay_window_seconds: int = key(300)
    replay_max_rows: int = key(100_000)
    bundle_max_requests: int = key(64)


MOST_BATCH_MILLISECONDS: Final = 10_000


@attrs.frozen(kw_only=True)
class RelaySettings:
    """The relay of our devices' requests for KeyPackages."""

    batch_milliseconds: int = key(0, at_least=0)


@attrs.frozen(kw_only=True)
class GroupSettings:
    """Groups that this provider hosts."""

    external_joins: Literal["open", "followers", "off"] = key("followers")
    hints_encrypted: bool = key(False)
    terminate_age_days: int = key(0, at_least=0)
    terminate_childless_days: int = key(0, at_least=0)


@attrs.frozen(kw_only=True)
class WelcomeSettings:
    """Welcomes that are held until the branch of their commit is used."""

    hold_days: int = key(7)


@attrs.frozen(kw_only=True)
class ArrangementSettings:
    """The terms between a hub and its followers."""

    required: bool = key(False)
    grace_seconds: int = key(3600, at_least=0)
    accept: Literal["automatic", "manual"] = key("automatic")


@attrs.frozen(kw_only=True)
class RetentionSettings:
    """How long data is kept; the newest partitions of a group and their state never expire."""

    message_days: int = key(365)
    acknowledged_message_days: int = key(30, at_least=0)
    repeat_days: int = key(730)
    welcome_days: int = key(90)
    detached_days: int = key(7)
    report_days: int = key(90)
    audit_days: int = key(365)
    sweep_seconds: int = key(300)


@attrs.frozen(kw_only=True)
class DeliverySettings:
    """Pushes to followers, and requests to the hubs that are followed."""

    workers: int = key(8)
    backoff_first_seconds: int = key(1)
    backoff_cap_seconds: int = key(300)
    batch_bytes: int = key(1_048_576)


@attrs.frozen(kw_only=True)
class PushSettings:
    """Pushes that wake devices which sleep (Web Push)."""

    enabled: bool = key(True)
    quiet_seconds: int = key(30, at_least=0)
    endpoints: tuple[Url, ...] = key([])
    subject: Contact = key("")


@attrs.frozen(kw_only=True)
class LogSettings:
    """The log on standard error."""

    format: Literal["text", "json"] = key("text")
    level: Literal["debug", "info", "warning", "error"] = key("info")


@attrs.frozen(kw_only=True)
class MetricsSettings:
    """Prometheus metrics on the operator listener."""

    enabled: bool = key(True)
    named_peers: int = key(50, at_least=0)


@attrs.frozen(kw_only=True)
class Config:
    """The whole configuration; `load` and `parse` make it."""

    provider: ProviderId = key(None)
    data_dir: Path = key("{provider}")
    listen: ListenSettings
    tls: TlsSettings
    store: StoreSettings
    federation: FederationSettings
    providers: Mapping[ProviderId, PeerSettings]
    key_packages: KeyPackageSettings
    tokens: TokenSettings
    ohttp: OhttpSettings
    relay: RelaySettings
    mls: MlsSettings
    group: GroupSettings
    welcome: WelcomeSettings
    arrangement: ArrangementSettings
    limits: Limits
    retention: RetentionSettings
    delivery: DeliverySettings
    push: PushSettings
    log: LogSettings
    metrics: MetricsSettings

    @property
    def named_providers(self) -> set[ProviderId]:
        """Return the other providers that the configuration or the operator names."""
        return {*self.federation.every_name(), *self.providers}

    @property
    def database(self) -> Path:
        """Return the path of the SQLite file, which does not exist if the provider is stored in PostgreSQL."""
        return self.data_dir / "mimids.sqlite3"

    @property
    def place(self) -> Path | StoreUrl:
        """Return where the provider is stored: the SQLite file, or the URL of the PostgreSQL database."""
        return self.store.url or self.database

    @property
    def operator_socket(self) -> Path:
        """Return the path of the Unix socket for commands that write and for account systems."""
        return self.listen.operator_socket or self.data_dir / "operator.sock"


# --- reading ----------------------------------------------------------------------------------------------------

_SECTIONS: Final[Mapping[str, type[attrs.AttrsInstance]]] = {
    field.name: get_type_hints(Config)[field.name]
    for field in attrs.fields(Config)
    if METADATA not in field.metadata and field.name != "providers"
}


_EXAMPLE_DOMAIN: Final = ProviderId("a.example")


def keys(section: type[attrs.AttrsInstance]) -> dict[str, Key]:
    """Return the keys that a section (or `Config`, for the top of the file) declares, in order."""
    return {field.name: field.metadata[METADATA] for field in attrs.fields(section) if METADATA in field.metadata}


def load(path: Path) -> Config:
    """Read a configuration file; raise `ConfigError`, where each fault begins with the name of the file."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read ({error.strerror}); `mimids init` writes a configuration"]
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        raise ConfigError([f"{path}: this is not valid TOML: {error}"]) from error
    try:
        return parse(table, path.parent)
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from None


def parse(table: Mapping[str, object], directory: Path) -> Config:
    """Make a configuration from parsed TOML; relative paths begin at `directory`.

    Raises `ConfigError` if a key is not valid.
    """
    faults: list[str] = []
    provider = _EXAMPLE_DOMAIN  # used to check the rest of a file that has no valid `provider`
    top = {name: value for name, value in table.items() if name not in _SECTIONS and name != "providers"}
    try:
        provider = domain(top["provider"], directory)
    except KeyError:
        faults.append(f"provider: {_missing(table)}")
    except ValueError as error:
        faults.append(f"provider: {error}")
        del top["provider"]
    reading = _Reading(directory.absolute(), provider, faults)
    parts = reading.values(Config, top, "")
    parts |= {name: reading.section(kind, table.get(name, {}), f"[{name}]") for name, kind in _SECTIONS.items()}
    parts["providers"] = reading.peers(table.get("providers", {}))
    if not faults:
        config = Config(**cast("Any", parts))
        faults += _conflicts(config)
        if not faults:
            return config
    raise ConfigError(faults)


@attrs.frozen
class _Reading:
    """One file being read; its faults are added to `faults`, and reading goes on."""

    directory: Path
    provider: ProviderId
    faults: list[str]

    def values(self, section: type[attrs.AttrsInstance], table: Mapping[str, object], place: str) -> dict[str, object]:
        """Read the keys of a section; a key that is not valid is missing from the result."""
        known = keys(section)
        self.faults.extend(f"{place}{name}: {_nearest(name, list(known))}" for name in table if name not in known)
        kinds = get_type_hints(section)
        values: dict[str, object] = {}
        for name, declared in known.items():
            written = table.get(name)
            if written is None:
                written = declared.default
                if isinstance(written, str):
                    written = written.replace("{provider}", self.provider)
            try:
                values[name] = None if written is None else read(kinds[name], written, self.directory)
                declared.check(values[name], name)
            except ValueError as error:
                self.faults.append(f"{place}{name}: {error}")
        return values

    def section(self, kind: type[attrs.AttrsInstance], table: object, place: str) -> attrs.AttrsInstance | None:
        """Read one section; return None if a key in it is not valid."""
        if not isinstance(table, dict):
            self.faults.append(f"{place}: this is a section; write its name in brackets on a line, and its keys below")
            return None
        before = len(self.faults)
        values = self.values(kind, table, f"{place} ")
        return kind(**values) if len(self.faults) == before else None

    def peers(self, table: object) -> dict[ProviderId, object]:
        """Read the sections `[providers."b.example"]`, keyed by domain."""
        found: dict[ProviderId, object] = {}
        if not isinstance(table, dict):
            self.faults.append('[providers]: write one section for each provider, such as [providers."b.example"]')
            return found
        for name, keys_of_peer in table.items():
            place = f'[providers."{name}"]'
            try:
                found[domain(name, self.directory)] = self.section(PeerSettings, keys_of_peer, place)
            except ValueError as error:
                self.faults.append(f"{place}: {error}")
        return found


def _missing(table: Mapping[str, object]) -> str:
    """Say what to do about the required key `provider`, which is not at the top of the file."""
    for section, keys_there in table.items():
        if isinstance(keys_there, dict) and "provider" in keys_there and section in _SECTIONS:
            return f"write it at the top of the file, not in [{section}]; this key is required"
    return f'write a domain name in lower case, such as "{_EXAMPLE_DOMAIN}"; this key is required'


def _nearest(name: str, known: list[str]) -> str:
    """Say which known key or section an unknown name probably stands for."""
    for section, kind in _SECTIONS.items():
        if name in keys(kind):
            return f"this key belongs in section [{section}]"
    near = difflib.get_close_matches(name, [*known, *_SECTIONS] if "provider" in known else known, n=1, cutoff=0)
    return f"there is no such key; did you mean {near[0]}?"


def _conflicts(config: Config) -> list[str]:
    """Return the faults of keys that exclude each other."""
    listen, tls, keep, retry = config.listen, config.tls, config.retention, config.delivery
    loopback = "plain HTTP is only allowed on loopback or a Unix socket; write true, or change client"
    longer = "repeats must be recognised for longer than messages are kept; write more than message_days"
    client_is_local = isinstance(listen.client, UnixAddress) or listen.client.is_loopback
    both_or_neither = (tls.client_certificate is None) == (tls.client_private_key is None)
    checks = (
        ("[listen] operator", listen.operator.is_loopback, "it has no authentication; write a loopback address"),
        ("[listen] client_tls", listen.client_tls or client_is_local, loopback),
        ("[tls] client_certificate, client_private_key", both_or_neither, "write both, or neither"),
        ("[retention] repeat_days", keep.repeat_days > keep.message_days, longer),
        ("[relay] batch_milliseconds", config.relay.batch_milliseconds <= MOST_BATCH_MILLISECONDS,
         f"write at most {MOST_BATCH_MILLISECONDS}: devices do not wait long for an answer"),
        ("[delivery] backoff_cap_seconds", retry.backoff_cap_seconds >= retry.backoff_first_seconds,
         "write at least backoff_first_seconds"),
    )  # fmt: skip
    return [f"{place}: {fix}" for place, holds, fix in checks if not holds]
