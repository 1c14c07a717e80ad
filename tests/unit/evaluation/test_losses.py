"""Scores against a loop that reads one record at a time from the bare model's logits."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny_bases import filled, records, tiny

from aulait.core.errors import DataError
from aulait.core.types import Adapter, Record
from aulait.evaluation import bleu, tasks
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.models import loading
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.training.trainer import Learner, TrainConfig


def by_hand(base, adapter, holdout, most: int) -> dict[str, float]:
    """One record at a time, one token at a time, in double precision."""
    sums = {}
    for client, mine in holdout.items():
        own = adapter.get(client) if isinstance(adapter, dict) else adapter
        with torch.no_grad(), loading.wearing(base, [own] if own else []):
            for record in mine[:most]:
                total = sums.setdefault(client, [0.0, 0, 0])
                for row, token in tokens_by_hand(base, record):
                    total[0] += float(row.logsumexp(0) - row[token])
                    total[1] += int(int(row.argmax()) == token)
                    total[2] += 1
    tokens = sum(t[2] for t in sums.values())
    loss = sum(t[0] for t in sums.values()) / tokens
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": sum(t[1] for t in sums.values()) / tokens,
            "worst_client_loss": max(t[0] / t[2] for t in sums.values()),
            "mean_client_loss": sum(t[0] / t[2] for t in sums.values()) / len(sums), "tokens": tokens}


def tokens_by_hand(base, record):
    """(logits, token) of every token with loss; the record fits the context."""
    tok = base.tokenizer
    given = [tok.bos_token_id] + (tok(record.prompt + "\n", add_special_tokens=False)["input_ids"] if record.prompt else [])
    ids = given + tok(record.text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
    logits = base.model(input_ids=torch.tensor([ids])).logits[0].double()
    return [(logits[place - 1], ids[place]) for place in range(len(given), len(ids))]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("worn", [False, True])
def test_scores_equal_the_slow_loop(base, rows, worn):
    adapter = filled(loading.targets(base, AdapterConfig()), 2, size=0.5) if worn else None
    holdout = {"b": records(3, 1), "a": records(2, 2, prompt=True), "c": records(5, 3), "none": ()}
    scores = evaluate(Learner(base, TrainConfig()), adapter, holdout, EvaluateConfig(rows=rows, records_per_client=3))
    assert scores.as_dict() == pytest.approx(by_hand(base, adapter, holdout, 3), rel=1e-5)


def test_brew_equals_the_slow_loop():
    brew = loading.load_base(ModelConfig(context=24, device="cpu"))
    holdout = {"a": (Record("Return the sum of two numbers."),), "b": (Record("Read a file."), Record("x = y", "Assign:"))}
    scores = evaluate(Learner(brew, TrainConfig()), None, holdout, EvaluateConfig())
    assert scores.as_dict() == pytest.approx(by_hand(brew, None, holdout, 4), rel=1e-4)


def personal(base, names: str, config=AdapterConfig()) -> dict[str, Adapter]:
    """An adapter for every letter, of rank 1, 2, 3, ... in the even layers and one more in the odd ones."""
    found = {}
    for rank, name in enumerate(names, 1):
        one, more = (filled(loading.targets(base, config), r, seed=rank, size=0.5).factors for r in (rank, rank + 1))
        found[name] = Adapter({layer: (more if i % 2 else one)[layer] for i, layer in enumerate(one)}, alpha=4.0 + rank)
    return found


@pytest.mark.parametrize("rows", [1, 2, 5, 32])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_client_is_scored_under_its_own_adapter(base, tmp_path, kind, rows):
    base = base if kind == "llama" else tiny(tmp_path, kind)
    holdout = {"b": records(3, 1), "a": records(2, 2, prompt=True), "c": records(5, 3), "d": records(3, 4), "e": ()}
    adapters = personal(base, "abcd")
    scores = evaluate(Learner(base, TrainConfig()), adapters, holdout, EvaluateConfig(rows=rows, records_per_client=4))
    assert scores.as_dict() == pytest.approx(by_hand(base, adapters, holdout, 4), rel=1e-5)


def test_one_personal_adapter_for_everyone_is_a_common_adapter(base):
    holdout, own = {"a": records(3, 1), "b": records(2, 2)}, personal(base, "a")["a"]
    apart, common = (evaluate(Learner(base, TrainConfig()), worn, holdout, EvaluateConfig()).as_dict() for worn in ({"a": own, "b": own}, own))
    assert apart == pytest.approx(common, rel=1e-5)


def test_a_client_without_its_adapter_is_named(base):
    with pytest.raises(DataError, match="1 clients have held-out records and no personal adapter \\(the first is 'b'\\)"):
        evaluate(Learner(base, TrainConfig()), personal(base, "a"), {"a": records(1), "b": records(1), "c": ()}, EvaluateConfig())


@pytest.mark.parametrize("task", ["rank", "rouge", "exact"])
def test_task_scores_stand_beside_the_losses(base, task):
    holdout = {"a": records(3, 1, prompt=True), "b": records(2, 2, prompt=True)}
    choices = [record.text for some in holdout.values() for record in some]
    learner, adapters = Learner(base, TrainConfig()), personal(base, "ab")
    config = EvaluateConfig(task=task, max_new_tokens=6)
    scores = evaluate(learner, adapters, holdout, config, choices)
    names = {"rank": {"accuracy"}, "rouge": {"rouge_1", "rouge_2", "rouge_l", "bleu", "exact_match"}, "exact": {"exact_match"}}[task]
    assert set(scores.as_dict()) - {"loss", "perplexity", "token_accuracy", "worst_client_loss", "mean_client_loss", "tokens"} == {*names, "count"}
    each = []
    for name, some in holdout.items():
        with loading.wearing(base, [adapters[name]]):
            each += tasks.measure_task(base, some, config, choices)
    means = {name: sum(e[name] for e in each) / 5 for name in names - {"bleu"}}
    assert scores.task == {**means, **({"bleu": bleu.corpus(each)} if task == "rouge" else {}), "count": 5}
    assert evaluate(learner, None, holdout, EvaluateConfig(task=task, task_records=3), choices).task["count"] == 3


def test_a_task_without_records_is_not_a_number(base):
    task = evaluate(Learner(base, TrainConfig()), None, {"a": ()}, EvaluateConfig(task="rank"), ()).task
    assert task["count"] == 0
    assert math.isnan(task["accuracy"])


def test_nothing_held_out_is_not_a_number(base):
    scores = evaluate(Learner(base, TrainConfig()), None, {"a": ()}, EvaluateConfig())
    assert scores.tokens == 0
    assert math.isnan(scores.loss)
    assert math.isnan(scores.mean_client_loss)


def test_the_same_text_in_two_clients_counts_twice(base):
    text = records(1)
    learner = Learner(base, TrainConfig())
    once, twice = (evaluate(learner, None, h, EvaluateConfig()) for h in ({"a": text}, {"a": text, "b": text}))
    assert twice.tokens == 2 * once.tokens
    assert twice.loss == pytest.approx(once.loss, rel=1e-5)
