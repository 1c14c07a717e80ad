"""Generators: the sampling loop against Hugging Face's, failures, determinism, masks, servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from tests import tiny_run
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

import aulait
from aulait.core.errors import ConfigError, ModelError
from aulait.models.generation import Sampling, TextModel, choose_tokens, extend, plain
from aulait.synthesis import openai_server, prefix_variation
from aulait.synthesis.generator import build_generator
from aulait.synthesis.mask_variation import MaskFill
from aulait.synthesis.openai_server import OpenAiServer, chat_at
from aulait.synthesis.prefix_variation import PrefixResample
from aulait.synthesis.prompt_variation import Prompted, chat_with
from aulait.synthesis.variation import GENERATORS, GenerateConfig, Variation, clean, redrawn

BREW = str(Path(aulait.__file__).parent / "models" / "brew")
PARENTS = [
    "Fix a typo in the documentation of the server.",
    "The patient reports pain in the left knee since Monday and asks for an appointment with the specialist.",
    "Return the largest value of an array along the given axis.",
    "She went to the market early in the morning",
    "Add tests for the new loader, and remove the old one.",
]
SHORT = GenerateConfig(max_tokens=24)
CPU = torch.device("cpu")


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int = 0, add_bos: bool = True, **how: Any) -> list[str]:
    """``prefix_variation.sample`` on this processor."""
    return prefix_variation.sample_texts(TextModel(model, tokenizer, CPU), prompts, Sampling(**how), seed, add_bos)


@pytest.fixture(scope="module")
def brew() -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(BREW, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(BREW)


class Script:
    """A stand-in for a causal model: whatever the prompt, it writes the next line of a script."""

    def __init__(self, brew: tuple[Any, Any], lines: Sequence[str]) -> None:
        self.config, self.generation_config, self.training = brew[0].config, None, False
        self.get_input_embeddings = brew[0].get_input_embeddings
        self._lines = [[*brew[1](line, add_special_tokens=False)["input_ids"], brew[1].eos_token_id] for line in lines]
        self.prompts: list[list[int]] = []

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def eval(self) -> None:
        self.training = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        if input_ids.shape[1] > 1 or not hasattr(self, "_step"):
            self._step, self._now = 0, self._lines.pop(0) if len(self._lines) > 1 else self._lines[0]
            masked = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
            self.prompts += [[t for t, keep in zip(ids, mask, strict=True) if keep] for ids, mask in masked]
        logits = torch.zeros(input_ids.shape[0], 1, self.config.vocab_size)
        logits[:, 0, self._now[self._step]] = 1000.0
        self._step = min(self._step + 1, len(self._now) - 1)
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    __call__ = forward


# The sampling loop


def test_greedy_equals_hugging_face(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    for prompt in PARENTS[:3]:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])  # it sets its beginning by itself
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0)
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample(model, tokenizer, [prompt], max_tokens=40, temperature=0) == [expected]


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Bloom", "Gemma3Text"])
def test_other_architectures_left_padded_equal_hugging_face(brew: tuple[Any, Any], kind: str) -> None:
    """Learned positions, ALiBi without position numbers, sliding windows."""
    tokenizer = brew[1]
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8192,
                             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    own = {
        "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32},
        "Gemma3Text": {"num_key_value_heads": 1, "intermediate_size": 32, "head_dim": 16, "sliding_window": 4,
                       "layer_types": ["sliding_attention", "full_attention"]},
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**shape, **own.get(kind, {})))
    for weight in model.eval().parameters():
        weight.data.mul_(8 if weight.dim() > 1 else 1)  # far from uniform, so that texts differ by their prompts
    expected = []
    for prompt in PARENTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])  # it sets its beginning by itself
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0)
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert sample(model, tokenizer, PARENTS, max_tokens=12, temperature=0) == expected
    assert len(set(expected)) > 1


def test_padding_and_batching_do_not_change_greedy_text(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    together = sample(model, tokenizer, PARENTS, max_tokens=30, temperature=0)
    assert together == [sample(model, tokenizer, [p], max_tokens=30, temperature=0)[0] for p in PARENTS]
    assert together == sample(model, tokenizer, PARENTS, max_tokens=30, temperature=0, batch=2)
    assert len(set(together)) > 1


def test_seed_decides_and_global_generator_is_untouched(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(model, tokenizer, PARENTS, max_tokens=20, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert sample(model, tokenizer, PARENTS, max_tokens=20, seed=5) == first
    assert sample(model, tokenizer, PARENTS, max_tokens=20, seed=5, batch=2) == first
    assert sample(model, tokenizer, PARENTS, max_tokens=20, seed=6) != first


def test_rows_that_end_early_leave_the_others_alone(brew: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = brew
    how = Sampling(max_tokens=20, temperature=0)
    prompts = [tokenizer(p)["input_ids"] for p in PARENTS]
    full = extend(TextModel(model, tokenizer, CPU), prompts, how, 0)
    limits = [3, 20, 1, 7, 20]  # rows are dropped from the batch one after the other
    cut = extend(TextModel(model, tokenizer, CPU), prompts, how, 0, limits)
    assert [c.ids for c in cut] == [f.ids[:most] for f, most in zip(full, limits, strict=True)]
    assert [c.ended for c in cut] == [len(f.ids) < most for f, most in zip(full, limits, strict=True)]
    monkeypatch.setattr("aulait.models.key_cache.CHUNK_TOKENS", 1)  # buffers are outgrown at every token
    assert extend(TextModel(model, tokenizer, CPU), prompts, how, 0, limits) == cut


def test_model_is_left_as_it_was(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    model.train()
    sample(model, tokenizer, ["Hello there"], max_tokens=2)
    assert model.training
    model.eval()


def test_choose_draws_from_the_distribution_asked_for() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]])).expand(20000, 4)
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000

    def shares(**settings: float) -> list[float]:
        how = Sampling(**{"top_p": 1.0, "top_k": 0, **settings})  # type: ignore[arg-type]
        return (torch.bincount(choose_tokens(logits, how, uniform), minlength=4) / 20000).tolist()

    assert shares() == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    # 0.4 + 0.3 reach 0.7 only with the second token; 0.75 needs the third.
    assert shares(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    assert shares(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=1e-3)
    assert shares(top_p=0.01) == [0, 1, 0, 0]
    squared = [p * p / 0.30 for p in (0.1, 0.4, 0.2, 0.3)]
    assert shares(temperature=0.5) == pytest.approx(squared, abs=1e-3)
    assert shares(temperature=0) == [0, 1, 0, 0]


def test_choose_agrees_with_hugging_faces_filters() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 3
    filtered = transformers.TopPLogitsWarper(0.8)(None, transformers.TopKLogitsWarper(12)(None, logits / 1.3))
    kept = [set(row.isfinite().nonzero()[:, 0].tolist()) for row in filtered]
    drawn: list[set[int]] = [set() for _ in range(50)]
    for value in torch.linspace(0, 1 - 1e-9, 4000, dtype=torch.float64):
        tokens = choose_tokens(logits, Sampling(temperature=1.3, top_p=0.8, top_k=12), value.expand(50))
        for row, token in zip(drawn, tokens.tolist(), strict=True):
            row.add(token)
    assert drawn == kept


def test_encoder_decoder_answers_by_seed_alone(brew: tuple[Any, Any]) -> None:
    tokenizer = brew[1]
    config = transformers.T5Config(vocab_size=8192, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                   decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    before = torch.get_rng_state()
    first = sample(model, tokenizer, PARENTS, max_tokens=6, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert first == sample(model, tokenizer, PARENTS, max_tokens=6, seed=1)
    assert first != sample(model, tokenizer, PARENTS, max_tokens=6, seed=2)
    with pytest.raises(ModelError, match="encoder-decoder"):
        PrefixResample(model, tokenizer, SHORT)


def test_too_many_tokens_for_the_context(brew: tuple[Any, Any]) -> None:
    with pytest.raises(ModelError, match="context 1024"):
        sample(*brew, ["Hello"], max_tokens=1024)
    with pytest.raises(ModelError, match="no token"):
        sample(*brew, [""], add_bos=False)


# Texts


def test_special_tokens_never_stay_in_texts(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    assert plain(tokenizer, "a<|e<|bos|>os|>b <|pad|>") == "ab "
    dirty = ["<|bos|>Fix the <|mask|>loader of the server<|eos|> and go on", "Remove <|user|> from<|pad|> the list of tokens"]
    hot = GenerateConfig(temperature=50.0, top_k=0, top_p=1.0, max_tokens=20)  # nearly uniform: special tokens do come
    variation = PrefixResample(model, tokenizer, hot)
    texts = [*variation.vary(dirty * 20, 0), *variation.write(dirty, 20, 0), *sample(model, tokenizer, dirty, temperature=50.0, top_k=0)]
    assert sum(text is not None for text in texts) > 50
    assert not any(mark in text for text in texts if text for mark in tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    ("text", "ended", "start", "expected"),
    [
        (" Whole text, no end ", True, 0, "Whole text, no end"),
        ("One sentence is here. And then it st", False, 0, "One sentence is here."),
        ("Early. Then a long sentence that never comes to", False, 0, "Early. Then a long sentence that never comes to"),
        ("A first line of text\nand a bit", False, 0, "A first line of text"),
        ("One sentence is here. And then it st", False, 30, "One sentence is here. And then it st"),
        ("It costs 3.50 at the mar", False, 0, "It costs 3.50 at the mar"),
        ("", False, 0, ""),
    ],
)
def test_clean(text: str, ended: bool, start: int, expected: str) -> None:
    assert clean(text, ended, start) == expected


def test_redraws_stop_after_three_and_give_none() -> None:
    calls: list[list[int]] = []

    def draw(indices: list[int], seed: int, attempt: int) -> list[str]:
        calls.append(indices)
        return ["yes" if i <= attempt else "" for i in indices]

    assert redrawn(draw, lambda _, text: bool(text), 5, 0) == ["yes", "yes", "yes", "yes", None]
    assert calls == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4], [3, 4]]


# Prefix


def test_children_begin_as_their_parents_and_are_new(brew: tuple[Any, Any]) -> None:
    model, tokenizer = brew
    parents = PARENTS * 6
    children = PrefixResample(model, tokenizer, SHORT).vary(parents, 3)
    assert len(children) == len(parents)
    for parent, child in zip(parents, children, strict=True):
        assert child is not None
        assert child != parent
        assert len(child.split()) >= 3
        assert len(tokenizer(child)["input_ids"]) <= 24 + 2  # a text may be spelled anew
        assert child.split()[0][:2] == parent.split()[0][:2]
    assert len(set(children)) == len(children)
    assert children == PrefixResample(model, tokenizer, SHORT).vary(parents, 3)
    assert children != PrefixResample(model, tokenizer, SHORT).vary(parents, 4)


def test_kept_share_is_within_its_bounds(brew: tuple[Any, Any]) -> None:
    tokenizer = brew[1]
    script = Script(brew, ["and something new at the end"])
    parent = PARENTS[1]
    length = len(tokenizer(parent, add_special_tokens=False)["input_ids"])
    PrefixResample(script, tokenizer, GenerateConfig(keep=(0.25, 0.75))).vary([parent] * 200, 0)
    kept = [len(prompt) - 1 for prompt in script.prompts]
    assert all(prompt[0] == tokenizer.bos_token_id for prompt in script.prompts)
    # children that keep as much are written from one reading, in each of four batches
    assert 10 < len(set(kept)) <= len(kept) <= len(set(kept)) + 3
    assert min(kept) == int(0.25 * length)
    assert int(0.75 * length) - 1 <= max(kept) <= int(0.75 * length)


def test_empty_generation_is_redrawn_then_dropped(brew: tuple[Any, Any]) -> None:
    tokenizer = brew[1]
    always = PrefixResample(Script(brew, [""]), tokenizer, SHORT)
    assert always.vary(PARENTS, 0) == [None] * 5
    assert always.write(PARENTS, 4, 0) == []
    once = PrefixResample(Script(brew, ["", "\n", " quite another rest"]), tokenizer, SHORT)
    children = once.vary(PARENTS, 0)
    assert all(child is not None and child.endswith("quite another rest") for child in children)
    only_space = PrefixResample(Script(brew, ["\n \n  "]), tokenizer, SHORT)
    assert only_space.vary(PARENTS, 0) == [None] * 5


def test_short_text_is_a_failure(brew: tuple[Any, Any]) -> None:
    config = GenerateConfig(min_words=30)
    assert PrefixResample(Script(brew, [" a few words only"]), brew[1], config).vary(PARENTS, 0) == [None] * 5


def test_write_shows_three_documents_and_returns_the_fourth(brew: tuple[Any, Any]) -> None:
    tokenizer = brew[1]
    script = Script(brew, ["A fourth text of the kind."])
    texts = PrefixResample(script, tokenizer, GenerateConfig()).write(PARENTS, 4, 0)
    assert texts == ["A fourth text of the kind."] * 4
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for prompt in script.prompts:
        assert (prompt[0], prompt[-1]) == (bos, bos)
        assert prompt.count(eos) == 3
        shown = tokenizer.decode(prompt).split("<|eos|>")
        assert all(part.replace("<|bos|>", "") in PARENTS for part in shown[:3])
    parrot = PrefixResample(Script(brew, [PARENTS[0]]), tokenizer, GenerateConfig(keep=(0, 0)))
    assert parrot.write([PARENTS[0]], 3, 0) == []  # a copy of an example is no new text


def test_write_is_seeded(brew: tuple[Any, Any]) -> None:
    variation = PrefixResample(*brew, SHORT)
    first = variation.write(PARENTS, 6, 1)
    assert len(first) == 6
    assert first == variation.write(PARENTS, 6, 1)
    assert first != variation.write(PARENTS, 6, 2)
    assert variation.write([], 6, 1) == []


# Mask


@pytest.fixture(scope="module")
def bert() -> tuple[Any, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=64)  # fmt: skip
    return transformers.BertForMaskedLM(config).eval(), tokenizer


WORDS = [" ".join(f"w{(7 * i + j) % 95}" for j in range(n)) for i, n in enumerate((10, 40, 20, 3, 33))]


def test_mask_fills_the_fraction_asked_for(bert: tuple[Any, Any]) -> None:
    config = GenerateConfig(kind="mask", filler="x", mask_passes=1, top_k=0, top_p=1.0)
    children = MaskFill(*bert, config).vary(WORDS * 5, 1)
    for parent, child in zip(WORDS * 5, children, strict=True):
        assert child is not None
        old, new = parent.split(), child.split()
        assert len(new) == len(old)
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert 1 <= changed <= max(1, int(0.3 * len(old)))
    changed = sum(a != b for p, c in zip(WORDS * 5, children, strict=True) for a, b in zip(p.split(), str(c).split(), strict=True))
    assert changed >= 0.9 * 5 * (3 + 12 + 6 + 1 + 9)  # a position may draw its old word again
    assert children == MaskFill(*bert, config).vary(WORDS * 5, 1)
    assert children != MaskFill(*bert, config).vary(WORDS * 5, 2)


def test_only_hidden_positions_change_and_all_are_filled(bert: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    places = {10: [2, 5], 20: [0, 19, 7], 3: [1]}
    monkeypatch.setattr(MaskFill, "_places", lambda self, length, generator: torch.tensor(places[length]))
    tokenizer = bert[1]
    fill = MaskFill(*bert, GenerateConfig(kind="mask", filler="x", mask_passes=1, top_k=0, top_p=1.0))
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (WORDS[0], WORDS[2], WORDS[3])]
    for seed in range(4):
        for old, new in zip(texts, fill.refill(texts, torch.Generator().manual_seed(seed)), strict=True):
            assert {i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b} <= set(places[len(old)])
            assert not set(new) & set(tokenizer.all_special_ids)


def test_greedy_filling_equals_a_slow_one_without_batches(bert: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = bert
    monkeypatch.setattr(MaskFill, "_places", lambda self, length, generator: torch.tensor([1, length - 1, 0]))
    fill = MaskFill(model, tokenizer, GenerateConfig(kind="mask", filler="x", mask_passes=2, temperature=0))
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in WORDS]
    expected = []
    for text in texts:
        ids = torch.tensor([[2, *text, 3]])
        for _ in range(2):
            ids[0, [2, len(text), 1]] = 4
            for place in (2, len(text), 1):
                with torch.no_grad():
                    logits = model(ids).logits[0, place]
                logits[:5] = -torch.inf
                ids[0, place] = logits.argmax()
        expected.append(ids[0, 1:-1].tolist())
    assert fill.refill(texts, torch.Generator()) == expected


def test_mask_without_words_is_a_failure_and_writer_writes(bert: tuple[Any, Any], brew: tuple[Any, Any]) -> None:
    config = GenerateConfig(kind="mask", filler="x")
    fill = MaskFill(*bert, config)
    assert fill.vary(["", "[MASK] [SEP]", "w1 w2"], 0) == [None, None, None]
    written = fill.write(WORDS[:3], 4, 0)
    assert len(written) == 4
    assert not set(written) & set(WORDS)
    other = MaskFill(*bert, config, writer=PrefixResample(Script(brew, ["A text by the writer."]), brew[1], SHORT))
    assert other.write(WORDS, 2, 0) == ["A text by the writer."] * 2
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bert[1]._tokenizer, pad_token="[PAD]")
    with pytest.raises(ModelError, match="mask token"):
        MaskFill(bert[0], tokenizer, config)


# Prompt


class Server(BaseHTTPRequestHandler):
    """Speaks as much of the OpenAI protocol as is needed; the answers are taken from the class."""

    answers: ClassVar[list[Any]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "tiny"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        self.keys.append(self.headers.get("Authorization"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, int):
            self._send(answer, {"error": "no such\nmodel"})
        elif isinstance(answer, dict):
            self._send(200, answer)
        else:
            self._send(200, {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    Server.answers, Server.seen, Server.keys = [], [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
        running.shutdown()
        thread.join()


def served(url: str, **settings: Any) -> Prompted:
    config = GenerateConfig(kind="prompt", url=url, **settings)
    return Prompted(chat_at(config, pause_s=0.01), config)


def test_server_is_asked_in_its_protocol(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "k-123")
    Server.answers = ['"A new text about knees."']
    variation = served(server, model="m", key_variable="TEST_KEY", max_tokens=17, temperature=0.5)
    assert variation.vary(PARENTS[:3], 0) == ["A new text about knees."] * 3
    assert len(Server.seen) == 3
    request = Server.seen[0]
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 17, 0.5)
    contents = [seen["messages"][0]["content"] for seen in Server.seen]
    assert all(any(parent in content for content in contents) for parent in PARENTS[:3])
    assert Server.keys == ["Bearer k-123"] * 3


def test_server_names_its_model_and_needs_no_key(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Server.answers = ["Some other text, quite new."]
    config = GenerateConfig()
    variation = build_generator(config, server, None)
    assert variation.write(PARENTS, 2, 0) == ["Some other text, quite new."] * 2
    assert {seen["model"] for seen in Server.seen} == {"tiny"}
    assert Server.keys == [None, None]
    assert all(sum(content.count(parent) for parent in PARENTS) == 3 for content in (s["messages"][0]["content"] for s in Server.seen))


def test_empty_answers_and_echoes_are_dropped(server: str) -> None:
    Server.answers = [""]
    assert served(server, model="m").vary(PARENTS[:1], 0) == [None]
    assert len(Server.seen) == 4
    Server.answers = [PARENTS[0], f"-----\n{PARENTS[0]}\n-----", "- Now this is new."]
    assert served(server, model="m").vary(PARENTS[:1], 0) == ["- Now this is new."]
    Server.answers = [{"choices": [{"message": {"content": None}}]}]
    assert served(server, model="m").write(PARENTS, 1, 0) == []
    config = GenerateConfig()
    assert Prompted(lambda prompts, seed: list(prompts), config).vary(PARENTS, 0) == [None] * 5


def test_cut_answer_loses_its_partial_sentence(server: str) -> None:
    long = {"choices": [{"message": {"content": "<think>hm</think>This one is whole. This is n"}, "finish_reason": "length"}]}
    Server.answers = [long]
    assert served(server, model="m").vary(PARENTS[:1], 0) == ["This one is whole."]


def test_passing_faults_are_tried_again_and_others_are_not(server: str) -> None:
    Server.answers = [503, 429, "At last there is an answer."]
    assert served(server, model="m").vary(PARENTS[:1], 0) == ["At last there is an answer."]
    Server.answers, before = [404], len(Server.seen)
    with pytest.raises(ModelError, match="status 404") as caught:
        served(server, model="m").vary(PARENTS[:1], 0)
    assert len(Server.seen) == before + 1
    assert "\n" not in str(caught.value)
    Server.answers = [{"surprise": 1}]
    with pytest.raises(ModelError, match="expected the OpenAI protocol"):
        served(server, model="m").vary(PARENTS[:1], 0)


def test_dead_port_is_one_clear_error(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as closed:
        url = f"http://127.0.0.1:{closed.server_address[1]}/v1"
    with pytest.raises(ModelError, match="gave no answer") as caught:
        served(url).vary(PARENTS, 0)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret-key" not in str(caught.value)
    with pytest.raises(ModelError, match="expected the address"):
        chat_at(GenerateConfig(url="file:///etc/hosts"))


class Elsewhere(Server):
    """Sends every request on to the address that stands in the class."""

    to: ClassVar[str] = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", f"{self.to}/chat/completions")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize(("host", "carried"), [("127.0.0.1", 0), ("localhost", 0)])
def test_a_redirect_to_another_server_never_carries_the_key(server, host, carried, monkeypatch):
    """Another port is another server too; only the configured one is trusted with the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    Server.answers = ["A text that came from elsewhere."]
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01},
                         daemon=True).start()
        Elsewhere.to = server.replace("127.0.0.1", host)
        url = f"http://127.0.0.1:{running.server_address[1]}/v1"
        assert served(url, model="m").vary(PARENTS[:1], 0) == ["A text that came from elsewhere."]
        running.shutdown()
    assert sum(key is not None for key in Server.keys) == carried
    assert len(Server.keys) == 1


