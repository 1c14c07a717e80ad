"""Whether the parts of a aggregator together keep what the settings promise."""

from __future__ import annotations

import math

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Accountant, PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import Noise
from aulait.privacy.record_level import RecordMechanism


def kept(
    config: PrivacyConfig, ledger: Ledger, accountant: Accountant | None, noise: Noise,
    record_mechanism: RecordMechanism | None = None
) -> Accountant:
    """The accountant, once everything that the aggregator was given keeps the promise.

    Raises:
        PrivacyError: a part is missing or says something else than the promise.
    """
    if accountant is None or config.delta is None or config.relation is None:
        raise PrivacyError(
            "privacy is on without an accountant, delta or relation; write them, or privacy.off = "
            "true")
    require(config.trust == "server", PrivacyError,
            'trust = "secure" is not available yet; use trust = "server"')
    text = (
        f"accountant has delta {accountant.delta}, expected privacy.delta = {config.delta}; build "
        "it from that"
    )
    require(accountant.delta == config.delta, PrivacyError, text)
    promised = math.inf if config.epsilon is None else config.epsilon
    for role, budget in accountant.budget.items():
        text = (
            f"role '{role}' has budget {budget}, expected at most privacy.epsilon = {promised}; "
            "lower it"
        )
        require(budget <= promised, PrivacyError, text)
    text = (
        "the noise is seeded but privacy.noise_seed is not set; set it (the run is not private) or "
        "use SystemNoise"
    )
    require(noise.private or config.noise_seed is not None, PrivacyError, text)
    text = (
        f"privacy.unit = '{config.unit}' {'with' if record_mechanism else 'without'} terms for "
        "records; give "
        "terms for 'record' only"
    )
    require((record_mechanism is not None) == (config.unit == "record"), PrivacyError, text)
    for line in ledger.lines:
        text = (
            f"ledger release {line.release} has delta {line.delta}, relation '{line.relation}' and "
            f"unit '{line.unit}', expected "
            f"{config.delta}, '{config.relation}' and '{config.unit}'; resume with the settings "
            "the run was started with"
        )
        same = (
            (line.delta, line.relation, line.unit) == (config.delta, config.relation, config.unit)
        )
        require(same, PrivacyError, text)
    return accountant
