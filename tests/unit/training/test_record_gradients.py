"""Training that protects records: gradients one by one, clipping, noise, sampling, and what must not be guessed."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from tests.closeness import assert_learnt_alike, assert_near
from tests.tiny_bases import filled, records, tiny

from aulait.core import lora
from aulait.core.errors import DataError, PrivacyError
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.core.units import units
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.noise_grid import grid
from aulait.training import record_gradients
from aulait.training.batches import collate, scored
from aulait.training.record_gradients import PrivateTraining, batches, gradients, train_privately
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.unit_sums import sum_units


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def base(folder):
    return tiny(folder)


def shapes(base):
    return loading.targets(base, AdapterConfig(targets=("q_proj", "v_proj", "down_proj")))


def learner(base, **config) -> Learner:
    return Learner(base, TrainConfig(**{"optimizer": "sgd", **config}))


def work(base, **changes) -> PrivateTraining:
    fields = dict(start=filled(shapes(base), 2), records=records(8), trainable=Trainable.AB, steps=2, batch=4, lr=0.5, mode="records", clip=0.1,
                  sigma=0.0, seed=3)
    return PrivateTraining(**(fields | changes))


def moved(one: PrivateTraining, done: Adapter, trainable: Trainable | None = None) -> torch.Tensor:
    change = lora.subtract(lora.to_tensors(done, trainable or one.trainable), lora.to_tensors(one.start, trainable or one.trainable))
    return torch.cat([change[name].double().flatten() for name in sorted(change)])


# -- gradients, record by record -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [Trainable.AB, Trainable.B])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5"])
def test_gradients_of_a_batch_equal_those_of_single_records(folder, kind, trainable):
    base = tiny(folder, kind)
    start = filled(loading.targets(base, AdapterConfig()), 2)
    texts = records(5, prompt=kind == "t5")
    together, losses, tokens = gradients(learner(base), start, texts, trainable)
    assert tokens == sum(len(r.text) + 1 for r in texts)
    for number, record in enumerate(texts):
        alone, loss, _ = gradients(learner(base), start, [record], trainable)
        assert losses[number] == pytest.approx(loss[0], rel=1e-5)
        assert max(float(g.abs().max()) for g in alone) > 1e-4
        for many, one in zip(together, alone, strict=True):
            assert_near(many[number], one[0], 1e-4)


def test_gradients_equal_those_of_opacus_hooks(base):
    """The same low-rank layer built of plain linear layers, with the hooks that Opacus puts on them."""
    GradSampleModule = pytest.importorskip("opacus").GradSampleModule

    class Layer(torch.nn.Module):
        def __init__(self, inner, a, b, scale):
            super().__init__()
            self.inner, self.scale = inner, scale
            self.down, self.up = torch.nn.Linear(a.shape[1], a.shape[0], bias=False), torch.nn.Linear(b.shape[1], b.shape[0], bias=False)
            self.down.weight.data, self.up.weight.data = a.clone(), b.clone()

        def forward(self, x):
            return self.inner(x) + self.scale * self.up(self.down(x))

    start, texts = filled(shapes(base), 2), records(5)
    found, _, _ = gradients(learner(base), start, texts, Trainable.AB)
    rows = collate(base, learner(base).encode, texts)
    hooked = {}
    for name, slot in base.slots.items():
        if name in start.factors:
            hooked[name] = GradSampleModule(Layer(slot.inner, *start.factors[name], start.scale(name)), loss_reduction="sum", strict=False)
            base.model.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = hooked[name]
    try:
        out, target, row = scored(replace(base, packs=False), rows)  # the hooks tell records apart by rows
        each = torch.nn.functional.cross_entropy(out, target, reduction="none")
        weights = torch.bincount(row).float().reciprocal()[row]
        (each * weights).sum().backward()
        wanted = [g for name in start.factors for g in (hooked[name]._module.down.weight.grad_sample, hooked[name]._module.up.weight.grad_sample)]
    finally:
        for name, slot in base.slots.items():
            base.model.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = slot
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert_near(ours, theirs, 1e-4)
        assert float(theirs.abs().max()) > 1e-4


def test_a_gradient_that_is_not_finite_counts_as_zero(base):
    start = filled(shapes(base), 2)
    name = next(iter(start.factors))
    broken = Adapter({**start.factors, name: (start.factors[name][0] * 1e30, start.factors[name][1] * 1e30)}, start.alpha)
    found, _, _ = gradients(learner(base), broken, records(3), Trainable.AB)
    assert all(bool(torch.isfinite(g).all()) for g in found)
    for mode in ("records", "batch"):
        done = train_privately(learner(base), work(base, start=broken, mode=mode, lr=0.1, sigma=0.0))
        assert moved(work(base, start=broken), done.adapter).abs().max() == 0.0


# -- clipping ------------------------------------------------------------------------------------------------------


def expected_step(base, one: PrivateTraining, batch) -> torch.Tensor:
    """A step written down slowly: clip every record's gradient, all factors together, and sum."""
    total = None
    for (record,) in batch:
        found, _, _ = gradients(learner(base), one.start, [record], one.trainable)
        names = [f"{layer}.{letter}" for layer in one.start.factors for letter in one.trainable.factors]
        flat = torch.cat([dict(zip(names, found, strict=True))[n][0].double().flatten() for n in sorted(names)])
        clipped = flat * min(1.0, one.clip / float(flat.norm()))
        total = clipped if total is None else total + clipped
    return total


