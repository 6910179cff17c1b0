"""Certificates and keys of a deployment: an authority, the server's certificate, and a key for each SuperNode.

Elliptic curves throughout (P-384): Flower takes no other key for a SuperNode.
"""

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spatl.errors import SpatlError

_VALID_DAYS = 3650
_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """Authority that signs certificates: whoever trusts it trusts what it signed, and nothing else."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True)
class KeyPair:
    """Pair of a private key and its public part, as files hold them."""

    private: bytes
    public: bytes


def make_authority() -> Authority:
    """Make an authority that signs certificates of servers."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SPATL deployment CA")])
    usage = _usage(digital_signature=False, key_cert_sign=True)
    builder = _builder(name, name, key.public_key(), key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Authority(key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA384()))


def make_server_pair(authority: Authority, hosts: Iterable[str]) -> KeyPair:
    """Make a server's key (PEM, PKCS 8), and its certificate (PEM), which is good for those names and addresses."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SPATL SuperLink")])
    builder = _builder(name, authority.certificate.subject, key.public_key(), authority.key.public_key())
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True, key_cert_sign=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)]), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(authority.key, hashes.SHA384())
    return KeyPair(private_pem(key), pem(certificate))


def make_client_pair() -> KeyPair:
    """Make a SuperNode's key pair, in OpenSSH's formats, which are Flower's."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private, public + b"\n")


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as files hold it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as files hold it: PKCS 8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuers: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Return a builder with what every certificate says."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers), critical=False)
    )


def _usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def check_server_pair(authority: Path, certificate: Path, key: Path, *, now: datetime.datetime | None = None) -> None:
    """Raise where a server cannot start with these files, or no client would believe it.

    Args:
        authority: Its certificate.
        certificate: The server's.
        key: The server's.
        now: The time; this machine's clock if not given.

    Raises:
        SpatlError: One of them cannot be read, a certificate is not valid now or was not issued by the authority, or
            the key is another one's.
    """
    try:
        issuer, own = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (authority, certificate))
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        raise SpatlError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise SpatlError(f"{certificate}, {authority} or {key} is damaged: {error}") from error
    now = now or datetime.datetime.now(datetime.UTC)
    for path, each in ((certificate, own), (authority, issuer)):
        if now >= each.not_valid_after_utc:
            raise SpatlError(
                f"{path} expired on {each.not_valid_after_utc:%Y-%m-%d}: no client would believe it; make the "
                "federation's keys anew (spatl deploy init), or set the clock"
            )
        if now < each.not_valid_before_utc:
            raise SpatlError(
                f"{path} is valid from {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and this machine's clock "
                f"says {now:%Y-%m-%d %H:%M}: set the clock"
            )
    if private.public_key() != own.public_key():
        raise SpatlError(f"{key} is not the key of {certificate}: one of them belongs to another federation")
    try:
        own.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        raise SpatlError(
            f"{certificate} was not issued by {authority}, which the clients trust: one belongs to another federation"
        ) from None
