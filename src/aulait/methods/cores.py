"""Cores in a public basis: W + (alpha / r) U R V, where U and V are fixed and everybody knows them,
and only the small square R of every layer is trained and travels.

U_Mr and V_rN are leading singular vectors of the gradient of the loss of public texts, or of
synthetic texts that were released, with respect to W (``training.public_basis``). R starts at zero.
The update is linear in R: the mean of the clients' cores is the core of the mean, and the server
needs their sum only. d = sum r² numbers are noised instead of sum r M, which is what lets few
clients learn under privacy: over a run the noise is about sqrt(d) / (mu n) times a signal that n
clients agree on.

The basis is computed at the server and sent to every client once; its bytes are counted apart from
the rounds. It never reads a client's text. With ``renew`` it is taken anew every so many rounds, at
the model as it then is: what was trained before is folded into the base weights of every site,
and R begins again at zero. A client of rank r_k has the leading r_k vectors on both sides and the
leading r_k × r_k block of R; every entry is averaged over those who own it.

Fed-SB takes its basis from the clients' own text and starts at its singular values: under privacy
that text would have to be paid for. LoRA-XS takes it from the weights, here a control, as are
random vectors.

what: only an r × r core per layer is trained, between singular vectors of a public gradient
source: Singhal et al., Fed-SB, TMLR 2026, arXiv 2502.15436; Balazy et al., LoRA-XS, 2024, arXiv
    2405.17604
travels: up 4 sum r_k²; down 4 sum r_k²
privacy: sum of changes of R, each clipped to C; sensitivity C; the basis is public. Records: DP-SGD
    of R at the site
differs: basis from public or released text, never from clients; R starts at zero; renewable; the
    scale is alpha / r; unequal ranks are nested blocks
unequal ranks: yes
exact: at equal ranks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError, require
from aulait.core.factors import Factor, FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Record, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import ServerName, initial_state
from aulait.methods.shared.weighted_mean import (
    Averaging,
    AveragingConfig,
    RoundOutlet,
    factor_requests,
    merged,
    mixed_parts,
)
from aulait.models.loading import folded
from aulait.training.public_basis import (
    Basis,
    gradient_basis,
    random_basis,
    weight_basis,
)
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    trains=Trainable.R, units=("client", "record"), searches=True, placed=True))
BASIS, PAST = "basis", "past"  # tags of what is fixed: vectors, and what was trained in older ones


class CoresConfig(AveragingConfig):
    """``[algorithm] name = "cores"``.

    Attributes:
        basis: "gradient" of the texts that ``basis_text`` names; controls: the "weights" own
            singular vectors, "random" vectors.
        basis_text: "auto" (the texts that stage 1 has released, else the public ones), "public"
            (``data.public``), "released", or a source as ``data.public`` takes it; several are
            joined.
        basis_texts: how many texts of each source are read.
        local_weight: as everywhere, and "auto" unless you say otherwise.
        server: as everywhere, and "auto" unless you say otherwise.
        renew: rounds after which the basis is taken anew, at the model as it then is; 0: never;
            "stages": at the beginning of every later stage of training (``run.stages``), from the
            texts that have been made since.
    """

    local_weight: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    server: ServerName = "auto"
    basis: Literal["gradient", "weights", "random"] = "gradient"
    basis_text: str | tuple[str, ...] = "auto"
    basis_texts: int = Field(256, ge=1)
    renew: Annotated[int, Field(ge=0)] | Literal["stages"] = 0


Config = CoresConfig


def init(config: CoresConfig, context: RunContext) -> State:
    """R zero, in a random basis until ``look`` has found the one that the settings name."""
    return _begun(config, context, random_basis(context.shapes, context.rank, context.seeds), {})


def wants(config: CoresConfig, context: RunContext, state: State) -> tuple[str, ...]:
    """The texts to read before the next round; none in most rounds."""
    if config.basis != "gradient" or not _due(config, context, state.round):
        return ()
    return (config.basis_text,) if isinstance(config.basis_text, str) else config.basis_text


def text_count(config: CoresConfig) -> int:
    """How many texts of each source ``look`` is given."""
    return config.basis_texts


def look(config: CoresConfig, context: RunContext, state: State, learner: Learner,
         texts: Sequence[Record]) -> State:
    """The state with the basis of the next rounds; the very state where none is due."""
    if config.basis == "random" or not _due(config, context, state.round):
        return state
    if state.round == 0:
        return _begun(config, context, _basis(config, context, learner, texts), {})
    past = _grown(context, state)
    with folded(learner.base, lora.dense(lora.from_tensors(past, 1.0, 1))):
        basis = _basis(config, context, learner, texts)
    return replace(_begun(config, context, basis, past), round=state.round)


def step(config: CoresConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send R, average how it moved. The basis stands beside the request: it travels once."""
    cores = state.factors
    fixed = _Fixed(context, state)
    sent = [replace(request, kept=fixed.of(request.client))
            for request in factor_requests(context, cohort, cores)]
    mixed = mixed_parts(config, context, cohort, server, Averaging(sent, cores))
    return merged(config, RoundOutlet(context, state, cohort, server, fixed.of), mixed)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Local steps on R alone; the update is the change of R."""
    fixed = {id(request.kept): request.kept for request in requests}
    bases = {key: _vectors(kept, requests[0]) for key, kept in fixed.items()}
    folds = {key: _dense(lora.under(PAST, kept)) for key, kept in fixed.items()}
    training = [
        replace(own, basis=bases[id(request.kept)], fold=folds[id(request.kept)])
        for request, own in zip(requests, client_update.local_training(
            requests, sites, context, lambda request, _: _coordinates(context, request.tensors),
            Trainable.B), strict=True)]
    done = client_update.train(requests, training, learner)
    return [replace(own, tensors={_core(name): t for name, t in own.tensors.items()})
            for own in client_update.changes(sites, done, Trainable.B)]


def result(context: RunContext, state: State) -> Adapter:
    """A = V, B = U R; in front of them what was trained in older bases."""
    whole = _own(state.tensors)
    past, basis = (lora.under(tag, whole) for tag in (PAST, BASIS))
    factors = {}
    for layer in context.shapes:
        v_RN, u_MR = lora.factors_of(basis, layer)
        pair = v_RN, u_MR @ whole[str(FactorName(layer, Factor.R))]
        if past:  # which has its scale within
            a, b = lora.factors_of(past, layer)
            scale = context.scale
            pair = torch.cat([a, pair[0]]), torch.cat([b / scale, pair[1]], dim=1)
        factors[layer] = pair
    return Adapter(factors, context.alpha, context.rank, context.scaling)


def travels(config: CoresConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round, without the basis."""
    own = client_update.factor_bytes(context, client, Trainable.R)
    return own, own


