"""What code that holds an update under privacy can do with it: nothing."""

import copy
import dataclasses
import gc
import math
import pickle

import pytest
import torch

from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate, TrainRequest
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.privacy.sealed import Seal, SealedUpdate, forgotten_after

SECRET = {"x": torch.arange(1.0, 4.0)}


def update(client="ann", tensors=None):
    return ClientUpdate(client, SECRET if tensors is None else tensors, 5.0, {"train_loss": 1.25})


def aggregator(**config):
    accountant, ledger = Accountant(1e-5, {"local": math.inf}), Ledger(None)
    return PrivateAggregator(PrivacyConfig(**{"noise_multiplier": 1e-3, "delta": 1e-5,
        "relation": "add-remove"} | config), ledger,
                             accountant, SystemNoise(), KnownSites(frozenset({"proxy-000"})))


def release(through, updates, transform=None):
    return through.release(updates, Release(stage="train", round=1, role="local", bound=10.0,
        noise_multiplier=1e-3, planned=1,
                                            template=SECRET), transform=transform)


def requests(*clients):
    return [TrainRequest(client, 1, {}) for client in clients]


def answering(asked, tensors=None):
    def ask(some):
        for request in some:
            asked.append(request.client)
            yield update(request.client, tensors)

    return ask


READINGS = {
    "tensors": lambda own: own.tensors, "weight": lambda own: own.weight,
    "info": lambda own: own.info,
    "getattr": lambda own: getattr(own, "info", {}), "pickle": pickle.dumps, "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda own: dataclasses.replace(own, client="bob"), "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "reduce": lambda own: own.__reduce__(),
}


@pytest.mark.parametrize("how", READINGS)
def test_a_sealed_update_cannot_be_read(how):
    seal = Seal()
    closed = seal.close(update())
    with pytest.raises(PrivacyError, match=r"server\.aggregator\.release"):
        READINGS[how](closed)


def test_nothing_hangs_on_a_sealed_update():
    closed = Seal().close(update())
    assert vars(closed) == {"client": "ann"}
    assert repr(closed) == str(closed) == "SealedUpdate('ann')"
    reached = [closed.client, *gc.get_referents(closed)]
    assert not any(isinstance(thing, torch.Tensor | ClientUpdate) for thing in reached)


def test_only_the_seal_that_closed_an_update_opens_it():
    seal, own = Seal(), update()
    assert list(seal.opened([seal.close(own), own])) == [own, own]
    with pytest.raises(PrivacyError, match="another aggregator"):
        list(Seal().opened([seal.close(own)]))
    with pytest.raises(PrivacyError, match="another aggregator"):
        list(seal.opened([SealedUpdate("ann")]))


def test_a_closed_update_lives_as_long_as_its_holder():
    seal = Seal()
    closed = seal.close(update())
    assert len(seal._closed) == 1
    del closed
    gc.collect()
    assert len(seal._closed) == 0


def test_the_aggregator_releases_the_sum_of_what_is_sealed():
    through, asked = aggregator(), []
    ask = through.sealing(answering(asked), planned=True)
    updates = ask(requests("ann"))
    assert asked == [], "nobody is asked before the first update is read"
    released = release(through, updates)
    assert asked == ["ann"]
    assert torch.allclose(released.total["x"], SECRET["x"], atol=1.0)
    assert released.info == {}


def test_a_transform_keeps_nothing_of_the_update():
    through, stash, seen = aggregator(), [], []

    def greedy(own):
        stash.append(own)
        seen.append((own.weight, dict(own.info), float(own.tensors["x"].sum())))
        return own.tensors

    original = update()
    released = through.release(
        through.sealing(lambda some: iter([original]), planned=True)(requests("ann")),
        Release(stage="train", round=1, role="local", bound=10.0, noise_multiplier=1e-3, planned=1,
                template=SECRET), transform=greedy)
    assert seen == [(1.0, {}, 6.0)]
    assert torch.equal(stash[0].tensors["x"], torch.zeros(3))
    assert torch.equal(original.tensors["x"], torch.arange(1.0, 4.0))
    assert torch.allclose(released.total["x"], SECRET["x"], atol=1.0)


def test_a_transform_that_fails_leaves_nothing_either():
    stash = []

    def failing(own):
        stash.append(own)
        raise ValueError

    with pytest.raises(ValueError):
        forgotten_after(failing)(update())
    assert torch.equal(stash[0].tensors["x"], torch.zeros(3))


def test_proxies_asked_by_themselves_answer_in_the_open():
    through = aggregator()
    (own,) = through.sealing(answering([]), planned=True)(requests("proxy-000"))
    assert torch.equal(own.tensors["x"], SECRET["x"])
    admitted, _ = through.admit([own], SECRET)
    assert [one.client for one in admitted] == ["proxy-000"]


def test_a_client_that_bears_the_name_of_a_proxy_stays_sealed():
    through = aggregator()
    ask = through.sealing(lambda some: [update("proxy-000")], planned=True)
    (own,) = ask(requests("ann"))
    assert isinstance(own, SealedUpdate)
    with pytest.raises(PrivacyError, match="public updates only"):
        through.admit([own], SECRET)
    (own,) = through.sealing(lambda some: [update("ann")], planned=True)(requests("proxy-000"))
    assert isinstance(own, SealedUpdate)


def test_without_privacy_nothing_is_sealed():
    through = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(),
                                KnownSites())
    ask = answering([])
    assert through.sealing(ask, planned=False) is ask


def test_in_a_round_without_a_release_nothing_may_travel():
    through = aggregator()
    with pytest.raises(PrivacyError, match="'travels'"):
        list(through.sealing(answering([]), planned=False)(requests("ann")))
    (own,) = through.sealing(answering([], {}), planned=False)(requests("ann"))
    assert own.client == "ann"
