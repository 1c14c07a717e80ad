"""What is a matter of speed or memory alone leaves the results of every method as they are, to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.closeness import assert_learnt_alike
from tests.contract.federation import dense, real
from tests.tiny_bases import tiny

from aulait.methods import METHODS
from aulait.models import loading
from aulait.training.trainer import Learner, TrainConfig

ROUNDS, CLIENTS = 2, ("ann", "bob", "cat")
METHODS_OF_CLIENTS = [
    name
    for name in METHODS.names()
    if METHODS.find(name).TRAITS.unit == "client" and name != "splitlora"
]  # which cuts the model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    found = tiny(tmp_path_factory.mktemp("bases"))
    assert found.packs
    assert found.prefix is not None
    return found


@pytest.fixture(scope="module")
def recomputing(base):
    """The same weights, blocks computed again in the backward pass."""
    return loading.load_base(base.config.model_copy(update={"gradient_checkpointing": True}))


def trained(base, method: str, rows_at_once: int = 16):
    """What every client and the federation have after some rounds."""
    run = real(
        base,
        method,
        clients=CLIENTS,
        ranks={"bob": 1} if METHODS.find(method).TRAITS.unequal_ranks else {},
        options={"fusion_tries": 4} if method == "fdlora" else {},
    )
    run.learner = Learner(base, TrainConfig(rows_at_once=rows_at_once))
    run.stacked = []
    together = run.learner._together

    def seen(training):
        run.stacked.append(len(training))
        return together(training)

    run.learner._together = seen
    state = run.rounds(ROUNDS)
    answers = {
        f"{number}/{name}": value
        for number, update in enumerate(run.updates)
        for name, value in update.tensors.items()
    }
    return run, {**state.tensors, **answers, **dense(run.result(state))}


@pytest.mark.parametrize("method", METHODS_OF_CLIENTS)
def test_speed_and_memory_change_no_result(method, base, recomputing):
    run, wanted = trained(base, method)
    assert max(run.stacked) > 1
    assert all(bool(value.isfinite().all()) for value in wanted.values())
    unpacked, whole = replace(base, packs=False), replace(base, prefix=None)
    found = {
        "padded rows": trained(unpacked, method)[1],
        "leading blocks not remembered": trained(whole, method)[1],
        "blocks computed again": trained(recomputing, method)[1],
    }
    run, found["one site in a pass"] = trained(base, method, rows_at_once=1)
    assert max(run.stacked) == 1
    for what, own in found.items():
        assert_learnt_alike(own, wanted, 5e-3, what=what)
