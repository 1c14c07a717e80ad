"""AdaFusion: two adapters of one client mixed by two numbers, found without gradients on a few
records.

Source: Qi et al., FDLoRA, 2024; element-wise composition and the objective (few-shot loss plus L1)
after Huang et al., "LoraHub", COLM 2024. The optimiser is SciPy's Nelder-Mead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aulait.core.types import Adapter, Record
from aulait.evaluation.config import EvaluateConfig
from aulait.evaluation.losses import evaluate
from aulait.training.trainer import Learner


def fused(own: Adapter, shared: Adapter, weights: tuple[float, float]) -> Adapter:
    """A = w1 A_p + w2 A_s and B = w1 B_p + w2 B_s in every layer."""
    w1, w2 = weights
    factors = {
        layer: (w1 * a + w2 * shared.factors[layer][0], w1 * b + w2 * shared.factors[layer][1])
        for layer, (a, b) in own.factors.items()
    }
    return shared.holding(factors)


@dataclass(frozen=True)
class FusionSearch:
    """How the two weights are looked for.

    Attributes:
        l1: weight of the mean of |w1| and |w2| in what is minimised.
        bound: both weights lie within ± this.
        tries: evaluations of the loss, at least 4.
    """

    l1: float
    bound: float
    tries: int


def best_weights(learner: Learner, own: Adapter, shared: Adapter, records: Sequence[Record],
                 search: FusionSearch) -> tuple[float, float]:
    """The (w1, w2) of least loss + l1 · mean(|w1|, |w2|) on the records.

    Never worse there than either adapter alone, their mean, or the bare base.

    Args:
        learner: the base the loss is measured on.
        own: the personal adapter.
        shared: the global adapter, of the same shapes.
        records: a few of the client's own; sensitive.
        search: penalty, bound and effort.
    """
    from scipy.optimize import minimize  # slow to import, and only this method needs it

    config = EvaluateConfig(records_per_client=max(1, len(records)))

    def objective(w: Sequence[float]) -> float:
        loss = evaluate(learner, fused(own, shared, (float(w[0]), float(w[1]))), {"own": records},
                        config).loss
        return loss + search.l1 * (abs(float(w[0])) + abs(float(w[1]))) / 2

    bound = search.bound
    mean = (min(0.5, bound), min(0.5, bound))
    # a triangle: three points of one line would never leave it
    corners = [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]
    found = minimize(objective, corners[0], method="Nelder-Mead", bounds=[(-bound, bound)] * 2,
                     options={"maxfev": search.tries - 1, "initial_simplex": corners, "xatol": 1e-3,
                              "fatol": 1e-4})
    return mean if objective(mean) < found.fun else (float(found.x[0]), float(found.x[1]))
