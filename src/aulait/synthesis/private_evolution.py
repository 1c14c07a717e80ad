"""Private evolution: weak clients vote on candidate texts, the server breeds the winners.

what: each round the server embeds J candidates and sends the embeddings; a client embeds its own
    capped records once, lets each vote for its nearest candidate and returns one vector of J
    counts; the aggregator clips, sums and noises them; the winners become parents of the next
    candidates. The final set is written from the winners of all rounds.
source: Lin et al., "Differentially Private Synthetic Data via Foundation Model APIs", ICLR 2024;
    for text Xie et al. (Aug-PE), ICML 2024, arXiv 2403.01749; federated Hou et al. (PrE-Text), ICML
    2024, arXiv 2406.02958.
travels: down 4 · J · D bytes, up 4 · J bytes a client and round, D the width of the embedder.
privacy: the sum over clients of whole vote vectors, each clipped in L2 to S = sqrt(m), m the cap of
records a client. Where a record (or a field's value) is the unit, every unit's votes are clipped to
S = sqrt(neighbours · records_per_unit), and each site adds N(0, z² S²) to its own sum before it is
sent: a role pays for its worst unit, the server is trusted with nothing, and the released sum has
the noise of all sites that answered.
differs: round 1 votes on public texts themselves; clipping, not normalising, so a client with few
    records counts less; a failed child is dropped, never replaced by its parent or prompt; noise is
    exactly what the accountant knows. The threshold of "sample" is 1.0 of the noise's standard
    deviation, PrE-Text's 0.46 of it (m · sigma beside noise of 2.179 · m · sigma); winners stand
    for election again beside their children (DPSDA's keep_selected), where PrE-Text goes on with
    one child of every survivor alone; PrE-Text never ranks, looks ahead by 4 and masks 0.30, where
    the defaults here rank and do not look ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aulait.core.cohort import Cohort
from aulait.core.errors import ConfigError, require
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate, Info, Record, Site, VoteRequest
from aulait.core.units import units
from aulait.methods.contract import RunContext, Server
from aulait.privacy.record_level import SiteNoise
from aulait.synthesis import selection
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.embedding import Embedder, votes
from aulait.synthesis.population import (
    EvolutionState,
    Text,
    children,
    text_of,
    written,
)
from aulait.synthesis.topics import DescribedWriter, Description
from aulait.synthesis.unit_votes import noised_votes
from aulait.synthesis.variation import Variation
from aulait.synthesis.voting import VoteRule, take_vote


@dataclass(frozen=True)
class EvolutionContext:
    """What the server knows before the first round of stage 1; all of it public.

    Attributes:
        seeds: of the run.
        public: public texts, or public pairs, to start from.
        embedder: texts to vectors.
        generator: breeds children from texts, and writes texts.
        bound: S, the L2 bound of a client's vote vector, or of a unit's.
        noise: what every site is asked to add to its own votes, where a record is the unit; None
            where the aggregator adds the noise.
    """

    seeds: Seeds
    public: Sequence[str | Record]
    embedder: Embedder
    generator: Variation
    bound: float
    noise: SiteNoise | None = None


def init(config: SynthesisConfig, context: EvolutionContext) -> EvolutionState:
    """The first candidates are J public texts, or public pairs, or texts written for the
    description; all that follow are of the same kind."""
    public, generator = context.public, context.seeds.generator("public-start")
    order = torch.randperm(len(public), generator=generator).tolist()
    described = described_start(config, context) if config.about else []
    first = [*described, *(text_of(public[i], 0) for i in order[: config.pool - len(described)])]
    return EvolutionState(0, tuple(first))


def described_start(config: SynthesisConfig, context: EvolutionContext) -> list[Text]:
    """Texts that an instruction model writes for ``synthesis.about`` (the random start of Aug-PE):
    each for one word of every list of keywords, after public texts as examples; distinct.

    Raises:
        ConfigError: the generator cannot be asked in words.
    """
    generator, start = context.generator, config.start
    require(isinstance(generator, DescribedWriter), ConfigError,
            f"synthesis.about found with the generator of generate.kind = '{config.generate.kind}',"
            " which cannot be asked in words; use kind = 'prompt'")
    assert isinstance(generator, DescribedWriter)
    count, draw = round(start.share * config.pool), context.seeds.generator("described-start")
    words = [[own[int(torch.randint(len(own), (1,), generator=draw))] for own in start.keywords]
             for _ in range(count)]
    descriptions = [Description(config.about, tuple(own)) for own in words]
    public = context.public
    shown = torch.randint(len(public), (count, start.shots), generator=draw).tolist()
    seed = context.seeds.integer("described-start")
    made: Sequence[str | Record | None]
    if isinstance(public[0], Record):
        pairs = [[text_of(public[i], 0).record for i in row] for row in shown]
        made = generator.write_described_pairs(descriptions, pairs, seed)
    else:
        texts = [[text_of(public[i], 0).text for i in row] for row in shown]
        made = generator.write_described(descriptions, texts, seed)
    found = [text_of(text, 0) for text in made if text is not None]
    return list({text.full: replace(text, origin="written") for text in found}.values())


def bred_anew(config: SynthesisConfig, context: EvolutionContext,
              state: EvolutionState) -> EvolutionState:
    """The candidates bred once more, from the winners with the most votes of all rounds; those of
    the last vote, where none has won."""
    best = sorted({text.full: text for text in state.winners}.values(), key=lambda t: -t.votes)
    parents = best[: config.candidates] or state.pool[: config.candidates]
    return replace(state, pool=tuple(_breed(config, context, parents, state.round, "vary-anew")))


def step(config: SynthesisConfig, context: EvolutionContext, state: EvolutionState, cohort: Cohort,
         server: Server) -> tuple[EvolutionState, Info]:
    """One vote and one breeding; without votes (selection "random") only the breeding."""
    embeddings_JD, votes_J, std = torch.empty(0), torch.zeros(len(state.pool)), 0.0
    info: Info = {}
    if config.selection != "random":
        embeddings_JD = _embed(config, context, state)
        rule = VoteRule(config.neighbours, context.bound, context.noise)
        votes_J, std, info = take_vote(rule, embeddings_JD, cohort, server)
    generator = context.seeds.generator("select", cohort.round)
    kept = _select(config, votes_J, embeddings_JD, std, generator)
    parents = [replace(state.pool[j], votes=float(votes_J[j])) for j in kept]
    pool = _breed(config, context, parents, cohort.round)
    unique = list({text.full: text for text in parents}.values())
    metrics = {"candidates": len(state.pool), "kept": len(unique), "noise_std": std,
               "histogram": votes_J.tolist(),
               "winners": [text.as_dict() for text in sorted(unique, key=lambda t: -t.votes)[:8]],
               "samples": [text.full for text in unique[:5]]}
    after = EvolutionState(cohort.round, tuple(pool), (*state.winners, *unique), state.cells)
    return after, info | metrics


def answer(requests: Sequence[VoteRequest], sites: Sequence[Site], context: RunContext,
           embedder: Embedder) -> list[ClientUpdate]:
    """A client's votes: each of its records counts for its nearest candidates.

    Where the request names noise of the site's own, every unit's votes are clipped and the sum
    leaves with noise; else the aggregator clips the client's votes as a whole. The embedder stands
    where the answers of methods have the trainer; nothing of ``context`` is used.
    """
    updates = []
    for request, site in zip(requests, sites, strict=True):
        noise, weight = SiteNoise.read(request.settings), len(site.train)
        if noise is not None:
            counts_J = noised_votes(request, site.train, embedder, noise)
            weight = len(units(site.train))  # that is public; how many records they have is not
        else:
            own_BD = embedder.embed([record.full for record in site.train])
            counts_J = votes(own_BD, request.tensors["embeddings"],
                             int(request.settings["neighbours"]))
        updates.append(ClientUpdate(site.name, {"votes": counts_J}, float(weight)))
    return updates


def result(config: SynthesisConfig, context: EvolutionContext, state: EvolutionState) -> list[Text]:
    """The final set: ``config.texts`` texts from the winners of all rounds, more from those with
    more votes."""
    votes_W = torch.tensor([text.votes for text in state.winners], dtype=torch.float64)
    weight_W = votes_W.clamp(min=0.0) + 1e-9
    seeds, generator = context.seeds, context.generator
    if config.expansion == "nearest":
        return _nearest(config, context, state, weight_W)
    if config.expansion == "write":
        order = torch.multinomial(weight_W, len(weight_W), replacement=False,
                                  generator=seeds.generator("expand")).tolist()
        return written(generator, [state.winners[i] for i in order], config.texts,
                       state.round + 1, seeds.integer("expand-write"))
    texts: list[Text] = []
    for attempt in range(6):
        missing = config.texts - len(texts)
        if missing <= 0:
            break
        drawn = torch.multinomial(weight_W, missing, replacement=True,
                                  generator=seeds.generator("expand", attempt)).tolist()
        chosen = [state.winners[i] for i in drawn]
        if config.expansion == "keep":
            return chosen
        texts += [child for child in children(generator, chosen, state.round + 1,
                                              seeds.integer("expand-vary", attempt)) if child]
    return texts


def _nearest(config: SynthesisConfig, context: EvolutionContext, state: EvolutionState,
             weight_W: Tensor) -> list[Text]:
    """The public texts nearest to the winners."""
    some = [text_of(source, 0) for source in context.public[: config.public_texts]]
    winners_WD = context.embedder.embed([text.full for text in state.winners])
    closeness_WP = winners_WD @ context.embedder.embed([text.full for text in some]).T
    near = selection.nearest_public(weight_W, closeness_WP, config.texts)
    return [replace(some[p], round=state.round + 1, parent=state.winners[w].full, origin="public")
            for w, p in near]


def travels(config: SynthesisConfig, context: EvolutionContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes that one client sends and receives in a vote, at most: later pools are smaller where
    children failed. Equal for all clients."""
    return vote_bytes(config.ballot(round, len(context.public)), context.embedder.width)


