"""A training function of the user's own: the built-in steps written by hand give the built-in result."""

from __future__ import annotations

import pytest
import torch
from tests import tiny_run
from torch.nn.utils import clip_grad_norm_

from aulait.core.errors import AulaitError
from aulait.engines.inline import InlineEngine
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.training.own_training import OwnLearner, SiteTraining
from aulait.training.stacked import Penalty
from aulait.training.trainer import LocalTraining, draws

CACHE = SharedCache()
ALONE = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}


def by_hand(site: SiteTraining) -> float:
    """AdamW with a bound on the gradient, in the built-in order of records."""
    order = draws(LocalTraining(None, site.records, None, site.steps, site.batch, site.lr, site.seed),
                  [len(row["input_ids"]) for row in site.rows])
    optimizer = torch.optim.AdamW(site.model.parameters(), lr=site.lr, weight_decay=0.0)
    losses = []
    for step in order:
        out = site.model(**site.collate([site.rows[i] for i in step]))
        out["loss"].backward()
        clip_grad_norm_(site.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out["loss"]))
    return sum(losses) / len(losses)


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize("penalty", [None, Penalty(proximal=5.0)])
def test_the_built_in_steps_by_hand_give_the_built_in_factors(places, penalty):
    run = prepare(tiny_run.settings(places, algorithm={"name": "fedit"}, **ALONE), tiny_run.fresh(CACHE))
    start = run.settings.method.result(run.context, run.first_state())
    trainable = run.settings.method.TRAITS.trains
    work = [LocalTraining(start, site.train, trainable, 3, 2, 0.01, 17, penalty) for site in run.federation.training_sites[:2]]
    built_in, own = run.models.learner.train(work), OwnLearner(run.models.learner, by_hand).train(work)
    for one, other in zip(built_in, own, strict=True):
        for layer, pair in one.adapter.factors.items():
            for mine, theirs, begun in zip(pair, other.adapter.factors[layer], start.factors[layer], strict=True):
                assert torch.allclose(mine, theirs, atol=2e-5)
                assert trainable.value != "AB" or not torch.equal(theirs, begun) or torch.equal(mine, begun)
        if penalty is None:
            assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_only_the_factors_are_parameters_and_nothing_stays_on_the_base(places):
    seen = []

    def looks(site: SiteTraining) -> None:
        seen.append({tuple(p.shape) for p in site.model.parameters()})
        assert all(row["labels"][0] == -100 or row["input_ids"][0] == row["labels"][0] for row in site.rows)

    run = prepare(tiny_run.settings(places, algorithm={"name": "ffa"}, **ALONE), tiny_run.fresh(CACHE))
    result = loop.run(tiny_run.settings(places, algorithm={"name": "ffa"}, train={"rounds": 1}, **ALONE), places / "run",
                      InlineEngine(looks), cache=tiny_run.fresh(CACHE))
    shapes = {(1, m, run.context.rank) for m, _ in run.context.shapes.values()}
    assert seen == [shapes] * 8
    assert result["eval"]["loss"] == result["base_eval"]["loss"]  # it trained nothing
    assert all(slot.worn is None for slot in run.models.base.slots.values())


@pytest.mark.parametrize(("tables", "words"), [
    ({"privacy": {"epsilon": 8.0, "delta": 1e-3, "relation": "zero-out", "clip": 0.1, "unit": "record"},
      "data": {"holdout": 0.0, "records_per_client": 4}}, "noise is in the steps themselves"),
    ({"federation": {"tier": [{"name": "all", "placement": "split"}]}}, "split clients")])
def test_where_the_promise_is_in_the_steps_no_function_is_taken(places, tables, words):
    settings = tiny_run.settings(places, algorithm={"name": "fedit"}, **{**ALONE, **tables})
    with pytest.raises(AulaitError, match=words):
        loop.run(settings, places / "run", InlineEngine(lambda site: None), cache=tiny_run.fresh(CACHE))


def test_numbers_that_are_not_finite_are_refused(places):
    def spoils(site: SiteTraining) -> None:
        with torch.no_grad():
            next(site.model.parameters()).fill_(float("nan"))

    with pytest.raises(AulaitError, match="not finite"):
        loop.run(tiny_run.settings(places, train={"rounds": 1}, **ALONE), places / "run", InlineEngine(spoils), cache=tiny_run.fresh(CACHE))
