"""Words of any script; English as the reference implementation has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from aulait.core.scripts import word_count
from aulait.evaluation.tasks import normal, rouge
from aulait.evaluation.words import UnicodeWords

SAME = ["боль в груди", "ألم في الصدر", "胸痛 和 发热", "胸痛和发热", "सीने में दर्द", "เจ็บหน้าอก", "가슴 통증",
        "ärztliche prüfung", "chest pain", "ひざの痛み"]


@pytest.mark.parametrize("text", SAME)
def test_a_text_equals_itself(text):
    assert rouge([(text, text)])[0]["rouge_1"] == rouge([(text, text)])[0]["rouge_l"] == 1.0


@pytest.mark.parametrize(("one", "other"), [("größe", "gräße"), ("боль", "жар"), ("胸痛", "发热"),
                                            ("में", "मैं"),
                                            ("ärztliche prüfung", "örztliche prüfang")])
def test_texts_without_a_common_word_score_nothing(one, other):
    assert rouge([(one, other)])[0]["rouge_1"] == 0.0


def test_scripts_without_blanks_share_single_signs():
    assert 0 < rouge([("胸痛和发热", "胸痛")])[0]["rouge_1"] < 1


def test_composed_and_decomposed_letters_are_one():
    assert UnicodeWords().tokenize("e\u0301tude") == UnicodeWords().tokenize("étude")


@given(st.text(st.characters(min_codepoint=1, max_codepoint=126)))
def test_ascii_is_taken_apart_as_by_the_reference(text):
    assert UnicodeWords().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(("text", "count"), [("chest pain, two days", 4), ("胸痛和发热", 5), ("ひざの痛み", 5), ("ﾋｻﾞ痛", 4), ("боль в груди", 3),
                                             ("", 0), ("a 胸痛", 3), ("가슴 통증", 2)])
def test_words_of_scripts_without_blanks_are_their_signs(text, count):
    assert word_count(text) == count


def test_an_answer_is_right_in_either_form_of_its_letters():
    assert normal("Zoe\u0308  Noe\u0308l") == normal("zo\u00eb no\u00ebl")
    assert normal("Zoe") != normal("Zo\u00eb")
