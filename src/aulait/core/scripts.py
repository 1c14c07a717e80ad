"""Scripts that are written without blanks between words: there every sign is a word."""

from __future__ import annotations

import unicodedata

# Han, kana, Thai, Lao, Tibetan, Myanmar, Khmer: the names of their letters begin so.
_WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "TIBETAN",
                   "MYANMAR", "KHMER")
_THEIR_MARKS = ("IDEOGRAPHIC", "FULLWIDTH")  # stops and commas as wide as a sign


def stands_alone(letter: str) -> bool:
    """Whether a letter's script is written without blanks between words."""
    return letter > "\u0e00" and unicodedata.name(letter, "").startswith(_WITHOUT_BLANKS)


def spaced(text: str) -> str:
    """A text with blanks around every sign of such a script, and around the punctuation of theirs;
    marks stay with the sign before them. Any other text is itself."""
    if text.isascii():
        return text
    found = []
    behind_sign = False
    for letter in text:
        if unicodedata.category(letter)[0] == "M":
            found.append(letter)
            continue
        sign = stands_alone(letter) or unicodedata.name(letter, "").startswith(_THEIR_MARKS)
        found += [" ", letter] if sign or behind_sign else [letter]
        behind_sign = sign
    return "".join(found)


def word_count(text: str) -> int:
    """How many words a text has; of scripts without blanks, signs."""
    return len(spaced(text).split())
