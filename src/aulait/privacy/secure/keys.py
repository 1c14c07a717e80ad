"""The keys of one round: agreement, sealed messages between two clients, and signatures.

Every client makes two pairs of X25519 keys anew in every round, one to seal shares for a
neighbour and one for the common mask of two neighbours. What two clients agree on goes through
HKDF with the round's digest and both names, so no key serves two rounds, two pairs or two purposes.
A sealing key is used for one message in one direction, hence the fixed nonce of ChaCha20-Poly1305.
Signatures are Ed25519, by a key that outlives the round and that the others know to be the
client's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aulait.core.errors import WireError

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16  # that sealing adds
_NONCE: Final = bytes(12)  # every sealing key seals one message


@dataclass(frozen=True)
class AgreementKey:
    """A pair of X25519 keys.

    Attributes:
        secret: 32 bytes.
        public: 32 bytes.
    """

    secret: bytes
    public: bytes

    @classmethod
    def new(cls) -> Self:
        """A fresh pair."""
        return cls.of(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, secret: bytes) -> Self:
        """The pair of a secret."""
        return cls(secret, X25519PrivateKey.from_private_bytes(secret).public_key()
                   .public_bytes_raw())

    @cached_property
    def _pair(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.secret)

    def agree(self, public: bytes, salt: bytes, purpose: bytes) -> bytes:
        """32 bytes that only the holders of the two pairs can compute.

        Args:
            public: of the other.
            salt: digest of the round's terms.
            purpose: what the bytes are for.

        Raises:
            WireError: the other's key is none.
        """
        try:
            shared = self._pair.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # of a wrong length, or a point of small order
            raise WireError("a public key that is none found, expected one of X25519; the round "
                            "is refused") from error
        return HKDF(SHA256(), KEY_BYTES, salt, purpose).derive(shared)


_PROBE: Final = AgreementKey.of(bytes(range(KEY_BYTES)))  # no secret: it serves a look at keys


@lru_cache(maxsize=1 << 14)  # a simulation's clients look at the same keys
def is_agreement_key(public: bytes) -> bool:
    """Whether others can agree on something with the holder of such a public key."""
    try:
        _PROBE.agree(public, b"", b"probe")
    except WireError:
        return False
    return True


def seal(key: bytes, message: bytes, beside: bytes) -> bytes:
    """The message, encrypted and authenticated together with what stands beside it."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, message, beside)


def unseal(key: bytes, sealed: bytes, beside: bytes) -> bytes:
    """What was sealed.

    Raises:
        WireError: it was changed, or sealed by another key.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, beside)
    except InvalidTag as error:
        raise WireError("sealed shares that were changed on the way found, expected those that "
                        "the other client sealed; the round is refused") from error


@dataclass(frozen=True)
class Identity:
    """Who a client is for the others, over all rounds.

    Attributes:
        secret: Ed25519, 32 bytes.
        public: 32 bytes.
    """

    secret: bytes
    public: bytes

    @classmethod
    def new(cls) -> Self:
        """A fresh one."""
        return cls.of(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, secret: bytes) -> Self:
        """That of a secret."""
        return cls(secret, Ed25519PrivateKey.from_private_bytes(secret).public_key()
                   .public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)


@lru_cache(maxsize=1 << 14)  # a simulation's clients verify the same signatures
def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of an identity has signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
