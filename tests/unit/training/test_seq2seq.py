"""Encoder-decoder bases from the record to the finished run: against PEFT, Hugging Face's own loss and its own generation."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.closeness import assert_learnt_alike, assert_near
from tests.oracle import plain_training
from tests.tiny_bases import CONFIGS, VOCABULARY, byte_tokenizer, filled, records
from tests.tiny_run import WORDS
from tests.tiny_run import WordEmbedder as WordEmbedder  # files the embedder "words"
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, T5Config
from typer.testing import CliRunner

from aulait import cli
from aulait.core.errors import AulaitError, ModelError
from aulait.core.factors import Trainable
from aulait.core.types import Record
from aulait.evaluation import tasks
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.models import exported, loading
from aulait.models.generation import Sampling, TextModel, extend
from aulait.models.loading import AdapterConfig, Base, ModelConfig
from aulait.runs import experiment_file
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.synthesis.generator import build_generator
from aulait.synthesis.variation import GenerateConfig
from aulait.training.batches import IGNORE, Encoder, collate, too_long
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, draws

BART = BartConfig(
    vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
    decoder_ffn_dim=24, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, init_std=0.3)
UNEVEN = T5Config(**{**CONFIGS["t5"].to_diff_dict(), "num_layers": 3, "num_decoder_layers": 2})
KINDS = {"t5": CONFIGS["t5"], "bart": BART, "uneven": UNEVEN}
SOME = [Record("abc", "what"), Record("b", "a longer question"), Record("x y", "which of these"), Record("zebra", "?")]


def written(folder: Path, kind: str) -> Path:
    """A model with random weights and a tokenizer that ends (BART: also begins) every text, as the published ones do."""
    path = folder / kind
    if not path.exists():
        torch.manual_seed(7)
        AutoModelForSeq2SeqLM.from_config(KINDS[kind]).save_pretrained(path)
        tokenizer = byte_tokenizer(begin=kind == "bart")
        form = "<s> $A </s>" if kind == "bart" else "$A </s>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder, known = tmp_path_factory.mktemp("bases"), {}

    def get(kind: str = "t5", context: int = 24) -> Base:
        if (kind, context) not in known:
            known[kind, context] = loading.load_base(ModelConfig(name=str(written(folder, kind)), kind="seq2seq", context=context, device="cpu"))
        return known[kind, context]

    return get


def bare(base: Base) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(base.config.name, dtype=torch.float32).eval()


# -- records to rows ---------------------------------------------------------------------------------------------------


def test_both_sides_have_the_special_tokens_of_the_tokenizer_once(bases):
    rows = collate(bases(), Encoder(bases()), [Record("abc", "xyz")])
    assert bases().tokenizer.decode(rows.source[0]) == "xyz</s>"
    assert bases().tokenizer.decode(rows.labels[0]) == "abc</s>"
    rows = collate(bases("bart"), Encoder(bases("bart")), [Record("abc", "xyz")])
    assert bases("bart").tokenizer.decode(rows.source[0]) == "<s>xyz</s>"
    assert bases("bart").tokenizer.decode(rows.labels[0]) == "<s>abc</s>"


def test_both_sides_are_cut_on_their_own_and_the_encoder_keeps_its_end(bases):
    base = bases()
    ids, given = Encoder(base)(Record("b" * 50, "".join(chr(97 + i % 26) for i in range(50))))
    assert base.tokenizer.decode(ids[:given]) == "abcdefghijklmnopqrstuvw</s>"
    assert base.tokenizer.decode(ids[given:]) == "b" * 24
    rows = collate(base, Encoder(base), [Record("b" * 50, "x" * 50), Record("c", "y")])
    assert rows.source.shape == rows.labels.shape == (2, 24)


def test_a_record_is_too_long_by_its_longer_side(bases):
    fits, long_prompt, long_text = Record("a" * 23, "x" * 23), Record("a", "x" * 24), Record("a" * 30, "x")
    found = list(too_long(Encoder(bases()), 24, [fits, long_prompt, long_text]))
    assert found == [(1, 25), (2, 31)]


def test_without_a_prompt_the_encoder_still_reads_something(bases):
    learner = Learner(bases(), TrainConfig())
    found = evaluate(learner, None, {"c": [Record("abc"), Record("abc", "")]}, EvaluateConfig())
    assert found.loss == found.loss  # a number


# -- training ------------------------------------------------------------------------------------------------------------


def work(base: Base, site: int) -> LocalTraining:
    shapes = loading.targets(base, AdapterConfig(targets="attention"))
    return LocalTraining(filled(shapes, 2, alpha=4.0 + site, seed=site), records(5, site, prompt=True), Trainable.AB, 3, 2, 1e-2, 10 + site)


def plain(base: Base, one: LocalTraining) -> tuple[Any, float]:
    """The same steps by peft and Hugging Face's own loss."""
    tokenizer = base.tokenizer
    net = get_peft_model(bare(base), plain_training._config(one.start))
    trained = plain_training._put(net, one.start, "AB")
    optimizer, losses = torch.optim.AdamW(trained, lr=one.lr, weight_decay=0.0), []
    encode = Encoder(base)
    for step in draws(one, [len(encode(record)[0]) for record in one.records]):
        some = [one.records[i] for i in step]
        given = tokenizer([record.prompt for record in some], padding=True, return_tensors="pt")
        labels = tokenizer([record.text for record in some], padding=True, return_tensors="pt").input_ids
        labels[labels == tokenizer.pad_token_id] = IGNORE
        loss = net(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return plain_training._take(net, one.start), sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_many_sites_together_equal_each_alone_and_the_plain_loop(bases, kind):
    base = bases(kind)
    learner = Learner(base, TrainConfig())
    works = [work(base, site) for site in range(3)]
    for one, done in zip(works, learner.train(works), strict=True):
        alone = learner.train([one])[0]
        adapter, loss = plain(base, one)
        start = one.start.factors
        assert_learnt_alike(done.adapter.factors, alone.adapter.factors, 2e-3, start=start)
        assert_learnt_alike(done.adapter.factors, adapter.factors, 2e-3, start=start)
        assert done.loss == pytest.approx(loss, rel=1e-5)
        assert all((done.adapter.factors[name][1] - b).abs().max() > 1e-4 for name, (_, b) in start.items()), "every layer learns"


def test_attention_means_all_three_attentions(bases):
    found = loading.targets(bases("uneven"), AdapterConfig(targets="attention"))
    kinds = {(name.partition(".")[0], name.split(".")[-2], name.rpartition(".")[2]) for name in found}
    letters = "qkvo"
    assert kinds == {*(("encoder", "SelfAttention", x) for x in letters), *(("decoder", "SelfAttention", x) for x in letters),
                     *(("decoder", "EncDecAttention", x) for x in letters)}
    assert len(found) == 3 * 4 + 2 * 8


def test_the_last_layers_are_those_of_both_stacks(bases):
    base = bases("uneven")
    one = loading.targets(base, AdapterConfig(targets="attention", layers=1))
    assert {name.partition(".layer.")[0] for name in one} == {"encoder.block.2", "decoder.block.1"}
    assert loading.targets(base, AdapterConfig(layers=3)) == loading.targets(base, AdapterConfig())
    with pytest.raises(ModelError, match="expected 'all' or 1 to 3"):
        loading.targets(base, AdapterConfig(layers=4))


# -- scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_that_of_hugging_face(bases, kind):
    base, net = bases(kind), bare(bases(kind))
    nats = tokens = 0.0
    for record in SOME:
        given = base.tokenizer(record.prompt, return_tensors="pt")
        labels = base.tokenizer(record.text, return_tensors="pt").input_ids
        nats += float(net(**given, labels=labels).loss) * labels.shape[1]
        tokens += labels.shape[1]
    found = evaluate(Learner(base, TrainConfig()), None, {"a": SOME[:1], "b": SOME[1:]}, EvaluateConfig())
    assert (found.loss, found.tokens) == (pytest.approx(nats / tokens, rel=1e-5), tokens)


def until_the_end(ids: list[int]) -> list[int]:
    """Tokens up to the first end mark or padding."""
    return ids[: next((i for i, token in enumerate(ids) if token in (0, 2)), len(ids))]


@pytest.mark.parametrize("kind", ["t5", "bart", "uneven"])
@pytest.mark.parametrize("worn", [False, True])
def test_texts_are_those_of_hugging_faces_greedy_search(bases, kind, worn):
    base = bases(kind)
    adapters = [filled(loading.targets(base, AdapterConfig()), 2, size=0.5)] if worn else []
    with loading.wearing(base, adapters):
        found = tasks.write_answers(base, SOME, 12, rows=3)
        for record, text in zip(SOME, found, strict=True):
            given = base.tokenizer(record.prompt, return_tensors="pt")
            ids = base.model.generate(**given, max_new_tokens=12, do_sample=False, num_beams=1)[0]
            assert text == base.tokenizer.decode(until_the_end(ids[1:].tolist()), skip_special_tokens=True)
            assert text == tasks.write_answers(base, [record], 12)[0]
    assert any(found)


def test_the_encoder_reads_once_and_the_decoder_one_token_a_step(bases, monkeypatch):
    base = bases()
    read, written = [], []
    monkeypatch.setattr(base.model.encoder, "forward", counted(base.model.encoder.forward, read))
    monkeypatch.setattr(base.model.decoder, "forward", counted(base.model.decoder.forward, written))
    prompts = [base.tokenizer(record.prompt).input_ids for record in SOME]
    found = extend(TextModel(base.model, base.tokenizer, base.device), prompts, Sampling(max_tokens=9, temperature=0.0), 0, limits=[9, 2, 2, 2])
    assert read == [(4, 18)]
    assert written[0] == (4, 1)
    assert all(width == 1 for _, width in written)
    assert written[-1][0] == 1, "rows that have ended are no longer computed"
    assert [len(one.ids) <= most for one, most in zip(found, [9, 2, 2, 2], strict=True)] == [True] * 4


def counted(forward, heard: list[tuple[int, ...]]):
    """The forward pass of a stack, told the shape of what it reads."""
    names = inspect.signature(forward)

    def told(*args: Any, **given: Any) -> Any:
        heard.append(tuple(names.bind(*args, **given).arguments["input_ids"].shape))
        return forward(*args, **given)

    return told


def test_draws_do_not_depend_on_the_batch(bases):
    base = bases()
    prompts = [base.tokenizer(record.prompt).input_ids for record in SOME]
    together = extend(TextModel(base.model, base.tokenizer, base.device), prompts, Sampling(max_tokens=8), 5)
    assert together == extend(TextModel(base.model, base.tokenizer, base.device), prompts, Sampling(max_tokens=8, batch=1), 5)
    assert together != extend(TextModel(base.model, base.tokenizer, base.device), prompts, Sampling(max_tokens=8), 6)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("by", ["mean", "sum"])
def test_ranking_is_by_the_probability_of_every_choice(bases, kind, by):
    base, choices = bases(kind), ["ab", "abc", "b", "x y", "zebra"]
    with loading.wearing(base, [filled(loading.targets(base, AdapterConfig()), 2, size=0.5)]):
        found = tasks.rank_choices(base, SOME, choices, by)
        for record, guess in zip(SOME, found, strict=True):
            given = base.tokenizer(record.prompt, return_tensors="pt")
            score = {}
            for choice in choices:
                labels = base.tokenizer(choice, return_tensors="pt").input_ids
                with torch.no_grad():
                    logp = base.model(**given, labels=labels).logits[0].log_softmax(-1)
                each = logp[torch.arange(labels.shape[1]), labels[0]]
                score[choice] = float(each.mean() if by == "mean" else each.sum())
            assert guess == max(score, key=lambda choice: score[choice])


def test_ranking_encodes_a_prompt_once(bases, monkeypatch):
    base, read = bases(), []
    monkeypatch.setattr(base.model.encoder, "forward", counted(base.model.encoder.forward, read))
    tasks.rank_choices(base, SOME, ["abc", "b", "x y", "zebra"])
    assert [rows for rows, _ in read] == [1] * 4


def test_three_rouges_and_exact_match(bases, monkeypatch):
    monkeypatch.setattr(tasks, "write_answers", lambda *rest: ["the cat sat down", "Yes."])
    some = [Record("the cat sat on the mat", "p"), Record("yes.", "q")]
    names = ("rouge_1", "rouge_2", "rouge_l", "exact_match")
    first, second = ([score[name] for name in names] for score in tasks.measure_task(bases(), some, tasks.TaskConfig(task="rouge")))
    assert first == pytest.approx([2 * 3 / (6 + 4), 2 * 2 / (5 + 3), 2 * 3 / (6 + 4), 0.0])
    assert second == [1.0, 0.0, 1.0, 1.0]


# -- stage 1 needs a writer -------------------------------------------------------------------------------------------------


def test_the_built_in_model_writes_for_a_base_that_cannot(bases):
    base = bases()
    model = TextModel(base.model, base.tokenizer, base.device)
    with pytest.raises(ModelError, match=r"'brew' is built in"):
        build_generator(GenerateConfig(), "base", model)
    variation = build_generator(GenerateConfig(max_tokens=8, min_words=1), "brew", model)
    assert any(variation.vary_pairs([Record("Returns the sum.", "What does this function do?")] * 3, 0))


# -- a whole run ---------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENT = ROOT / "experiments" / "mts-dialog.toml"
SECTIONS = ["ALLERGY", "CC", "FAM/SOCHX", "MEDICATIONS", "ROS"]


def made_up(folder: Path) -> Path:
    """train.jsonl and validation.jsonl with the fields of MTS-Dialog."""
    for name, per_section in (("train", 5), ("validation", 2)):
        rows = []
        for number, section in enumerate(SECTIONS):
            for i in range(per_section):
                a, b, c = (WORDS[(number * 3 + i * 5 + k + len(name)) % len(WORDS)] for k in range(3))
                rows.append({"ID": str(len(rows)), "section_header": section, "section_text": f"Reports {a} {b}.",
                             "dialogue": f"Doctor: Do you {a} the {b}? \r\nPatient: No, only {c}."})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def real(tmp_path: Path) -> Path:
    """The published rows where this machine has them."""
    for folder in (os.environ.get("AULAIT_TEST_DATA"), ROOT / "shared/data", ROOT.parent / "shared/data"):
        if folder and (path := Path(folder) / "mts_dialog").joinpath("train.jsonl").is_file():
            return path
    pytest.skip("no mts_dialog on this machine")


def overrides(data: Path, base: Path) -> list[str]:
    values = {
        "model.name": str(base), "model.device": "cpu", "model.context": 64, "data.source": str(data / "train.jsonl"),
        "data.public": str(data / "validation.jsonl"), "data.min_records": 4, "data.records_per_client": 4, "data.clients": 5,
        "federation.tier.0.share": 0.4, "synthesis.rounds": 1, "synthesis.candidates": 4, "synthesis.variations": 1, "synthesis.texts": 6,
        "synthesis.proxy_count": 2, "synthesis.embedder": "words", "synthesis.generate.max_tokens": 24, "train.rounds": 2,
        "train.steps": 2, "train.batch": 2, "train.lr": 5e-2, "adapter.rank": 2, "evaluate.every": 2, "evaluate.records_per_client": 1,
        "evaluate.task_records": 3, "evaluate.max_new_tokens": 6, "engine.threads": 1, "algorithm.local_weight": 1.0}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()] + ["privacy={off=true}"]


