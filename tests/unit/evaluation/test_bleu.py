"""Corpus BLEU from counts against sacrebleu's own, with several references."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from aulait.evaluation import bleu

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "today", "and", "dog", "barks"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_counts_add_up_to_the_corpus_score(rows):
    most = max(len(references) for _, references in rows)
    streams = [[references[i] if i < len(references) else None for _, references in rows] for i in range(most)]
    wanted = BLEU().corpus_score([text for text, _ in rows], streams).score / 100
    assert bleu.corpus([bleu.counts(text, references) for text, references in rows]) == pytest.approx(wanted, abs=1e-12)


def test_the_right_text_scores_one_and_nothing_scores_nothing():
    text = "there is a place in the city centre"
    assert bleu.corpus([bleu.counts(text, [text, "something else"])]) == pytest.approx(1.0)
    assert bleu.corpus([bleu.counts("", [text])]) == 0.0


@pytest.mark.parametrize(("text", "reference"), [
    ("胸痛和发热三天。", "胸痛、发热两天。"), ("他去了 Paris，很高兴", "她去了 Paris，不高兴"), ("中文 and English, mixed", "中文 or English, mixed")])
def test_chinese_is_scored_as_by_the_reference(text, reference):
    wanted = BLEU(tokenize="zh").corpus_score([text], [[reference]]).score / 100
    assert bleu.corpus([bleu.counts(text, [reference])]) == pytest.approx(wanted, abs=1e-12)
    assert wanted > 0


@pytest.mark.parametrize(("text", "reference"), [("膝の痛みがひどいです", "膝の痛みがあります"), ("เจ็บหน้าอกมาก", "เจ็บหน้าอกน้อย"),
                                                 ("боль в груди и жар", "боль в груди и кашель")])
def test_a_text_that_is_partly_right_scores_between_none_and_all(text, reference):
    assert 0 < bleu.corpus([bleu.counts(text, [reference])]) < 1
    assert bleu.corpus([bleu.counts(reference, [reference])]) == pytest.approx(1.0)
