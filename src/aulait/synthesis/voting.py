"""One private vote: candidates' vectors go out, and the aggregator releases how many votes each
got.

All votes of stage 1 are this one step, whatever stands for election: texts, or clusters of public
texts. Legend: J candidates · D width.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from aulait.core.cohort import Cohort
from aulait.core.types import Info, VoteRequest, nbytes
from aulait.methods.contract import Server
from aulait.privacy.aggregator import Release
from aulait.privacy.record_level import PRIVATE, SiteNoise


@dataclass(frozen=True)
class VoteRule:
    """How votes are counted and protected.

    Attributes:
        neighbours: candidates that a record votes for.
        bound: S, the L2 bound of a client's vote vector, or of a unit's.
        noise: what every site is asked to add to its own votes, where a record is the unit; None
            where the aggregator adds the noise.
    """

    neighbours: int
    bound: float
    noise: SiteNoise | None = None


def take_vote(rule: VoteRule, embeddings_JD: Tensor, cohort: Cohort,
              server: Server) -> tuple[Tensor, float, Info]:
    """The released votes (J,), the standard deviation of their noise, and bytes and seconds.

    A record votes for fewer candidates where there are fewer, which only lowers the sensitivity.
    """
    template = {"votes": torch.zeros(len(embeddings_JD))}
    noise = rule.noise
    settings: Info = {"neighbours": min(rule.neighbours, len(embeddings_JD))}
    settings |= {PRIVATE: noise.setting()} if noise else {}
    requests = [VoteRequest(name, cohort.round, {"embeddings": embeddings_JD}, settings)
                for name in cohort.local]
    release = Release.of_cohort(cohort, stage="synthesis", bound=rule.bound, template=template)
    asked = dict.fromkeys(cohort.local, template)  # nobody else is counted
    started = time.perf_counter()
    summed = noise is None or noise.summed
    if summed and not server.aggregator.config.secure:
        updates = list(server.ask(requests))
        client_s = time.perf_counter() - started
        released = server.aggregator.release(updates, release, expected_shapes=asked)
        # bytes of the planned cohort: how many really replied is private
        counted = float(cohort.planned if server.aggregator.private else len(updates))
    else:  # before anybody is asked sites share keys, or the round is charged, as their answers
        # are out as soon as they are sent
        released = server.aggregator.release(
            server.ask(requests), release, expected_shapes=asked)
        client_s = time.perf_counter() - started
        counted = released.planned  # sites that answered, each with noise of its own
    std = released.noise_std
    if noise is not None and not noise.summed:
        std = math.sqrt(counted) * noise.sigma
    info = {"up_bytes": round(counted) * nbytes(template),
            "down_bytes": sum(nbytes(request.tensors) for request in requests),
            "client_s": client_s}
    return released.total["votes"], std, info
