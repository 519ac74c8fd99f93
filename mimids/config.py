"""Configuration: TOML to a frozen `Config`, every key with a default but `provider`.

`config.example.toml` is the reference for operators and is held to this file by a test, both ways. What is wrong is
said all at once, with the file, the section, the key and what to write instead. A default is written as it would be
in the file (relative paths included) and read by the same code. Secrets come by path, never by value.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast, get_type_hints

import attrs

from mimids.config_keys import METADATA, Key, TcpAddress, UnixAddress, Url, domain, key, read
from mimids.wire.ids import ProviderId


class ConfigError(Exception):
    """The configuration cannot be used; `faults` says what to change, one sentence for each key."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@attrs.frozen(kw_only=True)
class ListenSettings:
    """Where it listens, and how it ends."""

    public: TcpAddress = key("127.0.0.1:8443")
    public_url: Url = key("https://{provider}")
    client: TcpAddress | UnixAddress = key("127.0.0.1:8444")
    client_tls: bool = key(True)
    operator: TcpAddress = key("127.0.0.1:8445")
    operator_socket: Path | None = key(None)
    connections: int = key(2000)
    stall_seconds: int = key(20)
    drain_seconds: int = key(8)

    @property
    def client_is_plain(self) -> bool:
        """Tell whether the client listener speaks plain HTTP: on a Unix socket it always does."""
        return isinstance(self.client, UnixAddress) or not self.client_tls


@attrs.frozen(kw_only=True)
class TlsSettings:
    """Certificates; the files are watched and read again on renewal."""

    certificate: Path = key("{provider}.pem")
    private_key: Path = key("{provider}.key")
    client_certificate: Path | None = key(None)
    client_private_key: Path | None = key(None)
    trust: Path | None = key(None)
    watch_seconds: int = key(60)

    @property
    def presented(self) -> tuple[Path, Path]:
        """Return certificate and private key as shown to other providers when we call them."""
        return self.client_certificate or self.certificate, self.client_private_key or self.private_key


@attrs.frozen(kw_only=True)
class FederationSettings:
    """Which other providers are dealt with."""

    mode: Literal["allow-list", "open"] = key("allow-list")
    allow: tuple[ProviderId, ...] = key([])
    connect_seconds: int = key(10)
    answer_seconds: int = key(30)

    def allows(self, provider: ProviderId, *, us: ProviderId) -> bool:
        """Tell whether we deal with `provider` at all, in either direction; never with one that claims to be us."""
        return provider != us and (self.mode == "open" or provider in self.allow)


@attrs.frozen(kw_only=True)
class PeerSettings:
    """What is special about one other provider: `[providers."b.example"]`."""

    url: Url | None = key(None)
    trust: Path | None = key(None)


@attrs.frozen(kw_only=True)
class KeyPackageSettings:
    """Stock of KeyPackages."""

    max_lifetime_days: int = key(366)
    low_stock_packages: int = key(10, at_least=0)
    device_packages: int = key(500)


@attrs.frozen(kw_only=True)
class TokenSettings:
    """Claims with a bearer token that end in no Welcome."""

    abuse: Literal["warn", "revoke", "off"] = key("warn")
    abuse_claims: int = key(50)
    abuse_window_hours: int = key(24)


@attrs.frozen(kw_only=True)
class OhttpSettings:
    """The gateway's keys and its memory of requests."""

    rotate_days: int = key(30)
    grace_days: int = key(7)
    key_file: Path | None = key(None)
    replay_window_seconds: int = key(300)
    replay_max_rows: int = key(100_000)
    bundle_max_requests: int = key(64)


@attrs.frozen(kw_only=True)
class GroupSettings:
    """Groups that this provider hosts."""

    external_joins: Literal["open", "followers", "off"] = key("followers")
    hints_encrypted: bool = key(False)
    terminate_age_days: int = key(0, at_least=0)
    terminate_childless_days: int = key(0, at_least=0)


@attrs.frozen(kw_only=True)
class WelcomeSettings:
    """Welcomes that wait for their commit's branch to be taken up."""

    hold_days: int = key(7)


@attrs.frozen(kw_only=True)
class ArrangementSettings:
    """The terms between a hub and its followers."""

    required: bool = key(False)
    grace_seconds: int = key(3600, at_least=0)
    accept: Literal["automatic", "manual"] = key("automatic")


