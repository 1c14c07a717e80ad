"""``evaluate.tasks``: lm-eval's scores are those of the merged model, and the base is as before."""

from __future__ import annotations

import importlib.util
import json
import random

import numpy as np
import pytest
import torch
from tests.tiny_bases import filled, tiny
from tests.tiny_run import settings, write_data

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.evaluation import config as evaluation
from aulait.evaluation.config import EvaluateConfig, RunEvaluateConfig
from aulait.evaluation.lm_eval_tasks import check_tasks, measure_tasks
from aulait.models import loading
from aulait.models.loading import AdapterConfig, wearing
from aulait.reporting.folder import read_run
from aulait.reporting.model_card import model_card
from aulait.runs import loop

THERE = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not THERE, reason="lm-eval is not installed")
ROWS = [{"question": f"the {a} of", "choices": [a[::-1], b, a + b], "answer": i % 3}
        for i, (a, b) in enumerate([("line", "file"), ("sum", "name"), ("list", "value"), ("open", "read"), ("sort", "mean"), ("join", "count")])]


@pytest.fixture
def folder(tmp_path):
    """Task files: a choice among three by log-likelihood."""
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (path / "own.yaml").write_text(f"""task: own_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path / 'rows.jsonl'}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
""")
    return path


def answers(base, adapter) -> list[int]:
    """By hand: of every row the choice whose letters are the most probable after the question."""
    chosen = []
    for row in ROWS:
        found = []
        for choice in row["choices"]:
            before = base.tokenizer(row["question"])["input_ids"]
            ids = base.tokenizer(f"{row['question']} {choice}")["input_ids"]
            with torch.no_grad(), wearing(base, [adapter] if adapter else []):
                said = base.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
            found.append(sum(float(said[i - 1, ids[i]]) for i in range(len(before), len(ids))))
        chosen.append(found.index(max(found)))
    return chosen


@needs_lm_eval
def test_the_scores_are_those_of_the_merged_model(folder, tmp_path):
    base = tiny(tmp_path, context=48)
    adapter = filled(loading.targets(base, AdapterConfig()), 2, size=3.0)
    right, other = answers(base, None), answers(base, adapter)
    assert right != other, "the adapter is large enough to change an answer"
    (folder / "rows.jsonl").write_text("".join(
        json.dumps({**row, "answer": answer}) + "\n" for row, answer in zip(ROWS, right, strict=True)))
    config = RunEvaluateConfig(tasks=("own_choice",), tasks_folder=str(folder))
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    dice = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_tasks(config)
    found = measure_tasks(base, adapter, config, rows=4)
    share = sum(map(int.__eq__, right, other)) / len(ROWS)
    assert found == {"base": {"own_choice": {"acc": 1.0}},
                     "adapted": {"own_choice": {"acc": pytest.approx(share)}}}
    assert all(torch.equal(value, weights[name]) for name, value in base.model.state_dict().items())
    assert torch.equal(dice[0], torch.get_rng_state())
    assert dice[1] == random.getstate()
    assert dice[2] == np.random.get_state()[1].tolist()


@needs_lm_eval
def test_an_unknown_task_and_texts_that_are_not_here_are_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"names 'own_choise', .*did you mean 'own_choice'"):
        check_tasks(RunEvaluateConfig(tasks=("own_choise",), tasks_folder=str(folder)))
    base = tiny(tmp_path)
    (folder / "rows.jsonl").unlink()
    config = RunEvaluateConfig(tasks=("own_choice",), tasks_folder=str(folder))
    with pytest.raises(ConfigError, match="cannot be measured") as caught:
        measure_tasks(base, filled(loading.targets(base, AdapterConfig()), 1), config, rows=4)
    assert "\n" not in str(caught.value)


@needs_lm_eval
def test_a_run_writes_the_scores_and_its_card_tells_them(folder, tmp_path):
    write_data(tmp_path)
    own = settings(tmp_path, evaluate={"tasks": ["own_choice"], "tasks_folder": str(folder), "tasks_limit": 2},
                   train={"rounds": 1})
    result = loop.run(own, tmp_path / "run", InlineEngine())
    assert set(result["tasks"]) == {"base", "adapted"}
    assert set(result["tasks"]["adapted"]["own_choice"]) == {"acc"}
    assert "| own\\_choice | acc |" in model_card(read_run(tmp_path / "run"), "adapter")


@pytest.mark.parametrize(("given", "quant", "told"), [
    ({"tasks": ("a",)}, None, "needs lm-eval, and it is missing; in the checkout run: pip install -e '.[lm-eval]'"),
    ({"tasks_folder": "x"}, None, "without evaluate.tasks"),
    ({"tasks": ("a",), "tasks_folder": "no/such"}, None, "'no/such' is no folder"),
    ({"tasks": ("a",)}, "4bit", "quantised base")])
def test_what_is_known_before_work_is_one_line_each(given, quant, told, monkeypatch):
    if "missing" in told:
        monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    found = RunEvaluateConfig(**given).problems(quant)
    assert any(told in line for line in found)
    assert all("\n" not in line for line in found)


def test_without_tasks_nothing_is_asked_and_sites_are_told_nothing_of_them():
    assert RunEvaluateConfig().problems(None) == []
    check_tasks(RunEvaluateConfig())
    told = RunEvaluateConfig(tasks=("a",), tasks_folder="/srv/x", records_per_client=7).of_sites
    assert type(told) is EvaluateConfig
    assert told == EvaluateConfig(records_per_client=7)