@pytest.mark.parametrize("trainable", [Trainable.AB, Trainable.B])
@pytest.mark.parametrize("rows", [2, 16])
def test_a_step_is_the_sum_of_clipped_gradients_over_the_expected_batch(base, trainable, rows):
    one = work(base, trainable=trainable, steps=1, clip=0.05)
    (batch,) = batches(one)
    assert len(batch) > 2
    done = train_privately(learner(base, rows_at_once=rows), one)
    wanted = -one.lr * expected_step(base, one, batch) / one.batch
    assert_learnt_alike(moved(one, done.adapter), wanted, 1e-3)
    if trainable == "B":
        assert all(torch.equal(done.adapter.factors[n][0], one.start.factors[n][0]) for n in one.start.factors)


def test_one_record_moves_the_sum_by_at_most_the_bound(base):
    texts = records(6)
    for gone in range(6):
        many, few = (train_privately(learner(base), replace(work(base, steps=1, clip=0.02, lr=1.0), records=r, batch=len(r))) for r in (
            texts, texts[:gone] + texts[gone + 1 :]))
        one = work(base)
        # A step is the sum over the expected number, which is six and five here.
        apart = 6 * moved(one, many.adapter) - 5 * moved(one, few.adapter)
        assert float(apart.norm()) <= 0.02 * (1 + 1e-4)
        assert float(apart.norm()) > 0.015


def test_the_whole_batch_is_clipped_group_by_group(base):
    one = work(base, mode="batch", steps=1, clip=0.01, lr=1.0)
    done = train_privately(learner(base), one)
    for trainable in (Trainable.A, Trainable.B):
        assert float(moved(one, done.adapter, trainable).norm()) == pytest.approx(0.01, rel=1e-3)
    free = train_privately(learner(base), replace(one, clip=math.inf))
    (batch,) = batches(one)
    found, _, _ = gradients(learner(base), one.start, [r for unit in batch for r in unit], Trainable.AB)
    names = [f"{layer}.{letter}" for layer in one.start.factors for letter in "AB"]
    mean = {n: g.mean(0) for n, g in zip(names, found, strict=True)}
    wanted = torch.cat([mean[n].double().flatten() for n in sorted(names)])
    assert_learnt_alike(-moved(one, free.adapter), wanted, 1e-3)


