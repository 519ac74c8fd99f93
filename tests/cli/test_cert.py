"""`mimids cert renew` issues the provider's certificates again, and nothing else."""

from __future__ import annotations

import json
import shutil
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mimids.cli.certificates import new_authority
from mimids.config import Config
from mimids.http.server.tls import Pair, ServerTls
from tests.support.cli_runs import invoke, provider, run, serving
from tests.support.provider import HOST


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def renewed(result: Any) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [each["certificate"] for each in json.loads(result.stdout)["renewed"]]


def test_a_new_pair_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    config = provider(tmp_path)
    config.tls.certificate.chmod(0o640)
    before, key = leaf(config.tls.certificate), config.tls.private_key.read_bytes()
    assert renewed(invoke(config, "cert", "renew", "--json")) == [str(config.tls.certificate)]
    after = leaf(config.tls.certificate)
    assert config.tls.private_key.read_bytes() != key
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc >= before.not_valid_after_utc
    for extension in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage, x509.KeyUsage):
        assert after.extensions.get_extension_for_class(extension).value == (
            before.extensions.get_extension_for_class(extension).value
        )
    after.verify_directly_issued_by(leaf(tmp_path / "ca.pem"))
    ServerTls(Pair(config.tls.certificate, config.tls.private_key))
    assert stat.S_IMODE(config.tls.certificate.stat().st_mode) == 0o640
    assert stat.S_IMODE(config.tls.private_key.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []
    assert "`mimids reload`" in invoke(config, "cert", "renew").stdout


def test_the_pair_for_calls_is_renewed_and_one_of_another_authority_is_not(tmp_path: Path) -> None:
    config = provider(tmp_path)
    own = tmp_path / "own"
    shutil.copytree(tmp_path, own, ignore=shutil.ignore_patterns("data", "own", "mimids.toml", "ca.*"))
    for file in (config.tls.certificate, config.tls.private_key):
        file.unlink()
    other = new_authority("a public one").issue(["a.example"])
    other.write(config.tls.certificate, config.tls.private_key)
    file = tmp_path / "mimids.toml"
    pair = 'client_certificate = "own/a.example.pem"\nclient_private_key = "own/a.example.key"\n'
    file.write_text(file.read_text().replace("[tls]\n", f"[tls]\n{pair}"))
    before = leaf(own / "a.example.pem")
    assert renewed(invoke(config, "cert", "renew", "--json")) == [str(own / "a.example.pem")]
    assert leaf(config.tls.certificate) == other.certificate
    assert leaf(own / "a.example.pem") != before


def test_a_key_that_is_kept_elsewhere_is_named(tmp_path: Path) -> None:
    config = provider(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    (tmp_path / "ca.key").rename(away / "ca.key")
    refused = invoke(config, "cert", "renew")
    assert refused.exit_code == 1
    assert "ca.key does not exist" in refused.stderr
    assert "--ca FILE" in refused.stderr
    shutil.copy(tmp_path / "ca.pem", away)
    assert renewed(invoke(config, "cert", "renew", "--ca", away / "ca.pem", "--json"))


def refuse(config: Config, what: str, fix: str) -> None:
    before = config.tls.certificate.read_bytes(), config.tls.private_key.read_bytes()
    refused = invoke(config, "cert", "renew")
    assert refused.exit_code == 1
    assert what in refused.stderr.splitlines()[0]
    assert fix in refused.stderr.splitlines()[1]
    assert (config.tls.certificate.read_bytes(), config.tls.private_key.read_bytes()) == before


def test_what_cannot_be_renewed_is_left_as_it_is(tmp_path: Path) -> None:
    config = provider(tmp_path)
    good = config.tls.certificate.read_bytes()
    config.tls.certificate.write_text("nothing")
    refuse(config, "is not a certificate in PEM", "mimids init")
    config.tls.certificate.write_bytes(good)
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).unlink()
    new_authority("another").write(tmp_path / "ca.pem", tmp_path / "ca.key")
    refuse(config, "was issued by another authority", "renew it at that authority")
    (tmp_path / "ca.key").write_text("nothing")
    refuse(config, "ca.pem and its key cannot be used", "--ca FILE")


@pytest.mark.slow
def test_a_running_server_uses_the_new_certificate_after_a_reload(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with serving("--config", "mimids.toml", cwd=tmp_path) as (_, said):
        port = int(next(line for line in said if line.strip().startswith("client")).rpartition(":")[2])

        def served() -> bytes:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((HOST, port)))

        before = served()
        assert run("cert", "renew", cwd=tmp_path).code == 0
        assert run("reload", cwd=tmp_path).code == 0
        assert served() != before
        assert served() == ssl.PEM_cert_to_DER_cert(config.tls.certificate.read_text())
