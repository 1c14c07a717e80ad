"""Several pairs (epsilon, delta) of the same releases: all of them hold at once.

One pair says little of an average case: the epsilon of a tiny delta is that of the rarest outcomes.
What an attacker can do at best follows from the whole curve (``reporting.guarantee``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.ledger import Ledger

DELTAS: Final = (1e-3, 1e-2, *(k / 20 for k in range(1, 13)), 0.7, 0.8)


def privacy_curve(events: Mapping[Event, int]) -> list[tuple[float, float]]:
    """Pairs (epsilon, delta) that all events together keep, at large deltas; empty where all are
    Gaussians of full participation, for these of full participation have a closed form.

    Args:
        events: event -> how often.
    """
    if all(event.sampling_rate == 1.0 and not event.concentrated for event in events):
        return []
    return [(epsilon(events, delta), delta) for delta in DELTAS]


def curves_of(ledger: Ledger) -> dict[str, list[tuple[float, float]]]:
    """Role -> pairs (epsilon, delta) that its releases in the ledger keep."""
    roles = {role for line in ledger.lines for role in line.roles}
    return {role: privacy_curve(Counter(ledger.events(role))) for role in sorted(roles)}