# -- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_seed", [None, 5])
@pytest.mark.parametrize("mode", ["records", "batch"])
def test_the_noise_has_the_standard_deviation_it_should(base, mode, noise_seed):
    wide = filled(loading.targets(base, AdapterConfig()), 8)
    one = work(base, start=wide, mode=mode, steps=1, sigma=3.0, clip=1e-6, lr=1.0, noise_seed=noise_seed)
    noise = moved(one, train_privately(learner(base), one).adapter) * (4 if mode == "records" else 1)
    assert float(noise.std()) == pytest.approx(3.0, rel=6 / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 6 * 3.0 / math.sqrt(len(noise))


def test_the_literal_noise_is_the_square_root_of_the_parameters_times_sigma_times_c(base):
    """Liu et al.: 75,240 for 14.15 million parameters a group, sigma 2 and C 10; the same formula here."""
    assert math.sqrt(14.15e6) * 2 * 10 == pytest.approx(75_240, rel=1e-3)
    wide = filled(loading.targets(base, AdapterConfig()), 8)
    one = work(base, start=wide, mode="batch", steps=1, sigma=2.0 * 10.0, clip=10.0, lr=1.0)
    done = train_privately(learner(base), one).adapter
    for trainable in (Trainable.A, Trainable.B):
        count = sum(t.numel() for t in lora.to_tensors(wide, trainable).values())
        assert float(moved(one, done, trainable).norm()) == pytest.approx(math.sqrt(count) * 20.0, rel=0.1)


def test_noise_comes_from_the_system_unless_it_is_seeded(base):
    one, seeded = work(base, sigma=1.0), work(base, sigma=1.0, noise_seed=7)
    assert one.private
    assert not seeded.private
    assert not work(base).private
    runs = [moved(one, train_privately(learner(base), w).adapter) for w in (one, one, seeded, seeded, replace(seeded, noise_seed=8))]
    assert not torch.equal(runs[0], runs[1])
    assert torch.equal(runs[2], runs[3])
    assert not torch.equal(runs[3], runs[4])


def test_torch_generators_are_not_used_for_what_must_be_secret(base, monkeypatch):
    """Seeding everything that can be seeded changes nothing about private noise and batches."""
    drawn = []
    monkeypatch.setattr(SystemNoise, "gaussian", lambda self, shape, std: (drawn.append(std), torch.zeros(shape).double())[1])
    torch.manual_seed(0)
    first = batches(work(base, sigma=1.0, steps=40))
    torch.manual_seed(0)
    assert batches(work(base, sigma=1.0, steps=40)) != first
    train_privately(learner(base), work(base, sigma=1.5, steps=3))
    assert drawn == [1.5] * 3
    assert torch.equal(*(torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32)))  # why: 32 bits only


