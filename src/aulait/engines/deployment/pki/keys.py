"""Keys and certificates of a federation: made with the right mode from the start, and never
overwritten.

The coordinator's folder holds the authority, the server's certificate, the key that signs requests
and the roster: which public key is which site. A site makes its key itself; only the public half
travels. Who may write into the roster
decides who takes part, so it is read strictly and anything doubtful in it is an error. ``*.pem``
without "key" and ``*.pub`` are public; all else here is sensitive.

Flower wants the sites' keys on a NIST curve and in OpenSSH format (flwr 1.41,
``--auth-supernode-private-key``).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aulait.core.errors import ConfigError, require
from aulait.core.files import replace_file
from aulait.core.parsing import parsed_toml
from aulait.core.places import user_path
from aulait.engines.deployment.pki import certificates
from aulait.engines.deployment.pki.site_template import site_file_text
from aulait.engines.deployment.protocol import receipts, signing
from aulait.engines.deployment.protocol.site_names import name_problem

SERVER_DAYS = 825
_PRIVATE, _PUBLIC = 0o600, 0o644
_KIND = "ecdsa-sha2-nistp256"
_LINE = re.compile(rf"({_KIND}) ([A-Za-z0-9+/]+={{0,2}})(?: ([ -~]*))?\r?\n?")


@dataclass(frozen=True)
class Validity:
    """Until when the coordinator's certificates are good.

    Attributes:
        hosts: that the server's certificate names.
        server: end of the server's certificate, UTC.
        authority: end of the authority, UTC; then every site needs a new ca.pem.
    """

    hosts: tuple[str, ...]
    server: datetime
    authority: datetime


def server(folder: Path, hosts: Sequence[str], days: int = SERVER_DAYS) -> Validity:
    """Everything a coordinator needs: authority, server certificate, key for requests, empty
    roster.

    Args:
        folder: made with mode 0700; may exist, without keys in it.
        hosts: DNS names and IP addresses under which sites reach the server.
        days: how long the server's certificate is good.

    Raises:
        ConfigError: a host is wrong, a key is there already, or others may write into the folder.
    """
    root, own, requests = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(
        ec.SECP256R1()), Ed25519PrivateKey.generate()
    authority = certificates.authority(root)
    certificate = certificates.server(own.public_key(), hosts, days, authority, root)
    _write_new(folder, {
        "ca-key.pem": (_pkcs8(root), _PRIVATE), "server-key.pem": (_pkcs8(own), _PRIVATE),
        "order-key.pem": (_pkcs8(requests), _PRIVATE),
        "ca.pem": (certificates.pem(authority), _PUBLIC),
        "server.pem": (certificates.pem(certificate), _PUBLIC),
        "order-key.pub": (_openssh(requests) + b" aulait-orders\n", _PUBLIC)})
    _folder(folder / "roster")
    return validity(folder)


def renew(folder: Path, hosts: Sequence[str] = (), days: int = SERVER_DAYS) -> Validity:
    """A new certificate for the server's kept key, signed by the kept authority; sites need nothing
    new.

    Args:
        folder: of the coordinator.
        hosts: new ones; empty keeps those of the present certificate.
        days: how long it is good.

    Raises:
        ConfigError: a file is missing or wrong, or the authority ends before.
    """
    authority = certificates.load(signing.file_bytes(folder / "ca.pem"), str(folder / "ca.pem"))
    root, own = _elliptic(folder / "ca-key.pem"), _elliptic(folder / "server-key.pem")
    text = (
        f"{folder / 'ca-key.pem'} is not the key of {folder / 'ca.pem'}; restore them from a copy, "
        "or make new keys in another folder"
    )
    require(root.public_key() == authority.public_key(), ConfigError, text)
    hosts = (
        list(hosts)
        or certificates.hosts_of(certificates.load(signing.file_bytes(folder / "server.pem"),
            str(folder / "server.pem")))
    )
    certificate = certificates.server(own.public_key(), hosts, days, authority, root)
    _replace(folder / "server.pem", certificates.pem(certificate))
    return validity(folder)


def validity(folder: Path) -> Validity:
    """Until when a coordinator's certificates are good.

    Raises:
        ConfigError: a certificate is missing or is none.
    """
    ends = {name: certificates.load(signing.file_bytes(folder / name), str(folder / name))
            for name in ("server.pem", "ca.pem")}
    hosts = tuple(certificates.hosts_of(ends["server.pem"]))
    return Validity(hosts, ends["server.pem"].not_valid_after_utc,
                    ends["ca.pem"].not_valid_after_utc)


def site(folder: Path, name: str, address: str = "coordinator.example.org:9443") -> str:
    """A site's key pair and the template of its site file, made at the site.

    Args:
        folder: made with mode 0700; may exist, without keys in it.
        name: of the site.
        address: HOST:PORT of the coordinator, for the template.

    Returns:
        Fingerprint of the public key, for comparing by telephone.

    Raises:
        ConfigError: the name or the address is wrong, or a key is there already.
    """
    text = site_file_text(name, address)
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
                                serialization.NoEncryption())
    public = _openssh(key)
    _write_new(folder,
        {"site-key": (private, _PRIVATE), "site-key.pub": (public + f" {name}\n".encode(), _PUBLIC),
                        "site.toml": (text.encode(), _PUBLIC)})
    return fingerprint(public.decode())


def sums(file: Path) -> tuple[str, str]:
    """Who a site is in secure sums: its name, and the identity that follows from its key.

    Args:
        file: the site file, of which only the name and the place of the key are read.

    Raises:
        ConfigError: it names no site, or there is no key.
    """
    try:
        told = parsed_toml(signing.file_bytes(file))
        name, key = told["site"]["name"], told.get("keys", {}).get("private", "site-key")
        path = file.absolute().parent / user_path(key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} names no site and its key; give the site.toml that aulait keys "
                          "site made") from error
    own = receipts.identity(str(name), path)
    if own is None:
        raise ConfigError(f"found no key {path}, expected this site's; make it: aulait keys site")
    return own.name, own.sums.public.hex()


def enrol(folder: Path, name: str, file: Path, replace: bool = False) -> list[str]:
    """Write a site's public key into the roster. Compare the fingerprint with the site's by another
    way than the file came.

    Args:
        folder: of the coordinator.
        name: of the site.
        file: its site-key.pub.
        replace: the name may get another key, and the key another name; the old entry is gone.

    Returns:
        Names whose entry was replaced or taken away; their old key or name is no longer known.

    Raises:
        ConfigError: the name or the key is wrong or known already.
    """
    problem = name_problem(name)
    require(problem is None, ConfigError, str(problem))
    line, known = public_line(file), roster(folder)
    alike = [other for other in known if other.lower() == name.lower()
             and (other != name or known[other] != line)]
    owners = [other for other in known if known[other] == line and other != name]
    for other in alike[:1]:
        what = (
            "has another key in the roster" if other == name
            else f"differs from '{other}' of the roster by case only"
        )
        require(replace, ConfigError,
                f"site '{name}' {what}; choose another name, or replace the entry: --replace")
    for other in owners[:1]:
        require(replace, ConfigError,
            f"the key of {file} is enrolled as '{other}', expected one name for a key; every site "
            "makes its own key, or rename this one: --replace")
    gone = sorted({*alike, *owners})
    for other in gone:  # first away, then there: whenever this stops, no key has two names
        if other != name:
            (folder / "roster" / f"{other}.pub").unlink()
    _replace(folder / "roster" / f"{name}.pub", f"{line} {name}\n".encode())
    return gone


def roster(folder: Path) -> dict[str, str]:
    """Name -> public key (OpenSSH, without comment) of every enrolled site, sorted by name.

    Raises:
        ConfigError: there is no roster, others may write into it, or an entry is doubtful.
    """
    place = folder / "roster"
    require(place.is_dir(), ConfigError,
        f"found no roster in {folder}, expected the folder of a coordinator; make it: aulait keys "
        "server")
    for path in (folder, place):
        _closed(path)
    found: dict[str, str] = {}
    for path in sorted(place.glob("*.pub")):
        problem = name_problem(path.stem)
        require(problem is None, ConfigError, f"roster file {path}: {problem}")
        line = public_line(path)
        twin = next((name for name, other in found.items()
                     if other == line or name.lower() == path.stem.lower()), None)
        require(twin is None, ConfigError,
            f"roster has '{path.stem}' and '{twin}' with one key or one name; remove one of the "
            "two files")
        found[path.stem] = line
    return found


def public_line(file: Path) -> str:
    """The key of a public key file in its one canonical form, "ecdsa-sha2-nistp256 BASE64".

    Raises:
        ConfigError: the file is not exactly one such line; options before the key are refused.
    """
    wrong = (
        f"{file} is not one line '{_KIND} ...'; give the site-key.pub that aulait keys site made"
    )
    content = signing.file_bytes(file)
    parts = _LINE.fullmatch(content.decode("ascii", "replace"))
    if parts is None:
        raise ConfigError(wrong)
    line = f"{parts[1]} {parts[2]}"
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except signing.NO_KEY as error:
        raise ConfigError(wrong) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(wrong)
    same = key.public_bytes(serialization.Encoding.OpenSSH,
                            serialization.PublicFormat.OpenSSH).decode()
    require(same == line, ConfigError, wrong)
    return line


def fingerprint(line: str) -> str:
    """As ``ssh-keygen -l`` writes it: "SHA256:" and 43 letters."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def as_pem(line: str) -> bytes:
    """A roster's key as Flower tells it of a node: PEM, SubjectPublicKeyInfo."""
    key = serialization.load_ssh_public_key(line.encode())
    return key.public_bytes(serialization.Encoding.PEM,
                            serialization.PublicFormat.SubjectPublicKeyInfo)


