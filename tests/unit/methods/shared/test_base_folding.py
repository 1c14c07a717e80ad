"""Dense updates in the frozen weights, and adapters with a scale of their own as PEFT reads them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tests.closeness import assert_near
from tests.tiny_bases import CONFIGS, filled, records, tiny
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aulait.core import lora
from aulait.core.errors import ModelError
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.methods.contract import RunContext, State
from aulait.methods.shared.base_folding import as_adapter
from aulait.models import loading, peft_export
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

IDS = torch.tensor([[1, 70, 71, 72, 73, 74], [1, 90, 91, 92, 93, 94]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def said(base, adapter: Adapter | None = None) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS} if base.config.kind == "seq2seq" else {}
    with torch.no_grad(), loading.wearing(base, [adapter] if adapter else []):
        return base.model(input_ids=IDS, use_cache=False, **extra).logits


def said_by_peft(base, path) -> torch.Tensor:
    seq2seq = base.config.kind == "seq2seq"
    bare = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(base.config.name, dtype=torch.float32)
    extra = {"decoder_input_ids": IDS} if seq2seq else {}
    with torch.no_grad():
        return PeftModel.from_pretrained(bare, str(path)).eval()(input_ids=IDS, use_cache=False, **extra).logits


def weights(base) -> dict[str, torch.Tensor]:
    return {name: slot.inner.weight.detach().clone() for name, slot in base.slots.items()}


# -- folding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_base_that_holds_an_update_says_what_a_base_says_that_wears_it(kind, folder):
    """Every architecture, every layer; GPT-2's weights lie the other way round and are turned once."""
    base = tiny(folder, kind)
    adapter = filled(loading.targets(base, AdapterConfig()), 3)
    wanted, bare = said(base, adapter), said(base)
    assert float((wanted - bare).abs().max()) > 1e-3
    with loading.folded(base, lora.dense(adapter)):
        assert_near(said(base), wanted, 1e-5)
    assert torch.equal(said(base), bare)


def test_square_layers_of_gpt2_are_turned_once_and_no_other_ones_are(folder):
    """A square matrix hides a wrong turn: here the update has one entry, out feature 2 from in feature 5."""
    for kind, layer in (("gpt2", "transformer.h.0.attn.c_proj"), ("llama", "model.layers.0.self_attn.q_proj")):
        base = tiny(folder, kind)
        update = torch.zeros(16, 16)
        update[2, 5] = 3.0
        x = torch.zeros(1, 16)
        x[0, 5] = 1.0
        with torch.no_grad():
            before = base.slots[layer](x)
            with loading.folded(base, {layer: update}):
                moved = base.slots[layer](x) - before
        wanted = torch.zeros(1, 16)
        wanted[0, 2] = 3.0
        assert_near(moved, wanted, 1e-6, what=kind)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_base_is_as_before_bit_for_bit_also_after_an_error(kind, folder):
    base = tiny(folder, kind)
    before = weights(base)
    same = {name: slot.inner.weight.data_ptr() for name, slot in base.slots.items()}
    update = {name: 1e3 * torch.randn(shape) for name, shape in loading.targets(base, AdapterConfig()).items()}
    with loading.folded(base, update):
        assert not any(torch.equal(before[name], slot.inner.weight) for name, slot in base.slots.items())
    with pytest.raises(RuntimeError), loading.folded(base, update):
        raise RuntimeError
    wrong = {name: t for name, t in list(update.items())[:-1]} | {list(update)[-1]: torch.zeros(1, 99, 3)}
    with pytest.raises(RuntimeError), loading.folded(base, wrong):  # the last one does not fit: the others go back too
        pass
    assert all(torch.equal(slot.inner.weight, before[name]) for name, slot in base.slots.items())
    assert {name: slot.inner.weight.data_ptr() for name, slot in base.slots.items()} == same  # no copy stays behind


def test_nothing_to_fold_is_nothing_done(folder):
    base = tiny(folder)
    for nothing in (None, {}):
        bare = said(base)
        with loading.folded(base, nothing):
            assert torch.equal(said(base), bare)


def test_weights_of_half_precision_hold_the_sum_rounded_once(folder):
    base = loading.load_base(ModelConfig(name=tiny(folder).config.name, context=24, device="cpu", dtype="bfloat16"))
    layer = "model.layers.0.self_attn.q_proj"
    before = base.slots[layer].inner.weight.detach().clone()
    update = 0.01 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    with loading.folded(base, {layer: update}):
        assert torch.equal(base.slots[layer].inner.weight, (before.float() + update).to(torch.bfloat16))
    assert torch.equal(base.slots[layer].inner.weight, before)


