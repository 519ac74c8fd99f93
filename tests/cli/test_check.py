"""`mimids check` finds each fault, and reports nothing where there is none."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from mimids.cli.certificates import new_authority, read_authority
from mimids.cli.main import main
from mimids.config import Config, load
from mimids.ds.devices import accounts
from mimids.ds.wake_ups.vapid_key import ensure_vapid_key
from mimids.ohttp.at_rest import OperatorKey
from mimids.store import push_subscriptions
from mimids.store.engine.sqlite import write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Milliseconds
from mimids.wire.ids import local_user_id
from tests.support.cli_runs import provider, run, serving

NOW = datetime.now(UTC)


def checked(config: Config, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code, and the findings that are not ok, by check."""
    file = config.tls.certificate.parent / "mimids.toml"
    result = CliRunner().invoke(main, ["check", "--json", "--config", str(file), *arguments])
    answer = json.loads(result.stdout)
    assert answer["ok"] == (result.exit_code == 0)
    faults: dict[str, list[dict[str, Any]]] = {}
    for finding in answer["findings"]:
        assert (finding["state"] == "ok") == (finding["fix"] is None)
        if finding["state"] != "ok":
            faults.setdefault(finding["check"], []).append(finding)
    return result.exit_code, faults


def test_a_new_provider_has_no_faults_but_names_no_other_provider(tmp_path: Path) -> None:
    code, faults = checked(provider(tmp_path))
    assert code == 0
    assert set(faults) == {"peers"}


def test_push_services_that_cannot_be_reached_and_a_key_that_cannot_be_read_are_found(tmp_path: Path) -> None:
    config = provider(tmp_path)

    def subscribe(tx: Tx) -> None:
        accounts.add_user(tx, config.provider, "alice", Milliseconds(0))
        added = accounts.add_device(tx, config.provider, "alice", "phone", Milliseconds(0))
        ((digest,),) = tx.all("SELECT token_digest FROM devices")
        device = Device(
            config.provider, local_user_id(config.provider, "alice"), added.row, "phone", token_digest=digest
        )
        push_subscriptions.put(tx, device, "https://localhost:1/secret", b"\4" + bytes(64), bytes(16))
        ensure_vapid_key(tx, OperatorKey(bytes(32)))

    write_here(config.database, subscribe)
    code, faults = checked(config)
    assert code == 1
    key, service = faults["push"]
    assert "cannot be read" in key["what"]
    assert service["what"].startswith("https://localhost:1 cannot be reached")
    assert "secret" not in service["what"]
    _, faults = checked(config, "--no-peers")
    assert len(faults["push"]) == 1


def reissue(config: Config, change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder], name: str) -> None:
    """Replace the provider's certificate by another one of its authority."""
    directory = config.tls.certificate.parent
    authority = read_authority(directory / "ca.pem", directory / "ca.key")
    made = authority.issue([name])
    leaf = made.certificate
    builder = x509.CertificateBuilder(leaf.issuer, leaf.subject, leaf.public_key(), leaf.serial_number)
    builder = builder.not_valid_before(NOW - timedelta(days=2)).not_valid_after(NOW + timedelta(days=100))
    builder = builder.add_extension(
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False
    )
    changed = change(builder).sign(authority.private_key, SHA256())
    config.tls.certificate.unlink()
    config.tls.private_key.unlink()
    type(made)(changed, made.private_key).write(config.tls.certificate, config.tls.private_key)


def usage(*purposes: x509.ObjectIdentifier) -> Callable[[x509.CertificateBuilder], x509.CertificateBuilder]:
    return lambda builder: builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)


def until(end: timedelta) -> Callable[[x509.CertificateBuilder], x509.CertificateBuilder]:
    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        builder._not_valid_after = (NOW + end).replace(tzinfo=None)
        return builder

    return change


