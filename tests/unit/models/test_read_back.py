"""An exported folder that is not what was measured is found, and the base is left as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_bases import CONFIGS, filled, records, tiny
from torch import nn

from aulait.core.errors import ModelError
from aulait.core.types import Adapter
from aulait.models import loading, peft_export, read_back
from aulait.models.loading import AdapterConfig, wearing
from aulait.models.multi_lora_linear import SharedLinear
from aulait.runs import export_check
from aulait.runs.export_check import ScoredRecords, check_exported, check_personal
from aulait.training.batches import Encoder, collate, scored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def rows(base) -> ScoredRecords:
    encode = Encoder(base)
    return ScoredRecords([collate(base, encode, [one]) for one in records(2, prompt=True)], "made-up texts")


def said(base, adapter) -> torch.Tensor:
    with torch.no_grad(), wearing(base, [adapter] if adapter else []):
        return torch.cat([scored(base, row)[0] for row in rows(base).rows])


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_export_is_accepted_and_the_base_is_as_before(kind, dtype, folder, tmp_path):
    base = tiny(folder, kind, dtype=dtype)
    adapter = filled(loading.targets(base, AdapterConfig()), 2)
    peft_export.export(adapter, base, tmp_path)
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    state, before = torch.random.get_rng_state(), said(base, adapter)
    found = check_exported(rows(base), base, adapter, tmp_path)
    assert found.layers == len(adapter.factors)
    wanted = 1e-4 if dtype == "float32" else 0.05
    assert found.peft_loss == pytest.approx(found.loss, abs=wanted)
    assert found.merged_loss == pytest.approx(found.loss, abs=wanted)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(isinstance(base.model.get_submodule(name), SharedLinear) for name in base.slots)
    assert set(weights) == set(base.model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in base.model.state_dict().items())
    assert not hasattr(base.model, "peft_config")
    assert torch.equal(before, said(base, adapter))
    check_exported(rows(base), base, adapter, tmp_path)  # and once more on the same base


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("layers", ["all", 1])
@pytest.mark.parametrize("targets", ["all-linear", "one name"])
def test_the_suffixes_mean_the_adapted_layers_for_peft(kind, layers, targets, folder, tmp_path):
    base = tiny(folder, kind)
    if targets == "one name":
        targets = next(iter(base.slots)).rpartition(".")[2]
    adapter = filled(loading.targets(base, AdapterConfig(layers=layers, targets=targets)), 2)
    peft_export.export(adapter, base, tmp_path)
    with read_back.read_by_peft(base, tmp_path) as model:
        assert set(read_back.lora_layers(model)) == set(adapter.factors)
    told = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(told) <= len(adapter.factors)
    if layers == "all" and targets == "all-linear" and kind != "t5":
        assert not any("." in word for word in told if word != "attention.dense")


@pytest.mark.parametrize(("wanted", "names", "suffixes"), [
    ({"a.0.q", "a.1.q"}, ["a.0.q", "a.1.q", "a.0.k"], ["q"]),
    ({"a.1.q"}, ["a.0.q", "a.1.q"], ["1.q"]),
    ({"e.1.q"}, ["e.1.q", "d.1.q"], ["e.1.q"]),
    ({"q"}, ["q", "a.q"], ["q"]),  # nothing shorter than its name; PEFT takes both, which is then found
])
def test_shortest_suffixes(wanted, names, suffixes):
    assert peft_export.shortest_suffixes(wanted, names) == suffixes


def spoilt(adapter: Adapter, base, path, how: str) -> None:
    """An exported folder with one thing wrong."""
    peft_export.export(adapter, base, path)
    file, config = path / "adapter_model.safetensors", path / "adapter_config.json"
    tensors, told = load_file(file), json.loads(config.read_text())
    names = sorted(adapter.factors)
    if how == "a layer without target":
        told["target_modules"] = names[1:]
    elif how == "a layer too many":
        for factor in "AB":
            del tensors[f"base_model.model.{names[0]}.lora_{factor}.weight"]
    elif how == "other numbers":
        tensors[f"base_model.model.{names[0]}.lora_B.weight"][0, 0] += 1e-3
    elif how == "another scale":
        told["lora_alpha"] *= 1.01
    save_file(tensors, file, metadata={"format": "pt"})
    config.write_text(json.dumps(told))


@pytest.mark.parametrize(("how", "layer_told"), [
    ("a layer without target", "PEFT leaves it out"), ("a layer too many", "PEFT holds other numbers"),
    ("other numbers", "PEFT holds other numbers"), ("another scale", "PEFT holds other numbers")])
@pytest.mark.parametrize("size", [0.1, 1e-6])
def test_a_spoilt_folder_is_refused_with_its_layers_however_weak_the_adapter(how, layer_told, size, folder, tmp_path):
    base = tiny(folder)
    adapter = filled(loading.targets(base, AdapterConfig()), 2, size=size)
    spoilt(adapter, base, tmp_path, how)
    first = sorted(adapter.factors)[0]
    with pytest.raises(ModelError, match=rf"of 14 layers differ .*{first}: {layer_told}"):
        check_exported(rows(base), base, adapter, tmp_path)
    assert all(isinstance(base.model.get_submodule(name), SharedLinear) for name in base.slots)


def test_a_block_that_reads_weights_is_found_by_the_merged_logits(folder, tmp_path, monkeypatch):
    """Neither PEFT nor the run moves anything there; only merging does."""
    base = tiny(folder)
    adapter = filled(loading.targets(base, AdapterConfig()), 2)
    peft_export.export(adapter, base, tmp_path)
    block = base.model.model.layers[1].mlp

    def forward(x):
        up = nn.functional.linear(x, block.up_proj.weight)
        return block.down_proj(block.act_fn(block.gate_proj(x)) * up)

    monkeypatch.setattr(block, "forward", forward)
    base.prefix = None
    with pytest.raises(ModelError, match=r"2 of 14 layers differ .*layers\.1\.mlp\.up_proj: its block reads the weights"):
        check_exported(rows(base), base, adapter, tmp_path)


def test_a_measurement_that_departs_from_transformers_is_found(folder, tmp_path, monkeypatch):
    base = tiny(folder)
    adapter = filled(loading.targets(base, AdapterConfig()), 2)
    peft_export.export(adapter, base, tmp_path)
    real = SharedLinear.forward
    lost = base.model.model.layers[0].self_attn.v_proj
    monkeypatch.setattr(SharedLinear, "forward", lambda slot, x: slot.inner(x) if slot is lost else real(slot, x))
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.v_proj: PEFT computes something else"):
        check_exported(rows(base), base, adapter, tmp_path)


def test_every_personal_adapter_is_checked_and_peft_reads_each_form_once(folder, tmp_path, monkeypatch):
    base = tiny(folder)
    shapes = loading.targets(base, AdapterConfig())
    own = {tmp_path / f"c{i}": filled(shapes, 2 if i < 3 else 1, seed=i) for i in range(5)}
    for path, adapter in own.items():
        peft_export.export(adapter, base, path)
    read = []
    real = export_check.check_exported
    monkeypatch.setattr(export_check, "check_exported", lambda *given: read.append(given[3].name) or real(*given))
    check_personal(base, rows(base), own)
    assert read == ["c0", "c3"]
    spoilt(own[tmp_path / "c2"], base, tmp_path / "c2", "other numbers")
    with pytest.raises(ModelError, match=r"c2 is not what was measured: 1 of 14"):
        check_personal(base, rows(base), own)


def test_ranks_and_scales_of_layers_come_back(folder, tmp_path):
    base = tiny(folder)
    shapes = loading.targets(base, AdapterConfig())
    parts = [filled({name: shape}, 1 + i % 3, seed=i) for i, (name, shape) in enumerate(shapes.items())]
    for rank, scaling in ((None, "lora"), (4, "lora"), (None, "rslora"), (4, "rslora")):
        factors = {n: copy.deepcopy(pair) for part in parts for n, pair in part.factors.items()}
        adapter, path = Adapter(factors, 4.0, rank, scaling), tmp_path / f"{rank}-{scaling}"
        peft_export.export(adapter, base, path)
        check_exported(rows(base), base, adapter, path)
        assert read_back.file_faults(path, adapter) == {}