def vote_bytes(candidates: int, width: int) -> tuple[int, int]:
    """Bytes up and down of one client's vote on J ``candidates`` embedded in D = ``width``
    numbers."""
    return 4 * candidates, 4 * candidates * width


def _embed(config: SynthesisConfig, context: EvolutionContext, state: EvolutionState) -> Tensor:
    """Embeddings (J, D) of the candidates, or of what they are likely to become."""
    embedder, seeds = context.embedder, context.seeds
    texts = [text.full for text in state.pool]
    if config.lookahead == 0:
        return embedder.embed(texts)
    total_JD, count_J1 = torch.zeros(len(texts), embedder.width), torch.zeros(len(texts), 1)
    for k in range(config.lookahead):
        ahead = children(context.generator, state.pool, state.round,
                         seeds.integer("lookahead", state.round, str(k)))
        alive = {j: child.full for j, child in enumerate(ahead) if child}
        if alive:
            total_JD[list(alive)] += embedder.embed(list(alive.values()))
            count_J1[list(alive)] += 1
    own_JD = embedder.embed(texts)
    return torch.where(count_J1 > 0, total_JD / count_J1.clamp(min=1), own_JD)


def _select(config: SynthesisConfig, votes_J: Tensor, embeddings_JD: Tensor, std: float,
            generator: torch.Generator) -> list[int]:
    keep = min(config.candidates, len(votes_J))
    if config.selection == "random":
        return selection.uniform(len(votes_J), keep, generator)
    if config.selection == "sample":
        return selection.sample_candidates(votes_J, keep, config.threshold * std, generator)
    if config.selection == "geometry":
        threshold = selection.geometry_threshold(std, config.rounds, len(votes_J))
        return selection.geometry(votes_J, embeddings_JD, keep, threshold, config.reach, generator)
    return selection.rank_candidates(votes_J, keep)


def _breed(config: SynthesisConfig, context: EvolutionContext, parents: Sequence[Text],
           round: int, purpose: str = "vary") -> list[Text]:
    """Parents and their children; fewer than J when children failed."""
    repeated = [parent for parent in parents for _ in range(config.variations)]
    seed = context.seeds.integer(purpose, round)
    bred = [child for child in children(context.generator, repeated, round, seed) if child]
    unique = {text.full: text for text in (*parents, *bred)}
    return list(unique.values())


def vote_bound(records_per_client: int) -> float:
    """S = sqrt(m): a client whose m votes spread is not clipped, one whose votes crowd is
    damped."""
    return math.sqrt(records_per_client)


def shards(texts: Sequence[Text], count: int, seeds: Seeds) -> list[list[Text]]:
    """The synthetic set dealt to ``count`` proxies, at random, sizes differing by at most one."""
    order = torch.randperm(len(texts), generator=seeds.generator("shards")).tolist()
    return [[texts[i] for i in order[k::count]] for k in range(min(count, len(texts)))]
