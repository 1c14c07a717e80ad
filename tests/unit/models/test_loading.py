"""The base under any architecture: what is wrapped, what it says while it wears an adapter, what PEFT reads back."""

from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from tests.closeness import assert_near
from tests.tiny_bases import CAUSAL, CONFIGS, filled, records, tiny
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aulait.core.errors import ModelError
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.models import loading, peft_export
from aulait.models.loading import BREW, AdapterConfig, ModelConfig
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

IDS = torch.tensor([[1, 70, 71, 72, 73, 74], [1, 90, 91, 92, 93, 94]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def brew():
    return loading.load_base(ModelConfig(context=24, device="cpu"))


def said(base, adapter: Adapter | None) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS} if base.config.kind == "seq2seq" else {}
    with torch.no_grad(), loading.wearing(base, [adapter] if adapter else []):
        return base.model(input_ids=IDS, use_cache=False, **extra).logits


def said_by_peft(base, path) -> torch.Tensor:
    seq2seq = base.config.kind == "seq2seq"
    name = BREW if base.config.name == "brew" else base.config.name
    bare = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(name, dtype=torch.float32)
    extra = {"decoder_input_ids": IDS} if seq2seq else {}
    with torch.no_grad():
        return PeftModel.from_pretrained(bare, str(path)).eval()(input_ids=IDS, use_cache=False, **extra).logits


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_any_architecture_trains_scores_exports_and_peft_agrees(kind, folder, tmp_path):
    base = tiny(folder, kind)
    shapes = loading.targets(base, AdapterConfig(rank=2))
    learner = Learner(base, TrainConfig(steps=1, batch=2))
    texts = records(3, prompt=kind == "t5")
    start = filled(shapes, 2)
    done = learner.train([LocalTraining(start, texts, Trainable.AB, 2, 2, 1e-2, 5)])[0]
    moved = [float((done.adapter.factors[n][i] - start.factors[n][i]).abs().max()) for n in shapes for i in (0, 1)]
    assert min(moved) > 0, "a factor of some layer was never reached by the gradient"
    scores = evaluate(learner, done.adapter, {"c": texts}, EvaluateConfig())
    assert 0 < scores.loss < 20
    assert scores.tokens == sum(len(r.text) + 1 for r in texts)
    peft_export.export(done.adapter, base, tmp_path)
    ours = said(base, done.adapter)
    assert float((ours - said(base, None)).abs().max()) > 1e-3
    assert_near(ours, said_by_peft(base, tmp_path), 1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_layers_of_unequal_rank_are_exported_with_a_rank_pattern(kind, folder, tmp_path):
    base = tiny(folder, kind)
    shapes = loading.targets(base, AdapterConfig())
    parts = [filled({name: shape}, rank=1 + i % 3, seed=i) for i, (name, shape) in enumerate(shapes.items())]
    adapter = Adapter({n: pair for part in parts for n, pair in part.factors.items()}, 4.0)
    peft_export.export(adapter, base, tmp_path)
    held = json.loads((tmp_path / "adapter_config.json").read_text())
    assert held["r"] == 3
    assert held["rank_pattern"]
    assert_near(said(base, adapter), said_by_peft(base, tmp_path), 1e-5)


def test_brew_exports_what_it_wears(brew, tmp_path):
    adapter = filled(loading.targets(brew, AdapterConfig(targets="attention", layers=2)), 2)
    peft_export.export(adapter, brew, tmp_path)
    assert_near(said(brew, adapter), said_by_peft(brew, tmp_path), 1e-5)
    held = json.loads((tmp_path / "adapter_config.json").read_text())
    assert held["base_model_name_or_path"] == "brew"
    assert held["target_modules"] == [f"{block}.self_attn.{name}_proj" for block in (4, 5) for name in "koqv"]
    assert held["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("kind", CAUSAL)
def test_chosen_logits_are_the_models_own(kind, folder):
    base = tiny(folder, kind)
    chosen = torch.zeros_like(IDS, dtype=torch.bool)
    chosen[0, 2] = chosen[1, 0] = chosen[1, 5] = True
    with torch.no_grad():
        full = base.model(input_ids=IDS, use_cache=False).logits
        assert_near(loading.logits(base, IDS, chosen), full[chosen], 1e-5)


def test_the_head_runs_alone_only_where_that_is_exact(folder, brew):
    assert brew.split_head
    assert tiny(folder, "gpt2").split_head
    assert not tiny(folder, "gemma2").split_head  # it caps its logits
    assert not tiny(folder, "t5").split_head


def test_brew_split_head_equals_full_logits(brew):
    chosen = torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        full = brew.model(input_ids=IDS, use_cache=False).logits
    assert_near(loading.logits(brew, IDS, chosen), full.flatten(0, 1), 1e-5)


def test_several_adapters_at_once_are_each_worn_by_their_own_rows(folder):
    base = tiny(folder)
    shapes = loading.targets(base, AdapterConfig())
    adapters = [filled(shapes, 2, alpha=2.0, seed=1), filled(shapes, 2, alpha=6.0, seed=2)]
    with torch.no_grad(), loading.wearing(base, adapters):
        both = base.model(input_ids=IDS, use_cache=False).logits
    for row, adapter in enumerate(adapters):
        assert_near(both[row], said(base, adapter)[row], 1e-5)


def test_the_base_is_bare_again_even_after_an_error(folder):
    base = tiny(folder)
    before = said(base, None)
    with pytest.raises(RuntimeError), loading.wearing(base, [filled(loading.targets(base, AdapterConfig()), 2)]):
        raise RuntimeError
    assert torch.equal(said(base, None), before)


def test_nothing_of_the_base_learns(folder):
    base = tiny(folder)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    start = filled(loading.targets(base, AdapterConfig()), 2)
    Learner(base, TrainConfig()).train([LocalTraining(start, records(4), Trainable.AB, 2, 2, 1e-1, 0)])
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert not any(p.requires_grad for p in base.model.parameters())


def test_targets_by_words_names_and_last_layers(folder):
    base = tiny(folder)
    everything = loading.targets(base, AdapterConfig())
    assert len(everything) == 2 * 7
    assert everything["model.layers.0.mlp.down_proj"] == (16, 24)
    assert not any("lm_head" in name for name in everything)
    attention = loading.targets(base, AdapterConfig(targets="attention"))
    assert {name.rpartition(".")[2] for name in attention} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert attention["model.layers.0.self_attn.k_proj"] == (8, 16)
    last = loading.targets(base, AdapterConfig(targets=("q_proj", "v_proj"), layers=1))
    assert sorted(last) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_shapes_of_conv1d_are_not_transposed(folder):
    shapes = loading.targets(tiny(folder, "gpt2"), AdapterConfig())
    assert shapes["transformer.h.0.attn.c_attn"] == (48, 16)
    assert shapes["transformer.h.0.mlp.c_proj"] == (16, 64)


def test_a_target_that_matches_nothing_names_the_nearest(folder):
    with pytest.raises(ModelError, match=r"'q_prj'.*did you mean 'q_proj'") as caught:
        loading.targets(tiny(folder), AdapterConfig(targets=("q_prj",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_layers_that_do_not_exist(layers, folder):
    with pytest.raises(ModelError, match=r"expected 'all' or 1 to 2"):
        loading.targets(tiny(folder), AdapterConfig(layers=layers))


def test_an_unknown_id_without_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"model\.name = 'nobody/nothing-at-all' cannot be loaded") as caught:
        loading.load_base(ModelConfig(name="nobody/nothing-at-all"))
    assert "\n" not in str(caught.value)
    assert "expected 'brew'" in str(caught.value)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        loading.load_base(ModelConfig(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_right_padding_changes_no_real_token(folder):
    for kind in CAUSAL:
        base = tiny(folder, kind)
        short, padded = IDS[:1, :4], torch.cat([IDS[:1, :4], torch.zeros(1, 3, dtype=torch.long)], dim=1)
        chosen, chosen_padded = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True] * 4 + [False] * 3])
        with torch.no_grad():
            found, wanted = (loading.logits(base, *rows) for rows in ((padded, chosen_padded), (short, chosen)))
            assert_near(found, wanted, 1e-5, what=kind)


def test_records_know_their_whole_text():
    assert Record("b", prompt="a").full == "a\nb"
    assert Record("b").full == "b"
