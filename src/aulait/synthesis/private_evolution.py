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
records a client.
differs: round 1 votes on public texts themselves; clipping, not normalising, so a client with few
    records counts less; a failed child is dropped, never replaced by its parent or prompt; noise is
    exactly what the accountant knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate, Info, Record, Site, VoteRequest, nbytes
from aulait.methods.contract import Ask
from aulait.privacy.aggregator import PrivateAggregator, Release
from aulait.synthesis import selection
from aulait.synthesis.embedding import Embedder, votes
from aulait.synthesis.population import State as State
from aulait.synthesis.population import SynthesisConfig as SynthesisConfig
from aulait.synthesis.population import Text as Text
from aulait.synthesis.population import children, text_of, written
from aulait.synthesis.variation import Variation


def init(config: SynthesisConfig, public: Sequence[str | Record], seeds: Seeds) -> State:
    """The first candidates are J public texts, or public pairs; all that follow are of the same
    kind."""
    request = torch.randperm(len(public), generator=seeds.generator("public-start")).tolist()
    return State(0, tuple(text_of(public[i], 0) for i in request[: config.pool]))


def step(
    config: SynthesisConfig, state: State, cohort: Cohort, ask: Ask, aggregator: PrivateAggregator,
    embedder: Embedder,
    variation: Variation,
    seeds: Seeds, bound: float,
) -> tuple[State, Info]:
    """One vote and one breeding.

    Args:
        config: settings.
        state: the candidates.
        cohort: the voters.
        ask: gets updates for requests.
        aggregator: releases the votes.
        embedder: public texts to vectors.
        variation: breeds children from texts.
        seeds: of the run.
        bound: S, the L2 bound of a client's vote vector.
    """
    voting = config.selection != "random"
    embeddings_JD = _embed(config, state, embedder, variation, seeds) if voting else torch.empty(0)
    votes_J, info, std = torch.zeros(len(state.pool)), {}, 0.0
    if voting:
        requests = [VoteRequest(n, cohort.round, {"embeddings": embeddings_JD},
                        {"neighbours": config.neighbours})
                  for n in cohort.local]
        started = time.perf_counter()
        updates = list(ask(requests))
        client_s = time.perf_counter() - started
        released = aggregator.release(
            updates, Release.of_cohort(cohort, stage="synthesis", bound=bound,
                                       template={"votes": votes_J}))
        votes_J, std = released.total["votes"], released.noise_std
        # bytes of the planned cohort: how many really replied is private
        heard = cohort.planned if aggregator.private else len(updates)
        info = {"up_bytes": heard * nbytes({"votes": votes_J}),
                "down_bytes": sum(nbytes(o.tensors) for o in requests),
                "client_s": client_s}
    kept = _select(config, votes_J, embeddings_JD, std, seeds.generator("select", cohort.round))
    parents = [replace(state.pool[j], votes=float(votes_J[j])) for j in kept]
    pool = _breed(config, parents, cohort.round, variation, seeds)
    unique = list({text.full: text for text in parents}.values())
    told = {"candidates": len(state.pool), "kept": len(unique), "noise_std": std,
            "histogram": votes_J.tolist(),
            "winners": [text.as_dict() for text in sorted(unique, key=lambda t: -t.votes)[:8]],
            "samples": [text.full for text in unique[:5]]}
    return State(cohort.round, tuple(pool), (*state.winners, *unique)), info | told


def answer(requests: Sequence[VoteRequest], sites: Sequence[Site],
           embedder: Embedder) -> list[ClientUpdate]:
    """A client's votes: each of its records counts for its nearest candidates. The aggregator clips
    them."""
    updates = []
    for request, site in zip(requests, sites, strict=True):
        own_BD = embedder.embed([record.full for record in site.train])
        counts_J = votes(own_BD, request.tensors["embeddings"], int(request.settings["neighbours"]))
        updates.append(ClientUpdate(site.name, {"votes": counts_J}, float(len(site.train))))
    return updates


def expand(
    config: SynthesisConfig, state: State, variation: Variation, seeds: Seeds,
    public: Sequence[str | Record] = (),
    embedder: Embedder | None = None,
) -> list[Text]:
    """The final set: ``config.texts`` texts from the winners of all rounds, more from those with
    more votes.

    Args:
        config: settings.
        state: with the winners.
        variation: writes texts.
        seeds: of the run.
        public: public texts, for expansion "nearest".
        embedder: for expansion "nearest".
    """
    weight = (
        torch.tensor([max(text.votes, 0.0) for text in state.winners], dtype=torch.float64) + 1e-9
    )
    if config.expansion == "nearest":
        assert embedder is not None
        some = [text_of(source, 0) for source in public[: config.public_texts]]
        closeness_WP = (
            embedder.embed([text.full for text in state.winners]) @ embedder.embed([text.full
                for text in some]).T
        )
        near = selection.nearest_public(weight, closeness_WP, config.texts)
        return [replace(some[p], round=state.round + 1, parent=state.winners[w].full) for w,
                p in near]
    if config.expansion == "write":
        request = torch.multinomial(weight, len(weight), replacement=False,
                                  generator=seeds.generator("expand")).tolist()
        return written(variation, [state.winners[i] for i in request], config.texts,
                       state.round + 1,
                       seeds.integer("expand-write"))
    texts: list[Text] = []
    for attempt in range(6):
        missing = config.texts - len(texts)
        if missing <= 0:
            break
        drawn = torch.multinomial(weight, missing, replacement=True,
                                  generator=seeds.generator("expand", attempt)).tolist()
        chosen = [state.winners[i] for i in drawn]
        if config.expansion == "keep":
            return chosen
        texts += [child for child in children(variation, chosen, state.round + 1,
            seeds.integer("expand-vary", attempt)) if child]
    return texts


def _embed(config: SynthesisConfig, state: State, embedder: Embedder, variation: Variation,
           seeds: Seeds) -> Tensor:
    """Embeddings (J, D) of the candidates, or of what they are likely to become."""
    texts = [text.full for text in state.pool]
    if config.lookahead == 0:
        return embedder.embed(texts)
    total_JD, count_J1 = torch.zeros(len(texts), embedder.width), torch.zeros(len(texts), 1)
    for k in range(config.lookahead):
        ahead = children(variation, state.pool, state.round, seeds.integer("lookahead", state.round,
            str(k)))
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


def _breed(config: SynthesisConfig, parents: Sequence[Text], round: int, variation: Variation,
           seeds: Seeds) -> list[Text]:
    """Parents and their children; fewer than J when children failed."""
    repeated = [parent for parent in parents for _ in range(config.variations)]
    bred = [child for child in children(variation, repeated, round, seeds.integer("vary", round))
            if child]
    unique = {text.full: text for text in (*parents, *bred)}
    return list(unique.values())


def vote_bound(records_per_client: int) -> float:
    """S = sqrt(m): a client whose m votes spread is not clipped, one whose votes crowd is
    damped."""
    return math.sqrt(records_per_client)


def shards(texts: Sequence[Text], count: int, seeds: Seeds) -> list[list[Text]]:
    """The synthetic set dealt to ``count`` proxies, at random, sizes differing by at most one."""
    request = torch.randperm(len(texts), generator=seeds.generator("shards")).tolist()
    return [[texts[i] for i in request[k::count]] for k in range(min(count, len(texts)))]
