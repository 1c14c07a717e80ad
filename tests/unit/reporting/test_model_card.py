"""The card of an exported folder: complete, and silent about what no epsilon covers."""

from __future__ import annotations

import re

import pytest
import tomli_w
from tests import fixture_run

from aulait.reporting.folder import read_run
from aulait.reporting.model_card import model_card, write_card, write_cards


def card(path, form="adapter", personal=False, **how) -> str:
    return model_card(read_run(fixture_run.write_run(path, **how)), form, personal=personal)


def test_a_private_run_is_told_with_its_promise_and_without_private_scores(tmp_path):
    text = card(tmp_path)
    assert text.startswith("---\nlibrary_name: peft\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Use", "## Data", "## Method", "## Privacy", "## Figures"]
    for words in ("δ = 10⁻⁵", "one client with everything it holds", "- local: ε = ", "- proxy: ε = ", "50 clients took part"):
        assert words in text
    run = read_run(tmp_path)
    scores = {run.result.eval.loss, run.result.eval.perplexity, run.result.base_eval.loss, run.result.eval.token_accuracy}
    for score in scores:
        assert f"{score:.3f}" not in text
        assert f"{score:.1f}" not in text.split("## Figures")[1]


def test_scores_on_public_texts_are_told_under_privacy(tmp_path):
    text = card(tmp_path, change=lambda result: result["eval"].update(measured_on="public texts"))
    assert "On public texts:" in text
    assert "| Loss, nats a token | 4.207 | 3.412 |" in text


def test_without_privacy_the_figures_are_there_and_the_lack_is_said(tmp_path):
    text = card(tmp_path, "merged", off=True)
    assert "library_name: transformers" in text
    assert "differential-privacy" not in text
    assert "| Loss, nats a token | 4.207 | 3.412 |" in text
    assert "**Privacy was off." in text


@pytest.mark.parametrize(("how", "said"), [({"seeded": True}, "the noise was seeded"), ({"exact_votes": True}, "The votes were exact")])
def test_a_promise_that_does_not_hold_is_said_to_fail(tmp_path, how, said):
    assert said in card(tmp_path, **how)


def test_a_personal_adapter_says_whose_it_is_and_no_figure(tmp_path):
    text = card(tmp_path, off=True, personal=True)
    assert "belongs to that client alone" in text
    assert "3.412" not in text


@pytest.mark.parametrize(("source", "told"), [
    ("docstrings", "`docstrings`"), ("hf:org/set", "`org/set`"), ("/srv/ward/patients.jsonl", None), ("hf:/srv/ward", None)])
def test_the_path_of_a_private_file_is_not_told(tmp_path, source, told):
    path = fixture_run.write_run(tmp_path)
    (path / "config.toml").write_text(tomli_w.dumps(
        {"data": {"source": source}, "model": {"name": "/srv/models/own"}, "adapter": {"rank": 4}}))
    text = model_card(read_run(path), "adapter")
    assert "/srv" not in text
    assert "patients" not in text
    assert (told or "files that are not part of this folder") in text
    assert "rank `4`" in text


def test_names_are_not_markup(tmp_path):
    text = card(tmp_path, change=lambda result: result.update(name="# a [x](http://x) <b>\n## Privacy", algorithm="`ffa`\n# b"))
    assert len(re.findall(r"(?m)^# ", text)) == 1
    assert text.count("\n## Privacy") == 1
    assert "](http://x)" not in text.replace("\\](", "")


def test_what_was_read_back_is_told(tmp_path):
    text = card(tmp_path, change=lambda result: result.update(exported={
        "layers": 12, "rows": 4, "measured_on": "a fixed text", "loss": 3.5, "peft_loss": 3.5, "merged_loss": 3.501}))
    assert "read back by PEFT: 12 layers, loss 3.500 nats a token on a fixed text" in text
    assert "merged 3.501" in text


def test_cards_lie_beside_every_adapter_and_personal_ones_are_closed(tmp_path):
    path = fixture_run.write_run(tmp_path)
    for name in ("adapter", "personal/c1", "personal/c2"):
        (path / name).mkdir(parents=True)
        (path / name / "adapter_config.json").write_text("{}")
    write_cards(path)
    assert (path / "adapter" / "README.md").is_file()
    for name in ("c1", "c2"):
        file = path / "personal" / name / "README.md"
        assert file.stat().st_mode & 0o777 == 0o600
        assert "belongs to that client alone" in file.read_text()
    write_card(path, tmp_path / "adapter", "gguf")
    assert "ollama create" in (path / "adapter" / "README.md").read_text()
