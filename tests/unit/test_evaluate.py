"""Scores against a loop that reads one record at a time from the bare model's logits."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny_bases import filled, records, tiny

from aulait import model
from aulait.evaluate import EvaluateConfig, evaluate
from aulait.model import AdapterConfig, ModelConfig
from aulait.train import Learner, TrainConfig
from aulait.types import Record


def by_hand(base, adapter, holdout, most: int) -> dict[str, float]:
    """One record at a time, one token at a time, in double precision."""
    tok, sums = base.tokenizer, {}
    with torch.no_grad(), model.wearing(base, [adapter] if adapter else []):
        for client, mine in holdout.items():
            for record in mine[:most]:
                given = [tok.bos_token_id] + (tok(record.prompt + "\n", add_special_tokens=False)["input_ids"] if record.prompt else [])
                ids = given + tok(record.text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
                logits = base.model(input_ids=torch.tensor([ids])).logits[0].double()
                for place in range(len(given), len(ids)):
                    row = logits[place - 1]
                    total = sums.setdefault(client, [0.0, 0, 0])
                    total[0] += float(row.logsumexp(0) - row[ids[place]])
                    total[1] += int(int(row.argmax()) == ids[place])
                    total[2] += 1
    tokens = sum(t[2] for t in sums.values())
    loss = sum(t[0] for t in sums.values()) / tokens
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": sum(t[1] for t in sums.values()) / tokens,
            "worst_client_loss": max(t[0] / t[2] for t in sums.values()), "tokens": tokens}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("worn", [False, True])
def test_scores_equal_the_slow_loop(base, rows, worn):
    adapter = filled(model.targets(base, AdapterConfig()), 2, size=0.5) if worn else None
    holdout = {"b": records(3, 1), "a": records(2, 2, prompt=True), "c": records(5, 3), "none": ()}
    scores = evaluate(Learner(base, TrainConfig()), adapter, holdout, EvaluateConfig(rows=rows, records_per_client=3))
    assert scores.as_dict() == pytest.approx(by_hand(base, adapter, holdout, 3), rel=1e-5)


def test_brew_equals_the_slow_loop():
    brew = model.load(ModelConfig(context=24, device="cpu"))
    holdout = {"a": (Record("Return the sum of two numbers."),), "b": (Record("Read a file."), Record("x = y", "Assign:"))}
    scores = evaluate(Learner(brew, TrainConfig()), None, holdout, EvaluateConfig())
    assert scores.as_dict() == pytest.approx(by_hand(brew, None, holdout, 4), rel=1e-4)


def test_nothing_held_out_is_not_a_number(base):
    scores = evaluate(Learner(base, TrainConfig()), None, {"a": ()}, EvaluateConfig())
    assert scores.tokens == 0
    assert math.isnan(scores.loss)


def test_the_same_text_in_two_clients_counts_twice(base):
    text = records(1)
    learner = Learner(base, TrainConfig())
    once, twice = (evaluate(learner, None, h, EvaluateConfig()) for h in ({"a": text}, {"a": text, "b": text}))
    assert twice.tokens == 2 * once.tokens
    assert twice.loss == pytest.approx(once.loss, rel=1e-6)
