"""Two halves that exchange messages against the whole model; what travels, what it costs, and who may not."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_learnt_alike, assert_near
from tests.contract.federation import Federation, dense
from tests.tiny_bases import CONFIGS, filled, records, tiny

from aulait.core.cohort import Cohort
from aulait.core.errors import ConfigError, ModelError, PrivacyError, WireError
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate, Plan, Record, Site, TrainRequest, nbytes
from aulait.engines.inline import LocalClients
from aulait.methods import METHODS, fedit
from aulait.methods.contract import RunContext
from aulait.methods.shared import client_update
from aulait.methods.shared.traffic import TrafficCount
from aulait.models import loading
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.training import split_model
from aulait.training.activation_codec import (
    WIRES,
    Activations,
    Gradients,
    coded_bytes,
    decode,
    encode,
)
from aulait.training.split_trainer import (
    REASON,
    ClientHalf,
    ModelCut,
    ServerHalf,
    SplitLearner,
    fault,
    travelled,
    widths,
)
from aulait.training.stacked import Penalty
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, draws

WIDTH = 16  # of the tiny bases
HALVES = ["llama", "gpt2", "t5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def bases(folder):
    return cache(lambda kind: tiny(folder, kind))


def works(base, ranks=(1, 3, 2), trainable=Trainable.AB, steps=4, **more) -> list[LocalTraining]:
    shapes = loading.targets(base, AdapterConfig())
    prompt = base.config.kind == "seq2seq"
    return [LocalTraining(filled(shapes, rank, alpha=4.0 + i, seed=i), records(5, i, prompt), trainable, steps, 2, 1e-2, 10 + i, **more)
            for i, rank in enumerate(ranks)]


def split(base, wire="float32", **config) -> tuple[Learner, SplitLearner]:
    whole = Learner(base, TrainConfig(**config))
    return whole, SplitLearner(whole, split_model.possible_cuts(base)[0], wire, private=False)


def apart(left, right) -> float:
    """The largest difference of any two factors, over the largest number of the factor."""
    assert list(left.factors) == list(right.factors)
    pairs = [(left.factors[n][i], right.factors[n][i]) for n in left.factors for i in (0, 1)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


# -- split is monolithic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [0.05, 0.0])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_split_training_is_training_whole_with_and_without_clipping(bases, kind, clip, optimizer):
    base = bases(kind)
    whole, halves = split(base, max_grad_norm=clip, optimizer=optimizer, weight_decay=0.01)
    some = works(base)
    for work, left, right in zip(some, whole.train(some), halves.train(some), strict=True):
        if optimizer == "sgd":
            assert_near(right.adapter.factors, left.adapter.factors, 1e-5)
        assert_learnt_alike(right.adapter, left.adapter, 2e-3, start=work.start)
        assert apart(left.adapter, work.start) > 1e-4
        assert right.loss == pytest.approx(left.loss, rel=1e-5)
        assert right.updates == pytest.approx(left.updates, rel=1e-5)
        assert right.tokens == left.tokens
        assert (right.adapter.alpha, right.adapter.rank) == (left.adapter.alpha, left.adapter.rank)
        assert clip == 0 or left.updates > 2 * clip, "the bound must bind for this test to say anything"


@pytest.mark.parametrize("trainable", [Trainable.A, Trainable.B])
@pytest.mark.parametrize("kind", HALVES)
def test_one_factor_alone(bases, kind, trainable):
    whole, halves = split(bases(kind))
    some = works(bases(kind), trainable=trainable)
    for work, left, right in zip(some, whole.train(some), halves.train(some), strict=True):
        assert_learnt_alike(right.adapter, left.adapter, 2e-3, start=work.start)


@pytest.mark.parametrize("kind", HALVES)
def test_penalties_and_folded_updates_reach_both_halves(bases, kind):
    base = bases(kind)
    whole, halves = split(base)
    fold = {name: 0.1 * torch.randn(m, n, generator=torch.Generator().manual_seed(1))
            for name, (m, n) in loading.targets(base, AdapterConfig()).items()}
    some = works(base, penalty=Penalty(proximal=5.0, tail=0.5, keep=0.5), fold=fold)
    plain = works(base)
    for work, left, right, bare in zip(some, whole.train(some), halves.train(some), halves.train(plain), strict=True):
        assert_learnt_alike(right.adapter, left.adapter, 2e-3, start=work.start)
        assert apart(right.adapter, bare.adapter) > 1e-4


@pytest.mark.parametrize("kind", HALVES)
def test_many_sites_together_equal_each_alone(bases, kind):
    _, halves = split(bases(kind))
    some = works(bases(kind), ranks=(2, 1, 3, 2))
    for work, done in zip(some, halves.train(some), strict=True):
        (alone,) = halves.train([work])
        assert_learnt_alike(done.adapter, alone.adapter, 2e-3, start=work.start)
        assert (done.up_bytes, done.down_bytes) == (alone.up_bytes, alone.down_bytes), "nobody pays for a neighbour's padding"


def test_a_front_that_trains_nothing_is_returned_nothing(bases):
    base = bases("llama")
    last = loading.targets(base, AdapterConfig(layers=1))
    whole, halves = split(base)
    work = LocalTraining(filled(last, 2), records(5), Trainable.AB, 3, 2, 1e-2, 1)
    (left,), (right,) = whole.train([work]), halves.train([work])
    # the whole remembers states of bare blocks, read without padding
    assert_learnt_alike(right.adapter, left.adapter, 2e-3, start=work.start)
    assert right.client_layers == frozenset()
    assert right.down_bytes == 3 * 4
    assert travelled(whole, [work], 1, "float32") == [(right.up_bytes, right.down_bytes)]


def test_brew_at_every_cut():
    brew = loading.load_base(ModelConfig(context=24, device="cpu"))
    shapes = loading.targets(brew, AdapterConfig(targets="attention"))
    texts = (Record("Return the sum of two numbers."), Record("Open a file and read its lines."), Record("A set of names."))
    work = LocalTraining(filled(shapes, 2, size=0.02), texts, Trainable.AB, 2, 2, 1e-3, 3)
    whole = Learner(brew, TrainConfig())
    (left,) = whole.train([work])
    assert split_model.possible_cuts(brew) == (1, 2, 3, 4, 5)
    for after in split_model.possible_cuts(brew):
        (right,) = SplitLearner(whole, after, private=False).train([work])
        assert_learnt_alike(right.adapter, left.adapter, 2e-3, start=work.start)
        assert len(right.client_layers) == after * len(shapes) // 6


# -- the halves are apart --------------------------------------------------------------------------------------


def sent_by_post(tensors):
    """Through bytes and back, so that nothing but numbers arrives."""
    letter = io.BytesIO()
    torch.save(tensors, letter)
    letter.seek(0)
    return torch.load(letter, weights_only=True)


@pytest.mark.parametrize("kind", HALVES)
def test_each_half_works_without_the_weights_of_the_other(folder, kind):
    """The front's machine has no last blocks, the back's no first ones: what is not theirs is not a number."""
    own, other = tiny(folder, kind), tiny(folder, kind)
    for base, mine in ((own, True), (other, False)):
        for name, value in base.model.named_parameters():
            inside = any(part.isdigit() for part in name.split("."))
            if (split_model.in_client_half(name, split_model.possible_cuts(base)[0]) != mine) if inside else (kind == "llama" and ("embed" in name) != mine):
                value.data.fill_(math.nan)
    after, config = split_model.possible_cuts(own)[0], TrainConfig()
    some = works(own, ranks=(2, 1))
    front = ClientHalf(Learner(own, config), some, ModelCut(after, "float32"))
    back = ServerHalf(other, config, [work.start for work in some], some[0], ModelCut(after, "float32"), True)
    for step in range(some[0].steps):
        sent = [Activations.of(sent_by_post(message.tensors())) for message in front.forward(step)]
        returned, _, _ = back.backward(sent)
        returned = [Gradients(sent_by_post(told.hidden), sent_by_post(told.square)) for told in returned]
        back.update(sent_by_post(front.backward(returned)))
    for k, wanted in enumerate(Learner(tiny(folder, kind), config).train(some)):
        found = front.stack.take(k).factors | back.stack.take(k).factors
        assert_learnt_alike(found, wanted.adapter.factors, 2e-3, start=some[k].start.factors)


def test_messages_carry_no_graph_and_no_tokens_of_a_prompt(bases):
    base = bases("llama")
    learner = Learner(base, TrainConfig())
    asked = tuple(Record("abc", prompt="secret") for _ in range(2))
    work = replace(works(base, ranks=(2,))[0], records=asked)
    (sent,) = ClientHalf(learner, [work], ModelCut(1, "float32")).forward(0)
    assert not any(t.requires_grad or t.grad_fn for t in sent.tensors().values())
    ids, given = learner.encode(asked[0])
    assert sent.labels.tolist() == [[-100] * given + ids[given:]] * 2


def test_the_blocks_are_back_in_place_after_an_error(bases):
    base = bases("gpt2")
    blocks = base.model.get_decoder().h
    with pytest.raises(RuntimeError):
        split_model.server_forward(base, 1, torch.zeros(1, 3, WIDTH + 1), torch.ones(1, 3, dtype=torch.long))
    assert base.model.get_decoder().h is blocks


def test_the_moments_of_a_half_can_be_taken_away_and_brought_back(bases):
    """Two steps in one go, or one step, a new half with the moments of the first, and another step; ranks unequal."""
    base = bases("llama")
    learner, some = Learner(base, TrainConfig()), works(base, ranks=(1, 3))

    def one(front, back, step):
        returned, _, _ = back.backward(front.forward(step))
        back.update(front.backward(returned))

    def halves(starts):
        again = [replace(work, start=start) for work, start in zip(some, starts, strict=True)]
        return ClientHalf(learner, again, ModelCut(1, "float32")), ServerHalf(base, learner.config, starts, some[0], ModelCut(1, "float32"), True)

    first = halves([work.start for work in some])
    one(*first, 0)
    joined = [replace(work.start, factors=first[0].stack.take(k).factors | first[1].stack.take(k).factors) for k, work in enumerate(some)]
    second = halves(joined)
    for half, before in zip(second, first, strict=True):
        half.resume([before.moments(k) for k in range(2)])
        assert before.moments(0)["t"].tolist() == [1.0]
        assert before.moments(0)[f"m/{before.names[0]}"].shape == before.stack.take(0).factors[before.names[0].layer][0].shape
    one(*first, 1)
    one(*second, 1)
    fresh = halves(joined)
    one(*fresh, 1)
    for side in (0, 1):
        for k in (0, 1):
            assert apart(second[side].stack.take(k), first[side].stack.take(k)) == 0.0
            assert apart(fresh[side].stack.take(k), first[side].stack.take(k)) > 1e-4


# -- bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", HALVES)
def test_what_travels_is_what_was_foretold_and_what_the_formula_says(bases, kind, wire):
    base = bases(kind)
    whole, halves = split(base, wire)
    some = works(base)
    foretold = travelled(whole, some, halves.cut.after, wire)
    for work, done, told in zip(some, halves.train(some), foretold, strict=True):
        up = down = 0
        for step in draws(work, [len(whole.encode(r)[0]) for r in work.records]):
            coded = [whole.encode(work.records[i]) for i in step]
            rows = len(step)
            if kind == "t5":
                tokens, labels = max(n for _, n in coded), max(len(ids) - n for ids, n in coded)
            else:
                tokens = labels = max(len(ids) for ids, _ in coded)
            cells = rows * tokens * WIDTH
            hidden = {"float32": 4 * cells, "float16": 2 * cells + 4, "int8": cells + 2 * rows * tokens + 4}[wire]
            up += hidden + 4 * rows * labels + (4 * rows if kind == "t5" else 0) + 4
            down += hidden + 4
        assert (done.up_bytes, done.down_bytes) == (up, down) == told


def test_a_wider_neighbour_costs_nothing(bases):
    whole, halves = split(bases("llama"))
    short, long = (replace(work, records=(Record("a" * length),) * 2) for work, length in zip(works(bases("llama"))[:2], (3, 15), strict=True))
    both = halves.train([short, long])
    assert both[0].up_bytes == 4 * (2 * 2 * 5 * (WIDTH + 1) * 2 + 2 * 2)  # 4 steps · (2 rows · 5 tokens · (16 + 1) · 4 bytes + a number)
    assert both[1].up_bytes == 4 * (2 * 17 * (WIDTH + 1) * 4 + 4)
    assert widths(whole, short.records) == (5, 5)


# -- wires -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(-25, 30))
def test_the_error_of_a_wire_is_below_its_bound_and_its_bytes_are_exact(seed, rows, tokens, width, power):
    """Values over eight decades at once, at sizes from 1e-8 to 1e9: no overflow and nothing that vanishes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, width, generator=generator) * 2.0**power
    x = x * 10 ** (-8 * torch.rand(rows, tokens, 1, generator=generator))
    largest, of_token = float(x.abs().max()), x.abs().amax(-1, keepdim=True)
    bounds = {"float32": torch.zeros_like(x), "float16": torch.maximum(x.abs() / 2**11, torch.tensor(largest / 2**38)),
              "int8": of_token / 253 + largest / 2**37}
    for wire, bound in bounds.items():
        coded = encode(x, wire)
        assert nbytes(coded) == coded_bytes(rows, tokens, width, wire)
        assert bool(((decode(coded) - x).abs() <= bound * (1 + 1e-6)).all()), wire