@attrs.frozen(kw_only=True)
class Limits:
    """Sizes, rates and quotas; those of rate and number count against a device, user or provider, 0 is no limit."""

    # sizes
    max_body_bytes: int = key(16_777_216)
    message_bytes: int = key(4_194_304)
    group_info_bytes: int = key(8_388_608)
    welcome_bytes: int = key(8_388_608)
    key_package_bytes: int = key(65_536)
    receive_bytes: int = key(4_194_304)
    push_bytes: int = key(33_554_432)
    frame_bytes: int = key(4_194_304)
    ohttp_bytes: int = key(1_048_576)
    report_bytes: int = key(1_048_576)
    send_batch_messages: int = key(1024)
    receive_wait_seconds: int = key(60, at_least=0)
    body_seconds: int = key(60)
    # rates
    device_requests_per_minute: int = key(6000, at_least=0)
    device_sends_per_second: int = key(100, at_least=0)
    device_sends_burst: int = key(2000)
    device_joins_per_hour: int = key(60, at_least=0)
    device_joins_burst: int = key(20)
    device_fetches_per_minute: int = key(60, at_least=0)
    device_fetches_burst: int = key(200)
    device_new_providers_per_day: int = key(50, at_least=0)
    user_sends_per_second: int = key(200, at_least=0)
    user_sends_burst: int = key(4000)
    user_joins_per_hour: int = key(120, at_least=0)
    user_joins_burst: int = key(40)
    user_fetches_per_minute: int = key(120, at_least=0)
    user_fetches_burst: int = key(400)
    provider_sends_per_second: int = key(2000, at_least=0)
    provider_sends_burst: int = key(20_000)
    provider_joins_per_hour: int = key(1000, at_least=0)
    provider_joins_burst: int = key(200)
    gateway_requests_per_second: int = key(200, at_least=0)
    gateway_requests_burst: int = key(1000)
    # quotas
    device_streams: int = key(4, at_least=0)
    device_groups: int = key(1000, at_least=0)
    device_detached_partitions: int = key(16, at_least=0)
    device_branches: int = key(64, at_least=0)
    device_branch_bytes: int = key(67_108_864)
    device_bytes_per_day: int = key(4_294_967_296, at_least=0)
    device_bytes_burst: int = key(536_870_912, at_least=33_554_432)
    device_contact_tokens: int = key(1000, at_least=0)
    device_reports_per_day: int = key(20, at_least=0)
    provider_detached_partitions: int = key(256, at_least=0)
    provider_branches: int = key(1024, at_least=0)
    provider_branch_bytes: int = key(536_870_912)
    provider_bytes_per_day: int = key(68_719_476_736, at_least=0)
    provider_bytes_burst: int = key(4_294_967_296, at_least=33_554_432)
    provider_reports_per_day: int = key(200, at_least=0)
    provider_unmatched_bytes: int = key(16_777_216)


@attrs.frozen(kw_only=True)
class RetentionSettings:
    """How long things are kept; the newest partitions of a group and their state never expire."""

    message_days: int = key(365)
    acknowledged_message_days: int = key(30, at_least=0)
    repeat_days: int = key(730)
    welcome_days: int = key(90)
    detached_days: int = key(7)
    report_days: int = key(90)
    sweep_seconds: int = key(300)


@attrs.frozen(kw_only=True)
class DeliverySettings:
    """Pushing to followers, and asking hubs that are followed."""

    workers: int = key(8)
    backoff_first_seconds: int = key(1)
    backoff_cap_seconds: int = key(300)
    batch_bytes: int = key(1_048_576)


@attrs.frozen(kw_only=True)
class LogSettings:
    """The log, on standard error."""

    format: Literal["text", "json"] = key("text")
    level: Literal["debug", "info", "warning", "error"] = key("info")


@attrs.frozen(kw_only=True)
class MetricsSettings:
    """Prometheus text on the operator listener."""

    enabled: bool = key(True)
    named_peers: int = key(50, at_least=0)


@attrs.frozen(kw_only=True)
class Config:
    """The whole configuration; made by `load` or `parse`, nowhere else."""

    provider: ProviderId = key(None)
    data_dir: Path = key("{provider}")
    listen: ListenSettings
    tls: TlsSettings
    federation: FederationSettings
    providers: Mapping[ProviderId, PeerSettings]
    key_packages: KeyPackageSettings
    tokens: TokenSettings
    ohttp: OhttpSettings
    group: GroupSettings
    welcome: WelcomeSettings
    arrangement: ArrangementSettings
    limits: Limits
    retention: RetentionSettings
    delivery: DeliverySettings
    log: LogSettings
    metrics: MetricsSettings

    @property
    def database(self) -> Path:
        """Return the one SQLite file that holds everything but the certificates."""
        return self.data_dir / "mimids.sqlite3"

    @property
    def operator_socket(self) -> Path:
        """Return the socket that writing commands and account systems talk to."""
        return self.listen.operator_socket or self.data_dir / "operator.sock"


