"""A GGUF file is the model: as transformers reads it, and as llama.cpp runs it where it is installed."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_bases import byte_tokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from aulait.core.errors import ModelError
from aulait.models import gguf_export
from aulait.models.gguf_export import ARCHITECTURES, PRECISIONS, gguf_problems, write_gguf
from aulait.models.gguf_tokens import CONTROL, NORMAL, UNUSED, USER_DEFINED, gguf_tokens
from aulait.models.merged_export import check_merged, write_merged

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "{% for message in messages %}<u>{{ message['content'] }}</s>{% endfor %}"
TEXT = "It's 1854: the  quick\n\n brown fox, ünï 你好!"
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "vocab_size": 268, "initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**WIDE, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "mistral": MistralConfig(**WIDE, sliding_window=None, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**WIDE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDE, head_dim=128, tie_word_embeddings=False),
}


def words(split=None, special=True) -> PreTrainedTokenizerFast:
    """Bytes and two merges; four special tokens and an added one."""
    first = ["<pad>", "<s>", "</s>", "<u>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE(vocab={word: i for i, word in enumerate([*first, *letters, "Ġt", "he"])},
                          merges=[("Ġ", "t"), ("h", "e")]))
    inner.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                    extra_special_tokens=["<u>"])
    found.add_tokens(["<think>"])
    found.chat_template = TEMPLATE
    return found


def model(kind: str):
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    with torch.no_grad():  # norms and biases begin as ones and zeros, which hide a wrong place
        for value in made.parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn(value.shape))
    return made


def greedy(net, ids, count=8) -> list[int]:
    with torch.no_grad():
        return net.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None)[0, len(ids):].tolist()


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_transformers_reads_the_same_model_and_the_same_words(kind, tmp_path):
    net, tokenizer = model(kind), words()
    file = write_gguf(net, tokenizer, tmp_path, "f32", "tiny")
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(found(torch.tensor([ids])).logits, net(torch.tensor([ids])).logits, atol=1e-4)
    assert greedy(found, ids) == greedy(net, ids)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert read(TEXT, add_special_tokens=False)["input_ids"] == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert read.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<u>a</s>"
    assert (tmp_path / "Modelfile").read_text() == "FROM ./model.gguf\n"


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("precision", ["f32", "q8_0"])
def test_llama_cpp_runs_the_same_model(kind, precision, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    net, tokenizer = model(kind), words()
    file = write_gguf(net, tokenizer, tmp_path, precision, "tiny")
    runs = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, verbose=False)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert runs.tokenize(TEXT.encode(), add_bos=False, special=False) == ids
    said = []
    for token in runs.generate(ids[:12], temp=0.0, top_k=1, repeat_penalty=1.0):
        said.append(token)
        if len(said) == 6:
            break
    if precision == "f32":
        assert said == greedy(net, ids[:12], 6)
    assert runs.token_bos() == 1
    assert runs.token_eos() == 2
    runs.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_as_near_as_it_can_be_and_as_small(precision, tmp_path):
    net = model("llama")
    file = write_gguf(net, words(), tmp_path, precision, "tiny")  # reads back what it wrote
    from gguf import GGUFReader

    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert kinds["blk.0.ffn_down.weight"] == precision.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_by_default_a_small_model_says_the_very_same(tmp_path, monkeypatch):
    net, tokenizer = model("llama"), words()
    prompts = [tokenizer(text)["input_ids"] for text in (
        "It's", "the fox", "1854", "quick brown", "Who?", "he said that", "a\nb", TEXT)]
    said = {}
    for precision in (gguf_export.default_precision(net), "bf16"):
        (tmp_path / precision).mkdir()
        file = write_gguf(net, tokenizer, tmp_path / precision, precision, "tiny")
        found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
        said[precision] = [greedy(found, ids, 24) for ids in prompts]
    wanted = [greedy(net, ids, 24) for ids in prompts]
    assert said["f32"] == wanted
    assert said["bf16"] != wanted  # what rounds does not
    monkeypatch.setattr(gguf_export, "_SMALL", 10_000)
    assert gguf_export.default_precision(net) == "f16"


def test_rows_that_are_no_whole_blocks_stay_in_float16(tmp_path):
    net = AutoModelForCausalLM.from_config(LlamaConfig(**{**WIDE, "hidden_size": 16, "intermediate_size": 24}))
    from gguf import GGUFReader

    file = write_gguf(net, words(), tmp_path, "q8_0", "tiny")
    assert {tensor.tensor_type.name for tensor in GGUFReader(file).tensors} == {"F16", "F32"}


@pytest.mark.parametrize("wrong", ["weights", "turned", "positions", "ids"])
def test_a_file_that_does_not_read_back_is_refused(wrong, tmp_path, monkeypatch):
    net, tokenizer = model("llama"), words()
    if wrong == "weights":
        real = gguf_export._quantised
        monkeypatch.setattr(gguf_export, "_quantised", lambda weight, kind: real(weight * 1.01, kind))
    elif wrong == "turned":
        monkeypatch.setattr(gguf_export, "_neighbours", lambda weight, heads: weight)
    elif wrong == "positions":
        from gguf import GGUFWriter

        monkeypatch.setattr(GGUFWriter, "add_rope_freq_base", lambda writer, value: writer.add_float32("llama.rope.freq_base", 3.0))
    else:
        from gguf import GGUFWriter

        monkeypatch.setattr(GGUFWriter, "add_eos_token_id", lambda writer, value: writer.add_uint32("tokenizer.ggml.eos_token_id", 1))
    told = {"weights": "embed_tokens", "turned": r"q_proj\.weight", "positions": "the logits", "ids": "eos_token_id"}[wrong]
    with pytest.raises(ModelError, match=rf"does not read back as it was written: .*{told}"):
        write_gguf(net, tokenizer, tmp_path, "f32", "tiny")


@pytest.mark.parametrize(("split", "name"), [
    (None, "gpt-2"),
    (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), "smollm"),
    (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), "llama-bpe"),
    (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), "qwen2"),
])
def test_the_rule_of_splitting_has_llama_cpps_name_and_llama_cpp_splits_alike(split, name, tmp_path):
    tokenizer = words(split)
    assert gguf_tokens(tokenizer, 300).split == name
    llama_cpp = pytest.importorskip("llama_cpp")
    file = write_gguf(model("llama"), tokenizer, tmp_path, "f32", "tiny")
    runs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in (TEXT, "the 12345 t t67t\t\tTHE'S they're  \n x", " the\r\nthe"):
        assert runs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_by_kind_and_rows_without_a_token():
    found = gguf_tokens(words(), 270)
    assert found.kinds[:5] == (CONTROL, CONTROL, CONTROL, CONTROL, NORMAL)
    assert (found.tokens[262], found.kinds[262]) == ("<think>", USER_DEFINED)
    assert (found.tokens[-1], found.kinds[-1]) == ("[PAD269]", UNUSED)
    assert found.merges == ("Ġ t", "h e")
    assert found.special == {"pad": 0, "bos": 1, "eos": 2}
    assert (found.begins, found.ends, found.template) == (False, False, TEMPLATE)
    with pytest.raises(ModelError, match="tokens beyond the 100 rows"):
        gguf_tokens(words(), 100)


def lowered() -> PreTrainedTokenizerFast:
    inner = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize(("tokenizer", "told"), [
    (lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordPiece({"a": 0}, unk_token="a"))), "is of the kind WordPiece"),
    (lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab={"a": 0}, merges=[], byte_fallback=True))), "fallback to bytes"),
    (byte_tokenizer, "has no merges"),
    (lowered, "changes texts first"),
    (lambda: words(pre_tokenizers.ByteLevel(add_prefix_space=True)), "splits texts by a rule"),
    (lambda: words(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False)])), "splits texts by a rule"),
])
def test_a_tokenizer_that_cannot_be_written_is_one_line(tokenizer, told):
    with pytest.raises(ModelError, match=told) as caught:
        gguf_tokens(tokenizer(), 300)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("config", "told"), [
    (lambda: AutoModelForCausalLM, "architecture ''"),
    (lambda: LlamaConfig(**WIDE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "positions of the kind 'linear'"),
    (lambda: MistralConfig(**WIDE, sliding_window=16), "sliding window of 16"),
    (lambda: LlamaConfig(**WIDE, attention_bias=True), "biases in the attention layers"),
    (lambda: Qwen3Config(**WIDE, head_dim=32), "heads of 32 coordinates"),
    (lambda: LlamaConfig(**WIDE, mlp_bias=True), "biases in the feed-forward"),
    (lambda: LlamaConfig(**WIDE, hidden_act="gelu"), "activation 'gelu'"),
])
def test_a_model_that_cannot_be_written_is_one_line(config, told):
    (problem,) = gguf_problems(config())
    assert told in problem
    assert "--merge" in problem


def test_every_architecture_is_tried_above():
    assert {CONFIGS[kind].model_type for kind in CONFIGS} == set(ARCHITECTURES)


def test_a_merged_folder_is_read_back(tmp_path):
    net, tokenizer = model("llama"), words()
    write_merged(net, tokenizer, tmp_path)
    check_merged(net, tokenizer, tmp_path)
    with torch.no_grad():
        net.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ModelError, match=r"1 differ \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        check_merged(net, tokenizer, tmp_path)
    tokenizer.chat_template = "other"
    with pytest.raises(ModelError, match="the chat template"):
        check_merged(net, tokenizer, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="transformers cannot read"):
        check_merged(net, tokenizer, tmp_path)
