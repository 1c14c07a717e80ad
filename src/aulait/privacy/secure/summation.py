"""How the aggregator reaches the parties of a secure sum, wherever they are: it asks for a round,
hands over what is the clients' own, and gets their noised sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aulait.privacy.noise_source import RandomWords
from aulait.privacy.secure.quorum import Quorum

if TYPE_CHECKING:  # a plan needs no torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SecureSumRequest:
    """What a round of a release is to be; all of it public but the randomness.

    Attributes:
        stage, round: of the release.
        clients: those who are asked.
        planned: the public number of clients the sum is planned for.
        quorum: who must stay.
        numbers: coordinates of a client's vector.
        bound: C, its L2 bound.
        sensitivity: L2 distance by which one unit moves the sum.
        sigma: standard deviation that the noise of the fewest honest clients must have.
        accounted: noise multiplier that is charged.
        words: client -> its randomness for the noise.
    """

    stage: str
    round: int
    clients: tuple[str, ...]
    planned: int
    quorum: Quorum
    numbers: int
    bound: float
    sensitivity: float
    sigma: float
    accounted: float
    words: Callable[[str], RandomWords]


class SecureParties(Protocol):
    """The clients of one round, as the aggregator sees them."""

    @property
    def away(self) -> bool:
        """Whether vectors come clipped, noised and masked from where the clients are, so that an
        update here only says whose has come."""

    def add(self, client: str, vector: Tensor) -> bool:
        """A client that is here clips, rounds, adds its noise, masks and sends its vector; whether
        it is one of the round."""

    def close(self) -> None:
        """Nobody else comes; raises PrivacyError where too few have."""

    def total(self) -> tuple[Tensor, int]:
        """The noised sum, float64, and how many clients are in it; accounted for before."""

    def noise_std(self, clients: int) -> float:
        """Standard deviation of the noise in a sum over so many clients."""


BeginSecureSum = Callable[[SecureSumRequest], SecureParties]
