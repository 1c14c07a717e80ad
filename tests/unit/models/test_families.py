"""Families of models: two private stages end to end, the same logits here, in PEFT and merged, and the table of
docs/models.md."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests import tiny_run
from tests.closeness import assert_near
from tests.families import FAMILIES, HEAD, IDS, LLAMA, PAGE, load_family, row, write_family
from tests.tiny_bases import byte_tokenizer, filled, records
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma3Config,
    Gemma3TextConfig,
    NllbMoeConfig,
    SiglipVisionConfig,
)

from aulait.core.errors import ModelError
from aulait.core.factors import Trainable
from aulait.core.lora import from_tensors
from aulait.engines.inline import InlineEngine
from aulait.models import loading
from aulait.models.attention import is_attention
from aulait.models.exported import load_exported
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.runs.loop import run
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

TEXT = torch.tensor([[1, 70, 71, 72, 73, 74], [1, 90, 91, 92, 93, 94]])
PRIVATE = {"epsilon": 50.0, "delta": 1e-2, "relation": "add-remove", "clip": 0.02}


def logits(model) -> torch.Tensor:
    extra = {"decoder_input_ids": TEXT} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False, **extra).logits


def pairs(folder) -> dict[str, str]:
    """The made-up records as prompts and responses, for an encoder and a decoder."""
    halves = [(own["client"], own["text"]) for own in map(json.loads, folder.joinpath("data.jsonl").read_text().splitlines())]
    folder.joinpath("data.jsonl").write_text("".join(
        json.dumps({"client": client, "q": text[:8], "a": text[8:]}) + "\n" for client, text in halves))
    folder.joinpath("public.jsonl").write_text("".join(
        json.dumps({"q": text[:8], "a": text[8:]}) + "\n" for text in folder.joinpath("public.txt").read_text().splitlines()))
    return {"prompt": "q", "response": "a", "public": str(folder / "public.jsonl")}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_runs_privately_in_two_stages_and_its_adapter_is_what_was_measured(family, tmp_path):
    tiny_run.write_data(tmp_path)
    two = FAMILIES[family].is_encoder_decoder
    path = write_family(family, tmp_path / "m")
    settings = tiny_run.settings(
        tmp_path, model={"name": str(path), "kind": "seq2seq" if two else "causal"}, privacy=PRIVATE,
        adapter={"targets": "all-linear", "layers": "all"}, algorithm={"name": "fedit"}, train={"rounds": 1, "steps": 1, "lr": 0.1},
        data=pairs(tmp_path) if two else {}, synthesis={"rounds": 1, **({"generator": "brew"} if two else {})})
    done = run(settings, tmp_path / "run", InlineEngine())
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {json.loads(line)["stage"] for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()} == {"synthesis", "train"}
    assert told["eval"]["loss"] != told["base_eval"]["loss"]
    assert done is not None

    base, folder = load_family(family, path), tmp_path / "run" / "adapter"
    tensors = {re.sub(r"base_model\.model\.(.*)\.lora_([AB])\.weight", r"\1.\2", key): value
               for key, value in load_file(folder / "adapter_model.safetensors").items()}
    ours = from_tensors(tensors, 16.0)
    assert set(ours.factors) == set(loading.targets(base, AdapterConfig()))
    bare = (AutoModelForSeq2SeqLM if two else AutoModelForCausalLM).from_pretrained(path).eval()
    unadapted = logits(bare)
    assert_near(logits(base.model), unadapted, 1e-5)
    with loading.wearing(base, [ours]):
        worn = logits(base.model)
    assert float((worn - unadapted).abs().max()) > 1e-4
    held = PeftModel.from_pretrained(bare, str(folder)).eval()
    assert {name.removeprefix("base_model.model.").removesuffix(".lora_A.default") for name, _ in held.named_modules()
            if name.endswith(".lora_A.default")} == set(ours.factors)
    assert_near(logits(held), worn, 1e-5)
    assert_near(logits(load_exported(tmp_path / "run")[0]), worn, 1e-5)

    assert row(family, base) in PAGE.read_text(encoding="utf-8"), "run: python -m tests.families"


def test_the_page_names_no_other_family():
    table = PAGE.read_text(encoding="utf-8").partition(HEAD[0])[2]
    assert re.findall(r"^\| (\S+) \|", table, flags=re.MULTILINE) == list(FAMILIES)


@pytest.mark.parametrize(("layer", "expected"), [
    ("model.layers.0.self_attn.qkv_proj", True), ("transformer.h.0.attn.c_proj", True),
    ("transformer.h.0.mlp.c_proj", False), ("gpt_neox.layers.0.attention.dense", True),
    ("gpt_neox.layers.0.mlp.dense_4h_to_h", False), ("encoder.block.0.layer.0.SelfAttention.o", True),
    ("encoder.block.0.layer.1.DenseReluDense.wo", False), ("backbone.layers.0.mixer.q_proj", True),
    ("backbone.layers.0.mixer.in_proj", False), ("rwkv.blocks.0.feed_forward.key", False),
    ("model.layers.0.temporal_block.k_proj", True), ("model.layers.0.temporal_block.linear_y", False),
    ("transformer.attentions.0.out_lin", True), ("model.layers.0.linear_attn.in_proj_qkvz", True)])
def test_attention_is_told_by_a_layers_name(layer, expected):
    assert is_attention(layer) is expected


def write(folder, config, seq2seq=False):
    torch.manual_seed(7)
    (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_tower_of_a_model_that_also_sees_is_left_alone(tmp_path):
    """Its layers get no gradient from a text; adapted ones would be written to the folder untrained."""
    seen = SiglipVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8,
                              patch_size=4)
    text = Gemma3TextConfig(**LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=8)
    path = write(tmp_path / "m", Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=1, image_token_index=258,
                                              boi_token_index=257, eoi_token_index=256))
    base = loading.load_base(ModelConfig(name=str(path), context=24, device="cpu"))
    shapes = loading.targets(base, AdapterConfig())
    assert any("vision" in name for name in base.slots)
    assert not any("vision" in name for name in shapes)
    assert len(loading.targets(base, AdapterConfig(targets=("q_proj",)))) == 2
    lost = next(name for name in base.slots if "vision" in name and name.endswith("q_proj"))
    with pytest.raises(ModelError, match="does not read every token"):
        loading.targets(base, AdapterConfig(targets=(lost,)))
    done = Learner(base, TrainConfig()).train([LocalTraining(filled(shapes, 2), records(2), Trainable.AB, 1, 2, 1e-2, 0)])
    assert done[0].updates > 0


def test_routed_experts_that_are_linear_layers_are_left_alone(tmp_path):
    """They read a choice of tokens of all rows, so that no adapter of one client could be theirs."""
    path = write(tmp_path / "m", NllbMoeConfig(
        **IDS, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, num_experts=4, encoder_sparse_step=2,
        decoder_sparse_step=2, decoder_start_token_id=2), seq2seq=True)
    base = loading.load_base(ModelConfig(name=str(path), kind="seq2seq", context=24, device="cpu"))
    shapes = loading.targets(base, AdapterConfig())
    assert any("experts" in name for name in base.slots)
    assert not any("experts" in name for name in shapes)
    assert any(name.endswith("ffn.fc1") for name in shapes)


def test_a_model_that_cannot_read_tokens_alone_is_one_line(tmp_path, monkeypatch):
    base = load_family("Llama", write_family("Llama", tmp_path))
    monkeypatch.setattr(base.model.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ModelError, match=r"a pass of 6 made-up tokens .* fails \(ZeroDivisionError") as caught:
        loading.targets(base, AdapterConfig())
    assert "\n" not in str(caught.value)
