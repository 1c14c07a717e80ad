"""The importance of weights against dense gradients of a bare model, and the chosen layers against all sets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tests.oracle.test_cores import PUBLIC, plain_gradients
from tests.tiny_bases import records, tiny, write
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aulait.core.errors import DataError, ModelError
from aulait.models import loading
from aulait.models.loading import AdapterConfig, folded
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.weight_importance import most_important, weight_importance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def learner_of(folder, kind):
    base = tiny(folder, kind)
    return Learner(base, TrainConfig(rows_at_once=4)), dict(
        loading.targets(base, AdapterConfig(targets="all-linear"))
    )


def plain_weights(folder, kind, layers):
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(str(write(folder, kind)), dtype=torch.float64)
    found = {name: model.get_submodule(name) for name in layers}
    return {
        name: (own.weight.T if type(own).__name__ == "Conv1D" else own.weight).detach()
        for name, own in found.items()
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_importance_is_the_weights_times_their_dense_gradients(folder, kind):
    learner, shapes = learner_of(folder, kind)
    texts = PUBLIC[-2:] + tuple(records(5, 7, prompt=True)) if kind == "t5" else PUBLIC
    found = weight_importance(learner, shapes, texts)
    gradients, weights = (
        plain_gradients(folder, kind, shapes, texts),
        plain_weights(folder, kind, shapes),
    )
    wanted = {
        layer: sum(
            abs(w * g)
            for w, g in zip(
                weights[layer].flatten().tolist(), gradients[layer].flatten().tolist(), strict=True
            )
        )
        / sum(shape)
        for layer, shape in shapes.items()
    }
    total = sum(wanted.values())
    assert sum(found.values()) == pytest.approx(1.0)
    assert found.keys() == shapes.keys()
    for layer, value in wanted.items():
        assert found[layer] == pytest.approx(value / total, rel=1e-3), layer


def test_the_base_is_left_as_it_was_and_a_folded_one_is_another(folder):
    learner, shapes = learner_of(folder, "llama")
    before = {name: slot.inner.weight.clone() for name, slot in learner.base.slots.items()}
    one = weight_importance(learner, shapes, PUBLIC)
    for name, slot in learner.base.slots.items():
        assert torch.equal(slot.inner.weight, before[name])
        assert not slot.inner.weight.requires_grad
        assert slot.inner.weight.grad is None
    assert weight_importance(learner, shapes, PUBLIC) == one
    first = next(iter(shapes))
    with folded(learner.base, {first: -before[first]}):  # weights of zero matter nothing
        assert weight_importance(learner, shapes, PUBLIC)[first] == 0.0


def test_what_has_no_importance_is_refused(folder):
    learner, shapes = learner_of(folder, "llama")
    with pytest.raises(DataError, match="no public text has a token that is scored"):
        weight_importance(learner, shapes, [])
    narrow = Learner(
        replace(learner.base, config=learner.base.config.model_copy(update={"quant": "int4"})),
        learner.config,
    )
    with pytest.raises(ModelError, match=r"quantised.*algorithm\.part = 1"):
        weight_importance(narrow, shapes, PUBLIC)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_the_chosen_layers_are_the_fewest_of_the_greatest_importance_that_hold_the_part(part):
    shapes = {"c": (4, 3), "a": (2, 5), "d": (9, 9), "b": (1, 2), "e": (4, 3)}
    importance = {"a": 0.3, "b": 0.1, "c": 0.25, "d": 0.1, "e": 0.25}
    whole = sum(map(sum, shapes.values()))
    order = sorted(shapes, key=lambda layer: (-importance[layer], layer))
    enough = [
        set(some)
        for size in range(1, 6)
        for some in itertools.combinations(order, size)
        if list(some) == order[:size] and sum(sum(shapes[name]) for name in some) >= part * whole
    ]
    found = most_important(importance, shapes, part)
    assert set(found) == enough[0]
    assert found == [name for name in shapes if name in enough[0]]
