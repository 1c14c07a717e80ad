"""The engine without a network: every site lives in this process and trains together with its
neighbours.

Sites of placement "split" answer by the same method with a learner whose model is cut, so that they
are one role among others in every method whose clients train by ``Learner.train``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from aulait.core.errors import ConfigError, require
from aulait.core.types import ClientRequest, ClientUpdate, Site, TrainRequest, VoteRequest
from aulait.methods.contract import AnyMethod, Ask, RunContext
from aulait.synthesis import private_evolution
from aulait.synthesis.embedding import Embedder
from aulait.training.activation_codec import Wire
from aulait.training.split_trainer import SplitLearner
from aulait.training.trainer import AT_ONCE, Learner


def connect(
    sites: Mapping[str, Site], method: AnyMethod, context: RunContext, learner: Learner,
    embedder: Embedder | None, *,
    cut: int | None = None, wire: Wire = "float32", private: bool = True,
) -> Ask:
    """A way to get updates for requests from sites in this process.

    Args:
        sites: by name; requests name the site they are for.
        method: module whose ``answer`` handles requests of stage "train".
        setting: what all sites know.
        learner: the shared base.
        embedder: for requests of stage "synthesis"; None when there are none.
        cut: blocks of the front of sites of placement "split"; None where there are none.
        wire: how their states and gradients travel.
        private: whether the run promises privacy; then no site may be split.

    Raises (when a split site is first asked to train):
        ConfigError: no cut is given.
        PrivacyError: the run promises privacy.
        ModelError: the model cannot be cut there.
    """

    @cache
    def halves() -> SplitLearner:
        """The learner of split sites."""
        require(cut is not None, ConfigError,
                "a client is split and no cut is given; say after how many blocks")
        assert cut is not None
        return SplitLearner(learner, cut, wire, private=private)

    def ask(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
        for first in range(0, len(requests), AT_ONCE):
            some = requests[first : first + AT_ONCE]
            chosen = [sites[request.client] for request in some]
            if votes := [request for request in some if isinstance(request, VoteRequest)]:
                assert embedder is not None
                yield from private_evolution.answer(votes, chosen, embedder)
            else:
                yield from answers([r for r in some if isinstance(r, TrainRequest)], chosen)

    def answers(requests: Sequence[TrainRequest], chosen: Sequence[Site]) -> Iterator[ClientUpdate]:
        """Sites of one kind together; updates in the order given."""
        found: dict[int, ClientUpdate] = {}
        for split in (True, False):
            some = [i for i, site in enumerate(chosen) if (site.plan.placement == "split") == split]
            if some:
                updates = method.answer([requests[i] for i in some], [chosen[i] for i in some],
                                        context, halves() if split else learner)
                found.update(zip(some, updates, strict=True))
        yield from (found[i] for i in range(len(requests)))

    return ask
