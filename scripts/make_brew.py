"""Train a small Llama-style base model from nothing: tokenizer, weights, training record.

    python scripts/make_brew.py CORPUS OUT --minutes 60

CORPUS holds public text: .txt files (documents divided by two blank lines) or .jsonl files
(optionally .gz, field "text").
The shipped ``brew`` was made this way; see src/aulait/models/brew/README.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS = 0, 1, 2


def documents(root: Path) -> Iterator[str]:
    """All documents of a folder, in a fixed order."""
    for path in sorted(root.rglob("*")):
        if path.suffix == ".txt" and path.name != "SOURCE.txt":
            yield from (part.strip() for part in path.read_text(errors="ignore").split("\n\n\n")
                        if len(part) > 200)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
                yield from (text for line in lines
                            if len(text := json.loads(line).get("text", "")) > 100)


def tokenise(texts: list[str], vocabulary: int, out: Path) -> np.ndarray:
    """Train the tokenizer, save it, and return all texts as one row of token ids."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts[:: max(1, len(texts) // 20_000)], vocab_size=vocabulary,
        special_tokens=SPECIALS)
    # by itself it sets the beginning before a text, as the base was trained
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[1]} $A", pair=f"{SPECIALS[1]} $A $B",
        special_tokens=[(SPECIALS[1], BOS)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, pad_token=SPECIALS[0], bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        mask_token=SPECIALS[3], additional_special_tokens=SPECIALS[4:], model_max_length=1024,
    ).save_pretrained(out)
    rows = [
        np.array([BOS, *coded.ids, EOS], np.uint16)
        for i in range(0, len(texts), 512)
        for coded in tokenizer._tokenizer.encode_batch(texts[i : i + 512], add_special_tokens=False)
    ]
    return np.concatenate(rows)


def batch(tokens: np.ndarray, length: int, rows: int, draw: np.random.Generator) -> torch.Tensor:
    """Random windows of the token row."""
    starts = draw.integers(0, len(tokens) - length, rows)
    return torch.stack([torch.from_numpy(tokens[i : i + length].astype(np.int64)) for i in starts])


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss, nats a token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(input_ids=ids, labels=ids).loss


@torch.no_grad()
def validate(model: LlamaForCausalLM, tokens: np.ndarray, length: int, rows: int) -> float:
    """Loss over twenty fixed batches of held-out text."""
    draw = np.random.default_rng(1)
    model.eval()
    losses = [loss_of(model, batch(tokens, length, rows, draw)).item() for _ in range(20)]
    model.train()
    return float(np.mean(losses))


def fit(model: LlamaForCausalLM, train: np.ndarray, held: np.ndarray,
        a: argparse.Namespace) -> list[tuple[int, int, float, float]]:
    """AdamW with warm-up and a cosine over the given minutes; returns (step, tokens, loss,
    validation loss)."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95))
    draw, started, step, log = np.random.default_rng(0), time.time(), 0, []
    while (past := (time.time() - started) / (60 * a.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = (
                a.lr * min(1, (step + 1) / 200) * (0.05 + 0.475 * (1 + math.cos(math.pi * past)))
            )
        loss = loss_of(model, batch(train, a.length, a.batch, draw))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 500 == 0:
            log.append((step, step * a.batch * a.length, loss.item(),
                        validate(model, held, a.length, a.batch)))
            print(f"step {step}: loss {log[-1][2]:.3f}, validation {log[-1][3]:.3f}, {past:.0%} of "
                  "the time", flush=True)
    log.append((step, step * a.batch * a.length, float("nan"),
                validate(model, held, a.length, a.batch)))
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    for name, default in (("minutes", 60.0), ("lr", 2e-3)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("vocabulary", 8192), ("width", 256), ("layers", 6), ("heads", 4),
                          ("length", 256), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.manual_seed(0)
    a.out.mkdir(parents=True, exist_ok=True)
    texts = list(documents(a.corpus))
    random.Random(0).shuffle(texts)  # nosec B311  # an order, no secret
    tokens = tokenise(texts, a.vocabulary, a.out)
    held = min(200_000, len(tokens) // 50)
    config = LlamaConfig(
        vocab_size=a.vocabulary, hidden_size=a.width, intermediate_size=a.width * 8 // 3 // 64 * 64,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.heads, max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    log = fit(model, tokens[held:], tokens[:held], a)
    model.to(torch.bfloat16).save_pretrained(a.out)
    record = {"tokens_seen": log[-1][1], "val_loss": log[-1][3], "log": log[:-1]}
    (a.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"validation loss {log[-1][3]:.3f} nats a token, in {a.out}")


if __name__ == "__main__":
    main()