@pytest.mark.parametrize(
    ("change", "name", "check", "state", "says"),
    [
        (usage(ExtendedKeyUsageOID.SERVER_AUTH), "a.example", "client certificate", "wrong", "clientAuth"),
        (usage(ExtendedKeyUsageOID.CLIENT_AUTH), "a.example", "certificate", "wrong", "serverAuth"),
        (until(timedelta(days=-1)), "a.example", "certificate", "wrong", "expired"),
        (until(timedelta(days=3)), "a.example", "certificate", "warning", "expires"),
        (lambda builder: builder, "*.example", "certificate", "wrong", "is for no domain, not for a.example"),
        (lambda builder: builder, "b.example", "certificate", "wrong", "is for b.example, not for a.example"),
    ],
)
def test_an_unusable_certificate_is_found(
    tmp_path: Path, change: Any, name: str, check: str, state: str, says: str
) -> None:
    config = provider(tmp_path)
    reissue(config, change, name)
    code, faults = checked(config)
    assert code == (state == "wrong")
    ((fault,),) = [found for found_check, found in faults.items() if found_check == check]
    assert fault["state"] == state
    assert says in fault["what"]


def test_a_certificate_without_purposes_is_valid_for_both(tmp_path: Path) -> None:
    config = provider(tmp_path)
    reissue(config, lambda builder: builder, "a.example")
    assert checked(config)[0] == 0


