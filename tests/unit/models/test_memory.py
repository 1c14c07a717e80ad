"""What makes a large base fit: blocks computed again, a base spread over devices and disk, float16."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests import tiny_run
from tests.families import FAMILIES, load_family, write_family
from tests.tiny_bases import filled, records, tiny, write

from aulait.core.errors import ModelError
from aulait.core.factors import Trainable
from aulait.models import checkpointing, loading
from aulait.models.fingerprint import fingerprint
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.runs import setup
from aulait.runs.prepared import SharedCache
from aulait.training.trainer import Learner, LocalTraining, TrainConfig


def train(base, dropout: float = 0.0, optimizer: str = "sgd", fold: bool = False, sites: int = 2):
    shapes = loading.targets(base, AdapterConfig())
    folded = {name: 0.01 * torch.ones(shape) for name, shape in shapes.items()} if fold else None
    works = [LocalTraining(filled(shapes, 2, seed=site), records(4, site, base.config.kind == "seq2seq"), Trainable.AB, 2, 2, 1e-1, site,
                           fold=folded) for site in range(sites)]
    return Learner(base, TrainConfig(optimizer=optimizer, max_grad_norm=0.0), dropout).train(works)


def same(left, right, most: float = 0.0) -> bool:
    return all(one.loss == pytest.approx(other.loss, abs=most) and all(
        float((x - y).abs().max()) <= most for n in one.adapter.factors
        for x, y in zip(one.adapter.factors[n], other.adapter.factors[n], strict=True)) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Mamba2"])
def test_blocks_computed_again_give_the_same_adapter(family, tmp_path):
    path = write_family(family, tmp_path / "m")
    plain, again = load_family(family, path), load_family(family, path, gradient_checkpointing=True)
    assert same(train(again), train(plain), 1e-7)


@pytest.mark.parametrize("more", [{"dropout": 0.4}, {"fold": True}, {"optimizer": "adamw"}])
def test_blocks_computed_again_see_the_same_dropout_and_folded_updates(tmp_path, more):
    path = write_family("Llama", tmp_path / "m")
    plain, again = load_family("Llama", path), load_family("Llama", path, gradient_checkpointing=True)
    assert same(train(again, **more), train(plain, **more), 1e-7)
    assert not same(train(again, **more), train(again))
    assert all(slot.worn is None and slot.dropout is None for slot in again.slots.values())


def test_blocks_are_computed_twice_and_remember_less(tmp_path):
    path = write_family("Llama", tmp_path / "m")
    kept = {}
    for again in (False, True):
        base, sizes = load_family("Llama", path, gradient_checkpointing=again), []
        calls = []
        loading.targets(base, AdapterConfig())  # its own pass is no training
        base.slots["model.layers.0.self_attn.q_proj"].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            train(base, sites=1)
        kept[again] = sum(sizes), len(calls)
    assert kept[True][1] == 2 * kept[False][1]
    assert kept[True][0] < 0.6 * kept[False][0]


def test_a_model_without_blocks_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path, "llama")
    base = tiny(tmp_path)
    monkeypatch.setattr(type(base.model), "modules", lambda self: iter(()))
    with pytest.raises(ModelError, match=r"gradient_checkpointing is true and .* has no block") as caught:
        checkpointing.recompute_blocks(base.model, str(path))
    assert "\n" not in str(caught.value)


SPREAD = {
    "cpu": {"": "cpu"},
    "disk": {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu",
             "lm_head": "cpu"},
    "all on disk": {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"},
    "auto": "auto",
}


@pytest.mark.parametrize("name", list(SPREAD))
def test_a_spread_base_trains_as_one_in_memory(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AULAIT_CACHE", str(tmp_path / "cache"))
    path = write_family("Llama", tmp_path / "m")
    plain, spread = load_family("Llama", path), load_family("Llama", path, device_map=SPREAD[name])
    assert loading.targets(spread, AdapterConfig()) == loading.targets(plain, AdapterConfig())
    assert same(train(spread), train(plain), 1e-7)
    both = load_family("Llama", path, device_map=SPREAD[name], gradient_checkpointing=True)
    assert same(train(both), train(plain), 1e-7)
    if "disk" in name:
        assert loading.is_offloaded(spread.model)
        with pytest.raises(ModelError, match=r"device_map\) cannot hold dense updates"):
            train(spread, fold=True)
    else:
        assert same(train(spread, fold=True), train(plain, fold=True), 1e-7)
        assert fingerprint(spread) == fingerprint(plain)


def test_a_map_of_an_unknown_kind_is_one_line(tmp_path):
    path = write_family("Llama", tmp_path / "m")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_family("Llama", path, device_map="sideways")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_bases_learn_what_wide_ones_learn(dtype, tmp_path):
    wide, narrow = train(tiny(tmp_path)), train(tiny(tmp_path, dtype=dtype))
    for one, other in zip(wide, narrow, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-2)
        start = filled(loading.targets(tiny(tmp_path), AdapterConfig()), 2, seed=0 if one is wide[0] else 1)
        moved, off = 0.0, 0.0
        for layer, pair in one.adapter.factors.items():
            for i in (0, 1):
                moved += float((pair[i] - start.factors[layer][i]).square().sum())
                off += float((pair[i] - other.adapter.factors[layer][i]).square().sum())
                assert other.adapter.factors[layer][i].dtype == torch.float32
        assert off < (0.1 if dtype == "bfloat16" else 0.01) ** 2 * moved


def test_float16_that_overflows_is_one_line(tmp_path):
    path = write(tmp_path, "llama")
    base = loading.load_base(ModelConfig(name=str(path), context=24, device="cpu"))
    with torch.no_grad():
        base.model.model.embed_tokens.weight.mul_(1e6)
        base.model.model.norm.weight.mul_(1e6)
    folder = tmp_path / "large"
    unwrapped = {name.replace(".inner.", "."): value for name, value in base.model.state_dict().items()}
    base.model.save_pretrained(folder, state_dict=unwrapped)
    base.tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'float16' is too narrow") as caught:
        loading.load_base(ModelConfig(name=str(folder), context=24, device="cpu", dtype="float16"))
    assert "\n" not in str(caught.value)
    assert dataclasses.is_dataclass(loading.load_base(ModelConfig(name=str(folder), context=24, device="cpu")))


def test_a_method_that_folds_refuses_an_offloaded_base_before_work(tmp_path, monkeypatch):
    monkeypatch.setenv("AULAIT_CACHE", str(tmp_path / "cache"))
    tiny_run.write_data(tmp_path)
    model = {"name": str(write_family("Llama", tmp_path / "m")), "device_map": SPREAD["disk"]}
    for method in ("flora", "fedex"):
        settings = tiny_run.settings(tmp_path, model=model, adapter={"layers": "all"}, algorithm={"name": method})
        with pytest.raises(ModelError, match="cannot hold dense updates") as caught:
            setup.prepare(settings, SharedCache())
        assert "\n" not in str(caught.value)
    setup.prepare(tiny_run.settings(tmp_path, model=model, adapter={"layers": "all"}, algorithm={"name": "fedit"}), SharedCache())


def test_a_wrapped_layer_answers_for_the_one_inside(tmp_path):
    slot = load_family("Llama", write_family("Llama", tmp_path)).slots["model.layers.0.mlp.down_proj"]
    assert (slot.in_features, slot.out_features, slot.bias) == (24, 16, None)
    assert slot.weight is slot.inner.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = slot.no_such_thing
