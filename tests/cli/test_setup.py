"""`mimids init` and `mimids migrate`: the provider that they set up can serve."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from mimids.cli.certificates import new_authority, read_authority
from mimids.cli.main import main
from mimids.config import load
from mimids.http.server.tls import dns_names
from mimids.store.engine.migrate import pending
from tests.support.cli_runs import COMMAND_SECONDS, ENVIRONMENT


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_init_writes_a_valid_configuration(tmp_path: Path) -> None:
    made = invoke("init", tmp_path / "a", "--provider", "a.example")
    assert made.exit_code == 0, made.stderr
    file = tmp_path / "a" / "mimids.toml"
    assert f"mimids serve --config {file}" in made.stdout
    config = load(file)
    assert pending(config.database) == []
    assert stat.S_IMODE(config.data_dir.stat().st_mode) == 0o700
    for key in (config.tls.private_key, tmp_path / "a" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_its_certificate_names_the_provider_and_is_valid_for_both_purposes(tmp_path: Path) -> None:
    assert invoke("init", tmp_path, "--provider", "a.example").exit_code == 0
    leaf, authority = certificate(tmp_path / "a.example.pem"), certificate(tmp_path / "ca.pem")
    assert dns_names(leaf.public_bytes(Encoding.DER)) == {"a.example"}
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(usage)
    leaf.verify_directly_issued_by(authority)
    assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc


def test_init_asks_for_the_domain_only_on_a_terminal(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "mimids", "init", "a"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    os.write(terminal, b"A.EXAMPLE\na.example\n")
    said = b""
    with suppress(OSError):  # a terminal raises this when the other side is closed
        while piece := os.read(terminal, 4096):
            said += piece
    os.close(terminal)
    assert asked.wait(COMMAND_SECONDS) == 0, said
    assert b"Domain of your users" in said
    assert b"in lower case" in said
    assert load(tmp_path / "a" / "mimids.toml").provider == "a.example"


def test_a_second_provider_can_get_its_certificate_from_the_authority_of_the_first(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert invoke("init", a, "--provider", "a.example").exit_code == 0
    peer = "a.example=https://127.0.0.1:8443"
    made = invoke("init", b, "--provider", "b.example", "--ca", a / "ca.pem", "--peer", peer)
    assert made.exit_code == 0, made.stderr
    config = load(b / "mimids.toml")
    assert config.federation.allow == ("a.example",)
    assert config.providers["a.example"].url == "https://127.0.0.1:8443"  # type: ignore[index]
    assert config.tls.trust == a / "ca.pem"
    certificate(b / "b.example.pem").verify_directly_issued_by(certificate(a / "ca.pem"))
    assert not (b / "ca.pem").exists()


def test_an_existing_certificate_is_used(tmp_path: Path) -> None:
    pair = tmp_path / "own.pem", tmp_path / "own.key"
    new_authority("somebody").issue(["a.example"]).write(*pair)
    made = invoke("init", tmp_path / "a", "--provider", "a.example", "--certificate", pair[0], "--private-key", pair[1])
    assert made.exit_code == 0, made.stderr
    config = load(tmp_path / "a" / "mimids.toml")
    assert config.tls.presented == pair
    assert config.tls.trust is None
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["data", "mimids.toml", "ohttp.key"]


def test_an_unusable_certificate_is_used_with_a_warning(tmp_path: Path) -> None:
    pair, authority = (tmp_path / "own.pem", tmp_path / "own.key"), new_authority("somebody")
    authority.issue(["b.example"]).write(*pair)
    authority.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    with contextlib.chdir(tmp_path):
        made = invoke("init", "a", "--provider", "a.example", "--certificate", "own.pem", "--private-key", "own.key",
                      "--ca", "ca.pem")  # fmt: skip
    assert made.exit_code == 0
    assert "is for b.example, not for a.example" in made.stderr
    assert load(tmp_path / "a" / "mimids.toml").tls.trust == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--public", "nonsense"), ("--operator", "0.0.0.0:1"), ("--allow", "B.example"), ("--public-url", 'a"b')],
)
def test_an_invalid_plan_is_refused_and_creates_nothing(tmp_path: Path, option: str, value: str) -> None:
    refused = invoke("init", tmp_path / "a", "--provider", "a.example", option, value)
    assert refused.exit_code == 1
    assert not (tmp_path / "a").exists()


def test_no_existing_file_is_replaced(tmp_path: Path) -> None:
    assert invoke("init", tmp_path, "--provider", "a.example").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = invoke("init", tmp_path, "--provider", "b.example")
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    (tmp_path / "mimids.toml").unlink()
    again = invoke("init", tmp_path, "--provider", "a.example")
    assert again.exit_code == 1
    assert {path: path.read_bytes() for path in before if path.exists()}.items() <= before.items()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--provider", "https://a.example"],
        ["--provider", "a.example", "--peer", "b.example"],
        ["--provider", "a.example", "--certificate", __file__],
        ["--provider", "a.example", "--ca", "nowhere.pem"],
    ],
)
def test_contradictory_options_exit_with_2_and_create_nothing(tmp_path: Path, arguments: list[str]) -> None:
    assert invoke("init", tmp_path / "a", *arguments).exit_code == 2
    assert not (tmp_path / "a").exists()


def test_a_directory_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    refused = invoke("init", deep, "--provider", "a.example")
    assert refused.exit_code == 1
    assert "too long for a Unix socket" in refused.stderr
    assert not deep.exists()


def test_an_authority_without_its_key_is_refused(tmp_path: Path) -> None:
    first, second = new_authority("one"), new_authority("two")
    first.write(tmp_path / "one.pem", tmp_path / "one.key")
    second.write(tmp_path / "two.pem", tmp_path / "two.key")
    with pytest.raises(ValueError, match="is not the key of"):
        read_authority(tmp_path / "one.pem", tmp_path / "two.key")
    (tmp_path / "two.key").rename(tmp_path / "one.key")
    refused = invoke("init", tmp_path / "a", "--provider", "a.example", "--ca", tmp_path / "one.pem")
    assert refused.exit_code == 1
    assert "is not the key of" in refused.stderr


def test_migrate_creates_the_database_and_then_changes_nothing(tmp_path: Path) -> None:
    assert invoke("init", tmp_path, "--provider", "a.example").exit_code == 0
    config = load(tmp_path / "mimids.toml")
    config.database.unlink()
    first = invoke("migrate", "--config", tmp_path / "mimids.toml")
    assert first.exit_code == 0
    assert "applied 0001_accounts" in first.stdout
    again = invoke("migrate", "--config", tmp_path / "mimids.toml")
    assert "applied" not in again.stdout
    assert "up to date" in again.stdout


def test_an_invalid_configuration_is_refused_with_all_its_faults(tmp_path: Path) -> None:
    (tmp_path / "mimids.toml").write_text('provider = "a.example"\ncolour = 1\n[listen]\npubic = "x"\n')
    refused = invoke("user", "list", "--config", tmp_path / "mimids.toml")
    assert refused.exit_code == 1
    assert "colour" in refused.stderr
    assert "did you mean public?" in refused.stderr
