"""Whether this site takes part in the secure sums that terms describe, and what they cost it.

The coordinator is believed nothing that would weaken the promise: who the others are stands in this
site's own file (``[peers]``), so nobody can be invented around it; quorum, graph, encoding and
noise follow from the terms that it takes, and are computed here.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from aulait.core.errors import AulaitError
from aulait.engines.deployment.protocol.heads import SumStage
from aulait.engines.deployment.protocol.run_terms import RunTerms, SumTerms
from aulait.engines.deployment.protocol.sum_messages import MOST_CLIENTS
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.methods.shared import line_search
from aulait.privacy import accounting
from aulait.privacy.accounting import Event
from aulait.privacy.mechanisms import DISTRIBUTED_GAUSSIAN
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.quorum import Quorum
from aulait.synthesis.private_evolution import vote_bound

LEAST_BOUND: Final = 1e-6  # below, single precision rounds updates away
_ROUNDING: Final = 1 + 1e-6


def sum_problems(file: SiteFile, identity: Identity | None, terms: RunTerms) -> list[str]:
    """Why this site takes no part in the secure sums of a run, one line for each reason; empty
    where it does, or where there are none.

    Args:
        file: of the site.
        identity: who it is in sums; None where it has no key.
        terms: of the run, whose quantities are within their bounds.
    """
    privacy, sums = terms.privacy, terms.sums
    if not privacy.secure or sums is None:
        return []  # one without the other is a matter of trust
    if privacy.unit != "client" or privacy.noise_seed is not None:
        return ["privacy.unit = 'record' or privacy.noise_seed found with privacy.trust = "
                "'secure', expected the unit 'client' and nobody's seed; correct the experiment"]
    try:
        found = _of_method(terms) + _peers(file, identity, sums)
        for stage in sum_rounds(terms):
            found += _of_sum(file.limits, terms, sums, stage)
        return found or _spends(file.limits, terms)
    except (AulaitError, ValueError, OverflowError) as error:
        return [f"the secure sums of the run cannot be counted ({type(error).__name__}); expected "
                "a valid promise; ask the coordinator"]


def sum_rounds(terms: RunTerms) -> dict[SumStage, int]:
    """Release -> in how many rounds a client adds to it."""
    found: dict[SumStage, int] = {}
    if terms.votes and terms.synthesis_rounds:
        found["synthesis"] = terms.synthesis_rounds
    if terms.placement == "local" and terms.rounds:
        found["train"] = terms.rounds
        if line_search.searches(terms.method_config):
            found["search"] = terms.rounds
    return found


def quorum_of(terms: RunTerms, sums: SumTerms, stage: SumStage) -> Quorum:
    """Who must stay in a sum, by the terms."""
    return Quorum.of(sums.planned[stage], terms.privacy.dropouts, terms.privacy.colluders)


def sum_event(sums: SumTerms, stage: SumStage) -> Event:
    """What one sum costs a client."""
    return DISTRIBUTED_GAUSSIAN.event(sums.noise[stage], 1.0, 1)


def planned_epsilon(terms: RunTerms, sums: SumTerms) -> float:
    """Epsilon of a client after all sums that the terms plan."""
    assert terms.privacy.delta is not None
    events: Counter[Event] = Counter()
    for stage, rounds in sum_rounds(terms).items():
        events[sum_event(sums, stage)] += rounds
    return accounting.epsilon(events, terms.privacy.delta)


def bound_problem(limits: SitePolicy, terms: RunTerms, stage: SumStage, bound: float) -> str | None:
    """Why a sum with this bound is none of the terms; None where it is.

    The bound of updates is that of the terms where it is known before the run. Where it follows
    from what was released before, it is public and must be within the site's limit."""
    privacy, known = terms.privacy, None
    if stage == "synthesis":
        known = vote_bound(terms.records_per_client)
    elif stage == "search":
        known = line_search.BOUND
    elif privacy.known_clip is not None:
        known = privacy.known_clip
    if known is not None:
        return None if bound == known else (
            f"a sum with bound {bound:g} found, by the terms it is {known:g}")
    if LEAST_BOUND <= bound <= limits.clip:
        return None
    return (f"a sum with bound {bound:g} found, this site allows {LEAST_BOUND:g} to "
            f"{limits.clip:g} (limits.clip)")