# --- reading ----------------------------------------------------------------------------------------------------

_SECTIONS: Final[Mapping[str, type[attrs.AttrsInstance]]] = {
    field.name: get_type_hints(Config)[field.name]
    for field in attrs.fields(Config)
    if METADATA not in field.metadata and field.name != "providers"
}


def keys(section: type[attrs.AttrsInstance]) -> dict[str, Key]:
    """Return the keys that a section (or `Config`, for the top of the file) declares, in order."""
    return {field.name: field.metadata[METADATA] for field in attrs.fields(section) if METADATA in field.metadata}


def load(path: Path) -> Config:
    """Read a configuration file; raise `ConfigError`, each fault opening with the file's name."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return parse(table, path.parent)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); `mimids init` writes one"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from None


def parse(table: Mapping[str, object], directory: Path) -> Config:
    """Make a configuration of a parsed file; relative paths are meant from `directory`. Raise `ConfigError`."""
    faults: list[str] = []
    try:
        provider = domain(table.get("provider"), directory)
    except ValueError as error:
        raise ConfigError([f"provider: {error}"]) from None
    reading = _Reading(directory.absolute(), provider, faults)
    top = {name: value for name, value in table.items() if name not in _SECTIONS and name != "providers"}
    parts = reading.values(Config, top, "")
    parts |= {name: reading.section(kind, table.get(name, {}), f"[{name}]") for name, kind in _SECTIONS.items()}
    parts["providers"] = reading.peers(table.get("providers", {}))
    if not faults:
        config = Config(**cast("Any", parts))
        faults += _contradictions(config)
        if not faults:
            return config
    raise ConfigError(faults)


@attrs.frozen
class _Reading:
    """One file being read; what is wrong with it is added to `faults`, and reading goes on."""

    directory: Path
    provider: ProviderId
    faults: list[str]

    def values(self, section: type[attrs.AttrsInstance], table: Mapping[str, object], place: str) -> dict[str, object]:
        """Read the keys of a section; a key that is wrong is missing from the answer."""
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
                declared.check(values[name])
            except ValueError as error:
                self.faults.append(f"{place}{name}: {error}")
        return values

    def section(self, kind: type[attrs.AttrsInstance], table: object, place: str) -> attrs.AttrsInstance | None:
        """Read one section; None if something is wrong with it."""
        if not isinstance(table, dict):
            self.faults.append(f"{place}: this is a section; write its keys below a line that holds its name")
            return None
        before = len(self.faults)
        values = self.values(kind, table, f"{place} ")
        return kind(**values) if len(self.faults) == before else None

    def peers(self, table: object) -> dict[ProviderId, object]:
        """Read `[providers."b.example"]`, each by its domain."""
        found: dict[ProviderId, object] = {}
        if not isinstance(table, dict):
            self.faults.append('[providers]: write a section for each provider, such as [providers."b.example"]')
            return found
        for name, keys_of_peer in table.items():
            place = f'[providers."{name}"]'
            try:
                found[domain(name, self.directory)] = self.section(PeerSettings, keys_of_peer, place)
            except ValueError as error:
                self.faults.append(f"{place}: {error}")
        return found


def _nearest(name: str, known: list[str]) -> str:
    """Say what was probably meant by a key or section that does not exist."""
    for section, kind in _SECTIONS.items():
        if name in keys(kind):
            return f"no such key here; it belongs in [{section}]"
    near = difflib.get_close_matches(name, [*known, *_SECTIONS] if "provider" in known else known, n=1, cutoff=0)
    return f"no such key; the nearest is {near[0]}"


def _contradictions(config: Config) -> list[str]:
    """Say which keys cannot hold together."""
    listen, tls, keep = config.listen, config.tls, config.retention
    checks = {
        "[listen] operator: it shows everything to whoever reaches it; write a loopback address": (
            listen.operator.is_loopback
        ),
        "[listen] client_tls: plain HTTP only on loopback or a Unix socket; write true, or change client": (
            listen.client_tls or isinstance(listen.client, UnixAddress) or listen.client.is_loopback
        ),
        "[tls] client_certificate, client_private_key: write both or none": (
            (tls.client_certificate is None) == (tls.client_private_key is None)
        ),
        "[retention] repeat_days: repeats are remembered longer than messages; write more than message_days": (
            keep.repeat_days > keep.message_days
        ),
        "[delivery] backoff_cap_seconds: write no less than backoff_first_seconds": (
            config.delivery.backoff_cap_seconds >= config.delivery.backoff_first_seconds
        ),
    }
    return [fault for fault, holds in checks.items() if not holds]
