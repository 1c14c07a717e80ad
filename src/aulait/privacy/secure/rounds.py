"""One round of secure aggregation at the coordinator, wherever its parties are: in this process
(``local_round``) or at the other end of a network. The order of the exchanges is written here and
nowhere else.

A party that does not answer, or whose answer is not taken, has dropped out of the round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.party import Advertisement, Revealed
from aulait.privacy.secure.summation import SecureSumRequest
from aulait.privacy.secure.terms import SecureTerms

KEYS: Final = "keys"
SHARES: Final = "shares"
VECTOR: Final = "masked vector"
SIGNATURE: Final = "signature"
SECRETS: Final = "revealed shares"


class Parties(Protocol):
    """The clients of a round. Each exchange gives (client, answer) as answers come."""

    def advertise(self) -> Iterable[tuple[str, Advertisement]]:
        """Ask all clients of the round for keys."""

    def share(self, told: Mapping[str, Mapping[str, Advertisement]]
              ) -> Iterable[tuple[str, Mapping[str, bytes]]]:
        """Tell clients the keys of their neighbours; what they seal for them."""

    def agree(self, survivors: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        """Tell the survivors who they are; their signatures."""

    def reveal(self, signatures: Mapping[str, bytes]) -> Iterable[tuple[str, Revealed]]:
        """Tell those who signed all signatures; shares of their neighbours' secrets."""

    def refused(self, client: str, what: str) -> None:
        """An answer of a client is not taken."""


class SecureRound:
    """The coordinator's half of a round.

    Args:
        terms: of the round.
        parties: its clients.

    Attributes:
        terms: of the round.
        sealed: client -> what its neighbours sealed for it, of all that shared their secrets and
            whose vectors have not come; filled by ``open``.
    """

    def __init__(self, terms: SecureTerms, parties: Parties) -> None:
        self.terms, self._clients = terms, parties
        self._server = SecureSum(terms)
        self.sealed: dict[str, dict[str, bytes]] = {}

    def open(self) -> None:
        """Exchange keys and shares.

        Raises:
            PrivacyError: too few clients are left; so for what follows.
        """
        for name, keys in self._clients.advertise():
            self._note(self._server.receive_keys(name, keys), name, KEYS)
        for name, sealed in self._clients.share(self._server.keys_for()):
            self._note(self._server.receive_shares(name, sealed), name, SHARES)
        self.sealed = self._server.shares_for()

    def receive(self, client: str, masked: bytes) -> bool:
        """Whether a client's masked vector is added to the sum."""
        taken = self._server.receive_vector(client, masked)
        self._note(taken, client, VECTOR)
        if taken:
            self.sealed.pop(client, None)
        return taken

    def close(self) -> None:
        """Nobody else comes: the survivors agree on who they are.

        Raises:
            PrivacyError: they are too few; then nothing of any vector is known, and never will be.
        """
        for name, signature in self._clients.agree(self._server.survivors()):
            self._note(self._server.receive_signature(name, signature), name, SIGNATURE)

    def total(self) -> tuple[Tensor, int]:
        """The survivors reveal what takes the masks away: the sum of their vectors, float64, with
        their noise, and how many they are. Whoever accounts for the sum does so before."""
        for name, revealed in self._clients.reveal(self._server.signatures()):
            self._note(self._server.receive_secrets(name, revealed), name, SECRETS)
        found, survivors = self._server.total()
        return self.terms.encoding.decoded(found), survivors

    def noise_std(self, clients: int) -> float:
        """Standard deviation of the noise in a sum over so many clients."""
        return self.terms.encoding.noise_std(clients)

    def _note(self, taken: bool, client: str, what: str) -> None:
        if not taken:
            self._clients.refused(client, what)


def encoding_of(asked: SecureSumRequest) -> Encoding:
    """How the vectors of a round are encoded; it follows from what is asked for, so that a client
    that knows that computes the same.

    Raises:
        PrivacyError: the noise does not keep what is accounted.
    """
    quorum = asked.quorum
    encoding = Encoding.fitting(asked.bound, asked.sigma, quorum.honest,
                                max(asked.planned, len(asked.clients)))
    check_multiplier(asked.accounted,
                     encoding.multiplier(asked.sensitivity, quorum.honest, asked.numbers))
    return encoding


def check_multiplier(accounted: float, claimed: float) -> None:
    """Raise unless what a sum is accounted as holds for the noise that its clients draw.

    Args:
        accounted: noise multiplier of the event that is charged.
        claimed: that which the divergence of the sum proves.
    """
    require(accounted <= claimed, PrivacyError,
            f"noise multiplier {accounted!r} is accounted and {claimed!r} is proven for the "
            "clients' noise, expected no more than is proven; report this as a defect")
