"""What a site measures on its held-out records; the records never leave it.

Without privacy a site tells its sums (nats, tokens right, tokens). Under privacy it measures for
its own log and tells nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from aulait.core import lora
from aulait.core.files import JsonObject
from aulait.core.types import Adapter
from aulait.engines.deployment.protocol.messages import EvaluateMessage, Message
from aulait.engines.deployment.protocol.tensor_codec import unpack_tensors
from aulait.engines.deployment.site.load_session import SiteSession
from aulait.evaluation.losses import evaluate, totals
from aulait.methods.contract import PersonalMethod, State
from aulait.models import peft_export

Sums = tuple[float, float, float]


@dataclass(frozen=True)
class SiteScores:
    """What a site found; the coordinator may hear it without privacy.

    Attributes:
        sums: nats, tokens right and tokens, under what was asked.
        shared: the same under the shared adapter, after the last round, where the site measured
            its own.
        task: metric -> value; None where there is no task.
    """

    sums: Sums
    shared: Sums | None
    task: dict[str, float] | None

    @property
    def loss(self) -> float | None:
        """Nats a token; None without held-out tokens."""
        return self.sums[0] / self.sums[2] if self.sums[2] else None


def measured(session: SiteSession, message: Message[EvaluateMessage], memory: JsonObject,
             folder: Path) -> SiteScores:
    """What a site finds on its held-out records.

    Args:
        session: of the run at the site.
        message: says what is measured.
        memory: of the site.
        folder: of the run at the site; after the last round the adapter that this client would use
            is written there.

    Raises:
        WireError: the tensors cannot be read.
    """
    head = message.head
    used, shared = _adapters(session, message, memory)
    sums, task = _scores(session, used)
    other = _scores(session, shared)[0] if shared is not None and head.final else None
    if head.final and used is not None:
        peft_export.export(used, session.base, folder / "adapter", personal=True,
                           dropout=session.terms.adapter.dropout)
    return SiteScores(sums, other, task)


def _adapters(session: SiteSession, message: Message[EvaluateMessage],
              memory: JsonObject) -> tuple[Adapter | None, Adapter | None]:
    """The adapter that is measured, None for the bare base; and the shared one where that is
    another."""
    head = message.head
    if head.what == "base":
        return None, None
    found = unpack_tensors(message.body)
    if head.what == "adapter":
        # an adapter of rank 1 for all layers has the same scale either way
        return replace(lora.from_tensors(found, head.alpha, head.rank),
                       scaling=session.context.scaling), None
    terms, site = session.terms, session.site(memory)
    state, method = State(head.round, found), terms.method
    shared = method.result(session.context, state)
    own: dict[str, Adapter] = {}
    if isinstance(method, PersonalMethod):
        own = method.personal(terms.method_config, session.context, state, [site], session.learner,
                              head.final)
    return own.get(site.name, shared), shared


def _scores(session: SiteSession, used: Adapter | None) -> tuple[Sums, dict[str, float] | None]:
    name, config = session.terms.client, session.terms.evaluate
    holdout = {name: session.records.holdout}
    sums = totals(session.learner, used, holdout, config).get(name, (0.0, 0.0, 0.0))
    if config.task == "none" or not session.records.holdout:
        return sums, None
    scores = evaluate(session.learner, used, holdout, config).task
    return sums, {key: float(value) for key, value in scores.items() if math.isfinite(value)}
