"""``aulait generate`` on a run of conversations: the template, a conversation, many prompts."""

from __future__ import annotations

import json

import pytest
import torch
from tests.chat_bases import CHATML, write_chat
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from aulait import cli
from aulait.core.types import Turn

TOML = """
[run]
name = "talk"
[model]
name = "{model}"
context = 128
[adapter]
rank = 1
targets = ["q_proj"]
[data]
source = "{source}"
public = ""
holdout = 0.25
[[federation.tier]]
name = "all"
placement = "local"
[synthesis]
proxies = "absent"
[train]
rounds = 1
steps = 1
batch = 2
lr = 1e-1
[evaluate]
task = "rouge"
task_records = 2
max_new_tokens = 4
[privacy]
off = true
"""


def call(*words, stdin: str | None = None):
    result = CliRunner().invoke(cli.app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    rows = [{"client": f"c{k}", "messages": [
        {"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is the dose {i * k}."},
        {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then ask again."}]} for k in range(2) for i in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "talk.toml").write_text(TOML.format(source=folder / "data.jsonl", model=write_chat(folder / "model", CHATML)))
    result = call("run", folder / "talk.toml", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert f"aulait generate {folder / 'run'} --chat" in result.stdout
    return folder / "run"


def transformers_answer(run, turns: list[dict], tokens: int) -> str:
    """The merged model's greedy answer, by transformers alone."""
    from aulait.models import exported

    model, _ = exported.load_exported(run)
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "model")
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()


def test_a_run_of_conversations_knows_its_format_and_its_answers(run):
    assert 'format = "chat"' in (run / "config.toml").read_text()
    result = json.loads((run / "result.json").read_text())
    assert result["eval"]["loss"] > 0
    assert "rouge_l" in result["eval"]


def test_the_answer_is_the_templates(run):
    told = json.loads(call("generate", run, "What is 3?", "--tokens", 6, "--temperature", 0, "--json").stdout)
    assert told["text"] == transformers_answer(run, [{"role": "user", "content": "What is 3?"}], 6)
    assert told["prompt"] == "What is 3?"
    printed = call("generate", run, "What is 3?", "--tokens", 6, "--temperature", 0).stdout
    assert printed.strip() == told["text"]
    piped = call("generate", run, "--tokens", 6, "--temperature", 0, stdin="What is 3?\n").stdout
    assert piped == printed


def test_a_conversation_remembers_what_was_said(run):
    words = ("generate", run, "--chat", "--system", "Be brief.", "--tokens", 5, "--temperature", 0)
    told = json.loads(call(*words, "--json", stdin="What is 3?\n\nAnd then?\n").stdout)
    turns = told["turns"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[2]["content"] == transformers_answer(run, turns[:2], 5)
    assert turns[4]["content"] == transformers_answer(run, turns[:4], 5)
    said = call(*words, stdin="What is 3?\n\nAnd then?\n").stdout
    assert said == f"{turns[2]['content']}\n{turns[4]['content']}\n"


def test_many_prompts_from_a_file_and_from_stdin(run, tmp_path):
    single = [json.loads(call("generate", run, prompt, "--tokens", 4, "--temperature", 0, "--json").stdout)["text"] for prompt in ("one?", "two?")]
    (tmp_path / "ask.txt").write_text("one?\n\ntwo?\n")
    rows = [{"prompt": "one?"}, {"messages": [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "left out"}]}]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file, stdin in ((tmp_path / "ask.txt", None), (tmp_path / "ask.jsonl", None), ("-", "one?\ntwo?\n")):
        told = json.loads(call("generate", run, "--prompts", file, "--tokens", 4, "--temperature", 0, "--json", stdin=stdin).stdout)
        assert told["answers"] == [{"prompt": p, "text": t} for p, t in zip(("one?", "two?"), single, strict=True)]
    printed = call("generate", run, "--prompts", tmp_path / "ask.txt", "--tokens", 4, "--temperature", 0).stdout
    assert printed == "".join(f"> {p}\n{t}\n\n" for p, t in zip(("one?", "two?"), single, strict=True))


def test_a_long_conversation_leaves_room_for_the_answer(run):
    from aulait.models.answering import _prompt
    from aulait.models.generation import TextModel

    folder = run.parent / "model"
    writer = TextModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), torch.device("cpu"))
    turns = [Turn("system", "Be brief.")]
    for number in range(40):
        turns += [Turn("user", f"What is the dose {number}?"), Turn("assistant", "Two a day.")]
    turns.append(Turn("user", "And then?"))
    ids = _prompt(writer, turns, 30)
    assert 400 < len(ids) <= 512 - 30
    text = writer.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the dose")
    assert text.endswith("And then?<|im_end|>\n<|im_start|>assistant\n")
    alone = _prompt(writer, [Turn("user", "x " * 2000 + "last words")], 30)
    assert len(alone) <= 512 - 30
    assert writer.tokenizer.decode(alone).endswith("last words<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(("words", "stdin", "line"), [
    (("--prompts", "x.txt", "--chat"), None, "found --prompts and --chat, expected one of them"),
    (("hello", "--chat"), None, "found PROMPT and --chat, expected one of them"),
    ((), "", "found no prompt on stdin"),
    (("--prompts", "-"), "\n", "has no prompt"),
    (("--prompts", "missing.txt"), None, "found no file 'missing.txt'"),
])
def test_what_cannot_be_asked_is_one_line(run, words, stdin, line):
    result = call("generate", run, *words, stdin=stdin)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_row_that_asks_nothing_is_named(run, tmp_path):
    (tmp_path / "ask.jsonl").write_text('{"prompt": "one?"}\n{"prompt": ""}\n')
    result = call("generate", run, "--prompts", tmp_path / "ask.jsonl")
    assert result.exit_code == 2
    assert "ask.jsonl line 2: field 'prompt' is empty" in result.stderr