def test_a_key_of_another_certificate_or_readable_by_others_is_found(tmp_path: Path) -> None:
    config = provider(tmp_path)
    config.tls.private_key.chmod(0o640)
    assert checked(config)[1]["certificate"][0]["fix"] == f"chmod 600 {config.tls.private_key}"
    config.tls.private_key.unlink()
    new_authority("other").write(tmp_path / "other.pem", config.tls.private_key)
    code, faults = checked(config)
    assert code == 1
    assert "is not the key of" in faults["certificate"][0]["what"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    config = provider(tmp_path)
    config.tls.certificate.unlink()
    (tmp_path / "ca.pem").write_text("nothing")
    config.database.unlink()
    code, faults = checked(config)
    assert code == 1
    assert {"certificate", "trust", "database"} <= set(faults)
    assert "`mimids migrate`" in faults["database"][0]["fix"]


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with closing(sqlite3.connect(config.database)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute(
            "INSERT INTO devices (owner, name, token_digest, created_at) VALUES (7, 'x', zeroblob(32), 0)"
        )
    code, faults = checked(config)
    assert code == 1
    assert "a row of devices refers to a row that does not exist" in faults["database"][0]["what"]


@pytest.mark.parametrize("keep", [5000, 40_000, 200_000])
def test_a_truncated_database_is_found_and_no_command_ends_with_a_traceback(tmp_path: Path, keep: int) -> None:
    config = provider(tmp_path)
    with config.database.open("r+b") as file:
        file.truncate(keep)
    code, faults = checked(config)
    assert code == 1
    assert "restore the newest backup" in faults["database"][0]["fix"]
    file_ = config.tls.certificate.parent / "mimids.toml"
    for command in (["user", "list"], ["user", "add", "alice"], ["migrate"], ["serve"], ["group", "list"]):
        ended = CliRunner().invoke(main, [*command, "--config", str(file_)])
        assert isinstance(ended.exception, SystemExit), ended.exception
        assert ended.exit_code == 1


def test_a_clock_that_is_behind_its_own_database_is_found(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with closing(sqlite3.connect(config.database)) as connection, connection:
        ahead = int(time.time() * 1000) + 7_200_000
        connection.execute("INSERT INTO users (user_id, created_at) VALUES (x'61', ?)", (ahead,))
    code, faults = checked(config)
    assert code == 1
    assert "clock" in faults["clock"][0]["fix"]


def test_devices_without_key_packages_are_counted(tmp_path: Path) -> None:
    config = provider(tmp_path)
    for command in (["user", "add", "alice"], ["device", "add", "alice", "1"]):
        assert CliRunner().invoke(main, [*command, "--config", str(tmp_path / "mimids.toml")]).exit_code == 0
    code, faults = checked(config)
    assert code == 0
    assert faults["stock"][0]["what"] == "0 of 1 devices have KeyPackages"


def test_an_address_in_use_is_found(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = provider(tmp_path, client=f"127.0.0.1:{taken.getsockname()[1]}")
        code, faults = checked(config)
    assert code == 1
    assert "change client in [listen]" in faults["listeners"][0]["fix"]


def test_a_path_that_is_too_long_for_a_socket_is_found(tmp_path: Path) -> None:
    config = provider(tmp_path)
    text = (tmp_path / "mimids.toml").read_text().replace("[listen]", f'[listen]\noperator_socket = "{"x" * 108}"')
    (tmp_path / "mimids.toml").write_text(text)
    code, faults = checked(config, "--no-peers")
    assert code == 1
    assert "operator_socket" in faults["listeners"][0]["fix"]
    added = CliRunner().invoke(main, ["user", "add", "alice", "--config", str(tmp_path / "mimids.toml")])
    assert added.exit_code == 0, added.stderr


@pytest.mark.slow
def test_peers_are_called_with_our_certificate(tmp_path: Path) -> None:
    """One provider allows us, one does not, and one does not exist."""
    a, b = tmp_path / "a", tmp_path / "b"
    authority = new_authority("both")
    authority.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    provider(b, "b.example", authority=tmp_path / "ca.pem", allow=("a.example",))
    with serving("--config", "mimids.toml", cwd=b) as (_, said):
        at = "https://" + next(line.split()[-1] for line in said if line.strip().startswith("public"))
        peers = (("b.example", at), ("c.example", "https://127.0.0.1:1"))
        allow = tuple(name for name, _ in peers)
        config = provider(a, "a.example", authority=tmp_path / "ca.pem", allow=allow, peers=peers)
        code, faults = checked(config)
        assert code == 1
        assert set(faults) == {"peer c.example"}
        assert checked(config, "--no-peers")[0] == 0
        stranger = provider(
            tmp_path / "z", "z.example", authority=tmp_path / "ca.pem", allow=allow[:1], peers=peers[:1]
        )
        _, faults = checked(stranger)
        assert "z.example" in faults["peer b.example"][0]["fix"]
        printed = run("check", "--config", "mimids.toml", cwd=a)
        assert printed.code == 1
        assert "✗ peer c.example" in printed.out
        assert "1 wrong" in printed.out


def test_certificates_are_pem(tmp_path: Path) -> None:
    config = provider(tmp_path)
    leaf = x509.load_pem_x509_certificate(config.tls.certificate.read_bytes())
    config.tls.certificate.write_bytes(leaf.public_bytes(Encoding.DER))
    code, faults = checked(config)
    assert code == 1
    assert "cannot be read" in faults["certificate"][0]["what"]


def test_a_provider_that_nothing_certifies_is_found(tmp_path: Path) -> None:
    """The authority that `init` makes does not certify others; each of them needs a file of its own."""
    config = provider(tmp_path, allow=("b.example", "c.example"))
    file = tmp_path / "mimids.toml"
    ((fault,),) = [checked(config, "--no-peers")[1]["trust"]]
    assert fault["state"] == "warning"
    assert fault["what"].startswith("b.example, c.example: trusted only with certificates of our own authority")
    new_authority("of b").write(tmp_path / "b.pem", tmp_path / "b.key")
    own = '\n[providers."b.example"]\ntrust = "b.pem"\n[providers."c.example"]\nurl = "https://127.0.0.1:9443"\n'
    file.write_text(file.read_text() + own)
    assert "trust" not in checked(load(file), "--no-peers")[1]


def test_an_authority_that_has_expired_trusts_nobody(tmp_path: Path) -> None:
    config = provider(tmp_path, allow=("b.example",))
    ended = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    authority = read_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    builder = x509.CertificateBuilder(ended.issuer, ended.subject, ended.public_key(), ended.serial_number)
    builder = builder.not_valid_before(NOW - timedelta(days=9)).not_valid_after(NOW - timedelta(days=1))
    pem = builder.sign(authority.private_key, SHA256()).public_bytes(Encoding.PEM)
    (tmp_path / "ca.pem").write_bytes(pem)
    file = tmp_path / "mimids.toml"
    assert "which is for b.example, has expired" in checked(config, "--no-peers")[1]["trust"][0]["what"]
    (tmp_path / "b.pem").write_bytes(pem)
    file.write_text(file.read_text() + '\n[providers."b.example"]\ntrust = "b.pem"\n')
    (fault,) = checked(load(file), "--no-peers")[1]["trust"]
    assert "every certificate in" in fault["what"]
    assert fault["state"] == "wrong"


def test_a_system_without_authorities_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider(tmp_path, allow=("b.example",))
    file = tmp_path / "mimids.toml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("trust")))
    assert "trust" not in checked(load(file), "--no-peers")[1]
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    (fault,) = checked(load(file), "--no-peers")[1]["trust"]
    assert "this system has no certificates of authorities" in fault["what"]
