"""Tiny random bases whose tokenizers have chat templates, made from nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.tiny_bases import _WIDE
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aulait.models.loading import Base, ModelConfig, load_base

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# as SmolLM2's
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM
    + "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# as Gemma's: the assistant has another name, words are trimmed
TRIMMED = (
    "{% for message in messages %}{{ '<|im_start|>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + (message['content'] | trim) + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}")
# as Mistral's: no prompt for an answer, a blank before it, the system's words in the last question alone
INSTRUCT = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% endif %}{% endfor %}{{ '<|endoftext|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + (ns.system if "
    "loop.index0 >= messages | length - 2 else '') + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}")
# as Qwen3's: an empty thought before the last answer only
THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '[think]\n\n[/think]\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# as Llama 2's: refuses what does not alternate
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

WORDS = [
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face", "user\nWhat is the dose?", "assistant\nTwo a day.",
    "the of and to in is that was for on with as at by", "It's 5 mg, twice; see below.\n\nThen ask again: how long?", "[INST] [/INST]",
    "model\n", "[think]\n\n[/think]\n\n", "naïve café 你好 ünïcode",
]


def chat_tokenizer(template: str | None = CHATML, begin: bool = False) -> PreTrainedTokenizerFast:
    """A small BPE of bytes with SmolLM2's control tokens; ``begin`` sets <|im_start|> nowhere: like SmolLM2 it adds nothing."""
    inner = Tokenizer(BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=[AddedToken(mark, special=True) for mark in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    inner.train_from_iterator(WORDS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def write_chat(folder: Path, template: str | None = CHATML) -> Path:
    """A Llama with random weights and a tokenizer with this template; the same weights every time."""
    tokenizer = chat_tokenizer(template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForCausalLM(LlamaConfig(**{**_WIDE, "max_position_embeddings": 512}, intermediate_size=24, num_key_value_heads=1,
                                             vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=2,
                                             initializer_range=0.2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_base(folder: Path, template: str | None = CHATML, context: int = 256, how: str = "auto") -> Base:
    """The loaded base of ``write_chat``."""
    return load_base(ModelConfig(name=str(write_chat(folder, template)), context=context, device="cpu", dtype="float32", template=how))
