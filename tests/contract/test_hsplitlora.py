"""HSplitLoRA beyond what every method does: clients cut in places of their own, adapters on the layers that matter, and what of it travels."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.closeness import assert_learnt_alike, assert_near
from tests.contract.federation import ON, Federation, apart, dense, unlike
from tests.tiny_bases import CONFIGS, byte_tokenizer, records
from transformers import AutoModelForCausalLM

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import ConfigError, PrivacyError, WireError
from aulait.core.factors import FactorName
from aulait.engines.inline import LocalClients
from aulait.methods import hsplitlora
from aulait.methods.shared import fresh_adapters
from aulait.models import loading
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.runfolder.run_folder import RunFolder
from aulait.runs.progress import Progress
from aulait.training import split_model
from aulait.training.split_trainer import SplitLearner, travelled
from aulait.training.trainer import Learner, TrainConfig
from aulait.training.weight_importance import most_important, weight_importance

TEXTS = records(6, 9)
CLIENTS = ("ann", "bob", "cat", "dan")
CUTS = {"bob": 1, "cat": 2, "dan": 1}  # ann trains whole
RANKS = {"bob": 1, "cat": 3}  # of 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Of three blocks, so that it may be cut in two places."""
    path = tmp_path_factory.mktemp("bases") / "deeper"
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_hidden_layers = 3
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return loading.load_base(ModelConfig(name=str(path), context=24, device="cpu"))


def make(base, cuts=CUTS, **options) -> Federation:
    run = Federation(
        "hsplitlora",
        learner=Learner(base, TrainConfig()),
        shapes=dict(loading.targets(base, AdapterConfig(targets="all-linear"))),
        clients=CLIENTS,
        rank=4,
        ranks=RANKS,
        sizes={"bob": 5},
        options={"renew": 2} | options,
    )
    run.sites = {
        name: replace(
            own,
            plan=replace(
                own.plan, placement="split" if name in cuts else "local", cut=cuts.get(name)
            ),
        )
        for name, own in run.sites.items()
    }
    return run


def asking(run: Federation):
    """Through the engine, as placements say."""
    ask = LocalClients(run.sites, run.module, run.context, run.learner, private=False).ask

    def seen(requests):
        updates = list(ask(requests))
        run.requests += requests
        run.updates += updates
        return updates

    return seen


def rounds(run: Federation, count: int, state=None, clients=None):
    state, told = state or run.start(), []
    for _ in range(count):
        if run.module.wants(run.config, run.context, state):
            state = run.module.look(run.config, run.context, state, run.learner, TEXTS)
        state, info = run.round(state, ask=asking(run), clients=clients)
        told.append(info)
    return state, told


def test_cuts_of_their_own_change_nothing_that_is_learnt(base):
    here, _ = rounds(make(base, cuts={}), 3)
    there, told = rounds(make(base), 3)
    assert_learnt_alike(dense(make(base).result(there)), dense(make(base).result(here)), 2e-3)
    assert [info["refused"] for info in told] == [0, 0, 0]
    assert lora.norm(make(base).result(there)) > 1e-3


def test_only_the_most_important_layers_get_adapters_and_the_others_keep_what_they_have(base):
    run = make(base, history=0.5)
    importance = weight_importance(run.learner, run.shapes, TEXTS)
    chosen = most_important(importance, run.shapes, 0.5)
    assert 0 < len(chosen) < len(run.shapes)
    after, told = rounds(run, 2)
    assert {
        FactorName.parse(name).layer for update in run.updates for name in update.tensors
    } == set(chosen)
    assert told[0]["adapted_layers"] == len(chosen)
    result = dense(run.result(after))
    assert {layer for layer, update in result.items() if bool(update.abs().max() > 0)} == set(
        chosen
    )
    # the third round measures anew, on what was folded, and turns to others: the first ones stay as they are
    turned = {name: -value for name, value in lora.under("importance", after.tensors).items()}
    other = replace(after, tensors=after.tensors | lora.tagged("importance", turned))
    later, _ = run.round(other, ask=asking(run))
    moved = {FactorName.parse(name).layer for name in run.updates[-1].tensors}
    assert moved != set(chosen)
    for layer, update in dense(run.result(later)).items():
        assert layer in moved or torch.equal(update, result[layer]), layer


def test_what_was_known_of_importance_is_mixed_with_what_is_found(base):
    run = make(base, history=0.25)
    first = run.module.look(run.config, run.context, run.start(), run.learner, TEXTS)
    state = replace(first, round=2)
    again = run.module.look(run.config, run.context, state, run.learner, TEXTS[:2])
    now = weight_importance(run.learner, run.shapes, TEXTS[:2])
    for layer, value in lora.under("importance", again.tensors).items():
        before = float(first.tensors[f"importance/{layer}"])
        assert float(value) == pytest.approx(0.75 * now[layer] + 0.25 * before, rel=1e-5)
    assert not run.module.wants(run.config, run.context, replace(first, round=3))
    assert (
        run.module.look(run.config, run.context, replace(first, round=3), run.learner, []).tensors
        is first.tensors
    )
    assert not make(base, part=1.0).module.wants(
        hsplitlora.Config(part=1.0), run.context, run.start()
    )
    once = hsplitlora.Config(renew=0)
    assert [
        bool(run.module.wants(once, run.context, replace(first, round=done))) for done in range(4)
    ] == [True, False, False, False]


