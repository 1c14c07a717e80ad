"""Every method at the unit "record": charged before anybody is asked, no record within reach of the
method, noise in what it gets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.contract.federation import ON, Federation, apart, real, unlike
from tests.oracle import dp_sgd
from tests.tiny_bases import tiny, write

from aulait.core import lora
from aulait.core.errors import PrivacyError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.methods import METHODS
from aulait.privacy.accounting import Event
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.noise import SeededNoise
from aulait.privacy.record_level import SiteNoise
from aulait.training.private_learner import PrivateLearner
from aulait.training.record_gradients import batches
from aulait.training.trainer import Learner, Penalty, TrainConfig

RECORDS = [name for name in METHODS.names() if "record" in METHODS.find(name).TRAITS.units]
PRIVATE = PrivacyConfig(**ON.model_dump() | {"unit": "record", "relation": "zero-out", "clip": 0.5,
    "noise_seed": None})
SEEDED = PRIVATE.model_copy(update={"noise_seed": 5})
each = pytest.mark.parametrize("method", RECORDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


def test_the_methods_that_protect_records():
    assert RECORDS == ["cores", "dplora", "fedavg", "fedex", "fedit", "fedplora", "fedrot", "fedsa",
                       "fedsvd", "ffa", "flexlora", "flora", "florist", "hsplitlora",
                       "lalora", "lorafair", "raflora", "rolora"]


@each
def test_rounds_are_charged_and_the_method_sees_no_record(base, method, monkeypatch):
    run = real(base, method, privacy=PRIVATE, proxies=("proxy-000",))
    inner, seen = run.module.answer, []

    def answer(requests, sites, context, learner):
        seen.extend((site.name, learner, site) for site in sites)
        return inner(requests, sites, context, learner)

    monkeypatch.setattr(run.module, "answer", answer)
    texts = {record.text for name in run.clients for record in run.sites[name].train}
    state = run.rounds(2)
    assert [(line.unit, line.mechanism, line.event) for line in run.ledger.lines] == [("record",
        "dp-sgd", Event(1.0, 2 / 3, 2))] * 2
    for name, learner, site in seen:
        assert isinstance(learner, PrivateLearner) == (name in run.clients)
        if name in run.clients:
            assert len(site.train) == 3
            assert not texts & {record.text for record in site.train}
            assert not site.holdout
    assert len(seen) == 2 * 4
    for update in run.updates:
        assert not update.info or update.client not in run.clients
    for request in run.requests:
        assert ("private" in request.settings) == (request.client in run.clients)
    assert all(bool(torch.isfinite(t).all()) for t in state.tensors.values())
    assert lora.norm(run.result(state)) > 0 or method == "fedsa"


@each
def test_seeded_noise_is_the_same_again_and_other_noise_is_not(base, method):
    one, two = (real(base, method, privacy=SEEDED, noise=None).rounds(2) for _ in range(2))
    assert apart(one, two) == 0.0
    free = real(base, method, privacy=PRIVATE).rounds(2)
    assert unlike(one.tensors, free.tensors)


@pytest.mark.parametrize("method", ["fedit", "ffa", "rolora", "flexlora", "fedsa", "flora", "fedex",
    "lorafair", "cores", "fedplora", "lalora", "raflora"])
def test_unequal_ranks(base, method):
    run = real(base, method, privacy=PRIVATE, ranks={"bob": 1})
    state = run.rounds(2)
    assert len(run.ledger.lines) == 2
    assert all(bool(torch.isfinite(t).all()) for t in state.tensors.values())


@each
def test_nobody_is_asked_before_the_charge(base, method):
    """An aggregator whose budget is spent asks nobody."""
    from aulait.privacy.aggregator import BudgetSpent

    run = real(base, method, privacy=PRIVATE, budget=0.1)
    with pytest.raises(BudgetSpent):
        run.round(run.start())
    assert run.updates == []
    assert not run.ledger.lines


# -- against a slow loop
# -------------------------------------------------------------------------------------------


def one_client(base, sigma_over_clip, clip, steps=3):
    privacy = PrivacyConfig(noise_multiplier=sigma_over_clip, delta=1e-5, relation="zero-out",
                            unit="record", clip=clip, noise_seed=5)
    run = real(base, "fedit", privacy=privacy, clients=("ann",), sizes={"ann": 7})
    run.learner = Learner(base, TrainConfig(optimizer="sgd"))
    site = run.sites["ann"]
    run.sites["ann"] = replace(site, plan=replace(site.plan, steps=steps, batch=3))
    run.site_noise, mechanisms = run._noise_of_sites()
    run.aggregator._record_mechanisms = mechanisms
    return run


def drawn(run, lr):
    """Batches and the noise of the one client in round 1, as its learner draws them."""
    site = run.sites["ann"]
    learner = PrivateLearner(run.learner, run.site_noise, [site])
    from aulait.core.types import TrainRequest
    from aulait.methods.shared import client_update

    (asked,) = client_update.local_training(
        [TrainRequest("ann", 1, lora.to_tensors(run.context.initial()), {"lr": lr})],
                                            [site], run.context,
                                            client_update.sent_factors(run.context))
    work = learner._work(asked, site.train)
    source = SeededNoise(work.noise_seed)
    return [[record for unit in batch for record in unit] for batch in batches(work)], work, source


def test_fedit_of_one_client_equals_a_slow_loop_in_float64(base, tmp_path):
    run = one_client(base, 0.7, 0.2)
    chosen, work, source = drawn(run, 0.3)
    assert len({len(batch) for batch in chosen}) > 1, "Poisson batches"
    start = run.context.initial()
    path = str(write(tmp_path, "llama"))
    slow = dp_sgd.train(path, start, chosen, part="AB", lr=0.3, clip=0.2, expected=work.expected,
                        noise=lambda count: source.gaussian((count,), work.sigma))
    after, _ = run.round(run.start(), lr=0.3)
    moved = max(float((b - start.factors[layer][1]).abs().max()) for layer,
                (_, b) in slow.factors.items())
    for layer, (a, b) in slow.factors.items():
        fast_a, fast_b = lora.factors_of(after.factors, layer)
        assert float((fast_a - a).abs().max()) < 2e-5 * moved
        assert float((fast_b - b).abs().max()) < 2e-5 * moved


def test_with_hardly_any_noise_and_a_huge_bound_it_is_plain_training_on_the_same_batches(base,
        tmp_path):
    run = one_client(base, 1e-7, 2.0)
    chosen, work, _ = drawn(run, 0.3)
    start = run.context.initial()
    plain = dp_sgd.train(str(write(tmp_path, "llama")), start, chosen, part="AB", lr=0.3,
                         clip=math.inf, expected=work.expected,
                         noise=lambda count: torch.zeros(count, dtype=torch.float64))
    after, _ = run.round(run.start(), lr=0.3)
    moved = max(float((b - start.factors[layer][1]).abs().max()) for layer,
                (_, b) in plain.factors.items())
    for layer, (a, b) in plain.factors.items():
        fast_a, fast_b = lora.factors_of(after.factors, layer)
        assert max(float((fast_a - a).abs().max()), float((fast_b - b).abs().max())) < 1e-4 * moved


# -- what a method may not do
# --------------------------------------------------------------------------------------


def learner_of(base, run=None):
    run = run or Federation("fedit")
    site = run.sites["ann"]
    noise = SiteNoise(mechanism="dp-sgd", clip=0.5, sigma=0.5, most_rate=1.0, most_steps=2)
    learner = PrivateLearner(Learner(base, TrainConfig()), noise, [site, run.sites["bob"]])
    return learner, site


def asked(base, learner, site):
    from aulait.core.factors import Trainable
    from aulait.models import loading
    from aulait.models.loading import AdapterConfig
    from aulait.training.trainer import LocalTraining

    start = lora.initial(loading.targets(base, AdapterConfig(targets="attention", layers=1)), 2,
                         4.0, Seeds(3))
    return LocalTraining(start, learner.stand_in(site).train, Trainable.AB, 9, 2, 0.1, 1)


def test_a_site_trains_once_a_request(base):
    learner, site = learner_of(base)
    work = asked(base, learner, site)
    (done,) = learner.train([work])
    assert math.isnan(done.loss)
    assert math.isnan(done.updates)
    assert done.tokens == 2 * 2 * base.config.context
    with pytest.raises(PrivacyError, match="twice"):
        learner.train([work])


def test_a_method_trains_on_nothing_but_a_site_s_own_places(base):
    learner, site = learner_of(base)
    work, places = asked(base, learner, site), learner.stand_in(site).train
    bob = learner.stand_in(replace(site, name="bob")).train
    for wrong in [site.train, (*places, places[0]), (*places, bob[0]), (Record("0", label="eve"),),
                  ()]:
        with pytest.raises(PrivacyError, match="each once"):
            learner.train([replace(work, records=tuple(wrong))])
    with pytest.raises(PrivacyError, match="penalty"):
        learner.train([replace(work, penalty=Penalty(proximal=0.1))])


def test_a_request_s_noise_is_read_strictly():
    noise = SiteNoise(mechanism="dp-sgd", clip=0.5, sigma=0.5, most_rate=1.0, most_steps=2)
    assert SiteNoise.read({}) is None
    assert SiteNoise.read({"private": noise.setting()}) == noise
    assert "noise_seed" not in noise.setting()
    for change in ({"sigma": True}, {"sigma": "1"}, {"sigma": math.nan}, {"sigma": -1.0},
                   {"clip": 0.0}, {"most_rate": 1.5}, {"most_steps": 0},
                   {"most_steps": 1.5}, {"more": 1}):
        with pytest.raises(PrivacyError, match="unreadable setting"):
            SiteNoise.read({"private": noise.setting() | change})