@pytest.mark.parametrize("wire", WIRES)
def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden(wire):
    assert float(decode(encode(torch.zeros(2, 3, 4), wire)).abs().max()) == 0.0
    for bad in (math.nan, math.inf):
        x = torch.ones(1, 2, 3)
        x[0, 1, 2] = bad
        assert not torch.isfinite(decode(encode(x, wire))).all()


def test_parts_that_do_not_belong_together_are_refused():
    whole = encode(torch.ones(1, 2, 3), "int8")
    for parts in ({}, {"data": whole["data"]}, whole | {"scale": whole["scale"][:, :1]}, whole | {"other": whole["unit"]},
                  {"data": torch.ones(1, 2, 3), "unit": whole["unit"]}):
        with pytest.raises(WireError, match="coded hidden states"):
            decode(parts)
    with pytest.raises(WireError, match="wire = 'float8'"):
        coded_bytes(1, 1, 1, "float8")


@pytest.mark.parametrize(("wire", "slack"), [("float16", 3e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("kind", HALVES)
def test_a_narrow_wire_changes_a_step_of_sgd_a_little(bases, kind, wire, slack):
    """The error of all that was learnt, over all that was learnt."""
    base = bases(kind)
    whole, halves = split(base, wire, optimizer="sgd", max_grad_norm=0.0)
    some = works(base, steps=1)

    def learnt(done, work):
        return torch.cat([(done.adapter.factors[n][i] - work.start.factors[n][i]).flatten() for n in work.start.factors for i in (0, 1)])

    for work, left, right in zip(some, whole.train(some), halves.train(some), strict=True):
        exact = learnt(left, work)
        error = float((learnt(right, work) - exact).norm() / exact.norm())
        assert 0 < error < slack


# -- refusals --------------------------------------------------------------------------------------------------


def test_a_cut_that_cannot_be_is_one_clear_error(bases):
    for kind, wrong, said in (("llama", (0, 2, 9), "expected 1 for"), ("gpt2", (0, 2), "expected 1 for"), ("t5", (1, 3), "expected 2 for")):
        for after in wrong:
            with pytest.raises(ModelError, match=f"cut = {after} found, {said}"):
                split_model.check_cut(bases(kind), after)
        split_model.check_cut(bases(kind), split_model.possible_cuts(bases(kind))[0])
    with pytest.raises(ModelError, match="the whole encoder is the client's"):
        split_model.check_cut(bases("t5"), 1)


def test_a_model_that_says_something_else_in_two_parts_is_refused(folder):
    base = tiny(folder)
    block = base.model.get_decoder().layers[1]
    forward = block.forward
    block.forward = lambda hidden, **more: forward(hidden + base.model.get_decoder().embed_tokens.seen, **more)
    base.model.get_decoder().embed_tokens.register_forward_hook(lambda module, given, out: setattr(module, "seen", out))
    with pytest.raises(ModelError, match="does not say what it says whole"):
        split_model.check_cut(base, 1)


def test_layers_by_name():
    assert split_model.in_client_half("model.layers.0.mlp.up_proj", 1)
    assert not split_model.in_client_half("transformer.h.3.attn.c_attn", 3)
    assert split_model.in_client_half("model.decoder.layers.1.fc1", 2)
    assert split_model.in_client_half("encoder.block.5.layer.0.q", 2)
    assert not split_model.in_client_half("decoder.block.0.layer.0.q", 2)
    with pytest.raises(ModelError, match="lies in no block"):
        split_model.in_client_half("model.project_in", 2)


def test_nothing_is_split_under_privacy(bases):
    with pytest.raises(PrivacyError, match="activations of single records leave the site; use 'local' or 'proxy'"):
        SplitLearner(Learner(bases("llama"), TrainConfig()), 1, private=True)
    assert "local" in REASON


def test_a_message_that_does_not_fit_the_model_is_told_before_it_meets_it(bases):
    base = bases("llama")
    good = Activations(encode(torch.ones(2, 3, WIDTH), "float32"), torch.ones(2, 3, dtype=torch.int32))
    assert fault(base, good) is None
    labels, states = good.labels, encode(torch.ones(2, 3, WIDTH + 1), "float32")
    for bad, said in ((replace(good, hidden=states), "states of shape"), (replace(good, labels=labels[:1]), "another shape"),
                      (replace(good, labels=labels.long()), "another shape"), (replace(good, labels=labels * 999), "vocabulary"),
                      (replace(good, labels=labels * -5), "vocabulary"), (replace(good, lengths=labels[:, 0]), "lengths")):
        assert said in fault(base, bad)
    wide = Activations(good.hidden, labels, torch.tensor([3, 4], dtype=torch.int32))
    assert "lengths" in fault(bases("t5"), wide)
    assert fault(bases("t5"), replace(wide, lengths=torch.tensor([3, 1], dtype=torch.int32))) is None


# -- a split client among others -------------------------------------------------------------------------------


def world(base, places, method=fedit, cut=1):
    shapes = loading.targets(base, AdapterConfig())
    sites = {n: Site(n, Plan("tier", place, 2, 2, 2, cut if place == "split" else None), records(3 + i, i)) for i, (n, place) in enumerate(places.items())}
    context = RunContext(shapes, 2, 4.0, Seeds(3), 2)
    theta = method.init(method.Config(), context).tensors
    return sites, context, theta


@pytest.mark.parametrize("method", [n for n in METHODS.names() if METHODS.find(n).TRAITS.splits and n != "splitlora"])
def test_a_split_client_is_one_role_among_others_in_every_method(bases, method, monkeypatch):
    """The merge is that of local clients; a split one pays the method's formula on its front, and the messages of its steps."""
    learner, seen, splits = Learner(bases("llama"), TrainConfig()), [], ("bob", "dan")
    train = SplitLearner.train
    monkeypatch.setattr(SplitLearner, "train", lambda own, works, advance=None: (seen.append(works), train(own, works, advance))[1])
    runs, told = [], []
    for some in (splits, ()):
        run = Federation(method, learner=learner, shapes=dict(loading.targets(bases("llama"), AdapterConfig())),
                         clients=("ann", "bob", "cat", "dan"), sizes={"bob": 5},
                         options={"energy": 1.0} if method == "florist" else {})  # else a bound
        run.sites = {n: replace(s, plan=replace(s.plan, placement="split" if n in some else "local", cut=1 if n in some else None)) for n, s in run.sites.items()}
        ask, state = LocalClients(run.sites, run.module, run.context, learner, private=False).ask, run.start()
        for _ in range(2):
            state, info = run.round(state, ask=ask)
            told.append(info)
        runs.append((run, state))
    (run, found), (_, wanted) = runs
    assert_learnt_alike(dense(run.result(found)), dense(run.result(wanted)), 2e-3)
    assert len(seen) == 2
    front = replace(run.context, shapes={layer: run.context.shapes[layer] for layer in split_model.client_layers(run.context.shapes, 1)})
    for number, works in enumerate(seen, start=1):
        factors = [run.module.travels(run.config, front if n in splits else run.context, number, n, run.clients) for n in run.clients]
        steps = travelled(learner, works, 1, "float32")
        assert told[number - 1]["up_bytes"] == sum(up for up, _ in (*factors, *steps))
        assert told[number - 1]["down_bytes"] == sum(down for _, down in (*factors, *steps))
        assert not [name for name in told[number - 1] if "wire" in name]


def test_the_meter_counts_what_crossed_the_wall_of_a_split_client(bases):
    base, learner = bases("llama"), Learner(bases("llama"), TrainConfig())
    sites, context, theta = world(base, {"ann": "local", "bob": "split"})
    requests = [TrainRequest(n, 1, theta, {"lr": 1e-2}) for n in sites]
    traffic = TrafficCount(requests, Cohort(round=1, local=tuple(sites), proxies={}, planned=2))
    list(traffic.counted(LocalClients(sites, fedit, context, learner, private=False).ask(traffic.local)))
    front = {layer: context.shapes[layer] for layer in split_model.client_layers(context.shapes, 1)}
    factors = client_update.factor_bytes(replace(context, shapes=front), "bob")
    start = fedit.result(context, fedit.init(fedit.Config(), context))
    work = LocalTraining(start, sites["bob"].train, Trainable.AB, 2, 2, 1e-2, context.seeds.integer("batches", 1, "bob"))
    ((up, down),) = travelled(learner, [work], 1, "float32")
    assert traffic.metrics() == {"up_bytes": nbytes(theta) + up + factors, "down_bytes": nbytes(theta) + down + factors}


@pytest.mark.parametrize("bad", [{"wire_up_bytes": "many", "wire_down_bytes": 1.0}, {"wire_up_bytes": -1.0, "wire_down_bytes": 1.0},
                                 {"wire_up_bytes": math.nan, "wire_down_bytes": 1.0}, {"wire_up_bytes": 1.0}])
def test_the_meter_does_not_believe_what_is_no_count(bad):
    traffic = TrafficCount([TrainRequest("ann", 1, {"x": torch.zeros(2)})], Cohort(round=1, local=("ann",), proxies={}, planned=1))
    (update,) = traffic.counted([ClientUpdate("ann", {"x": torch.zeros(3)}, 1.0, bad)])
    assert update.info == bad
    assert traffic.metrics() == {"up_bytes": 12, "down_bytes": 8}


def test_a_split_site_is_refused_without_a_cut_and_unless_privacy_is_said_to_be_off(bases):
    learner = Learner(bases("llama"), TrainConfig())
    sites, context, theta = world(bases("llama"), {"bob": "split"})
    requests = [TrainRequest("bob", 1, theta, {"lr": 1e-2})]
    with pytest.raises(PrivacyError, match="activations of single records"):
        list(LocalClients(sites, fedit, context, learner).ask(requests))
    sites, context, _ = world(bases("llama"), {"bob": "split"}, cut=None)
    with pytest.raises(ConfigError, match="no cut"):
        list(LocalClients(sites, fedit, context, learner, private=False).ask(requests))
