"""``model.dtype = "auto"``: bfloat16 where it is faster and says the same, decided once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_bases import VOCABULARY, byte_tokenizer, write
from transformers import LlamaConfig, LlamaForCausalLM

from aulait.models import precision
from aulait.models.loading import ModelConfig, load_base
from aulait.runs.experiment_file import build_settings
from aulait.runs.prepared import SharedCache
from aulait.runs.settled import as_begun, precision_settled
from aulait.runs.setup import prepare

OLD_RUN = Path(__file__).parents[1] / "runfolder" / "old_run" / "config.toml"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base of 512 hidden units and one block."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def taken(folder, **config):
    return load_base(ModelConfig(name=str(folder), context=16, device="cpu", **config)).config.dtype


def test_a_wide_base_is_narrowed_where_the_processor_computes_so(wide, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: True)
    base = load_base(ModelConfig(name=str(wide), context=16, device="cpu"))
    assert base.config.dtype == "bfloat16"
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert taken(wide, dtype="float32") == "float32"
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: False)
    assert taken(wide) == "float32"


def test_a_base_that_says_something_else_stays(wide, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_loss", lambda model, _: 4.0 if model.dtype == torch.float32 else 4.05)
    assert taken(wide) == "float32"
    monkeypatch.setattr(precision, "_loss", lambda model, _: 4.0 if model.dtype == torch.float32 else float("nan"))
    assert taken(wide) == "float32"
    monkeypatch.setattr(precision, "_loss", lambda model, _: 4.0 if model.dtype == torch.float32 else 4.03)
    assert taken(wide) == "bfloat16"


def test_narrow_bases_stay_and_brew_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: True)
    assert taken(write(tmp_path, "llama")) == "float32"
    assert taken("brew") == "float32"
    assert taken(write(tmp_path, "t5"), kind="seq2seq") == "float32"


@pytest.mark.parametrize(("flags", "wanted"), [
    ("flags : fpu avx512_bf16 avx2", True), ("flags : fpu amx_bf16", True), ("Features : fp asimd bf16", True),
    ("flags : fpu avx512f avx2 not_bf16", False)])
def test_what_the_processor_says(tmp_path, monkeypatch, flags, wanted):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    assert precision.computes_bfloat16() is wanted
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "none")
    assert not precision.computes_bfloat16()


def settings(**tree):
    return build_settings({"data": {"source": "docstrings", "clients": 4}, "privacy": {"off": True}} | tree)


def test_promises_that_need_float32_take_it():
    record = {"epsilon": 8.0, "delta": 1e-5, "relation": "zero-out", "unit": "record"}
    assert precision_settled(settings(privacy=record)).model.dtype == "float32"
    for method in ("fedex", "flora"):
        assert precision_settled(settings(algorithm={"name": method})).model.dtype == "float32"
    assert precision_settled(settings(algorithm={"name": "ffa"})).model.dtype == "auto"


def test_a_run_goes_on_as_it_began(tmp_path):
    begun = tmp_path / "config.toml"
    assert as_begun(settings(), begun).model.dtype == "auto"
    begun.write_text('[model]\nname = "x"\ndtype = "bfloat16"\n')
    assert as_begun(settings(), begun).model.dtype == "bfloat16"
    assert as_begun(settings(model={"dtype": "float32"}), begun).model.dtype == "float32"
    begun.write_text('[model]\nname = "x"\n')
    assert as_begun(settings(), begun).model.dtype == "float32"
    assert as_begun(settings(), OLD_RUN).model.dtype == "float32"


def test_what_is_prepared_names_the_precision(wide, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: True)
    tree = {"model": {"name": str(wide), "context": 16, "device": "cpu"}, "data": {"source": "docstrings", "clients": 2, "too_long": "cut"},
            "federation": {"tier": [{"name": "all", "placement": "local"}]}}
    run = prepare(settings(**tree), SharedCache())
    assert run.settings.model == run.models.base.config
    assert run.settings.model.dtype == "bfloat16"
