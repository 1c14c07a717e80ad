"""A small certificate authority of one federation: its own certificate, and the server's, signed by
it.

The authority signs servers of this federation and nothing else: path length 0, and what it signs is
for servers only.
Sites trust this authority alone, so no public one can vouch for an impostor. Source: RFC 5280;
names RFC 6125.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aulait.core.errors import ConfigError, require
from aulait.core.parsing import reason

AUTHORITY_DAYS = 3650
_SKEW = timedelta(days=1)  # a site's clock may be behind the server's
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def host_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it: an IP address, or a DNS name without wildcards.

    Raises:
        ConfigError: it is neither.
    """
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        name = host.rstrip(".").lower()
        # 10.0.0.256 is no address, and no name either
        numbers = re.fullmatch(r"[0-9.]+", name) is not None
        good = (
            len(name) <= 253 and not numbers and all(_LABEL.fullmatch(label)
                for label in name.split("."))
        )
        text = (
            f"host {host[:80]!r} found, expected a DNS name or an IP address without port, as "
            "coordinator.example.org; correct --host"
        )
        require(good, ConfigError, text)
        return x509.DNSName(name)
    text = (
        f"host {host} found, expected the address that sites dial, not one that stands for all; "
        "correct --host"
    )
    require(not address.is_unspecified and not address.is_multicast, ConfigError, text)
    return x509.IPAddress(address)


def authority(key: ec.EllipticCurvePrivateKey, now: datetime | None = None) -> x509.Certificate:
    """The certificate of a new authority, signed by itself, for ten years.

    Args:
        key: of the authority.
        now: in UTC; None: this moment.
    """
    now = now or datetime.now(UTC)
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"aulait authority {serial:x}"[:48])])
    public = key.public_key()
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(
            public).serial_number(serial)
        .not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False))
    return builder.sign(key, hashes.SHA256())


def server(
    public: ec.EllipticCurvePublicKey, hosts: Sequence[str], days: int, signer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    now: datetime | None = None,
) -> x509.Certificate:
    """A server's certificate.

    Args:
        public: the server's key.
        hosts: DNS names and IP addresses under which sites reach it; at least one.
        days: how long it is good, at least 1.
        signer: certificate of the authority.
        key: of the authority.
        now: in UTC; None: this moment.

    Raises:
        ConfigError: a host is wrong, or the authority ends before.
    """
    now = now or datetime.now(UTC)
    names = list(dict.fromkeys(host_name(host) for host in hosts))
    require(bool(names), ConfigError,
        "found no host, expected the names under which sites reach the server; add --host "
        "NAME_OR_IP")
    left = (signer.not_valid_after_utc - now).days
    text = (
        f"{days} days found, expected 1 to {max(left, 0)}, what is left of the authority; lower "
        "--days, or make new keys elsewhere"
    )
    require(1 <= days <= left, ConfigError, text)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(names[0].value)[:64])])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(signer.subject).public_key(
            public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                       critical=False))
    return builder.sign(key, hashes.SHA256())


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The hosts that a server's certificate names.

    Raises:
        ConfigError: it names none, or cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise ConfigError(
            f"found a certificate without names of hosts ({reason(error)}), expected that of a "
            "server; restore it from a copy, or make a new one: aulait keys renew") from error
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def pem(certificate: x509.Certificate) -> bytes:
    """As it is written to a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load(content: bytes, place: str) -> x509.Certificate:
    """A certificate from a file's content.

    Raises:
        ConfigError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigError(
            f"{place} is no certificate in PEM; restore it from a copy, or make new keys in "
            "another folder") from error


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    """Signing certificates, or signing a handshake: never both."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False)