def call(*words: object) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module", params=["made up", "published"])
def run(request, tmp_path_factory) -> tuple[Path, Path]:
    """The run folder of the experiment file with a base of random weights and few steps, and the folder of that base."""
    folder = tmp_path_factory.mktemp("whole")
    data = made_up(folder) if request.param == "made up" else real(folder)
    base = written(folder, "t5")
    words = [word for pair in overrides(data, base) for word in ("--set", pair)]
    call("run", EXPERIMENT, *words, "--out", folder / "run")
    return folder / "run", base


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_experiment_trains_local_clients_and_proxies_on_pairs(run):
    path, _ = run
    made = lines(path / "synthetic.jsonl")
    assert len(made) >= 4
    assert {line["client"] for line in made} == {"proxy-000", "proxy-001"}
    assert all(line["prompt"].strip() and line["text"].strip() and "\n" in line["parent"] for line in made)
    result = json.loads((path / "result.json").read_text())
    assert result["rounds"] == 2
    assert {"rouge_1", "rouge_2", "rouge_l", "exact_match"} <= result["eval"].keys()
    assert result["eval"]["loss"] < result["base_eval"]["loss"]
    page = (path / "report.html").read_text()
    assert "ROUGE-L" in page
    assert html.escape(" ".join(made[0]["prompt"].split()[:2])) in page, "the report shows whole pairs"


