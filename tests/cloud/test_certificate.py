"""The certificate that a cloud signs itself: kept while it serves, made anew when it can't."""

from __future__ import annotations

import hashlib
import importlib.util
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sideplug.cloud import certificate
from sideplug.contract.errors import InputError, Stopped


def read(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "tls-self.pem"


def test_it_is_made_once(file: Path) -> None:
    made = certificate.self_signed(file, "127.0.0.1")
    assert made == certificate.self_signed(file, "localhost") == certificate.self_signed(file, "0::1")
    pem = file.read_text(encoding="utf-8")
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])
    assert made.fingerprint == "sha256:" + hashlib.sha256(der).hexdigest()
    assert file.stat().st_mode & 0o777 == 0o600
    found = read(file)
    assert certificate._names(found) == {"localhost", "127.0.0.1", "::1"}
    assert found.signature_hash_algorithm is not None
    assert found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3000)


def test_another_host_makes_it_anew_with_the_old_ones(file: Path) -> None:
    first = certificate.self_signed(file, "localhost")
    second = certificate.self_signed(file, "mill.example")
    third = certificate.self_signed(file, "192.0.2.7")
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    assert certificate._names(read(file)) == {"localhost", "127.0.0.1", "::1", "mill.example", "192.0.2.7"}
    assert certificate.self_signed(file, "mill.example") == third
    assert certificate.self_signed(file, "fe80::1%eth0") == certificate.self_signed(file, "fe80::1")


def test_what_has_expired_or_is_damaged_is_made_anew(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "YEARS", 0)
        expired = certificate._make(["127.0.0.1", "::1", "localhost"])
    good = certificate._make(["127.0.0.1", "::1", "localhost"])
    secret, _, public = good.partition(b"-----BEGIN CERTIFICATE")
    another = certificate._make(["x"]).partition(b"-----BEGIN CERTIFICATE")[0]
    spoilt = (b"", b"garbage", good[:300], public, secret, another + b"-----BEGIN CERTIFICATE" + public)
    for content in (expired, *spoilt):
        file.write_bytes(content)
        made = certificate.self_signed(file, "localhost")
        assert file.read_bytes() != content
        assert certificate.self_signed(file, "localhost") == made
    file.write_bytes(good)
    assert certificate.self_signed(file, "localhost") != made
    assert file.read_bytes() == good


@pytest.mark.parametrize("host", ["bücher.example", "mühle"])
def test_a_host_that_no_certificate_can_have(file: Path, host: str) -> None:
    with pytest.raises(InputError, match="a certificate can't be made for"):
        certificate.self_signed(file, host)
    assert not file.exists()


def test_a_disk_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    with pytest.raises(Stopped, match="could not be written"):
        certificate.self_signed(tmp_path / "config" / "tls-self.pem", "localhost")


def test_without_its_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cryptography" else there(name))
    with pytest.raises(InputError, match="--tls-self needs the package cryptography: pip install 'sideplug"):
        certificate.self_signed(file, "localhost")
