"""Expansion "nearest": the votes say which public texts to learn from."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.seeds import Seeds
from aulait.synthesis import private_evolution, selection
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.private_evolution import EvolutionContext


def obvious(weight, closeness, count):
    """Winner by winner, one public text at a time."""
    exact = weight / weight.sum() * count
    quota = np.floor(exact).astype(int)
    rest = sorted(range(len(weight)), key=lambda w: (quota[w] - exact[w], w))
    for w in rest[: count - quota.sum()]:
        quota[w] += 1
    free, pairs = set(range(closeness.shape[1])), []
    for w in sorted(range(len(weight)), key=lambda w: (-weight[w], w)):
        for _ in range(quota[w]):
            best = min(free, key=lambda p: (-closeness[w, p], p))
            free.remove(best)
            pairs.append((w, best))
    return pairs


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 25), st.integers(0, 10_000))
def test_against_the_obvious_version(winners, public, count, seed):
    draw = np.random.default_rng(seed)
    weight, closeness = draw.random(winners) + 0.01, draw.normal(size=(winners, public))
    pairs = selection.nearest_public(torch.tensor(weight), torch.tensor(closeness), count)
    assert pairs == obvious(weight, closeness, min(count, public))
    assert len({p for _, p in pairs}) == len(pairs) == min(count, public)


class Angles:
    """Embeds "12" at 12 degrees."""

    name, width = "angles", 2

    def embed(self, texts):
        angle = torch.tensor([float(t) for t in texts]).deg2rad()
        return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_final_set_stands_near_the_winners_in_proportion_to_their_votes():
    state = EvolutionState(2, (), (Text("10", 1, votes=30.0), Text("80", 2, votes=10.0), Text("45", 2, votes=-3.0)))
    config = SynthesisConfig(expansion="nearest", texts=8, public_texts=90)
    made = private_evolution.result(config, EvolutionContext(Seeds(0), [str(d) for d in range(91)], Angles(), None, 1.0), state)
    assert sum(t.parent == "10" for t in made) == 6
    assert {abs(int(t.text) - 10) <= 3 for t in made if t.parent == "10"} == {True}
    assert {abs(int(t.text) - 80) <= 1 for t in made if t.parent == "80"} == {True}
    assert sum(t.parent == "80" for t in made) == 2
    assert not [t for t in made if t.parent == "45"]
    assert all(t.round == 3 for t in made)
