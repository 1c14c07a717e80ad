"""Signed requests: the coordinator signs with an Ed25519 key, a site verifies with the public half.

What is signed is a packet's digest, made elsewhere. A fixed prefix keeps a signature made for a
request from meaning anything in another protocol, should the key ever be used there. Source: RFC
8032.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aulait.core.errors import ConfigError, require

SIGNATURE_BYTES = 64
NO_KEY: Final = (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm)
"""What `cryptography` raises where bytes are no key that it can load."""
_PREFIX = b"aulait signed order, version 1\0"
_LARGEST_FILE_BYTES = 1 << 16
_PUBLIC_LINE = re.compile(rb"ssh-ed25519 [A-Za-z0-9+/]+={0,2}(?: [^\r\n]*)?\r?\n?")


def sign(key: Ed25519PrivateKey, content: bytes) -> bytes:
    """The 64 bytes of a signature on the canonical bytes of a message."""
    return key.sign(_PREFIX + content)


def verify(key: Ed25519PublicKey, content: bytes, signature: bytes) -> bool:
    """Whether the owner of the key signed exactly this content as a request; False for anything
    else, never an error."""
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        key.verify(signature, _PREFIX + content)
    except InvalidSignature:
        return False
    return True


def fingerprint(key: Ed25519PublicKey) -> str:
    """Names the owner of a key of requests: 16 hexadecimal digits."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def load_private(path: Path) -> Ed25519PrivateKey:
    """The coordinator's key, in PKCS8 PEM without a passphrase. Sensitive.

    Raises:
        ConfigError: no such file, others may read it, or it holds something else.
    """
    try:
        key = serialization.load_pem_private_key(private_bytes(path), password=None)
    except NO_KEY as error:
        raise ConfigError(
            f"{path} is no private key in PEM without a passphrase; make one: aulait keys "
            "server") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds a key of another kind, expected Ed25519; give order-key.pem of aulait "
            "keys server")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """The key by which a site knows its coordinator: one OpenSSH line.

    Raises:
        ConfigError: no such file, or it holds something else.
    """
    content = file_bytes(path)
    wrong = f"{path} is not one line 'ssh-ed25519 ...'; copy order-key.pub of the coordinator"
    require(_PUBLIC_LINE.fullmatch(content) is not None, ConfigError, wrong)
    try:
        key = serialization.load_ssh_public_key(content)
    except NO_KEY as error:
        raise ConfigError(wrong) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(wrong)
    return key


def private_bytes(path: Path) -> bytes:
    """Content of a private key's file; sensitive.

    Raises:
        ConfigError: no such file, or its group or others may read or change it.
    """
    return file_bytes(path, private=True)


def file_bytes(path: Path, private: bool = False) -> bytes:
    """Content of a small file, which is looked at and read through one handle, so that it cannot be
    changed in between.

    Args:
        path: the file; a link is followed, as secrets are often mounted as links.
        private: refuse it where its group or others have any right to it.

    Raises:
        ConfigError: no such file, too large for a key, or open to others.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"key file {path} cannot be read ({reason}), expected a file made by aulait keys; "
            "check the path") from error
    try:
        status = os.fstat(handle)
        require(stat.S_ISREG(status.st_mode), ConfigError,
                f"key file {path} is no plain file; give the path of a key")
        mode = stat.S_IMODE(status.st_mode)
        text = (
            f"private key {path} has mode {mode:04o}, expected 0600: others must not read it; run: "
            f"chmod 600 {path}"
        )
        require(not private or not mode & 0o077, ConfigError, text)
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    finally:
        os.close(handle)
    require(len(content) <= _LARGEST_FILE_BYTES, ConfigError,
            f"{path} is larger than any key; give the path of a key")
    return content
