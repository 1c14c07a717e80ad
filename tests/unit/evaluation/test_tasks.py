"""Task metrics against loops that score or write one sequence at a time, and the script that joins instruction data."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.closeness import assert_near
from tests.tiny_bases import CAUSAL, CONFIGS, filled, records, tiny

from aulait.core.errors import DataError
from aulait.core.types import Record
from aulait.evaluation import tasks
from aulait.evaluation.losses import EvaluateConfig
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.training.batches import Encoder

CHOICES = ["ab", "abc", "abd", "b", "banana", "x y", "x z", "zebra"]
PROMPTS = [Record("abc", "what"), Record("b", "a longer question"), Record("x y", "which of these"), Record("zebra", "?")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder, known = tmp_path_factory.mktemp("bases"), {}

    def get(kind: str, context: int = 40):
        if (kind, context) not in known:
            known[kind, context] = tiny(folder, kind, context)
        return known[kind, context]

    return get


def worn(base, size: float = 0.5):
    return loading.wearing(base, [filled(loading.targets(base, AdapterConfig()), 2, size=size)])


def by_hand(base, record: Record, choice: str) -> tuple[float, int]:
    """Log-probability and tokens of a choice after the prompt; they fit the context."""
    tok = base.tokenizer
    given = [tok.bos_token_id, *tok(record.prompt + "\n", add_special_tokens=False)["input_ids"]]
    ids = [*given, *tok(choice, add_special_tokens=False)["input_ids"], tok.eos_token_id]
    with torch.no_grad():
        logp = base.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logp[i - 1, ids[i]]) for i in range(len(given), len(ids))), len(ids) - len(given)


# --- rank


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("pass_tokens", [8, 90, 1024])
def test_the_tree_equals_a_sequence_for_every_choice(bases, kind, pass_tokens, monkeypatch):
    base = bases(kind)
    assert tasks.packs(base)
    monkeypatch.setattr(tasks, "PASS_TOKENS", pass_tokens)
    with worn(base):
        found, counts = tasks.packed(base, Encoder(base), PROMPTS, CHOICES)
        slow, slow_counts = tasks.whole(base, Encoder(base), PROMPTS, CHOICES)
        wanted = torch.tensor([[by_hand(base, record, choice) for choice in CHOICES] for record in PROMPTS], dtype=torch.float64)
    assert_near(found, wanted[..., 0], 1e-5)
    assert_near(slow, wanted[..., 0], 1e-5)
    assert counts.tolist() == slow_counts.tolist() == wanted[..., 1].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_long_prompts_and_choices_are_cut_as_in_training(bases, kind):
    base = bases(kind, 16)
    some = [Record("b", "a prompt of more than sixteen tokens"), Record("b", "twelve tokens"), Record("b", "?")]
    choices = [*CHOICES, "a choice of more than sixteen tokens", "a choice of more than sixteen letters"]
    with worn(base):
        found, counts = tasks.packed(base, Encoder(base), some, choices)
        wanted, wanted_counts = tasks.whole(base, Encoder(base), some, choices)
    assert_near(found, wanted, 1e-5)
    assert counts.tolist() == wanted_counts.tolist()


@pytest.mark.parametrize("by", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_rank_takes_the_most_probable_choice(bases, kind, by):
    base = bases(kind)
    with worn(base, 2.0):
        found = tasks.rank_choices(base, PROMPTS, [*CHOICES[::-1], "ab"], by)
        sums, counts = tasks.whole(base, Encoder(base), PROMPTS, CHOICES)
    best = (sums / counts if by == "mean" else sums).argmax(dim=1)
    assert found == [CHOICES[i] for i in best.tolist()]


def test_models_that_cannot_take_a_tree_are_read_whole(bases, monkeypatch):
    assert not tasks.packs(bases("t5"))
    base = bases("gemma2")
    monkeypatch.setattr(base.model.config, "sliding_window", 8)
    assert not tasks.packs(base)
    base = bases("llama")
    forward = base.model.get_decoder().forward

    def deaf(**given):
        return forward(**{**given, "position_ids": None})

    with worn(base):
        assert tasks.packs(base)
        wanted = tasks.rank_choices(base, PROMPTS, CHOICES)
        monkeypatch.setattr(base.model.get_decoder(), "forward", deaf)
        assert not tasks.packs(base)
        assert tasks.rank_choices(base, PROMPTS, CHOICES) == wanted


def test_rank_names_what_is_wrong(bases):
    base = bases("llama")
    with pytest.raises(DataError, match="1 of 4 held-out responses are not among the 7 choices"):
        tasks.rank_choices(base, PROMPTS, [choice for choice in CHOICES if choice != "b"])
    with pytest.raises(DataError, match="the data have 1001 different responses, expected at most 1000"):
        tasks.rank_choices(base, PROMPTS[:0], [str(i) for i in range(1001)])
    assert tasks.rank_choices(base, [], CHOICES) == []


def test_accuracy_is_one_for_a_right_guess(bases):
    base = bases("llama")
    guesses = tasks.rank_choices(base, PROMPTS, CHOICES)
    right = [Record(guess, record.prompt) for guess, record in zip(guesses, PROMPTS, strict=True)]
    config = tasks.TaskConfig(task="rank")
    assert tasks.measure_task(base, right, config, CHOICES) == [{"accuracy": 1.0}] * 4
    other = next(choice for choice in CHOICES if choice != guesses[0])
    assert tasks.measure_task(base, [Record(other, right[0].prompt)], config, CHOICES) == [{"accuracy": 0.0}]


# --- texts


def greedy(base, prompt: str, most: int) -> str:
    """The likeliest token again and again, everything read anew each time."""
    tok = base.tokenizer
    ids = [tok.bos_token_id, *tok(prompt + "\n", add_special_tokens=False)["input_ids"]]
    room = base.config.context - most
    ids = ids if len(ids) <= room else ids[:1] + ids[-(room - 1):]
    start = len(ids)
    while len(ids) < start + most:
        with torch.no_grad():
            token = int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in (0, 1, 2):
            break
        ids.append(token)
    return tok.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_are_greedy_whatever_is_read_together(bases, kind):
    base = bases(kind)
    some = [*PROMPTS, Record("x", "a prompt so long that its beginning has to go")]
    with worn(base):
        wanted = [greedy(base, record.prompt, 12) for record in some]
        assert tasks.write_answers(base, some, 12, rows=3) == wanted
    assert len(set(wanted)) > 1


def test_a_text_gets_at_most_half_the_context(bases):
    base = bases("llama", 24)
    wanted = [greedy(base, record.prompt, 12) for record in PROMPTS]
    assert tasks.write_answers(base, PROMPTS, 400) == wanted


def test_encoder_decoders_write_too(bases):
    assert len(tasks.write_answers(bases("t5"), PROMPTS, 5)) == 4


def test_text_scores(bases, monkeypatch):
    texts = iter(["The cat sat on the mat", "a  CAT\n", "cats running"] * 2)
    monkeypatch.setattr(tasks, "write_answers", lambda base, some, most, rows: [next(texts) for _ in some])
    some = [Record("the cat lay on the mat", "?"), Record("a cat", "?"), Record("a cat ran", "?")]
    found = tasks.measure_task(bases("llama"), some, tasks.TaskConfig(task="rouge"))
    # 5 of 6 words in order; all; one stem of two (precision) and of three (recall).
    assert [score["rouge_l"] for score in found] == pytest.approx([5 / 6, 1.0, 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)])
    assert [score["exact_match"] for score in found] == [0.0, 1.0, 0.0]
    assert tasks.measure_task(bases("llama"), some, tasks.TaskConfig(task="exact")) == [{"exact_match": x} for x in (0.0, 1.0, 0.0)]


@pytest.mark.parametrize("task", ["rank", "rouge", "exact"])
def test_a_task_needs_prompts(bases, task):
    with pytest.raises(DataError, match=f"evaluate.task is '{task}' and a held-out record has no prompt"):
        tasks.measure_task(bases("llama"), records(2), tasks.TaskConfig(task=task), ["a"])


# --- which records


def test_records_are_taken_from_the_clients_in_turn():
    holdout = {"b": records(3, 1), "a": records(1, 2), "c": (), "d": records(2, 3)}
    found = tasks.fair(holdout, None)
    assert [name for name, _ in found] == ["a", "b", "d", "b", "d", "b"]
    assert [record for name, record in found if name == "b"] == list(holdout["b"])
    assert tasks.fair(holdout, 4) == found[:4]
    assert tasks.fair(dict(reversed(holdout.items())), 4) == found[:4]


def test_settings():
    assert EvaluateConfig().task == "none"
    assert EvaluateConfig(task="rank", rank_by="sum", task_records=5, max_new_tokens=3).every == 1
    for wrong in ({"task": "bleu"}, {"rank_by": "max"}, {"task_records": 0}, {"max_new_tokens": 0}, {"nonsense": 1}):
        with pytest.raises(ValidationError):
            EvaluateConfig(**wrong)
    assert set(CONFIGS) > set(CAUSAL)


# --- scripts/super_ni.py


@pytest.fixture(scope="module")
def super_ni():
    path = Path(__file__).resolve().parents[3] / "scripts" / "super_ni.py"
    spec = importlib.util.spec_from_file_location("super_ni", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_instructions_are_whole_sentences_where_they_fit(super_ni):
    text = "Answer the question.  It is about e.g. cats. Do it well!"
    assert super_ni.instruction(text, 100) == "Answer the question. It is about e.g. cats. Do it well!"
    assert super_ni.instruction(text, 8) == "Answer the question. It is about e.g. cats."
    assert super_ni.instruction(text, 6) == "Answer the question."
    assert super_ni.instruction(text, 2) == "Answer the"
    assert super_ni.instruction("Read this. Then write a story of many words.", 6) == "Read this. Then write a story"


def test_a_long_input_loses_its_middle(super_ni):
    assert super_ni.shorten(" a b\nc d ", 4) == "a b\nc d"
    assert super_ni.shorten("a b\nc d e f", 3) == "a ... e f"
    assert super_ni.shorten("a b\nc d e f", 1) == "... f"


def test_tasks_and_instances_become_rows(super_ni, tmp_path, capsys):
    tasks_file = lines(tmp_path / "t.jsonl", [{"task": "t1", "definition": "Say it. In a few words."}, {"task": "t2", "definition": ["Do."]}])
    rows = [("t1", "one two", ["three", "3"]), ("t2", "w " * 50, ["r"]), ("t2", "x", ["long " * 11]), ("t1", "no answer", [])]
    made = [{"task": t, "category": "c", "input": i, "output": o} for t, i, o in rows]
    out = tmp_path / "out.jsonl"
    super_ni.main([tasks_file, lines(tmp_path / "i.jsonl", made), str(out), "--instruction-words", "3", "--max-words", "20"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[0] == {"client": "t1", "category": "c", "prompt": "Say it.\none two", "response": "three"}
    assert found[1]["prompt"].startswith("Do.\nw w")
    assert len(f"{found[1]['prompt']} {found[1]['response']}".replace("...", "").split()) == 20
    assert len(found) == 2
    assert "2 rows of 2 tasks; 2 left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has the task 't9', expected one of the 2"):
        super_ni.main([tasks_file, lines(tmp_path / "i.jsonl", [{"task": "t9", "output": "x"}]), str(out)])
    with pytest.raises(SystemExit, match="--instruction-words is 9, expected 1 to 8"):
        super_ni.main([tasks_file, tasks_file, str(out), "--instruction-words", "9", "--max-words", "9"])


def test_the_banking77_script_writes_intents_in_words(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": " Where is it? ", "category": "card_arrival"}\n\n{"text": "Why?", "category": "Refund_not_showing_up"}\n')
    script = Path(__file__).resolve().parents[3] / "scripts" / "banking77.py"
    subprocess.run([sys.executable, str(script), str(source), str(out)], check=True, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"text": "Where is it?", "category": "card arrival"}, {"text": "Why?", "category": "refund not showing up"}]
