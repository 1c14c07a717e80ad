"""The benchmarks of the generator and of the embedder: both sides do the same work."""

from __future__ import annotations

import json

import pytest
import torch
from tests.tiny_bases import write
from typer.testing import CliRunner

from aulait import cli
from aulait.models.generation import Sampling, TextModel, extend
from aulait.models.loading import ModelConfig, load_base
from aulait_benchmarks import embed, writing


@pytest.fixture
def writer(tmp_path):
    base = load_base(ModelConfig(name=str(write(tmp_path, "llama")), dtype="float32", device="cpu"))
    return TextModel(base.model, base.tokenizer, base.device)


def test_every_child_continues_its_parents_beginning(writer):
    work = writing.Writing(parents=3, children=4, prompt_tokens=5)
    prompts = writing.prompts_of(writer, work)
    assert len(prompts) == 12
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all(len(prompt) == 5 for prompt in prompts)
    assert prompts[0] == prompts[3] != prompts[4]


def test_both_write_as_many_tokens_where_nothing_ends_early(writer, monkeypatch):
    monkeypatch.setattr(writing, "stops", lambda _: [])
    monkeypatch.setattr("aulait.models.generation.stops", lambda _: [])
    prompts = writing.prompts_of(writer, writing.Writing(parents=2, children=3, prompt_tokens=4))
    how = Sampling(max_tokens=5)
    assert writing.one(writer, prompts, how) == writing.together(writer, prompts, how, 0) == 30


def test_rows_that_share_a_prompt_write_what_they_write_alone(writer):
    """The prompt is read once for all; each row has draws of its own."""
    shared, other = [5, 9, 11, 3], [7, 2]
    prompts = [shared, other, shared, shared, other]
    how = Sampling(max_tokens=12, temperature=1.0, top_k=0, top_p=1.0)
    found = extend(writer, prompts, how, seed=4)
    apart = extend(
        writer,
        prompts,
        Sampling(max_tokens=12, temperature=1.0, top_k=0, top_p=1.0, batch=1),
        seed=4,
    )
    assert found == apart
    assert len({tuple(found[i].ids) for i in (0, 2, 3)}) == 3


def test_a_shared_prompt_is_read_once(writer, monkeypatch):
    rows = []
    real = writer.model.forward

    def forward(*args, **options):
        rows.append(options["input_ids"].shape)
        return real(*args, **options)

    monkeypatch.setattr(writer.model, "forward", forward)
    extend(writer, [[5, 9, 11, 3]] * 6 + [[7, 2]], Sampling(max_tokens=2, temperature=1.0), seed=0)
    assert rows[0] == (2, 4)
    assert rows[1][1] == 1
    assert rows[1][0] <= 7


def test_the_generators_command():
    done = CliRunner().invoke(
        cli.app, ["bench", "generate", "--quick", "--repetitions", "3", "--json"]
    )
    found = json.loads(done.stdout)
    case = found["cases"][0]
    assert case["ratio_to_loop"] == pytest.approx(
        case["aulait_tokens_per_s"] / case["loop_tokens_per_s"]
    )
    assert found["ratio_to_loop"] == min(each["ratio_to_loop"] for each in found["cases"])
    assert 0 < case["tokens"] <= case["parents"] * case["children"] * case["most_tokens"]
    for name in ("loop_tokens", "prompt_tokens", "batch", "model", "dtype"):
        assert name in case
    assert {"clock", "repetitions", "peak_rss_bytes", "device", "threads"} <= set(found)


def test_the_embedders_command():
    done = CliRunner().invoke(
        cli.app, ["bench", "embed", "--quick", "--repetitions", "3", "--json"]
    )
    found = json.loads(done.stdout)
    assert found["error"] < 1e-5
    assert found["texts"] == embed.QUICK.texts
    assert found["ratio_to_peer"] == pytest.approx(
        found["aulait_texts_per_s"] / found["peer_texts_per_s"]
    )
    assert set(found) == {
        "texts",
        "words",
        "aulait_texts_per_s",
        "peer_texts_per_s",
        "ratio_to_peer",
        "error",
        "clock",
        "repetitions",
        "peak_rss_bytes",
        "threads",
    }


def test_what_the_embedder_remembers_can_be_dropped():
    embedder = embed.load_embedder("minilm", max_tokens=16)
    calls = []
    real = embedder.model.encode
    embedder.model.encode = lambda texts, **options: (
        calls.append(list(texts)) or real(texts, **options)
    )
    first = embedder.embed(["one", "two"])
    embedder.embed(["one", "two"])
    assert len(calls) == 1
    embedder.forget()
    assert torch.equal(embedder.embed(["one", "two"]), first)
    assert len(calls) == 2
