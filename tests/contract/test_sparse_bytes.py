"""What a client is sent where merges are folded and not everybody takes part: after every draw
by the method's own formula, and in the mean."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from tests.contract.federation import WIDE, Federation

from aulait.core.types import nbytes
from aulait.federation.tiers import FederationConfig
from aulait.methods import METHODS
from aulait.methods.contract import FoldingMethod
from aulait.runs.attendance import Attendance, expected_bytes

CLIENTS = ("ann", "bob", "cat", "dan")
PROXY = "proxy-000"
RANKS = {"bob": {"one": 1, "two": 3}, "cat": {"one": 2, "two": 2}}
FOLDING = ("flora", "fedex", "hsplitlora", "florist")
BOUND = {"florist": {"energy": 1.0}}  # nothing is cut, so that what travels is the bound


def federation(method):
    return Federation(
        method,
        shapes=WIDE,
        clients=CLIENTS,
        rank=4,
        ranks=RANKS,
        proxies=(PROXY,),
        options=BOUND.get(method, {}),
    )


def sent(run, state, clients):
    """Client -> bytes that a round sends it; the state after."""
    run.requests = []
    after, info = run.round(state, clients=clients)
    found = {
        request.client: nbytes(request.tensors)
        for request in run.requests
        if request.client != PROXY
    }
    assert info["down_bytes"] == sum(found.values())
    return found, after


def test_the_methods_that_send_the_merge_of_the_round_before_say_what_who_missed_it_is_sent():
    assert {
        name for name in METHODS.names() if isinstance(METHODS.find(name), FoldingMethod)
    } == set(FOLDING)


@pytest.mark.parametrize("method", FOLDING)
def test_every_request_of_sparse_rounds_has_the_size_of_the_formula(method):
    run, draw = federation(method), random.Random(5)
    state, before, sizes = run.start(), (), set()
    for number in range(1, 13):
        cohort = tuple(name for name in CLIENTS if draw.random() < 0.4)
        found, state = sent(run, state, cohort)
        for name in cohort:
            followed = run.module.travels(run.config, run.context, number, name, (*before, PROXY))[
                1
            ]
            missed = run.module.missed_bytes(run.config, run.context, number, name)
            assert found[name] == (followed if name in before or number == 1 else missed), (
                number,
                name,
            )
            sizes.add((name in before, found[name]))
        before = cohort
    assert len(sizes) > 2, "both kinds were sent"


def laws():
    """(sampling, cohort -> its probability) of four clients."""
    subsets = [c for n in range(5) for c in itertools.combinations(CLIENTS, n)]
    yield {"sampling": "all"}, {CLIENTS: 1.0}
    yield (
        {"sampling": "poisson", "rate": 0.3},
        {c: 0.3 ** len(c) * 0.7 ** (4 - len(c)) for c in subsets},
    )
    yield {"sampling": "fixed", "rate": 0.5}, {c: 1 / 6 for c in subsets if len(c) == 2}
    yield {"sampling": "fixed", "rate": 0.01}, {c: 1 / 4 for c in subsets if len(c) == 1}


@pytest.mark.parametrize("method", FOLDING)
@pytest.mark.parametrize(
    ("config", "law"), laws(), ids=["all", "poisson", "two of four", "one of four"]
)
def test_the_mean_over_all_draws_is_that_of_the_plan(method, config, law):
    """Every cohort that may be drawn is drawn for the second round; what the third sends is
    weighed by the cohort's probability."""
    here, other = FederationConfig(**config).again(len(CLIENTS))
    mean = dict.fromkeys(CLIENTS, 0.0)
    for cohort, chance in law.items():
        run = federation(method)
        state, _ = run.round(run.start())
        state, _ = run.round(state, clients=cohort)
        for name, size in sent(run, state, CLIENTS)[0].items():
            mean[name] += chance * size
    for name in CLIENTS:
        ranks = {
            layer: [run.context.rank_of(n)(layer) for n in CLIENTS if n != name] for layer in WIDE
        }
        before = Attendance(
            here, {layer: other * sum(own) + 4 for layer, own in ranks.items()}, CLIENTS
        )
        _, told = expected_bytes(run.module, run.config, run.context, 3, name, before)
        _, first = expected_bytes(run.module, run.config, run.context, 1, name, before)
        assert first == run.module.travels(run.config, run.context, 1, name, CLIENTS)[1]
        if (
            method == "florist"
        ):  # its bound is concave in the ranks: the mean of bounds lies below the bound of the mean
            assert mean[name] - 0.5 <= told <= 1.25 * mean[name]
        else:
            assert told == math.floor(mean[name] + 0.5)
