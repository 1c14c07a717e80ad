"""Dropout and scaling of adapters: against PEFT, and independent of whom a record is trained with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tests import tiny_run
from tests.closeness import assert_near
from tests.contract.federation import WIDE, Federation
from tests.oracle import plain_training
from tests.tiny_bases import filled, records, tiny
from transformers import AutoModelForCausalLM

from aulait.core import lora
from aulait.core.errors import ConfigError
from aulait.core.factors import Trainable
from aulait.core.types import Record
from aulait.methods import METHODS
from aulait.models import loading, peft_export
from aulait.models.adapter_dropout import AdapterDropout, layer_number
from aulait.models.loading import AdapterConfig
from aulait.runs import setup
from aulait.runs.prepared import SharedCache
from aulait.training.record_gradients import gradients
from aulait.training.row_keys import row_keys
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, draws
from aulait.training.unit_sums import unit_gradient

RATE = 0.3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


def work(base, site: int = 0, scaling: str = "lora", batch: int = 2) -> LocalTraining:
    start = replace(filled(loading.targets(base, AdapterConfig()), 3, alpha=2.0, seed=site), scaling=scaling)
    return LocalTraining(start, records(5, site), Trainable.AB, 2, batch, 1e-2, 10 + site)


def batches(learner, one):
    return [[one.records[i] for i in step] for step in draws(one, learner.lengths(one.records))]


def gap(left, right) -> float:
    return max(float((x - y).abs().max()) for n in left.factors for x, y in zip(left.factors[n], right.factors[n], strict=True))


def test_as_many_entries_are_left_out_as_asked_for_and_the_rest_is_scaled_up():
    dropout = AdapterDropout(RATE, torch.tensor([5, 2**32 - 1, 12345]))
    x = torch.ones(3, 400, 250, dtype=torch.float64)
    found = dropout.applied(x, layer_number("a"))
    assert set(found.unique().tolist()) == {0.0, 1 / (1 - RATE)}
    left_out = (found == 0).double()
    assert float(left_out.mean()) == pytest.approx(RATE, abs=0.004)  # 5 standard deviations are 0.0042
    for axis in ((1, 2), (0, 2), (0, 1)):
        spread = (left_out.mean(dim=axis) - RATE).abs().max()
        assert float(spread) < 6 * (RATE * (1 - RATE) / (left_out.numel() / left_out.mean(dim=axis).numel())) ** 0.5
    rows = left_out - RATE
    for other in (rows[[1, 2, 0]], (dropout.applied(x, layer_number("b")) == 0).double() - RATE, rows.roll(1, 1), rows.roll(1, 2)):
        assert abs(float((rows * other).mean())) < 0.003


def test_a_mask_does_not_depend_on_padding_or_company():
    keys, x = torch.tensor([7, 8, 9]), torch.randn(3, 11, 6)
    whole = AdapterDropout(RATE, keys).applied(x, 3)
    assert torch.equal(AdapterDropout(RATE, keys[1:2]).applied(x[1:2, :5], 3), whole[1:2, :5])
    flat = AdapterDropout(RATE, keys).applied(x.reshape(33, 6), 3)
    assert torch.equal(flat.view(3, 11, 6), whole)


def test_the_same_record_of_another_site_or_step_has_another_mask():
    record = Record("abc", "q")
    marks = [(1, 1, record), (2, 1, record), (1, 2, record), (1, 1, Record("abd", "q")), (1, 1, Record("abc"))]
    assert len(set(row_keys(marks).tolist())) == 5
    assert row_keys([(1, 1, Record("abc", "q", label="x"))]).tolist() == row_keys(marks[:1]).tolist()


@pytest.mark.parametrize(("dropout", "scaling"), [(0.0, "lora"), (0.0, "rslora"), (RATE, "rslora")])
def test_a_step_equals_pefts_on_the_same_batch(base, dropout, scaling):
    learner, one = Learner(base, TrainConfig(optimizer="sgd", max_grad_norm=0.0), dropout), work(base, scaling=scaling)
    plain, loss = plain_training.train(
        base.config.name, one.start, batches(learner, one), part="AB", lr=one.lr, optimizer="sgd", max_grad_norm=0.0,
        masks=None if not dropout else lambda step, batch: AdapterDropout(dropout, row_keys([(one.seed, step, r) for r in batch])))
    done = learner.train([one])[0]
    assert done.loss == pytest.approx(loss, rel=1e-5)
    assert gap(done.adapter, one.start) > 1e-4
    assert gap(done.adapter, plain) < 1e-5 * max(1.0, gap(done.adapter, one.start))
    assert (done.adapter.scaling, done.adapter.alpha) == (scaling, 2.0)


def test_sites_with_dropout_learn_together_what_each_learns_alone(base):
    learner = Learner(base, TrainConfig(optimizer="sgd", rows_at_once=64), RATE)
    works = [work(base, site) for site in range(3)]
    for one, done in zip(works, learner.train(works), strict=True):
        alone = learner.train([one])[0]
        assert gap(done.adapter, alone.adapter) < 1e-6
        pieces = Learner(base, TrainConfig(optimizer="sgd", rows_at_once=1), RATE).train([one])[0]
        assert gap(done.adapter, pieces.adapter) < 1e-6
        assert gap(done.adapter, Learner(base, TrainConfig(optimizer="sgd")).train([one])[0].adapter) > 1e-5


def test_what_is_left_out_of_one_record_depends_on_no_other(base):
    """Where single records are protected, one more record must not move the gradients of others."""
    learner, some = Learner(base, TrainConfig(), RATE), records(3)
    start = filled(loading.targets(base, AdapterConfig()), 2)
    stack = Stack.of([start], Trainable.AB, base.device)
    together, _, _ = gradients(learner, start, some, Trainable.AB, (4, 1))
    for i, record in enumerate(some):
        alone = unit_gradient(learner, stack, (record,), (4, 1)).vector
        found = torch.cat([g[i].reshape(-1) for g in together]).double()
        assert float((alone - found).abs().max()) < 1e-5
        assert not torch.equal(alone, unit_gradient(learner, stack, (record,), (4, 2)).vector)


def test_evaluation_leaves_nothing_out(base):
    learner = Learner(base, TrainConfig(), RATE)
    learner.train([work(base)])
    assert all(slot.dropout is None and slot.worn is None for slot in base.slots.values())


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("ranks", [(4, 4), (1, 4)])
def test_the_exported_scale_is_the_adapters_own(base, scaling, ranks, tmp_path):
    shapes = list(loading.targets(base, AdapterConfig()).items())
    parts = [filled(dict(some), rank) for some, rank in zip((shapes[:3], shapes[3:]), ranks, strict=True)]
    factors = {n: pair for part in parts for n, pair in part.factors.items()}
    adapter = replace(parts[0], factors=factors, alpha=3.0, scaling=scaling)
    peft_export.export(adapter, base, tmp_path, dropout=0.1)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["use_rslora"], told["lora_dropout"], told["lora_alpha"]) == (scaling == "rslora", 0.1, 3.0)
    ids = torch.tensor([[1, 70, 71, 72]])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.config.name), str(tmp_path)).eval()
    with torch.no_grad():
        with loading.wearing(base, [adapter]):
            ours = base.model(input_ids=ids).logits
        assert_near(ours, model(input_ids=ids).logits, 1e-5)


@pytest.mark.parametrize("method", sorted({*METHODS.names()} - {"dplora", "splitlora"}))  # these need a real base
def test_every_method_merges_at_the_scale_of_the_setting(method):
    """At one rank, rslora is lora with alpha times the root of the rank; so is what comes of it."""
    found = []
    for scaling, alpha in (("rslora", 3.0), ("lora", 6.0)):
        run = Federation(method, shapes=WIDE, rank=4, alpha=alpha, scaling=scaling)
        state = run.rounds(3)
        own = run.personal(state)["ann"] if method in ("alone", "fedsa") else run.result(state)
        found.append(lora.dense(own))
    assert max(float(own.abs().max()) for own in found[0].values()) > 0
    for name, own in found[0].items():
        assert_near(own, found[1][name], 1e-5)


@pytest.mark.parametrize("method", ["flora", "flexlora"])
def test_unequal_ranks_merge_at_their_own_scales(method):
    """The server's merge is the mean of the dense updates that the clients really have."""
    run = Federation(method, shapes=WIDE, rank=4, alpha=3.0, scaling="rslora",
                     ranks={"bob": 1}, proxies=())
    state, _ = run.round(run.start())
    held = run.held()
    wanted = {layer: sum(own[layer] for own in held.values()) / len(held) for layer in WIDE}
    if method == "flexlora":  # keeps rank 4 of it
        for layer, whole in wanted.items():
            u, s, v = torch.linalg.svd(whole)
            wanted[layer] = u[:, :4] * s[:4] @ v[:4]
    for layer, found in lora.dense(run.result(state)).items():
        assert_near(found.double(), wanted[layer].double(), 1e-4)


def test_dropout_of_a_split_client_is_refused_before_work(tmp_path):
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, adapter={"dropout": 0.1}, algorithm={"name": "fedit"}, synthesis={"proxies": "absent"},
                                 federation={"tier": [{"name": "gpu", "count": 3, "placement": "split"}, {"name": "b", "placement": "local"}]})
    with pytest.raises(ConfigError, match=r"adapter\.dropout = 0\.1 with a split tier") as caught:
        setup.prepare(settings, SharedCache())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "told"), [("use_dora", "DoRA is not offered"), ("lora_dropout", r"write adapter\.dropout"),
                                           ("use_rslora", r"write adapter\.scaling = 'rslora'"), ("r", r"write adapter\.rank")])
def test_names_of_peft_are_answered_with_ours(key, told, tmp_path):
    with pytest.raises(ConfigError, match=rf"unknown key 'adapter\.{key}'; {told}") as caught:
        tiny_run.settings(tmp_path, adapter={key: 1})
    assert "\n" not in str(caught.value)
