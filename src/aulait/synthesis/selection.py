"""Which candidates survive a vote. All of it works on released votes and public embeddings, so it
costs no privacy.

Letters: J candidates · D width of an embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rank_candidates(votes_J: Tensor, keep: int) -> list[int]:
    """The ``keep`` candidates with the most votes, ties to the lower number (Xie et al., ICML
    2024)."""
    order = sorted(range(len(votes_J)), key=lambda j: (-float(votes_J[j]), j))
    return order[:keep]


def sample_candidates(votes_J: Tensor, keep: int, threshold: float,
                      generator: torch.Generator) -> list[int]:
    """Draw ``keep`` times with probability proportional to max(votes - threshold, 0) (Hou et al.,
    ICML 2024).

    Repeats are kept. When no candidate passes the threshold the draw is uniform without repeats.
    """
    weight = (votes_J.double() - threshold).clamp(min=0)
    if float(weight.sum()) <= 0:
        return uniform(len(votes_J), keep, generator)
    return [int(j) for j in torch.multinomial(weight, keep, replacement=True, generator=generator)]


def uniform(candidates: int, keep: int, generator: torch.Generator) -> list[int]:
    """``keep`` candidates at random: the arm without votes, and the fallback when noise drowned all
    of them."""
    return torch.randperm(candidates, generator=generator)[:keep].tolist()


def geometry_threshold(noise_std: float, rounds: int, candidates: int,
                       failure: float = 0.05) -> float:
    """Votes that noise alone exceeds anywhere in the run with probability at most ``failure``.

    tau = sigma · sqrt(2 ln(6 T J / failure)), after McMillan, Talwar, Zhou (2026).
    """
    return noise_std * math.sqrt(2 * math.log(6 * rounds * candidates / failure))


def geometry(
    votes_J: Tensor, embeddings_JD: Tensor, keep: int, threshold: float, reach: float,
    generator: torch.Generator
) -> list[int]:
    """Candidates that together stand near all voted-for candidates: minorities keep a
    representative.

    Minimises sum_j w_j · min(reach, distance from j to the nearest chosen) with w = max(votes -
    threshold, 0), greedily and then by exchanging single candidates until nothing improves.

    Args:
        votes_J: released votes.
        embeddings_JD: embeddings of the candidates.
        keep: at most this many are chosen.
        threshold: votes below it count nothing; when it leaves nothing it is dropped to 0, and when
            that leaves nothing either the choice is uniform.
        reach: distances beyond it are all the same.
        generator: for the uniform fallback.
    """
    weight_J = (votes_J.double() - threshold).clamp(min=0)
    if float(weight_J.sum()) <= 0:
        weight_J = votes_J.double().clamp(min=0)
    if float(weight_J.sum()) <= 0:
        return uniform(len(votes_J), keep, generator)
    distance_JJ = torch.cdist(embeddings_JD.double(), embeddings_JD.double()).clamp(max=reach)
    chosen = _greedy(weight_J, distance_JJ, keep, reach)
    return _exchange(weight_J, distance_JJ, chosen, reach)


def _greedy(weight_J: Tensor, distance_JJ: Tensor, keep: int, reach: float) -> list[int]:
    nearest_J = torch.full_like(weight_J, reach)
    chosen: list[int] = []
    for _ in range(keep):
        gain_J = ((nearest_J[:, None] - distance_JJ).clamp(min=0) * weight_J[:, None]).sum(0)
        best = int(gain_J.argmax())
        if float(gain_J[best]) <= 0:
            break
        chosen.append(best)
        nearest_J = torch.minimum(nearest_J, distance_JJ[:, best])
    return chosen


def _exchange(weight_J: Tensor, distance_JJ: Tensor, chosen: list[int], reach: float,
              passes: int = 3) -> list[int]:
    """Swap a chosen candidate for a better one while the cost falls, at most ``passes`` times over
    all of them."""
    for _ in range(passes):
        improved = False
        for place in range(len(chosen)):
            others = [j for i, j in enumerate(chosen) if i != place]
            rest_J = (
                distance_JJ[:, others].min(1).values if others else torch.full_like(weight_J, reach)
            )
            cost_J = (torch.minimum(rest_J[:, None], distance_JJ) * weight_J[:, None]).sum(0)
            best = int(cost_J.argmin())
            if best not in chosen and float(cost_J[best]) < float(cost_J[chosen[place]]) - 1e-12:
                chosen[place], improved = best, True
        if not improved:
            break
    return chosen


def nearest_public(weight_W: Tensor, closeness_WP: Tensor, count: int) -> list[tuple[int, int]]:
    """Public texts for every winner in proportion to its weight, the closest first, none twice.

    Args:
        weight_W: weights of the winners, at least 0, not all 0.
        closeness_WP: similarity of winner and public text.
        count: public texts wanted; all of them when there are no more.

    Returns:
        (winner, public text) pairs; winners of more weight choose first.
    """
    count = min(count, closeness_WP.shape[1])
    exact_W = weight_W.double() / weight_W.double().sum() * count
    quota = [int(q) for q in exact_W]
    by_rest = sorted(range(len(quota)), key=lambda w: (quota[w] - float(exact_W[w]), w))
    for w in by_rest[: count - sum(quota)]:
        quota[w] += 1
    taken: set[int] = set()
    pairs = []
    for w in sorted(range(len(quota)), key=lambda w: (-float(weight_W[w]), w)):
        free = [p for p in closeness_WP[w].argsort(descending=True, stable=True).tolist()
                if p not in taken][: quota[w]]
        taken.update(free)
        pairs += [(w, p) for p in free]
    return pairs
