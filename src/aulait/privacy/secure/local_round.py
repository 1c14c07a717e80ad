"""A whole round of secure aggregation in one process: every party is there and sends every message
it would send over a network. It is what a simulation uses; ``traffic`` counts what would travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from aulait.core.errors import WireError
from aulait.privacy.noise_source import RandomWords
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.party import Advertisement, Party, Revealed
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.rounds import SecureRound, encoding_of
from aulait.privacy.secure.shamir import SHARE_BYTES
from aulait.privacy.secure.summation import SecureSumRequest
from aulait.privacy.secure.terms import SecureTerms


@dataclass
class Traffic:
    """Bytes of keys, shares, vectors, signatures and secrets, without what frames a message.

    Attributes:
        up: client -> bytes that it sends.
        down: client -> bytes that it is sent.
    """

    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)


class LocalParties:
    """All parties of a round, in this process; as ``Parties``.

    Args:
        identities: client -> what it signs with.
        terms: of the round.

    Attributes:
        traffic: what would have travelled so far.
    """

    def __init__(self, identities: Mapping[str, Identity], terms: SecureTerms) -> None:
        self.traffic, self._terms = Traffic(), terms
        self._parties = {name: Party(name, own, terms) for name, own in identities.items()}

    def advertise(self) -> Iterator[tuple[str, Advertisement]]:
        """Their keys."""
        for name, party in self._parties.items():
            keys = party.advertise()
            self.traffic.up[name] += _size(keys)
            yield name, keys

    def share(self, told: Mapping[str, Mapping[str, Advertisement]]
              ) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Their shares for each other."""
        for name, peers in told.items():
            self.traffic.down[name] += sum(_size(keys) for keys in peers.values())
            sealed = self._parties[name].share(peers)
            self.traffic.up[name] += _length(sealed)
            yield name, sealed

    def masked(self, client: str, sealed: Mapping[str, bytes], vector: Tensor,
               words: RandomWords) -> bytes:
        """A client clips and encodes its vector, adds its noise and masks it."""
        self.traffic.down[client] += _length(sealed)
        noised = self._terms.encoding.noised(vector, words)
        masked = self._parties[client].mask(sealed, noised)
        self.traffic.up[client] += len(masked)
        return masked

    def agree(self, survivors: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Their signatures."""
        for name in survivors:
            signature = self._parties[name].agree(survivors)
            self.traffic.down[name] += (len(self._terms.ring) + 7) // 8  # one bit a client
            self.traffic.up[name] += len(signature)
            yield name, signature

    def reveal(self, signatures: Mapping[str, bytes]) -> Iterator[tuple[str, Revealed]]:
        """Their shares of each other's secrets."""
        for name in signatures:
            self.traffic.down[name] += _length(signatures)
            revealed = self._parties[name].reveal(signatures)
            self.traffic.up[name] += SHARE_BYTES * (len(revealed.seeds) + len(revealed.keys))
            yield name, revealed

    def refused(self, client: str, what: str) -> None:
        """Never: they follow the protocol.

        Raises:
            WireError: always.
        """
        raise WireError(f"{what} of client '{client}', which follows the protocol, not taken; "
                        "report this as a defect")


class LocalRound(SecureRound):
    """One round whose parties are all in this process.

    Args:
        clients: those who are asked; who sends no vector has dropped out.
        quorum: who must stay.
        numbers: coordinates of a vector.
        encoding: how vectors are encoded.
        words: client -> its randomness for the noise.

    Attributes:
        traffic: what would have travelled so far.

    Raises:
        PrivacyError: there are too few clients.
    """

    away = False

    def __init__(self, clients: Sequence[str], quorum: Quorum, numbers: int, encoding: Encoding,
                 words: Callable[[str], RandomWords]) -> None:
        identities = {name: Identity.new() for name in sorted(clients)}
        terms = SecureTerms.drawn({name: own.public.hex() for name, own in identities.items()},
                                  quorum, numbers, encoding)
        self._here, self._words = LocalParties(identities, terms), words
        self.traffic = self._here.traffic
        super().__init__(terms, self._here)
        self.open()

    def add(self, client: str, vector: Tensor) -> bool:
        """A client clips and encodes its vector, adds its noise, masks it and sends it.

        Returns:
            Whether it is a client of this round; another one's vector is not counted.
        """
        sealed = self.sealed.get(client)
        if sealed is None:
            return False
        return self.receive(client, self._here.masked(client, sealed, vector, self._words(client)))


def begin_round(asked: SecureSumRequest) -> LocalRound:
    """A round with parties of this process.

    Raises:
        PrivacyError: there are too few clients, or their noise does not keep what is accounted.
    """
    return LocalRound(asked.clients, asked.quorum, asked.numbers, encoding_of(asked), asked.words)


def _size(keys: Advertisement) -> int:
    return sum(map(len, (keys.sealing, keys.masking, keys.commitment, keys.signature)))


def _length(messages: Mapping[str, bytes]) -> int:
    return sum(map(len, messages.values()))
