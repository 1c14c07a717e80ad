"""Guessing which records a finished run has seen, from what it released: the final adapter and the
synthetic texts.

Members are records that were used, others are held-out records of the same clients. Each attack
gives every record a score, higher for likelier members; how well scores tell the two apart is the
area under the curve, and the share of members found at one false alarm in a hundred. All of it is
made of private records, and is for the eyes of whoever holds them.

Sources: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018 (loss); Mireshghallah et al.,
"Quantifying Privacy Risks of Masked Language Models Using Membership Inference Attacks", EMNLP
2022 (likelihood ratio to the base).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from aulait.core.errors import DataError, require
from aulait.core.types import Record
from aulait.evaluation import losses
from aulait.evaluation.config import EvaluateConfig
from aulait.models.read_back import load_adapter
from aulait.reporting.audit_page import MemberAttack
from aulait.reporting.folder import read_run
from aulait.runs.experiment_file import read_settings
from aulait.runs.prepared import PreparedRun, SharedCache
from aulait.runs.setup import prepare

MOST: Final = 2000  # records of either kind
SPAN: Final = 8  # words of the longest span that is looked for
FALSE_ALARMS: Final = 0.01
_ROWS: Final = 16


@dataclass(frozen=True)
class Guessed:
    """Records that were used, and records that were not."""

    members: Sequence[Record]
    others: Sequence[Record]

    @classmethod
    def of(cls, run: PreparedRun, clients: Iterable[str]) -> Guessed:
        """Those of some clients, at even steps where there are many."""
        names = sorted(clients)
        used = [record for name in names for record in run.federation.sites[name].train]
        kept = [record for name in names for record in run.federation.holdout.get(name, ())]
        return cls(_some(used), _some(kept))

    @property
    def can_be_told(self) -> bool:
        """Whether there are records of either kind."""
        return bool(self.members) and bool(self.others)


def member_attacks(folder: Path) -> list[MemberAttack]:
    """What can be guessed from the adapter and from the synthetic texts of a finished run.

    Raises:
        ConfigError: the run's records cannot be read any more.
        DataError: there is nothing to compare.
    """
    run = prepare(read_settings(folder / "config.toml"), SharedCache())
    found = []
    trained = Guessed.of(run, run.federation.trainers)
    if trained.can_be_told:
        found += _of_adapter(run, folder, trained)
    texts = [line.text for line in read_run(folder).synthetic if line.text]
    voted = Guessed.of(run, run.federation.voters)
    if texts and voted.can_be_told:
        found += _of_texts(run, texts, voted)
    require(bool(found), DataError,
            f"{folder} has no client with used and with held-out records, expected some to tell "
            "apart; set data.holdout before the run")
    return found


def told_apart(what: str, members: Sequence[float], others: Sequence[float]) -> MemberAttack:
    """How well scores tell members from others.

    Args:
        what: was attacked.
        members: their scores; higher is likelier to be a member.
        others: theirs.
    """
    inside, outside = np.asarray(members), np.sort(np.asarray(others))
    below = np.searchsorted(outside, inside, side="left")
    level = np.searchsorted(outside, inside, side="right") - below
    area = float((below + 0.5 * level).mean() / len(outside))
    threshold = outside[min(len(outside) - 1, math.ceil((1.0 - FALSE_ALARMS) * len(outside)))]
    return MemberAttack(what, len(inside), len(outside), area, float((inside > threshold).mean()))


def _of_adapter(run: PreparedRun, folder: Path, guessed: Guessed) -> list[MemberAttack]:
    """By the loss under the final adapter, and by how much the adapter lowers that of the base."""
    adapter = load_adapter(folder / "adapter")
    own, base = (_losses(run, worn, guessed) for worn in (adapter, None))
    count = len(guessed.members)
    lowered = [bare - after for bare, after in zip(base, own, strict=True)]
    return [told_apart("the final adapter, by its loss", [-loss for loss in own[:count]],
                       [-loss for loss in own[count:]]),
            told_apart("the final adapter, beside the base", lowered[:count], lowered[count:])]


def _losses(run: PreparedRun, worn: losses.Worn, guessed: Guessed) -> list[float]:
    """Nats a token of every record, members first."""
    records = [*guessed.members, *guessed.others]
    alone = {f"{place:06d}": [record] for place, record in enumerate(records)}
    found = losses.totals(run.models.learner, worn, alone,
                          EvaluateConfig(records_per_client=1, rows=_ROWS))
    return [found[name][0] / max(1.0, found[name][2]) for name in sorted(alone)]


def _of_texts(run: PreparedRun, texts: Sequence[str], guessed: Guessed) -> list[MemberAttack]:
    """By the nearest synthetic text, and by spans of words in common."""
    embedder = run.models.embedder()
    there = embedder.embed(texts)
    near = [[float(value) for value in (embedder.embed([record.full for record in records])
                                        @ there.T).amax(1)]
            for records in (guessed.members, guessed.others)]
    spans = _spans(texts)
    shared = [[shared_spans(record.full, spans) for record in records]
              for records in (guessed.members, guessed.others)]
    return [told_apart("the synthetic texts, by the nearest one", *near),
            told_apart("the synthetic texts, by words in common", *shared)]


def _spans(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """All spans of up to ``SPAN`` words."""
    return {words[i : i + size] for text in texts for words in (tuple(text.lower().split()),)
            for size in range(1, SPAN + 1) for i in range(len(words) - size + 1)}


def shared_spans(text: str, spans: set[tuple[str, ...]]) -> float:
    """Of each length the share of a text's spans that are among these; summed over lengths."""
    words = tuple(text.lower().split())
    return sum(sum(words[i : i + size] in spans for i in range(len(words) - size + 1))
               / (len(words) - size + 1) for size in range(1, min(SPAN, len(words)) + 1))


def _some(records: Sequence[Record]) -> Sequence[Record]:
    """At most ``MOST`` of them, at even steps."""
    return records[:: max(1, math.ceil(len(records) / MOST))]
