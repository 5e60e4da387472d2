"""A self-signed certificate for a cloud, for development and for devices that pin it (--pin), not for the public web.

It is made once and kept, so that the pin stays the same, and made again if it has expired, is damaged or lacks a host.
It does not know servers. Test: pytest tests/cloud/test_certificate.py
"""

from __future__ import annotations

import importlib.util
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sideplug.contract.errors import InputError
from sideplug.paths import locked, not_written, write_aside
from sideplug.sockets import LOOPBACK

if TYPE_CHECKING:
    from cryptography import x509

YEARS = 10  # a device trusts the pin whatever its age, so a short life would only break connections


@dataclass(frozen=True)
class Certificate:
    """file: PEM of the private key and the certificate. fingerprint: `sha256:` and the hex SHA-256 of its DER."""

    file: Path
    fingerprint: str


def self_signed(file: Path, host: str) -> Certificate:
    """Return the certificate in `file`, for this machine and `host`; make it first if need be.

    Raises InputError (an unusable host, a missing package), Stopped (the disk).
    """
    if importlib.util.find_spec("cryptography") is None:
        raise InputError("--tls-self needs the package cryptography: pip install 'sideplug[cloud]'")
    try:
        with locked(file):
            certificate = _read(file)
            names = {*LOOPBACK, _normalised(host)}
            if certificate is None or not names <= _names(certificate):
                write_aside(file, _make(sorted(names | (_names(certificate) if certificate else set()))))
                certificate = _read(file)
            assert certificate is not None
    except OSError as error:
        raise not_written(Path(error.filename or file), error) from error
    from cryptography.hazmat.primitives.hashes import SHA256

    return Certificate(file, f"sha256:{certificate.fingerprint(SHA256()).hex()}")


def _normalised(host: str) -> str:
    """Return a host's name unchanged, or its IP address in the shortest form."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return host


def _read(file: Path) -> x509.Certificate | None:
    """Return the certificate in `file`, or None unless it is whole, valid and has its key."""
    from cryptography import x509

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, password="")
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        _names(certificate)
    except (OSError, ValueError, x509.ExtensionNotFound):  # an ssl.SSLError is an OSError
        return None
    return certificate if certificate.not_valid_after_utc > datetime.now(UTC) else None


def _names(certificate: x509.Certificate) -> set[str]:
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    }


def _make(names: list[str]) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sideplug")])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    usage |= {"digital_signature": True, "encipher_only": False, "decipher_only": False}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + certificate.public_bytes(Encoding.PEM)


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise InputError(f"a certificate can't be made for {name[:80]!r}: give a --host in ASCII letters") from error