def kept_bytes(config: CoresConfig, context: RunContext, client: str) -> int:
    """Bytes that travel to a client once in the run, beside the rounds: every basis."""
    bases = sum(_due(config, context, done) for done in range(max(1, context.rounds)))
    own = client_update.factor_bytes(context, client)
    whole = client_update.factor_bytes(replace(context, ranks={}), client)
    return bases * own + whole * bases * (bases - 1) // 2


def _due(config: CoresConfig, context: RunContext, done: int) -> bool:
    """Whether the round after so many takes a basis."""
    if done == 0:
        return True
    if config.renew == "stages":
        return done in context.stage_ends
    return config.renew > 0 and done % config.renew == 0


def _basis(config: CoresConfig, context: RunContext, learner: Learner,
           texts: Sequence[Record]) -> Basis:
    if config.basis == "weights":
        return weight_basis(learner.base, context.shapes, context.rank)
    return gradient_basis(learner, context.shapes, context.rank, texts, context.seeds)


def _begun(config: CoresConfig, context: RunContext, basis: Basis, past: Tensors) -> State:
    """R zero and fresh moments in a basis."""
    cores = {str(FactorName(layer, Factor.R)): torch.zeros(context.rank, context.rank)
             for layer in context.shapes}
    first = initial_state(config, cores)
    vectors = lora.to_tensors(Adapter(basis, 1.0))
    return State(0, first.tensors | lora.tagged(BASIS, vectors) | lora.tagged(PAST, past))


def _grown(context: RunContext, state: State) -> Tensors:
    """What was trained so far as factors whose product is the whole update, scale included."""
    whole = result(context, state)
    scale = context.scale
    return lora.changed_b(lora.to_tensors(whole), lambda _, b_MR: scale * b_MR)


def _vectors(kept: Tensors, request: TrainRequest) -> Basis:
    """Layer -> (V, U) of what stands beside a request.

    Raises:
        WireError: a core has no basis there.
    """
    vectors = lora.under(BASIS, kept)
    for name in request.tensors:
        layer = FactorName.parse(name).layer
        require(all(str(FactorName(layer, factor)) in vectors for factor in (Factor.A, Factor.B)),
                WireError, f"a core of '{layer[:80]}' came without its basis; send that beside it")
    return dict(lora.from_tensors(_own(vectors), 1.0).factors)


def _own(tensors: Tensors) -> Tensors:
    """The tensors in memory of their own: wherever they lay in a file or a message, products of
    them are then the same to the last digit."""
    return {name: value.clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()}


def _dense(past: Tensors) -> Tensors | None:
    """Layer -> the dense update of what was trained in older bases; None where there is none."""
    return lora.dense(lora.from_tensors(_own(past), 1.0, 1)) if past else None


def _coordinates(context: RunContext, cores: Tensors) -> Adapter:
    """Cores as factors in the basis: A the identity, B the core. Layers stand in the order of their
    names: squares of a gradient are summed in that order, and a checkpoint or a message has
    another than a state that was never stored."""
    factors: dict[str, tuple[Tensor, Tensor]] = {
        FactorName.parse(name).layer: (torch.eye(len(cores[name])), cores[name])
        for name in sorted(cores)}
    return Adapter(factors, context.alpha, context.rank, context.scaling)


def _core(name: str) -> str:
    """The name of the core that a B in coordinates is."""
    return str(FactorName(FactorName.parse(name).layer, Factor.R))


class _Fixed:
    """What is fixed of a round, for clients of every rank: equal ones are one object."""

    def __init__(self, context: RunContext, state: State) -> None:
        self._context = context
        self._vectors = lora.under(BASIS, state.tensors)
        self._past = lora.tagged(PAST, lora.under(PAST, state.tensors))
        self._made: dict[int, Tensors] = {}

    def of(self, client: str) -> Tensors:
        """The basis at a client's ranks, and all that was trained in older ones."""
        key = id(self._context.ranks.get(client))
        if key not in self._made:
            own = self._context.leading(self._vectors, client)
            self._made[key] = lora.tagged(BASIS, own) | self._past
        return self._made[key]