def _pkcs8(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def _openssh(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH,
        serialization.PublicFormat.OpenSSH)


def _elliptic(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(signing.private_bytes(path), password=None)
    except signing.NO_KEY as error:
        raise ConfigError(
            f"{path} is no private key in PEM without a passphrase; restore it from a "
            "copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} holds a key of another kind, expected one on an elliptic curve; restore it "
            "from a copy")
    return key


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _closed(path)


def _closed(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    text = f"folder {path} has mode {mode:04o}: anybody may put keys into it; run: chmod 700 {path}"
    require(not mode & 0o002, ConfigError, text)


def _write_new(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """All of these files or none; a file that is there already is an error."""
    _folder(folder)
    there = sorted(name for name in files if os.path.lexists(folder / name))
    text = (
        f"found {', '.join(there)} in {folder}; keys are never overwritten: choose another folder, "
        "or move the old files away"
    )
    require(not there, ConfigError, text)
    made: list[Path] = []
    try:
        for name, (content, mode) in files.items():
            _write(folder / name, content, mode, made)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _write(path: Path, content: bytes, mode: int, made: list[Path]) -> None:
    """A new file with its mode from the first moment, on disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    made.append(path)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: bytes) -> None:
    """A public file, whole or not at all."""
    replace_file(path, content, mode=_PUBLIC)
