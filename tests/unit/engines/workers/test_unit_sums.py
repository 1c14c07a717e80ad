"""Units summed by several workers: each once, wherever; nothing is added that clipping cannot
give."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_bases import filled, records, tiny

from aulait.core.errors import PrivacyError
from aulait.core.factors import Trainable
from aulait.core.units import units
from aulait.engines.workers.contract import HereWorker, ShareResult
from aulait.engines.workers.spread_learner import SpreadLearner
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy import noise
from aulait.training import record_gradients, unit_sums
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.unit_sums import UnitSum, UnitSumWork, sum_units


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    return Learner(tiny(tmp_path_factory.mktemp("bases")), TrainConfig())


def work(learner, some, sigma=2.0, at=(0, 0)):
    shapes = loading.targets(learner.base, AdapterConfig(targets=("q_proj", "down_proj")))
    return UnitSumWork(filled(shapes, 2), Trainable.AB, units(some), 0.02, sigma, at)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_workers_gives_the_sums_of_one_to_the_bit(count, learner):
    texts = records(9)
    asked = [work(learner, texts[:1]), work(learner, []), work(learner, texts[1:])]
    spread = SpreadLearner(learner, lambda: [HereWorker(learner, 1) for _ in range(count)])
    found = spread.unit_sums(asked)
    for own, wanted in zip(found, [sum_units(learner, one) for one in asked], strict=True):
        assert torch.equal(own.total, wanted.total)
        assert sorted(own.losses) == sorted(wanted.losses)
        assert own.tokens == wanted.tokens


def test_a_dense_update_is_folded_in_where_the_sum_is_made_and_only_there(learner):
    shape = learner.base.slots
    (name,) = [name for name in work(learner, []).start.factors if name.endswith("q_proj")][:1]
    fold = {name: torch.full(shape[name].inner.weight.shape, 0.1)}
    before = shape[name].inner.weight.clone()
    asked = unit_sums.replace(work(learner, records(3)), fold=fold)
    (found,) = SpreadLearner(learner, lambda: [HereWorker(learner, 1)] * 1).unit_sums([asked])
    assert torch.equal(shape[name].inner.weight, before)
    with loading.folded(learner.base, fold):
        assert torch.equal(found.total, sum_units(learner, asked).total)
    assert not torch.equal(found.total, sum_units(learner, asked).total)


def test_a_worker_draws_nothing(learner, monkeypatch):
    def drawn(*given):
        raise AssertionError("a worker drew")

    for name in ("gaussian", "rounded"):
        monkeypatch.setattr(noise.SystemNoise, name, drawn)
        monkeypatch.setattr(noise.SeededNoise, name, drawn)
    monkeypatch.setattr(record_gradients, "batches", drawn)
    spread = SpreadLearner(learner, lambda: [HereWorker(learner, 1)])
    assert spread.unit_sums([work(learner, records(2))])[0].tokens


class Wrong:
    """A worker of other code: it does not clip, or not onto the grid, or gives other numbers."""

    def __init__(self, learner, how):
        self.here, self.how = HereWorker(learner, 1), how

    def begin(self, share):
        self.here.begin(share)

    def finished(self):
        (own,) = self.here.finished().sums
        return ShareResult(sums=[UnitSum(self.how(own.total), own.losses, own.tokens)])


@pytest.mark.parametrize(
    "how",
    [
        lambda total: total * 8,
        lambda total: total + 2.0**-40,
        lambda total: total[:-1],
        lambda total: total * torch.nan,
    ],
)
def test_what_is_no_sum_of_clipped_gradients_is_refused(how, learner):
    spread = SpreadLearner(learner, lambda: [Wrong(learner, how)])
    with pytest.raises(PrivacyError, match="a worker gave a sum of clipped gradients that is none"):
        spread.unit_sums([work(learner, records(3), sigma=0.01)])