def _of_method(terms: RunTerms) -> list[str]:
    if terms.placement != "local" or terms.method.TRAITS.placed:
        return []
    return [f"privacy.trust = 'secure' found with algorithm '{terms.algorithm.get('name')}', whose "
            "part of a sum a site cannot make alone; use 'fedit' or 'ffa'"]


def _peers(file: SiteFile, identity: Identity | None, sums: SumTerms) -> list[str]:
    """Everybody of a sum must be named in this site's own file, by the very identity."""
    if identity is None:
        return ["this site has no key to take part in secure sums with; make one: aulait keys site"]
    own = identity.public.hex()
    known = {**file.peers, file.site.name: own}
    if file.peers.get(file.site.name, own) != own or sums.peers.get(file.site.name) != own:
        return [f"'{file.site.name}' stands in the terms or in [peers] with another identity than "
                "its own; compare with aulait keys sums"]
    strangers = sorted(name for name, told in sums.peers.items() if known.get(name) != told)
    if not strangers:
        return []
    return [f"{len(strangers)} of {len(sums.peers)} sites of the secure sums are not in [peers] of "
            f"this site, or with another identity: {', '.join(strangers[:8])}; ask each for what "
            "aulait keys sums tells there, and write it down"]


def _of_sum(limits: SitePolicy, terms: RunTerms, sums: SumTerms, stage: SumStage) -> list[str]:
    """What is wrong with the sums of one release."""
    if stage not in sums.planned or stage not in sums.noise:
        return [f"the terms plan no secure sum of '{stage}' and ask for one; the coordinator is "
                "another version or not honest"]
    planned, quorum = sums.planned[stage], quorum_of(terms, sums, stage)
    if problem := quorum.problem(planned, "sites"):
        return [problem]
    if not planned <= min(MOST_CLIENTS, len(sums.peers)):
        return [f"a secure sum of '{stage}' over {planned} sites found, expected at most "
                f"{MOST_CLIENTS}, all of them named in the terms"]
    if quorum.colluders < limits.colluders:
        return [f"privacy.colluders is {quorum.colluders}, the noise of sums with this site must "
                f"hold against {limits.colluders} at least (limits.colluders); raise it"]
    if quorum.honest < limits.sum_sites:
        return [f"secure sums of '{stage}' are released of {quorum.honest} honest sites, this site "
                f"wants {limits.sum_sites} at least (limits.sum_sites); ask for more sites, or "
                "lower privacy.dropouts or privacy.colluders"]
    told = terms.privacy.noise_multiplier
    if told is not None and sums.noise[stage] < told / _ROUNDING:
        return [f"secure sums of '{stage}' have noise multiplier {sums.noise[stage]:.4g}, the "
                f"promise is {told:.4g}"]
    known = terms.privacy.known_clip
    if stage == "train" and known is not None and not LEAST_BOUND <= known <= limits.clip:
        return [f"privacy.clip is {known:g}, this site allows {LEAST_BOUND:g} to {limits.clip:g}; "
                "change it, or ask for limits.clip"]
    return []


def _spends(limits: SitePolicy, terms: RunTerms) -> list[str]:
    """Why the noise of the sums does not keep the promise, or this site's limit."""
    assert terms.sums is not None
    spends, told = planned_epsilon(terms, terms.sums), terms.privacy.epsilon
    most = min(limits.epsilon, math.inf if told is None else told)
    if spends <= most * _ROUNDING:
        return []
    return [f"the secure sums of the run amount to epsilon {spends:.3g}, allowed are {most:.3g} by "
            "its promise and limits.epsilon; raise their noise, or plan fewer rounds"]
