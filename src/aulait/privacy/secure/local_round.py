"""A whole round of secure aggregation in one process: every party is there and sends every message
it would send over a network. It is what a simulation uses; ``bytes`` counts what would travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from aulait.core.errors import PrivacyError, WireError, require
from aulait.privacy.noise_source import RandomWords
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.party import Advertisement, Party
from aulait.privacy.secure.quorum import Quorum
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


class LocalRound:
    """One round whose parties are all in this process.

    Args:
        clients: those who are asked; who sends no vector has dropped out.
        quorum: who must stay.
        numbers: coordinates of a vector.
        encoding: how vectors are encoded.
        words: client -> its randomness for the noise.

    Attributes:
        terms: of the round.
        traffic: what would have travelled so far.

    Raises:
        PrivacyError: there are too few clients.
    """

    def __init__(self, clients: Sequence[str], quorum: Quorum, numbers: int, encoding: Encoding,
                 words: Callable[[str], RandomWords]) -> None:
        self.traffic, self._words = Traffic(), words
        identities = {name: Identity.new() for name in sorted(clients)}
        self.terms = SecureTerms.drawn({name: own.public.hex() for name, own in identities.items()},
                                       quorum, numbers, encoding)
        self._parties = {name: Party(name, own, self.terms) for name, own in identities.items()}
        self._server = SecureSum(self.terms)
        for name, party in self._parties.items():
            keys = party.advertise()
            self._taken(self._server.receive_keys(name, keys))
            self.traffic.up[name] += _size(keys)
        for name, peers in self._server.keys_for().items():
            self.traffic.down[name] += sum(_size(keys) for keys in peers.values())
            sealed = self._parties[name].share(peers)
            self._taken(self._server.receive_shares(name, sealed))
            self.traffic.up[name] += _length(sealed)
        self._sealed = self._server.shares_for()
        for name, sealed in self._sealed.items():
            self.traffic.down[name] += _length(sealed)

    def add(self, client: str, vector: Tensor) -> bool:
        """A client clips and encodes its vector, adds its noise, masks it and sends it.

        Returns:
            Whether it is a client of this round; another one's vector is not counted.
        """
        sealed = self._sealed.pop(client, None)
        if sealed is None:
            return False
        noised = self.terms.encoding.noised(vector, self._words(client))
        masked = self._parties[client].mask(sealed, noised)
        self._taken(self._server.receive_vector(client, masked))
        self.traffic.up[client] += len(masked)
        return True

    def close(self) -> None:
        """Nobody else comes: the survivors agree on who they are.

        Raises:
            PrivacyError: they are too few; then nothing of any vector is known, and never will be.
        """
        survivors = self._server.survivors()
        for name in survivors:
            signature = self._parties[name].agree(survivors)
            self._taken(self._server.receive_signature(name, signature))
            self.traffic.down[name] += (len(self.terms.ring) + 7) // 8  # one bit a client
            self.traffic.up[name] += len(signature)

    def total(self) -> tuple[Tensor, int]:
        """The survivors reveal what takes the masks away: the sum of their vectors, float64, with
        their noise, and how many they are. Whoever accounts for the sum does so before."""
        signatures = self._server.signatures()
        for name in signatures:
            self.traffic.down[name] += _length(signatures)
            revealed = self._parties[name].reveal(signatures)
            self._taken(self._server.receive_secrets(name, revealed))
            self.traffic.up[name] += SHARE_BYTES * (len(revealed.seeds) + len(revealed.keys))
        found, survivors = self._server.total()
        return self.terms.encoding.decoded(found), survivors

    def noise_std(self, clients: int) -> float:
        """Standard deviation of the noise in a sum over so many clients."""
        return self.terms.encoding.noise_std(clients)

    @staticmethod
    def _taken(taken: bool) -> None:
        require(taken, WireError, "a message of a client that follows the protocol is not taken; "
                "report this as a defect")


def begin_round(asked: SecureSumRequest) -> LocalRound:
    """A round with parties of this process.

    Raises:
        PrivacyError: there are too few clients, or their noise does not keep what is accounted.
    """
    quorum = asked.quorum
    encoding = Encoding.fitting(asked.bound, asked.sigma, quorum.honest,
                                max(asked.planned, len(asked.clients)))
    check_multiplier(asked.accounted,
                     encoding.multiplier(asked.sensitivity, quorum.honest, asked.numbers))
    return LocalRound(asked.clients, quorum, asked.numbers, encoding, asked.words)


def check_multiplier(accounted: float, claimed: float) -> None:
    """Raise unless what a sum is accounted as holds for the noise that its clients draw.

    Args:
        accounted: noise multiplier of the event that is charged.
        claimed: that which the divergence of the sum proves.
    """
    require(accounted <= claimed, PrivacyError,
            f"noise multiplier {accounted!r} is accounted and {claimed!r} is proven for the "
            "clients' noise, expected no more than is proven; report this as a defect")


def _size(keys: Advertisement) -> int:
    return sum(map(len, (keys.sealing, keys.masking, keys.commitment, keys.signature)))


def _length(messages: Mapping[str, bytes]) -> int:
    return sum(map(len, messages.values()))