def test_no_text_of_a_client_is_among_the_synthetic_ones(run):
    path, _ = run
    settings = tomllib.loads((path / "config.toml").read_text())
    private = lines(Path(settings["data"]["source"]))
    public = lines(Path(settings["data"]["public"]))
    known = {row["dialogue"] for row in public} | {row["section_text"] for row in public}
    for line in lines(path / "synthetic.jsonl"):
        assert not any(line["prompt"] == row["dialogue"] for row in private if row["dialogue"] not in known)
        assert not any(line["text"] == row["section_text"] for row in private if row["section_text"] not in known)


def test_peft_loads_the_adapter_and_gives_the_same_logits(run, tmp_path):
    path, where = run
    assert json.loads((path / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    call("export", path, "--to", tmp_path / "adapter")
    call("export", path, "--to", tmp_path / "model", "--merge")
    net = AutoModelForSeq2SeqLM.from_pretrained(where, dtype=torch.float32).eval()
    given = AutoTokenizer.from_pretrained(where)("Doctor: How are you?", return_tensors="pt")
    labels = torch.tensor([[70, 71, 72, 2]])
    with torch.no_grad():
        plain_logits = net(**given, labels=labels).logits
        merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()(**given, labels=labels).logits
        worn = PeftModel.from_pretrained(net, str(tmp_path / "adapter")).eval()(**given, labels=labels).logits
    assert_near(worn, merged, 1e-5)
    assert (worn - plain_logits).abs().max() > 1e-3


def test_generate_answers_as_the_evaluation_does(run):
    path, _ = run
    found = json.loads(call("generate", path, "Doctor: How are you?", "--tokens", 8, "--temperature", 0, "--json"))
    net, tokenizer = exported.load_exported(path)
    given = tokenizer("Doctor: How are you?", return_tensors="pt")
    ids = net.generate(**given, max_new_tokens=8, do_sample=False)[0]
    told = tokenizer.decode(until_the_end(ids[1:].tolist()), skip_special_tokens=True)
    assert found["text"] == told.strip()
    assert not call("generate", path, "Doctor: How are you?", "--tokens", 8).startswith("Doctor: How are you?")


@pytest.mark.parametrize(("more", "message"), [
    ({"synthesis.generator": "base"}, "set synthesis.generator = 'brew' (built in)"),
    ({"data.public": "stdlib"}, "expected rows with 'dialogue' and 'section_text' so that stage 1 breeds pairs"),
    ({"data.public": "stdlib", "data.public_plain": True}, "expected rows with 'dialogue' and 'section_text'"),
])
def test_what_cannot_work_is_refused_before_any_work(tmp_path, more, message):
    data, base = made_up(tmp_path), written(tmp_path, "t5")
    words = overrides(data, base) + [f"{key}={json.dumps(value)}" for key, value in more.items()]
    with pytest.raises(AulaitError, match=re.escape(message)):
        prepare(experiment_file.read_settings(EXPERIMENT, words), SharedCache())


def test_a_causal_base_may_be_given_plain_texts_aloud(tmp_path):
    words = [*overrides(made_up(tmp_path), tmp_path), 'model={name="brew", context=64, device="cpu"}', 'data.public="stdlib"']
    with pytest.raises(AulaitError, match=r"or data\.public_plain = true"):
        prepare(experiment_file.read_settings(EXPERIMENT, words), SharedCache())
    run = prepare(experiment_file.read_settings(EXPERIMENT, [*words, "data.public_plain=true"]), SharedCache())
    assert all(isinstance(text, str) for text in run.federation.corpus.public)


def test_an_encoder_decoder_without_prompts_is_refused(tmp_path):
    made_up(tmp_path)
    tree = {"model": {"name": str(written(tmp_path, "t5")), "kind": "seq2seq", "device": "cpu"},
            "data": {"source": str(tmp_path / "train.jsonl"), "client": "section_header", "text": "section_text", "public": ""},
            "federation": {"tier": [{"name": "all"}]}, "privacy": {"off": True}}
    with pytest.raises(AulaitError, match=r"model\.kind is 'seq2seq' and the data are plain text"):
        prepare(experiment_file.build_settings(tree), SharedCache())