class Away(Server):
    """Sends whoever asks for its models to the address that stands in the class, by a page without end."""

    to: ClassVar[str] = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.to}/steal")
        self.end_headers()


class Endless(Server):
    """Streams for ever: quickly, or a byte at a time."""

    pause_s: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" " if self.pause_s else bytes(2**16))
                time.sleep(self.pause_s)
        except OSError:
            pass  # it was cut off


@contextmanager
def running(kind: type[Server]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as found:
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}/v1"
        found.shutdown()


class Thief(Server):
    def do_GET(self) -> None:
        self.keys.append(self.headers.get("Authorization"))
        super().do_GET()


def test_a_redirected_question_for_the_models_carries_no_key(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    Server.keys = Thief.keys = []
    with running(Thief) as there, running(Away) as here:
        Away.to = there.replace("127.0.0.1", "localhost")
        chat = OpenAiServer(GenerateConfig(url=here), 0.01)
        with chat.client() as client:
            assert chat.first_model(client) == "tiny"
    assert Thief.keys == [None]


def test_redirects_in_a_circle_end(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with running(Away) as here:
        Away.to = here
        chat = OpenAiServer(GenerateConfig(url=here), 0.01)
        with chat.client() as client, pytest.raises(ModelError, match="more than 5 redirects"):
            chat.first_model(client)


@pytest.mark.parametrize(("pause_s", "words"), [(0.0, "bytes was cut off"), (0.02, "without end was cut off")])
def test_a_server_that_streams_without_end_is_cut_off(monkeypatch, pause_s, words):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(openai_server, "MOST_S", 0.5)
    Endless.pause_s = pause_s
    began = time.monotonic()
    with running(Endless) as here:
        chat = OpenAiServer(GenerateConfig(url=here), 0.01)
        with chat.client() as client, pytest.raises(ModelError, match=words) as told:
            chat.first_model(client)
    assert time.monotonic() - began < 20
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("address", ["https://alice:hunter2@gen.example.org/v1", "https://hunter2@gen.example.org/v1",
                                     "https://gen.example.org/v1?key=hunter2", "https://gen.example.org/v1#hunter2", "HTTPS://a:hunter2@b/v1",
                                     "https://a:hunter2'x@b/v1", "https://a:hunter2/x@b/v1", "https://a:x hunter2@b/v1"])
def test_a_secret_in_an_address_is_refused_and_told_to_nobody(address, tmp_path):
    for table in ({"generator": address}, {"generate": {"url": address}},
                  {"generate": {"url": address, "keep": [0.9, 0.1]}}, {"generator": address, "generate": {"top_p": 7}}):
        with pytest.raises(ConfigError) as told:
            tiny_run.settings(tmp_path, synthesis=table)
        assert "hunter2" not in str(told.value)
        assert "\n" not in str(told.value) or "top_p" in str(told.value)
    with pytest.raises(ConfigError, match="put the key into the environment variable"):
        tiny_run.settings(tmp_path, synthesis={"generator": address})
    config = GenerateConfig().model_copy(update={"url": address})
    with pytest.raises(ModelError) as refused:
        chat_at(config)
    assert "hunter2" not in str(refused.value)


def test_an_address_without_a_secret_and_a_path_with_an_at_are_taken(tmp_path):
    tiny_run.write_data(tmp_path)
    for generator in ("http://localhost:8000/v1", "/models/one@two", "org/name"):
        tiny_run.settings(tmp_path, synthesis={"generator": generator})


def test_chat_in_process_uses_the_template(brew: tuple[Any, Any]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BREW)
    config = GenerateConfig(max_tokens=8)
    plainly = Script(brew, ["An answer of some words."])
    assert chat_with(plainly, tokenizer, config)(["What<|eos|> now?"], 0) == ["An answer of some words."]
    assert tokenizer.decode(plainly.prompts[0]) == "<|bos|>What now?\n"
    tokenizer.chat_template = "{{ bos_token }}<|user|>{{ messages[0]['content'] }}<|assistant|>"
    turned = Script(brew, ["An answer of some words."])
    chat_with(turned, tokenizer, config)(["What<|assistant|> now?"], 0)
    assert tokenizer.decode(turned.prompts[0]) == "<|bos|><|user|>What now?<|assistant|>"


# Building


def test_build_makes_what_the_config_names(brew: tuple[Any, Any], bert: tuple[Any, Any], tmp_path: Path) -> None:
    def made(generator: str = "base", **settings: Any) -> Variation:
        return build_generator(GenerateConfig(**settings), generator, TextModel(*brew, torch.device("cpu")))

    assert isinstance(made(), PrefixResample)
    assert isinstance(made(BREW), PrefixResample)
    assert isinstance(made(kind="prompt"), Prompted)
    assert isinstance(made(kind="prompt", url="http://127.0.0.1:9/v1"), Prompted)
    for part in bert:
        part.save_pretrained(tmp_path)
    filled = made(kind="mask", filler=str(tmp_path))
    assert isinstance(filled, MaskFill)
    assert all(filled.vary(WORDS, 0))
    with pytest.raises(ConfigError, match="no filler"):
        made(kind="mask")
    with pytest.raises(ModelError, match="nobody/made-this") as caught:
        made("nobody/made-this")
    assert "\n" not in str(caught.value)


def test_a_generator_is_chosen_by_its_registered_name() -> None:
    kind = "told-by-the-test"
    if kind not in GENERATORS:
        GENERATORS.register(kind)(lambda config, model: Prompted(lambda prompts, seed: [config.kind for _ in prompts], config))
    told = build_generator(GenerateConfig(kind=kind, min_words=1), "no/such-model", None)  # which nobody asks for
    assert told.vary(["A parent text."], 0) == [kind]


def test_config_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        GenerateConfig(keep=(0.7, 0.2))
    with pytest.raises(ValueError, match=r"generator 'prefx' is unknown; did you mean 'prefix'"):
        GenerateConfig(kind="prefx")
    with pytest.raises(ValueError, match="Extra inputs"):
        GenerateConfig(temprature=1.0)  # type: ignore[call-arg]
