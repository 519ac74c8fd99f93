"""The configuration: the example is the reference, and every fault says what to write instead."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids import config
from mimids.config import Config, ConfigError, keys, load, parse
from mimids.config_keys import TcpAddress, UnixAddress
from mimids.mls.suite_table import OFF, POST_QUANTUM_NAMES

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "config.example.toml").read_text()
# A key or section without a default is commented out in the example; this removes the comment sign.
WHOLE = re.sub(r"^# (?=\w+ = |\[)", "", EXAMPLE, flags=re.MULTILINE)
PROVIDER = {"provider": "a.example"}


def faults(table: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(PROVIDER | table, ROOT)
    return list(caught.value.faults)


def declared() -> dict[str, set[str]]:
    sections = {name: set(keys(kind)) for name, kind in config._SECTIONS.items()}
    return sections | {"providers": set(keys(config.PeerSettings)), "": set(keys(Config))}


def test_the_example_shows_every_key_and_no_other() -> None:
    table = tomllib.loads(WHOLE)
    shown = {name: set(section) for name, section in table.items() if isinstance(section, dict)}
    shown["providers"] = set(table["providers"]["b.example"])
    shown[""] = {name for name, value in table.items() if not isinstance(value, dict)}
    assert shown == declared()


def test_every_key_is_used() -> None:
    """A key that nothing reads has no effect."""
    sources = [
        path.read_text()
        for path in (ROOT / "mimids").rglob("*.py")
        if path.name not in ("config.py", "config_limits.py")
    ]
    used = set(re.findall(r"\w+", "\n".join(sources)))
    assert {name for names in declared().values() for name in names} - used == set()


def test_the_example_shows_the_defaults() -> None:
    assert parse(tomllib.loads(EXAMPLE), ROOT) == parse(PROVIDER, ROOT)


def test_the_example_is_accepted_with_every_key_set() -> None:
    whole = parse(tomllib.loads(WHOLE), ROOT)
    assert whole.tls.trust == ROOT / "ca.pem"
    (peer,) = whole.providers.values()
    assert (peer.url, peer.trust) == ("https://127.0.0.1:9443", ROOT / "b-ca.pem")


@pytest.mark.parametrize("line", [line for line in EXAMPLE.splitlines() if re.match(r"(# )?\w+ = ", line)])
def test_each_key_of_the_example_says_why(line: str) -> None:
    assert len(line.partition("  # ")[2]) > 5
    assert len(line) <= 120


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, names in declared().items() for n in sorted(names)])
def test_numbers_carry_their_unit(section: str, name: str) -> None:
    """A number without a unit in its name counts what the name says."""
    units = r"bytes|seconds|hours|days|minute|second|hour|day|burst"
    counted = (
        r"rows|requests|packages|claims|messages|streams|groups|partitions|branches|tokens|workers|connections|peers"
        r"|providers"
    )
    default = keys(config._SECTIONS[section])[name].default if section in config._SECTIONS else None
    if isinstance(default, int) and not isinstance(default, bool):
        assert re.search(rf"({units}|{counted})$", name)


def test_a_file_is_read_with_paths_from_its_own_directory(tmp_path: Path) -> None:
    file = tmp_path / "mimids.toml"
    file.write_text('provider = "a.example"\n[listen]\nclient = "unix:run/client.sock"\n[tls]\ntrust = "/etc/ca.pem"\n')
    read = load(file)
    assert read.data_dir == tmp_path / "a.example"
    assert read.operator_socket == tmp_path / "a.example" / "operator.sock"
    assert read.listen.client == UnixAddress(tmp_path / "run/client.sock")
    assert read.listen.client_is_plain
    assert read.tls.presented == (tmp_path / "a.example.pem", tmp_path / "a.example.key")
    assert read.tls.trust == Path("/etc/ca.pem")


def test_the_origins_of_pages_are_read_as_browsers_write_them() -> None:
    origins = ["https://chat.example", "https://chat.example:8443", "http://127.0.0.1:9000", "http://[::1]:9000"]
    assert parse(PROVIDER | {"listen": {"web_origins": origins}}, ROOT).listen.web_origins == tuple(origins)
    assert parse(PROVIDER, ROOT).listen.web_origins == ()


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        parse(PROVIDER, ROOT).log.level = "debug"  # type: ignore[misc]


def test_only_the_provider_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^provider: write a domain name in lower case"):
        parse({}, ROOT)


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (
            {"provder": "a.example"},
            ["provider: write a domain", "provder: there is no such key; did you mean provider?"],
        ),
        (
            {"Provider": "a.example"},
            ["provider: write a domain", "Provider: there is no such key; did you mean provider?"],
        ),
        ({"listen": {"provider": "a.example"}}, ["provider: write it at the top of the file, not in [listen]"]),
        ({"log": {"level": "loud"}}, ["provider: write a domain", "[log] level: write one of"]),
        ({"provider": 7, "log": {"level": "loud"}}, ["provider: write a domain", "[log] level: write one of"]),
    ],
)
def test_a_missing_provider_is_named_beside_the_other_faults(table: dict[str, Any], found: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(table, ROOT)
    for start in found:
        assert any(fault.startswith(start) for fault in refused.value.faults), refused.value.faults


@pytest.mark.parametrize("name", ["A.example", "a.example:8443", "127.0.0.1", "", "a..example", "-a.example", 7, None])
def test_a_provider_is_a_lower_case_domain(name: object) -> None:
    with pytest.raises(ConfigError, match=r"^provider: write "):
        parse({"provider": name}, ROOT)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            {"limits": {"max_bdy_bytes": 1}},
            "[limits] max_bdy_bytes: there is no such key; did you mean max_body_bytes?",
        ),
        ({"limit": {}}, "limit: there is no such key; did you mean limits?"),
        ({"providr": "b"}, "providr: there is no such key; did you mean provider?"),
        ({"message_days": 3}, "message_days: this key belongs in section [retention]"),
        ({"log": {"trust": "x"}}, "[log] trust: this key belongs in section [tls]"),
        ({"log": "info"}, "[log]: this is a section; write its name in brackets on a line, and its keys below"),
        ({"data_dir": ""}, "data_dir: write a string in double quotes"),
        ({"limits": {"push_bytes": "1"}}, "[limits] push_bytes: write a whole number, without quotes"),
        ({"limits": {"push_bytes": 1.5}}, "[limits] push_bytes: write a whole number, without quotes"),
        ({"limits": {"push_bytes": True}}, "[limits] push_bytes: write a whole number, without quotes"),
        ({"limits": {"push_bytes": 0}}, "[limits] push_bytes: write 1 or more"),
        ({"limits": {"push_bytes": 1 << 53}}, "[limits] push_bytes: write 9007199254740991 or less"),
        ({"limits": {"receive_wait_seconds": 10**11}}, "[limits] receive_wait_seconds: write 86400000000 or less"),
        ({"retention": {"audit_days": 1_000_001}}, "[retention] audit_days: write 1000000 or less"),
        ({"arrangement": {"required": 1}}, "[arrangement] required: write true or false, without quotes"),
        ({"log": {"level": "loud"}}, '[log] level: write one of "debug", "info", "warning", "error"'),
        ({"federation": {"allow": "b"}}, '[federation] allow: write a list in brackets, such as ["b.example"]'),
        (
            {"federation": {"allow": ["B"]}},
            '[federation] allow: write a domain name in lower case, without a port, such as "a.example"',
        ),
        (
            {"providers": {"b.example": {"url": "http://b.example"}}},
            '[providers."b.example"] url: write "https://host" or "https://host:port", with nothing after it',
        ),
        (
            {"providers": {"b.example": 1}},
            '[providers."b.example"]: this is a section; write its name in brackets on a line, and its keys below',
        ),
        ({"providers": 1}, '[providers]: write one section for each provider, such as [providers."b.example"]'),
        (
            {"listen": {"operator": "0.0.0.0:8445"}},
            "[listen] operator: it has no authentication; write a loopback address",
        ),
        (
            {"listen": {"client": "0.0.0.0:8444", "client_tls": False}},
            "[listen] client_tls: plain HTTP is only allowed on loopback or a Unix socket; "
            "write true, or change client",
        ),
        *(
            (
                {"listen": {"web_origins": [origin]}},
                '[listen] web_origins: write "https://host" or "https://host:port", as a browser shows it: '
                "in lower case, no path",
            )
            for origin in (
                "*",
                "null",
                "chat.example",
                "https://",
                "https://Chat.example",
                "https://chat.example/",
                "https://chat.example:443",
                "https://chat.example:x",
                "https://me@chat.example",
                "https://ch\N{LATIN SMALL LETTER A WITH DIAERESIS}t.example",
                "ftp://chat.example",
                "https://chat.example?x",
            )
        ),
        (
            {"listen": {"web_origins": ["http://chat.example"]}},
            '[listen] web_origins: write "https://..."; only a page of this machine may use plain http',
        ),
        (
            {"mls": {"post_quantum_suites": ["0x0060"]}},
            '[mls] post_quantum_suites: write code points with their suites, such as { "0x0060" = '
            '"MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519" }',
        ),
        (
            {"mls": {"post_quantum_suites": {"96": "none"}}},
            '[mls] post_quantum_suites: 96 is no code point; write "0x" and four hex digits',
        ),
        (
            {"mls": {"post_quantum_suites": {"0x0007": "none"}}},
            "[mls] post_quantum_suites: 0x0007 is the code point of a suite of RFC 9420; write another code point",
        ),
        (
            {"tls": {"client_certificate": "c.pem"}},
            "[tls] client_certificate, client_private_key: write both, or neither",
        ),
        (
            {"retention": {"repeat_days": 365}},
            "[retention] repeat_days: repeats must be recognised for longer than messages are kept; "
            "write more than message_days",
        ),
        (
            {"delivery": {"backoff_first_seconds": 9, "backoff_cap_seconds": 8}},
            "[delivery] backoff_cap_seconds: write at least backoff_first_seconds",
        ),
    ],
)
def test_a_fault_says_where_it_is_and_what_to_write(table: dict[str, Any], fault: str) -> None:
    assert faults(table) == [fault]


def test_a_post_quantum_suite_is_named_as_in_the_table() -> None:
    (fault,) = faults({"mls": {"post_quantum_suites": {"0x0060": "X-Wing"}}})
    assert fault.startswith('[mls] post_quantum_suites: for 0x0060, write "none" or one of MLS_128_MLKEM768X25519_')
    table = {"provider": "a.example", "mls": {"post_quantum_suites": {"0xF060": POST_QUANTUM_NAMES[3], "0x004d": OFF}}}
    assert parse(table, Path()).mls.post_quantum_suites == {0xF060: POST_QUANTUM_NAMES[3], 0x004D: OFF}


def test_all_faults_are_reported_at_once() -> None:
    assert len(faults({"log": {"level": "loud", "colour": "red"}, "limits": {"push_bytes": 0}})) == 3


@pytest.mark.parametrize(
    "text", ["8443", ":8443", "127.0.0.1:", "127.0.0.1:65536", "::1:8443", "[::1]", "a:b:1", "unix:"]
)
def test_an_address_is_host_and_port(text: str) -> None:
    assert len(faults({"listen": {"client": text}})) == 1


@pytest.mark.parametrize(
    "table",
    [
        {"listen": {"public": "127.0.0.1:65536"}},
        {"listen": {"operator": "[::1]:123456"}},
    ],
)
def test_a_port_out_of_range_is_called_that(table: dict[str, Any]) -> None:
    (fault,) = faults(table)
    assert re.search(r": the port [0-9]+ is out of range; write one from 1 to 65535", fault)


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0), True),
        ("[::1]:8443", TcpAddress("::1", 8443), True),
        ("localhost:1", TcpAddress("localhost", 1), True),
        ("0.0.0.0:443", TcpAddress("0.0.0.0", 443), False),  # noqa: S104 - that it is everywhere is the point
        ("ds.a.example:443", TcpAddress("ds.a.example", 443), False),
    ],
)
def test_addresses_print_as_they_are_written(text: str, address: TcpAddress, loopback: bool) -> None:
    read = parse(PROVIDER | {"listen": {"public": text}}, ROOT).listen.public
    assert read == address
    assert read.is_loopback is loopback
    assert str(read) == text


@pytest.mark.parametrize(
    "text",
    ["http://b", "https://", "https://b:0", "https://b:65536", "https://b:x", "https://[b", "https://b/path",
     "https://b?q", "https://b#f", "https://user@b", "b.example", "https:b"],
)  # fmt: skip
def test_a_url_is_https_with_nothing_after_the_host(text: str) -> None:
    assert faults({"providers": {"b.example": {"url": text}}}) == [
        '[providers."b.example"] url: write "https://host" or "https://host:port", with nothing after it'
    ]


@pytest.mark.parametrize("text", ["https://b.example", "https://127.0.0.1:9443", "https://[::1]:9443"])
def test_a_url_is_kept_without_its_last_slash(text: str) -> None:
    for written in (text, f"{text}/"):
        read = parse(PROVIDER | {"providers": {"b.example": {"url": written}}}, ROOT)
        assert [peer.url for peer in read.providers.values()] == [text]


def test_faults_of_a_file_begin_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mimids.toml"
    for text, fault in [
        ('provider = "a.example"\nprovidr = 1\n', "providr: there is no such key"),
        ("provider = \n", "this is not valid TOML"),
        (f"a = {'[' * 10_000}", "this is not valid TOML"),
        (f"a = {'9' * 10_000}", "this is not valid TOML"),
        ("log = 1\n", "provider: write a domain name"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}: {fault}")
    with pytest.raises(ConfigError, match=r"cannot be read .* `mimids init` writes a configuration"):
        load(tmp_path / "nothing.toml")


TOML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_table_gives_a_configuration_or_faults(data: st.DataObject) -> None:
    section, name = data.draw(st.sampled_from([(s, n) for s, names in declared().items() for n in sorted(names)]))
    value = data.draw(TOML_VALUES)
    tables: dict[str, dict[str, Any]] = {
        "": {name: value},
        "providers": {"providers": {"b.example": {name: value}}},
    }
    try:
        assert isinstance(parse(PROVIDER | tables.get(section, {section: {name: value}}), ROOT), Config)
    except ConfigError as refused:
        told = refused.faults
        assert told