def test_the_merge_is_the_mean_of_the_products_of_all_ranks(base):
    run = make(base)
    before, _ = rounds(run, 1)
    run.updates = []
    after, _ = rounds(run, 1, before)
    scale, was = run.alpha / run.rank, dense(run.result(before))
    for layer, update in dense(run.result(after)).items():
        products = [
            own.tensors[f"{layer}.B"].double() @ own.tensors[f"{layer}.A"].double()
            for own in run.updates
            if f"{layer}.A" in own.tensors
        ]
        wanted = was[layer] + (scale * sum(products) / len(CLIENTS) if products else 0.0)
        assert_near(update, wanted, 1e-5, what=layer)


def test_bytes_are_those_of_the_chosen_layers_before_each_cut_and_of_the_steps(base, monkeypatch):
    run, state, last = make(base), make(base).start(), []
    passes = split_passes(monkeypatch)
    for number in (1, 2, 3):
        state = run.module.look(run.config, run.context, state, run.learner, TEXTS)
        chosen = run.module.chosen_layers(run.config, run.context, state)
        state, info = run.round(state, ask=asking(run))
        up = down = 0
        for name in CLIENTS:
            ups, downs = (front(run, layers, name) for layers in (chosen, last))
            up += run.module.travels(run.config, ups, number, name, CLIENTS)[0]
            down += run.module.travels(run.config, downs, number, name, CLIENTS)[1]
        for cut, works in passes:
            steps = travelled(run.learner, works, cut, "float32")
            up, down = up + sum(one for one, _ in steps), down + sum(other for _, other in steps)
        passes.clear()
        assert (info["up_bytes"], info["down_bytes"]) == (up, down), number
        whole = [
            run.module.travels(run.config, front(run, list(run.shapes), n), number, n, CLIENTS)
            for n in CLIENTS
        ]
        assert sum(one for one, _ in whole) > sum(
            run.module.travels(run.config, front(run, chosen, n), number, n, CLIENTS)[0]
            for n in CLIENTS
        )
        last = chosen


def split_passes(monkeypatch):
    """(cut, works) of every pass of split clients."""
    passes, own = [], SplitLearner.train
    monkeypatch.setattr(
        SplitLearner,
        "train",
        lambda self, works, advance=None: (
            passes.append((self.cut.after, works)),
            own(self, works, advance),
        )[1],
    )
    return passes


def front(run: Federation, layers, name: str):
    """The context of those layers that a client has itself."""
    own = layers if name not in CUTS else split_model.client_layers(layers, CUTS[name])
    return replace(run.context, shapes={layer: run.shapes[layer] for layer in own})


def test_stop_and_resume_equals_no_stop(base, tmp_path):
    whole, half, resumed = (make(base) for _ in range(3))
    wanted, _ = rounds(whole, 4)
    progress = Progress()
    progress.bind(half.sites)
    progress.state, _ = rounds(half, 2)
    progress.save(RunFolder(tmp_path))
    loaded = Progress.load(RunFolder(tmp_path))
    loaded.bind(resumed.sites)
    found, _ = rounds(resumed, 2, loaded.state)
    assert apart(found, wanted) == 0.0
    assert unlike(resumed.memory(), whole.memory()) == ""


def test_a_client_that_missed_a_round_is_sent_the_whole_and_ends_where_all_do(base):
    run = make(base)
    state, _ = rounds(run, 1)
    state, _ = rounds(run, 1, state, clients=("ann", "bob"))
    state, info = rounds(run, 1, state)
    assert info[0]["refused"] == 0
    sent = {
        request.client: {name.partition("/")[0] for name in request.tensors}
        for request in run.requests[-4:]
    }
    assert sent == {"ann": {"stack"}, "bob": {"stack"}, "cat": {"whole"}, "dan": {"whole"}}


# -- what it claims ------------------------------------------------------------------------------------------------


def test_clients_are_not_protected_and_split_ones_not_even_with_noise_of_their_own(base):
    run = make(base, cuts={})
    run.aggregator.config = ON
    with pytest.raises(PrivacyError, match=r"'hsplitlora' reads single updates.*use 'ffa'"):
        run.round(run.start())
    assert not run.requests
    assert hsplitlora.TRAITS.units == ("record",)
    assert not hsplitlora.TRAITS.private
    split = make(base)
    requests = fresh_adapters.requests(split.config, split.context, split.start(), _cohort())
    with pytest.raises(PrivacyError, match="activations of single records"):
        list(LocalClients(split.sites, split.module, split.context, split.learner).ask(requests))


def _cohort():
    return Cohort(round=1, local=("bob",), proxies={}, planned=1, lr=1e-2)


@pytest.mark.parametrize("layers", [["no.such.layer"], []])
def test_a_site_that_is_asked_for_a_strange_layer_says_so(base, layers):
    run = make(base, cuts={})
    (request,) = fresh_adapters.requests(run.config, run.context, run.start(), _cohort(), layers)
    with pytest.raises(WireError, match=r"expected some of those that the run adapts"):
        run.module.answer([request], [run.sites["bob"]], run.context, run.learner)


def test_a_split_client_needs_a_cut(base):
    run = make(base)
    run.sites["bob"] = replace(run.sites["bob"], plan=replace(run.sites["bob"].plan, cut=None))
    with pytest.raises(ConfigError, match="client 'bob' is split and no cut is given"):
        rounds(run, 1)
