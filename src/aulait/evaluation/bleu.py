"""Corpus BLEU from counts that can be added up over records, computed by sacrebleu.

Source: Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine
Translation", ACL 2002; tokens and
smoothing as sacrebleu's standard (Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018:
13a, mixed case). Of scripts without blanks between words (``scripts``) every sign is a token, as
sacrebleu's tokenizer of Chinese has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from sacrebleu.metrics.bleu import BLEU

from aulait.core.scripts import spaced

KEYS = ("system", "reference", *(f"right_{n}" for n in range(1, 5)),
        *(f"all_{n}" for n in range(1, 5)))


@cache
def _metric(effective_order: bool = False) -> BLEU:
    return BLEU(effective_order=effective_order)


def counts(text: str, references: Sequence[str]) -> dict[str, float]:
    """Tokens of the text and of its nearest reference in length, and its 1- to 4-grams: those in a
    reference, and all.

    Args:
        text: what was written.
        references: texts that would be right, at least one.
    """
    score = _metric(effective_order=True).corpus_score(
        [spaced(text)], [[spaced(reference)] for reference in references])
    return dict(zip(KEYS, map(float, (score.sys_len, score.ref_len, *score.counts, *score.totals)),
                    strict=True))


def corpus(records: Sequence[Mapping[str, float]]) -> float:
    """BLEU of all records together, 0 to 1, from what ``counts`` says of each."""
    system, reference, *rest = (round(sum(record[key] for record in records)) for key in KEYS)
    return (
        float(_metric().compute_bleu(rest[:4], rest[4:], system, reference,
            smooth_method="exp").score) / 100
    )