def test_a_quantised_base_refuses_and_names_methods_that_never_fold(folder):
    base = tiny(folder)
    base.config = base.config.model_copy(update={"quant": "8bit"})
    with pytest.raises(ModelError, match="'fedit'"), loading.folded(base, {"x": torch.zeros(1)}):
        pass
    with loading.folded(base, None):
        pass


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_on_a_fold_is_training_on_a_base_with_those_weights(kind, folder):
    """The loss of a fold is that of an adapter with the same dense update; a zero fold is none; the fold itself stays."""
    base = tiny(folder, kind)
    learner = Learner(base, TrainConfig())
    shapes = loading.targets(base, AdapterConfig())
    held, start, texts = filled(shapes, 2, seed=1), lora.initial(shapes, 2, 4.0, Seeds(5)), records(4)
    fold = lora.dense(held)
    copies = {name: t.clone() for name, t in fold.items()}
    work = LocalTraining(start, texts, Trainable.AB, 1, 4, 1e-2, 3)
    on_fold = learner.train([replace(work, fold=fold)])[0]
    scored = evaluate(learner, held, {"c": texts}, EvaluateConfig()).loss
    assert on_fold.loss == pytest.approx(scored, rel=1e-5)
    assert on_fold.loss != pytest.approx(learner.train([work])[0].loss, rel=1e-4)
    assert all(torch.equal(fold[name], copies[name]) for name in fold)
    none = learner.train([replace(work, fold={name: torch.zeros(shape) for name, shape in shapes.items()})])[0]
    bare = learner.train([work])[0]
    assert none.loss == bare.loss
    assert all(torch.equal(none.adapter.factors[n][1], bare.adapter.factors[n][1]) for n in shapes)


def test_sites_on_different_folds_do_not_share_a_pass_and_sites_on_one_do(folder):
    base = tiny(folder)
    shapes = loading.targets(base, AdapterConfig(targets=("q_proj",)))
    one, other = ({name: torch.full(shape, v) for name, shape in shapes.items()} for v in (0.1, 0.2))
    works = [LocalTraining(filled(shapes, 2), records(3), Trainable.AB, 1, 1, 1e-2, 3, fold=fold) for fold in (one, other, one, None)]
    learner = Learner(base, TrainConfig())
    assert sorted(sorted(some) for some in learner.passes(works)) == [[0, 2], [1], [3]]
    for work, done in zip(works, learner.train(works), strict=True):
        assert done.loss == pytest.approx(learner.train([work])[0].loss, rel=1e-5)


# -- adapters with a scale of their own ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("nominal", [None, 2, 8, 5])
def test_peft_reads_an_adapter_with_a_nominal_rank_as_we_do(kind, nominal, folder, tmp_path):
    """The leading columns of a larger adapter keep its scale alpha / R; PEFT divides by the rank it finds."""
    base = tiny(folder, kind)
    shapes = loading.targets(base, AdapterConfig())
    whole = filled(shapes, 8, alpha=12.0)
    flat = lora.to_tensors(whole)
    ranks = {name: 1 + i % 4 for i, name in enumerate(sorted(shapes))}
    adapter = lora.from_tensors(lora.leading(flat, ranks.__getitem__), whole.alpha, nominal)
    before = {name: (a.clone(), b.clone()) for name, (a, b) in adapter.factors.items()}
    peft_export.export(adapter, base, tmp_path)
    ours = said(base, adapter)
    assert float((ours - said(base)).abs().max()) > 1e-3
    assert_near(said_by_peft(base, tmp_path), ours, 1e-5)
    assert all(torch.equal(adapter.factors[n][i], before[n][i]) for n in shapes for i in (0, 1))
    held = json.loads((tmp_path / "adapter_config.json").read_text())
    assert held["lora_alpha"] == 12.0
    assert held["r"] == 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_reads_the_total_update_of_a_folding_method(kind, folder, tmp_path):
    """FLoRA's result is the folded sum itself, as an adapter whose one factor is the identity of the smaller side."""
    base = tiny(folder, kind)
    shapes = loading.targets(base, AdapterConfig())
    whole = lora.dense(filled(shapes, 3))
    state = State(1, {f"whole/{name}": t for name, t in whole.items()})
    adapter = as_adapter(RunContext(shapes, 3, 4.0, Seeds(0)), state)
    for name, t in lora.dense(adapter).items():
        assert torch.equal(t, whole[name])
        assert adapter.factors[name][0].shape[0] == min(shapes[name])
    peft_export.export(adapter, base, tmp_path)
    with loading.folded(base, whole):
        wanted = said(base)
    assert_near(said(base, adapter), wanted, 1e-5)
    assert_near(said_by_peft(base, tmp_path), wanted, 1e-5)
