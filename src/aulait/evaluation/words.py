"""Texts to words, in any script.

English is taken apart and stemmed as ROUGE always did (runs of a to z and 0 to 9, Porter's stemmer
on words of more than three letters). A word of any other script is a run of letters, digits and
the marks that belong to them; scripts that are written without blanks between words give a word
for every sign.
"""

from __future__ import annotations

import re
import unicodedata

from nltk.stem.porter import PorterStemmer

from aulait.core.scripts import stands_alone

_ENGLISH = re.compile(r"[a-z0-9]+")


class UnicodeWords:
    """A tokenizer for ``rouge_score``."""

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case, composed, English ones stemmed."""
        found: list[str] = []
        word = ""
        for letter in unicodedata.normalize("NFC", text.lower()):
            kind = unicodedata.category(letter)[0]
            if kind in "LN" and not stands_alone(letter):
                word += letter
            elif kind == "M" and (word or found):
                word, found = (word + letter, found) if word else (word, _marked(found, letter))
            else:
                found += [word] if word else []
                found += [letter] if kind in "LN" else []
                word = ""
        found += [word] if word else []
        return [self._stemmed(one) for one in found]

    def _stemmed(self, word: str) -> str:
        english = len(word) > 3 and _ENGLISH.fullmatch(word)
        return str(self._stemmer.stem(word)) if english else word


def _marked(found: list[str], mark: str) -> list[str]:
    """The words with a mark added to the last sign."""
    return [*found[:-1], found[-1] + mark]
