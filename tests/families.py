"""Tiny random models of the families in docs/models.md: configurations of a few thousand weights.

``python -m tests.families`` writes that page's table; tests/unit/models/test_families.py holds it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers as t
from tests.tiny_bases import VOCABULARY, byte_tokenizer

from aulait.core.errors import ModelError
from aulait.models.layer_summary import summarise_layers
from aulait.models.loading import AdapterConfig, Base, ModelConfig, load_base, targets

IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
LLAMA: dict[str, Any] = {**IDS, **WIDE, "intermediate_size": 24, "num_key_value_heads": 1}
GEMMA = LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
MOE: dict[str, Any] = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
ROUTED = MOE | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}

FAMILIES: dict[str, t.PretrainedConfig] = {
    "Llama": t.LlamaConfig(**LLAMA),
    "Qwen2": t.Qwen2Config(**LLAMA),
    "Qwen3": t.Qwen3Config(**LLAMA, head_dim=8),
    "Mistral": t.MistralConfig(**LLAMA, sliding_window=8, head_dim=8),
    "Gemma2": t.Gemma2Config(**GEMMA, final_logit_softcapping=2.0),
    "Gemma3": t.Gemma3TextConfig(**GEMMA),
    "Phi3": t.Phi3Config(**LLAMA),
    "GPT-2": t.GPT2Config(**IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "GPT-NeoX": t.GPTNeoXConfig(**IDS, **WIDE, intermediate_size=24),
    "OPT": t.OPTConfig(**IDS, **WIDE, ffn_dim=24, word_embed_proj_dim=16),
    "OPT-350m": t.OPTConfig(**IDS, **WIDE, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False),
    "Bloom": t.BloomConfig(**IDS, hidden_size=16, n_layer=2, n_head=2),
    "Falcon": t.FalconConfig(**IDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, bias=True),
    "OLMo2": t.Olmo2Config(**LLAMA),
    "SmolLM3": t.SmolLM3Config(**LLAMA),
    "Granite": t.GraniteConfig(**LLAMA, logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0,
                               attention_multiplier=0.1),
    "T5": t.T5Config(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, d_model=16,
                     d_kv=8, d_ff=24, num_layers=2, num_heads=2),
    "BART": t.BartConfig(**IDS, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                         decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                         max_position_embeddings=64, decoder_start_token_id=2),
    "Mixtral": t.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "Qwen3-MoE": t.Qwen3MoeConfig(**LLAMA, **MOE, head_dim=8, num_experts=4, mlp_only_layers=[0]),
    "GLM4-MoE": t.Glm4MoeConfig(**LLAMA, **ROUTED, head_dim=8),
    "DeepSeek-V3": t.DeepseekV3Config(**(LLAMA | {"num_key_value_heads": 2}), **ROUTED, q_lora_rank=8,
                                      kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8),
    "Falcon-H1": t.FalconH1Config(**LLAMA, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
                                  mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    "Mamba2": t.Mamba2Config(**IDS, hidden_size=16, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=8,
                             n_groups=1, expand=2, chunk_size=8),
}

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = ('| family | `"all-linear"` | `"attention"` | left out, and why |', "|---|---|---|---|")


def write_family(family: str, folder: Path) -> Path:
    """A model of the family with random weights, and a tokenizer of bytes."""
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    auto = t.AutoModelForSeq2SeqLM if FAMILIES[family].is_encoder_decoder else t.AutoModelForCausalLM
    auto.from_config(FAMILIES[family]).save_pretrained(folder)
    torch.random.set_rng_state(state)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load_family(family: str, folder: Path, **more: Any) -> Base:
    """The base of a folder that ``write_family`` made."""
    kind = "seq2seq" if FAMILIES[family].is_encoder_decoder else "causal"
    return load_base(ModelConfig(**{"name": str(folder), "kind": kind, "context": 24, "device": "cpu"} | more))


def row(family: str, base: Base) -> str:
    """The family's row in the table of docs/models.md, as the loaded base has it."""
    everything = summarise_layers(base, targets(base, AdapterConfig()))
    try:
        attention = _names(summarise_layers(base, targets(base, AdapterConfig(targets="attention")))["modules"])
    except ModelError:
        attention = "refused: it has none"
    left = [f"{_names(some['modules'])}: {some['why']}" for some in everything["skipped"]]
    left += ["the routed experts: one weight for all of them"] if everything["routed_expert_parameters"] else []
    return f"| {family} | {_names(everything['modules'])} | {attention} | {'; '.join(left) or 'nothing'} |"


def _names(modules: dict[str, int]) -> str:
    return ", ".join(f"`{name}`" for name in modules)


def write_page() -> None:
    """Put the table of today into docs/models.md."""
    rows = []
    for family in FAMILIES:
        with TemporaryDirectory() as folder:
            rows.append(row(family, load_family(family, write_family(family, Path(folder)))))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD[0])
    after = "\n".join(line for line in rest.split("\n") if not line.startswith("|")).lstrip("\n")
    PAGE.write_text(before + "\n".join((*HEAD, *rows)) + "\n\n" + after, encoding="utf-8")


if __name__ == "__main__":
    write_page()
