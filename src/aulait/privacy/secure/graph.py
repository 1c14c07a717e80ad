"""Who shares masks and secrets with whom: a Harary graph on a random ring.

The clients of a round stand on a ring in random order, and each is the neighbour of the ``degree``
nearest ones, half on either side; in small rounds everybody is everybody's. Masks are common to two
neighbours, and a client's secrets are shared among its neighbours, any ``threshold`` of whom can
give them back. So a client's work grows with the degree, which grows with the logarithm of their
number.

``choose`` takes the smallest degree for which, at most ``absent`` of n clients dropping out and
``colluders`` working with the coordinator, whoever they are but chosen without looking at the ring:

- nobody's colluding neighbours reach the threshold, but for a probability of 2^-40;
- the honest clients that stay are connected by masks, but for 2^-40: the ring falls apart only
  where degree/2 clients in a row are absent or collude;
- everybody's neighbours that stay reach the threshold, but for 2^-30, or the round is refused.

Source: Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020. The probabilities here are exact hypergeometric tails
instead of its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aulait.core.errors import PrivacyError
from aulait.privacy.secure.quorum import Quorum

SECURE, CORRECT = 2.0**-40, 2.0**-30
COMPLETE: Final = 64  # clients up to which everybody is everybody's neighbour


@dataclass(frozen=True)
class Degree:
    """How a round's graph is made.

    Attributes:
        degree: neighbours of a client; even, or all others.
        threshold: neighbours whose shares give a secret back.
    """

    degree: int
    threshold: int


def choose(clients: int, quorum: Quorum) -> Degree:
    """The degree and the threshold of a round.

    Args:
        clients: n.
        quorum: who must stay, at every step, and who may collude.

    Raises:
        PrivacyError: there are too few clients for that.
    """
    if problem := quorum.problem(clients, "clients"):
        raise PrivacyError(problem)
    absent, colluders = clients - quorum.least, quorum.colluders
    if clients > COMPLETE:
        for half in range(1, (clients - 1) // 2):
            threshold = _threshold(clients, 2 * half, absent, colluders)
            if threshold and clients * _run(clients, half, absent + colluders) <= SECURE:
                return Degree(2 * half, threshold)
    # whoever drops out, the neighbours of each that stay are at least so many
    return Degree(clients - 1, clients - absent - 1)


def _threshold(clients: int, degree: int, absent: int, colluders: int) -> int:
    """The largest threshold that those who stay reach, where colluders do not; 0 where there is
    none."""
    threshold = 0
    for most in range(degree + 1):  # neighbours that drop out
        if clients * _more(clients - 1, absent, degree, most) <= CORRECT:
            threshold = degree - most
            break
    reached = clients * _more(clients - 1, colluders, degree, threshold - 1)
    return threshold if 2 * threshold > degree and reached <= SECURE else 0


def _more(others: int, marked: int, drawn: int, than: int) -> float:
    """The probability that among so many drawn ones more than ``than`` are marked."""
    found = sum(math.comb(marked, k) * math.comb(others - marked, drawn - k)
                for k in range(than + 1, min(marked, drawn) + 1) if drawn - k <= others - marked)
    return found / math.comb(others, drawn)


def _run(clients: int, length: int, missing: int) -> float:
    """The probability that so many in a row, from a given place on, are all missing."""
    if length > missing:
        return 0.0
    return math.exp(math.lgamma(missing + 1) - math.lgamma(missing - length + 1)
                    - math.lgamma(clients + 1) + math.lgamma(clients - length + 1))


def neighbours(ring: Sequence[str], degree: int) -> dict[str, tuple[str, ...]]:
    """Name -> its neighbours on the ring, in the order of their distance."""
    count = len(ring)
    if degree >= count - 1:
        return {name: tuple(other for other in ring if other != name) for name in ring}
    away = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    return {name: tuple(ring[(at + step) % count] for step in away)
            for at, name in enumerate(ring)}


def shuffled(names: Sequence[str], seed: bytes) -> tuple[str, ...]:
    """The names on a ring in the order that a seed of 32 bytes gives."""
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
    ordered = sorted(names)
    return tuple(ordered[i] for i in generator.permutation(len(ordered)))
