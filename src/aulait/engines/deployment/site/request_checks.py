"""What a request may ask of a site, looked at before any work: whose, which stage, which round,
which numbers and shapes.

The site's policy was held against the terms; here the request is held against the terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aulait.core.errors import WireError
from aulait.core.factors import Factor, FactorName
from aulait.core.lora import Shapes
from aulait.core.types import ClientRequest, SearchRequest, Tensors
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.engines.deployment.site.terms_bounds import setting_problem, shown
from aulait.methods.contract import server_site
from aulait.methods.shared import line_search

MOST_SETTINGS = 1000


def request_fault(request: ClientRequest, terms: RunTerms, limits: SitePolicy,
                  shapes: Shapes) -> str | None:
    """Why a request is refused, on one line that tells nothing of the site's records; None if it is
    in order."""
    if request.stage == "synthesis" and not terms.votes:
        return "asked for a vote, and the terms say that this site does not vote"
    alone = terms.placement == "local" or (
        terms.placement == "split" and server_site(terms.method) is not None)
    if request.stage == "train" and not alone:
        return f"asked to train, and the terms say that this site is '{terms.placement}'"
    if isinstance(request, SearchRequest) and (fault := _search(request, terms)):
        return fault
    most = terms.synthesis_rounds if request.stage == "synthesis" else terms.rounds
    if not 1 <= request.round <= most:
        return f"round {request.round} of {request.stage} found, the terms have {most}"
    return (_numbers(request, limits) or _candidates(request, terms, limits)
            or _tensors({**request.tensors, **request.kept}, shapes, terms.adapter.rank))


def _search(request: SearchRequest, terms: RunTerms) -> str | None:
    """Losses of the site's own records leave it only where the terms promise that the server sums
    them under noise, or that there is no privacy; a site that adds noise itself gives none."""
    if not line_search.searches(terms.method_config) or terms.placement != "local":
        return "asked to measure steps, and the terms say nothing of a line search here"
    if terms.privacy.protects_records:
        return "asked to measure steps without noise, and the terms protect single records"
    try:
        line_search.read_steps(request)
    except WireError as error:
        return str(error)
    return None


def _numbers(request: ClientRequest, limits: SitePolicy) -> str | None:
    """Settings are few, plain and within their bounds."""
    settings = request.settings
    if len(settings) > MOST_SETTINGS or not all(_plain(value) for value in settings.values()):
        return "a request with settings that are no plain finite values"
    return setting_problem(limits, settings)


def _candidates(request: ClientRequest, terms: RunTerms, limits: SitePolicy) -> str | None:
    """A vote is on one table of candidates (J, D), of at most the terms' number, for as many
    neighbours as they say (fewer where there are fewer candidates)."""
    if request.stage != "synthesis":
        return None
    neighbours, table = request.settings.get("neighbours"), request.tensors.get("embeddings")
    if table is None or len(request.tensors) != 1 or table.ndim != 2:
        return "a vote without one table of candidates"
    if not 1 <= len(table) <= min(terms.candidates, limits.candidates):
        return f"a vote on {len(table)} candidates, the terms have at most {terms.candidates}"
    if table.shape[1] > limits.width:
        return f"candidates of width {table.shape[1]}, this site allows at most {limits.width}"
    most = min(terms.neighbours, len(table))
    if type(neighbours) is not int or not 1 <= neighbours <= most:
        return f"a vote for {shown(neighbours)} neighbours, the terms have {terms.neighbours}"
    return None


def _tensors(tensors: Tensors, shapes: Shapes, rank: int) -> str | None:
    """Factors must fit the layers, those to be trained the rank too; of other tensors the numbers
    must be finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"tensor '{name[:80]}' holds NaN or infinity"
        tag, _, bare = name.rpartition("/")
        if not FactorName.names_one(bare):
            continue
        own = FactorName.parse(bare)
        if own.layer in shapes:
            if not _fits(own.factor, tensor, shapes[own.layer]):
                return (
                    f"tensor '{name[:80]}' of shape {tuple(tensor.shape)} does not fit a layer of "
                    f"{tuple(shapes[own.layer])}"
                )
            found = tensor.shape[own.factor.rank_axes[0]]
            if not tag and found > rank:
                return f"tensor '{name[:80]}' of rank {found} found, the terms have {rank}"
    return None


def _fits(factor: Factor, tensor: Tensor, shape: tuple[int, int]) -> bool:
    """Whether a factor is one of a layer of (M, N), whatever its rank."""
    if tensor.ndim != 2:
        return False
    rank = tensor.shape[factor.rank_axes[0]]
    m, n = shape
    sides = {Factor.A: (rank, n), Factor.B: (m, rank), Factor.R: (rank, rank)}
    return tuple(tensor.shape) == sides[factor]


def _plain(value: object, depth: int = 0) -> bool:
    if isinstance(value, bool | str | None):
        return not isinstance(value, str) or len(value) <= 10_000
    if isinstance(value, int | float):
        return math.isfinite(value)
    if isinstance(value, list | tuple) and depth < 4:
        return len(value) <= 100_000 and all(_plain(item, depth + 1) for item in value)
    return (
        isinstance(value, dict) and depth < 4 and len(value) <= 100_000
        and all(_plain(item, depth + 1) for item in value.values())
    )
