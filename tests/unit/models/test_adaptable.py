"""Models as people bring them: layers that PEFT cannot hold, tokens and positions that are not
there."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from tests.closeness import assert_near
from tests.tiny_bases import byte_tokenizer, records, write
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Glm4MoeConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

from aulait.core import lora
from aulait.core.errors import ModelError
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, Record
from aulait.models import loading, peft_export
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.training.batches import Encoder, collate, scored

IDS = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64}
LLAMA = {**IDS, **WIDE, "intermediate_size": 24, "num_key_value_heads": 1}
STATE = {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
MANY = {
    "deepseek_v3": DeepseekV3Config(**{**LLAMA, "num_key_value_heads": 2}, moe_intermediate_size=8,
        num_experts_per_tok=2, n_routed_experts=4, n_group=1, topk_group=1, n_shared_experts=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8),
    "glm4_moe": Glm4MoeConfig(**LLAMA, moe_intermediate_size=8, num_experts_per_tok=2, head_dim=8,
        n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1),
    "qwen3_moe": Qwen3MoeConfig(**LLAMA, moe_intermediate_size=8, num_experts_per_tok=2,
        head_dim=8, num_experts=4, mlp_only_layers=[0]),
    "falcon": FalconConfig(**IDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        bias=True),
    "phimoe": PhimoeConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "mamba": MambaConfig(**STATE),
    "mamba2": Mamba2Config(**STATE, num_heads=4, head_dim=8, n_groups=1, expand=2, chunk_size=8),
    "falcon_h1": FalconH1Config(**LLAMA, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4,
        mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
}


def written(folder, config, tokenizer=None):
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def load(folder, **more):
    return loading.load_base(ModelConfig(name=str(folder), **{"context": 24, **more}, device="cpu"))


def filled(base) -> Adapter:
    shapes = loading.targets(base, AdapterConfig(rank=2))
    dice = torch.Generator().manual_seed(1)
    start = lora.initial(shapes, 2, 4.0, Seeds(0))
    return Adapter({n: (a, 0.1 * torch.randn(b.shape, generator=dice))
                    for n, (a, b) in start.factors.items()}, 4.0)


@pytest.mark.parametrize("kind", list(MANY))
def test_peft_holds_every_layer_that_was_measured(tmp_path, kind):
    """The logits under the adapter here equal those of PEFT from the exported folder, and no layer
    is lost."""
    base = load(written(tmp_path / "m", MANY[kind]))
    adapter = filled(base)
    assert adapter.factors
    peft_export.export(adapter, base, tmp_path / "adapter")
    (one,) = records(1)
    with torch.no_grad(), loading.wearing(base, [adapter]):
        ours, _, _ = scored(base, collate(base, Encoder(base), [one]))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(),
                                      str(tmp_path / "adapter")).eval()
    held = {n.rsplit(".lora_A", 1)[0] for n, _ in model.named_modules()
            if n.endswith("lora_A.default")}
    told = {key.rsplit(".lora_", 1)[0]
            for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors")}
    assert told == held
    ids, _ = Encoder(base)(one)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    assert_near(ours, theirs, 1e-4)


def test_a_named_layer_that_cannot_be_exported_is_refused(tmp_path):
    base = load(written(tmp_path / "m", MANY["falcon_h1"]))
    with pytest.raises(ModelError, match=r"out_proj' of .*cannot carry an adapter"):
        loading.targets(base, AdapterConfig(rank=2, targets=("out_proj",)))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_context_beyond_learnt_positions_is_refused_and_the_longest_works(tmp_path, kind):
    folder = write(tmp_path, kind)
    with pytest.raises(ModelError, match=r"model.context is 65 and .* has 64 positions"):
        load(folder, context=65)
    base = load(folder, context=64)
    ids, _ = Encoder(base)(Record("x" * 200))
    assert len(ids) == 64
    out, _, _ = scored(base, collate(base, Encoder(base), [Record("x" * 200)]))
    assert torch.isfinite(out).all()


USUAL = {**IDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
COUNTED = {
    "gptj": lambda: transformers.GPTJConfig(**USUAL, rotary_dim=4),
    "codegen": lambda: transformers.CodeGenConfig(**{**USUAL, "n_head": 4}, rotary_dim=4, n_ctx=64),
    "bigcode": lambda: transformers.GPTBigCodeConfig(**USUAL),
    "neo": lambda: transformers.GPTNeoConfig(
        **IDS, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]], window_size=8),
    "gpt1": lambda: transformers.OpenAIGPTConfig(**USUAL),
    "ctrl": lambda: transformers.CTRLConfig(**USUAL, dff=24),
    "mpt": lambda: transformers.MptConfig(**IDS, d_model=16, n_heads=2, n_layers=2, max_seq_len=64,
                                          expansion_ratio=2),
    "biogpt": lambda: transformers.BioGptConfig(**IDS, **WIDE, intermediate_size=24),
    "roberta": lambda: transformers.RobertaConfig(
        **IDS, **{**WIDE, "max_position_embeddings": 65}, intermediate_size=24, is_decoder=True),
    "bert": lambda: transformers.BertConfig(**IDS, **WIDE, intermediate_size=24, is_decoder=True),
}


@pytest.mark.parametrize("kind", list(COUNTED))
def test_every_table_of_positions_is_known_before_work(tmp_path, kind):
    """Learnt, computed beforehand, with an offset, or in slopes; the longest context works."""
    folder = written(tmp_path / kind, COUNTED[kind]())
    with pytest.raises(ModelError, match=r"model.context is 65 and .* has 64 positions"):
        load(folder, context=65)
    base = load(folder, context=64)
    out, _, _ = scored(base, collate(base, Encoder(base), [Record("x" * 200)]))
    assert torch.isfinite(out).all()


def without_specials(*special, **names):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@pytest.mark.parametrize(("tokenizer", "rows"), [
    (without_specials(), 256),
    (without_specials("<s>", "</s>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]"), 258),
])
def test_what_pads_does_not_matter(tmp_path, tokenizer, rows):
    """No special tokens at all, or a padding token that the embedding has no row for."""
    config = LlamaConfig(**{**LLAMA, "vocab_size": rows, "pad_token_id": None,
                            "bos_token_id": None, "eos_token_id": None})
    base = load(written(tmp_path / "m", config, tokenizer))
    assert 0 <= base.pad < rows
    alone = [scored(base, collate(base, Encoder(base), [one]))[0] for one in records(3)]
    together, _, row = scored(base, collate(base, Encoder(base), records(3)))
    for i, out in enumerate(alone):
        assert_near(together[row == i], out, 1e-4)


def test_a_token_that_ends_every_text_must_be_in_the_embedding(tmp_path):
    tokenizer = without_specials(bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(**{**LLAMA, "vocab_size": 256})
    with pytest.raises(ModelError, match=r"bos_token of .* has number 256 and the embedding 256"):
        load(written(tmp_path / "m", config, tokenizer))


def test_control_tokens_in_a_text_are_words(tmp_path):
    base = load(written(tmp_path / "m", LlamaConfig(**LLAMA)), context=64)
    for record in (Record("write </s> here"), Record("yes", "<s> </s>?"), Record("a <pad> b")):
        ids, _ = Encoder(base)(record)
        assert not {0, 1, 2} & set(ids[1:-1])
        assert (ids[0], ids[-1]) == (1, 2)
