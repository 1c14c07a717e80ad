"""What the final set of stage 1 is: where its texts come from, how many repeat, how long they are,
and, in a simulation alone, how near they come to held-out records.

The distance looks at private records outside the accountant. So it is measured only where the same
run may measure held-out losses in this process, and it is marked as not private.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

from aulait.core.scripts import word_count
from aulait.runfolder.schema import SyntheticSet
from aulait.runs.prepared import PreparedRun
from aulait.synthesis.corpus_index import shown
from aulait.synthesis.embedding import Embedder
from aulait.synthesis.population import Text

MOST = 256  # held-out records, and texts of a set, that a distance looks at


def measured_set(run: PreparedRun, texts: Sequence[Text], here: bool) -> SyntheticSet | None:
    """The set in numbers; None where there is none.

    Args:
        run: that it is the set of.
        texts: as they were dealt.
        here: whether the clients' records are in this process anyway.
    """
    if not texts:
        return None
    public = set(map(shown, run.federation.corpus.public))
    full = [text.full for text in texts]
    words = [word_count(text) for text in full]
    told = SyntheticSet(
        origins=dict(sorted(Counter(text.provenance for text in texts).items())),
        distinct=len(set(full)) / len(full),
        verbatim_public=fmean(text in public for text in full),
        words_mean=fmean(words), words_shortest=min(words), words_longest=max(words))
    simulated = here and run.settings.evaluate.on == "held-out"
    return told.model_copy(update=_distances(run, full)) if simulated else told


def _distances(run: PreparedRun, texts: Sequence[str]) -> dict[str, float | bool]:
    """How near the set, and random public texts, come to held-out records."""
    holdout = run.federation.holdout
    found = [record.full for name in sorted(holdout) for record in holdout[name]]
    if not found:
        return {}
    own_BD = run.models.embedder().embed(_spread(found))
    public = [shown(text) for text in run.federation.corpus.public[:MOST]]
    return {"distance": _to_nearest(own_BD, run.models.embedder(), _spread(texts)),
            "distance_of_random_public": _to_nearest(own_BD, run.models.embedder(), public),
            "private": False}


def _spread(texts: Sequence[str]) -> list[str]:
    """At most ``MOST`` of the texts, at even steps."""
    return list(texts[:: math.ceil(len(texts) / MOST)])


def _to_nearest(own_BD: Tensor, embedder: Embedder, texts: Sequence[str]) -> float:
    """The mean cosine distance of vectors to the nearest of some texts."""
    return float(1 - (own_BD @ embedder.embed(texts).T).max(1).values.mean())