# -- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_batches_are_poisson_like_those_of_opacus(base, sigma):
    UniformWithReplacementSampler = pytest.importorskip("opacus.utils.uniform_sampler").UniformWithReplacementSampler

    one = work(base, records=records(40), batch=8, steps=3000, sigma=sigma)
    sizes = torch.tensor([len(batch) for batch in batches(one)]).double()
    theirs = UniformWithReplacementSampler(num_samples=40, sample_rate=0.2, steps=3000, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([len(batch) for batch in theirs]).double()
    for found in (sizes, wanted):
        assert float(found.mean()) == pytest.approx(8.0, abs=5 * math.sqrt(6.4 / 3000))
        assert float(found.var()) == pytest.approx(40 * 0.2 * 0.8, rel=0.15)


def test_a_small_site_takes_all_its_records_and_never_more_often_than_accounted(base):
    one = work(base, records=records(3), batch=8, steps=4)
    assert one.rate == 1.0
    assert one.expected == 3
    assert [len(batch) for batch in batches(one)] == [3] * 4
    held = replace(one, most=0.5)
    assert held.rate == 0.5
    assert held.expected == 1.5
    whole = batches(replace(one, mode="batch"))
    assert [len(batch) for batch in whole] == [3] * 4
    assert [len(set(batch)) for batch in batches(work(base, mode="batch", steps=9))] == [4] * 9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_empty_batch_still_gets_its_noise(base, optimizer):
    one = work(base, steps=1, most=1e-12, sigma=1.0)
    assert batches(one) == [[]]
    done = train_privately(learner(base, optimizer=optimizer), one)
    assert math.isnan(done.loss)
    assert done.tokens == 0
    assert float((moved(one, done.adapter) != 0).double().mean()) > 0.99
    silent = train_privately(learner(base), replace(one, sigma=0.0))
    assert not moved(one, silent.adapter).any()


def test_the_controls_share_the_batches(base, monkeypatch):
    seen = []
    inner = record_gradients.gradients
    monkeypatch.setattr(record_gradients, "gradients", lambda lea, start, texts, trainable: (seen.append(tuple(texts)), inner(lea, start, texts, trainable))[1])
    for change in ({"clip": 0.1}, {"clip": math.inf}, {"clip": 0.1, "sigma": 1.0, "noise_seed": 1}, {"trainable": Trainable.B}):
        train_privately(learner(base), work(base, steps=5, **change))
    quarter = len(seen) // 4
    assert seen[:quarter] == seen[quarter : 2 * quarter] == seen[2 * quarter : 3 * quarter] == seen[3 * quarter :]


def test_without_clip_and_noise_it_is_plain_training(base):
    """Full batches: one SGD step on the mean gradient, as any trainer would do."""
    one = work(base, clip=math.inf, steps=1, batch=8)
    done = train_privately(learner(base), one)
    found, _, _ = gradients(learner(base), one.start, one.records, Trainable.AB)
    names = [f"{layer}.{letter}" for layer in one.start.factors for letter in "AB"]
    mean = {n: g.double().mean(0) for n, g in zip(names, found, strict=True)}
    wanted = torch.cat([-one.lr * mean[n].flatten() for n in sorted(names)])
    assert_learnt_alike(moved(one, done.adapter), wanted, 1e-3)
    assert train_privately(learner(base, optimizer="adamw"), work(base, clip=math.inf, steps=20, batch=8, lr=3e-2)).loss < done.loss


# -- refusals ------------------------------------------------------------------------------------------------------


def test_refusals(base):
    with pytest.raises(DataError, match="no records"):
        train_privately(learner(base), replace(work(base), records=()))
    for bad in ({"clip": math.inf, "sigma": 1.0}, {"clip": 0.0}, {"sigma": -1.0}, {"sigma": math.nan}, {"clip": math.nan}, {"most": 0.0}):
        with pytest.raises(PrivacyError):
            work(base, **bad)


def test_a_base_of_narrow_weights_is_refused_where_there_is_noise(folder):
    narrow = tiny(folder, dtype="bfloat16")
    with pytest.raises(PrivacyError, match=r"model.dtype is .bfloat16.*expected .float32"):
        train_privately(learner(narrow), work(narrow, sigma=1.0))
    assert not math.isnan(train_privately(learner(narrow), work(narrow)).loss)


# -- units -----------------------------------------------------------------------------------------


def of(unit: str, texts) -> tuple[Record, ...]:
    return tuple(replace(text, unit=unit) for text in texts)


def test_all_records_of_a_unit_are_drawn_together_and_clipped_as_one(base):
    """Against a slow sum: one gradient a unit, of all its records, clipped once."""
    texts = records(7)
    held = (*of("anna", texts[:3]), *of("bert", texts[3:4]), *of("carl", texts[4:]))
    one = work(base, records=held, batch=3, steps=1, clip=0.02, lr=1.0)
    assert one.expected == 3
    names = [f"{layer}.{letter}" for layer in one.start.factors for letter in "AB"]
    total = 0.0
    for unit in ("anna", "bert", "carl"):
        found = [gradients(learner(base), one.start, [r], Trainable.AB)[0]
                 for r in held if r.unit == unit]
        flat = sum(torch.cat([dict(zip(names, g, strict=True))[n][0].double().flatten()
                              for n in sorted(names)]) for g in found)
        total = total + flat * min(1.0, 0.02 / float(flat.norm()))
    assert_learnt_alike(moved(one, train_privately(learner(base), one).adapter), -total / 3, 1e-3)
    for batch in batches(replace(one, batch=1, steps=50)):
        assert {len(unit) for unit in batch} <= {1, 3}
        assert len({unit[0].unit for unit in batch}) == len(batch)


def steps_of(base, one) -> record_gradients._RecordSteps:
    """The steps of DP-SGD at the start."""
    factors = {n: (torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())) for n, (a, b) in one.start.factors.items()}
    live = record_gradients._LiveFactors(learner(base), one, factors, [leaf for pair in factors.values() for leaf in one.trainable.of(pair)], SystemNoise())
    return record_gradients._RecordSteps(live)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_equals_that_of_opacus(base, optimizer):
    """Its optimiser clips the stack of gradients in float32 and steps on sum / expected; without noise."""
    DPOptimizer = pytest.importorskip("opacus.optimizers").DPOptimizer
    one = work(base, steps=1, batch=8, clip=0.02, lr=1e-2)
    found, _, _ = gradients(learner(base), one.start, one.records, Trainable.AB)
    leaves = [torch.nn.Parameter(t.clone()) for pair in one.start.factors.values() for t in pair]
    inner = torch.optim.SGD(leaves, lr=one.lr) if optimizer == "sgd" else torch.optim.AdamW(leaves, lr=one.lr, weight_decay=0.0)
    theirs = DPOptimizer(inner, noise_multiplier=0.0, max_grad_norm=one.clip, expected_batch_size=8)
    for leaf, gradient in zip(leaves, found, strict=True):
        leaf.grad_sample = gradient
    theirs.step()
    done = train_privately(learner(base, optimizer=optimizer), one).adapter
    ours = [t for pair in done.factors.values() for t in pair]
    starts = [t for pair in one.start.factors.values() for t in pair]
    moves = [torch.cat([(a - b).flatten() for a, b in zip(some, starts, strict=True)]) for some in (ours, [leaf.detach() for leaf in leaves])]
    sure = moves[1].abs() > 1e-2 * moves[1].abs().max()  # AdamW's step of a tiny gradient is its rounding's
    assert_near(moves[0][sure], moves[1][sure], 1e-2)
    assert int(sure.sum()) > 100


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_unit_more_moves_the_exact_sum_by_at_most_the_bound_whatever_the_start(base, scale):
    """The sum on the grid, by whole numbers: with a hostile start too, and in any company."""
    texts = records(8)
    start = filled(shapes(base), 2)
    hostile = Adapter({n: (a * scale, b * scale) for n, (a, b) in start.factors.items()},
                      start.alpha, start.rank)
    one = work(base, start=hostile, sigma=2.0, clip=0.02)

    def summed(some) -> torch.Tensor:
        return sum_units(learner(base), steps_of(base, one).asked(0, units(some))).total

    whole = summed(texts)
    for gone in range(8):
        apart = whole - summed([*texts[gone + 1:], *texts[:gone]])
        assert sum(Fraction(x) ** 2 for x in apart.tolist()) <= Fraction(0.02) ** 2
        assert torch.equal(apart / grid(2.0), (apart / grid(2.0)).round())
        alone = summed([texts[gone]])
        assert torch.equal(apart, alone)  # no record changed another's part by a single bit


def test_the_adapter_keeps_its_scale_and_its_length_on_the_cpu(base):
    start = filled(shapes(base), 2)
    one = work(base, start=Adapter(start.factors, start.alpha, 8))
    done = train_privately(learner(base), one).adapter
    assert (done.alpha, done.rank) == (start.alpha, 8)
    assert all(t.device.type == "cpu" and not t.requires_grad for t in lora.to_tensors(done).values())


def test_a_seeded_stream_is_its_own(base):
    assert not torch.equal(SeededNoise(1).gaussian((3,), 1.0), SeededNoise(2).gaussian((3,), 1.0))
    assert Record("a") == Record("a")
