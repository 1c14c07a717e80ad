"""What all parties of a round know before its first message."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

from aulait.core.errors import PrivacyError, require
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.graph import Degree, choose, neighbours, shuffled
from aulait.privacy.secure.quorum import Quorum


@dataclass(frozen=True)
class SecureTerms:
    """The public terms of one round.

    Attributes:
        session: drawn anew for every attempt, in hexadecimal.
        identities: client -> public key of its signatures, in hexadecimal.
        ring: the clients in the order of the graph's ring.
        degree: neighbours and threshold.
        quorum: who must stay.
        numbers: coordinates of a vector.
        encoding: how vectors are encoded.

    Raises:
        PrivacyError: with these terms the protocol would not keep its promise.
    """

    session: str
    identities: Mapping[str, str]
    ring: tuple[str, ...]
    degree: Degree
    quorum: Quorum
    numbers: int
    encoding: Encoding

    def __post_init__(self) -> None:
        clients, quorum, threshold = len(self.ring), self.quorum, self.degree.threshold
        sound = (
            len({*self.ring}) == clients and {*self.ring} == {*self.identities}
            and quorum.holds(clients)
            and self.degree.degree / 2 < threshold <= self.degree.degree < clients
            and self.numbers >= 0
        )
        require(sound, PrivacyError,
                f"terms of secure aggregation over {clients} clients, at least {quorum.least}, "
                f"{quorum.colluders} colluding, threshold {threshold} of {self.degree.degree} "
                "found, expected ones that keep its promise; refused")

    @classmethod
    def drawn(cls, identities: Mapping[str, str], quorum: Quorum, numbers: int,
              encoding: Encoding) -> Self:
        """Terms with a fresh session, whose ring is drawn from the system's entropy.

        Raises:
            PrivacyError: there are too few clients.
        """
        names = tuple(identities)
        require(len(names) >= quorum.least, PrivacyError, too_few(len(names), quorum.least))
        degree = choose(len(names), quorum)
        ring = shuffled(names, secrets.token_bytes(32))
        return cls(secrets.token_hex(16), dict(identities), ring, degree, quorum, numbers, encoding)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it: keys, ciphertexts and signatures hold under these terms alone."""
        return hashlib.sha256(
            b"aulait secure aggregation 1|"
            + json.dumps(asdict(self), sort_keys=True).encode()).digest()

    @cached_property
    def places(self) -> dict[str, int]:
        """Client -> its place in every sharing."""
        return {name: place for place, name in enumerate(self.ring, 1)}

    @cached_property
    def neighbours(self) -> dict[str, tuple[str, ...]]:
        """Client -> those with whom it shares masks and secrets."""
        return neighbours(self.ring, self.degree.degree)


def too_few(found: int, least: int) -> str:
    """Why a round is refused."""
    return (f"{found} clients take part in the secure sum, expected at least {least} "
            "(privacy.dropouts); nothing of the round is learnt, go on with --resume when more are "
            "there")


def survivors_message(terms: SecureTerms, survivors: Sequence[str]) -> bytes:
    """What clients sign of the list of those whose vectors arrived."""
    return b"survivors|" + terms.digest + b"|" + json.dumps(sorted(survivors)).encode()
