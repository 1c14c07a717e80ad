"""Retrieval: votes choose texts of a large public corpus, coarse to fine.

what: the public texts are clustered by their vectors. On the first level every cluster stands for
    election by its centroid; on each further level the cells that won are divided and their parts
    stand. A client's records vote for the nearest cells as they vote for texts in private
    evolution. The final set is drawn from the cells of the last level.
source: the first level is the private topic histogram of CTCL (ICML 2025, arXiv 2503.12347) over
    clusters of vectors instead of topics of a model; levels, and how far a cell is divided, are
    ours.
travels: down 4 · J · D bytes, up 4 · J bytes a client and level, J the cells of the level, at most
    ``retrieve.cells``, whatever the size of the corpus.
privacy: each level is one release, by the same rule as every vote of stage 1
    (``voting.take_vote``). Which cells are divided, and how far, follows from released counts
    alone.
differs: nothing is written; every text is public word for word.

Legend: J cells · D width · N public texts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.core.types import Info
from aulait.methods.contract import Server
from aulait.synthesis import clustering, topics
from aulait.synthesis.clustering import TensorTable
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.corpus_index import PublicCorpus
from aulait.synthesis.population import Cell, EvolutionState, Text, text_of
from aulait.synthesis.voting import VoteRule, take_vote

SHOWN = 8  # cells that a round's line shows


@dataclass(frozen=True)
class RetrievalContext:
    """What the server knows before the first level; all of it public.

    Attributes:
        seeds: of the run.
        corpus: public texts with their vectors and clusters.
        rule: how votes are counted and protected.
    """

    seeds: Seeds
    corpus: PublicCorpus
    rule: VoteRule


def step(config: SynthesisConfig, context: RetrievalContext, state: EvolutionState, cohort: Cohort,
         server: Server) -> tuple[EvolutionState, Info]:
    """One level: a vote on cells, and what is left of each above the noise.

    Without votes (selection "random") cells weigh as many texts as they have.
    """
    members, embeddings_JD = _candidates(config, context, state)
    votes_J, std, info = torch.zeros(len(members)), 0.0, Info()
    weight_J = torch.tensor([float(len(own)) for own in members], dtype=torch.float64)
    if config.selection != "random":
        votes_J, std, info = take_vote(context.rule, embeddings_JD, cohort, server)
        weight_J = weights(votes_J, config.retrieve.threshold * std, weight_J)
    split = config.retrieve.split * std
    cells = tuple(
        Cell(tuple(own), float(votes), float(weight), parts_carried(float(weight), split))
        for own, votes, weight in zip(members, votes_J, weight_J, strict=True) if weight > 0)
    metrics = {"candidates": len(members), "kept": len(cells), "noise_std": std,
               "histogram": votes_J.tolist(), **_shown(context, cells)}
    return replace(state, round=cohort.round, cells=cells), info | metrics


def weights(votes_J: Tensor, threshold: float, fallback_J: Tensor) -> Tensor:
    """What is left of the votes above the threshold (J,) float64; ``fallback_J`` where nothing
    is."""
    left_J = (votes_J.double() - threshold).clamp(min=0)
    return left_J if float(left_J.sum()) > 0 else fallback_J.double()


def parts_carried(weight: float, split: float) -> int | None:
    """Parts that a cell may have at most, so that each can expect ``split`` votes; None is no
    limit."""
    return None if split <= 0 else max(1, int(weight / split))


def seats(cells: Sequence[Cell], total: int) -> list[int]:
    """Parts of every cell: one each, and the rest one by one to the cell with the most weight a
    part (D'Hondt), as far as it has texts and votes for them.

    Args:
        cells: at most ``total``.
        total: parts altogether, at most.
    """
    limits = [min(len(cell.members), len(cell.members) if cell.parts is None else cell.parts)
              for cell in cells]
    found = [1] * len(cells)
    waiting = [(-cell.weight / 2, k) for k, cell in enumerate(cells) if limits[k] > 1]
    heapq.heapify(waiting)
    for _ in range(total - len(cells)):
        if not waiting:
            break
        _, k = heapq.heappop(waiting)
        found[k] += 1
        if found[k] < limits[k]:
            heapq.heappush(waiting, (-cells[k].weight / (found[k] + 1), k))
    return found


def _candidates(config: SynthesisConfig, context: RetrievalContext,
                state: EvolutionState) -> tuple[list[list[int]], Tensor]:
    """Members and centroids (J, D) of the cells that stand for election."""
    corpus = context.corpus
    if not state.cells:
        return grouped(corpus.index.labels), corpus.index.centroids
    members: list[list[int]] = []
    centroids: list[Tensor] = []
    for cell, parts in zip(state.cells, seats(state.cells, config.retrieve.cells), strict=True):
        own = torch.tensor(cell.members)
        if parts == 1:  # nothing is divided: a sample tells where the cell lies
            members.append(own.tolist())
            centroids.append(clustering.centroid(corpus.vectors.rows(own[: clustering.SAMPLE])))
            continue
        vectors = TensorTable(corpus.vectors.rows(own))
        labels, centroids_KD = clustering.cluster(vectors, parts)
        members += [own[some].tolist() for some in grouped(labels)]
        centroids.append(centroids_KD)
    return members, torch.cat(centroids)


def grouped(labels_N: Tensor) -> list[list[int]]:
    """Numbers of the texts of every cell, in order; no cell is empty."""
    order = labels_N.argsort(stable=True)
    sizes = torch.bincount(labels_N).tolist()
    return [some.tolist() for some in torch.split(order, sizes)]


def _shown(context: RetrievalContext, cells: Sequence[Cell]) -> Info:
    """Cells with the most votes, each with its words and one of its texts."""
    best = sorted(cells, key=lambda cell: -cell.weight)[:SHOWN]
    texts, words = context.corpus.texts, topics.keywords(context.corpus.texts, best)
    winners = [replace(text_of(texts[cell.members[0]], 0), votes=cell.votes).as_dict()
               | {"topic": ", ".join(own), "texts": len(cell.members)}
               for cell, own in zip(best, words, strict=True)]
    return {"winners": winners,
            "samples": [text_of(texts[cell.members[0]], 0).full for cell in best[:5]]}


def drawn(context: RetrievalContext, state: EvolutionState, count: int,
          purpose: str) -> list[Text]:
    """Texts drawn from the cells that the last level left.

    A cell is drawn by its weight, and from it the next of its texts in random order; a cell whose
    texts are all drawn is drawn no more, until every cell is: then all begin again. So a text is
    repeated only where fewer were retrieved than are wanted.

    Args:
        context: of the run.
        state: after the last level.
        count: texts wanted.
        purpose: of the seed.
    """
    generator = context.seeds.generator(purpose)
    found: list[Text] = []
    while len(found) < count:
        piles = [[cell.members[i] for i in
                  torch.randperm(len(cell.members), generator=generator).tolist()]
                 for cell in state.cells]
        weight_J = torch.tensor([cell.weight for cell in state.cells], dtype=torch.float64)
        while len(found) < count and float(weight_J.sum()) > 0:
            chosen = torch.multinomial(weight_J, count - len(found), replacement=True,
                                       generator=generator).tolist()
            for k in chosen:
                if piles[k]:
                    text = text_of(context.corpus.texts[piles[k].pop()], 0)
                    found.append(replace(text, votes=state.cells[k].votes))
                if not piles[k]:
                    weight_J[k] = 0.0
    return found


def topics_of(context: RetrievalContext, state: EvolutionState,
              count: int) -> list[topics.Topic]:
    """The topics of the released histogram, each with as many texts as it is to have of ``count``
    in all."""
    weight_J = torch.tensor([cell.weight for cell in state.cells], dtype=torch.float64)
    generator = context.seeds.generator("topics")
    wanted_J = torch.bincount(torch.multinomial(weight_J, count, replacement=True,
                                                generator=generator),
                              minlength=len(weight_J)).tolist()
    words = topics.keywords(context.corpus.texts, state.cells)
    return [topics.Topic(tuple(own), tuple(text_of(context.corpus.texts[i], 0)
                                           for i in cell.members[: topics.EXAMPLES]), wanted)
            for cell, own, wanted in zip(state.cells, words, wanted_J, strict=True) if wanted]
