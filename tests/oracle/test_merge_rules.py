"""Merge rules of the methods against their papers' formulas in numpy, on random federations.

Clients answer made-up factors; what is tested is what the server makes of them, round after round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_near
from tests.contract.federation import ON, Federation, ZeroNoise, dense
from tests.oracle import averaging, methods

from aulait.core import lora
from aulait.core.types import ClientUpdate
from aulait.methods.contract import State
from aulait.methods.fedplora import columns
from aulait.methods.shared import server_optimizer

ABSOLUTE = ("flora", "florist", "fedex", "lorafair", "hetlora")  # these answer factors, the others changes of factors
RULES = ["fedavg", "fedprox", "scaffold", "fedrot", "lalora", "fedsvd", "raflora", "florist", "fedplora", "fedit", "fedsa", "ffa", "rolora", "flexlora", "flexlora partition", "flora", "flora own", "fedex", "lorafair", "hetlora", "safedlora"]


@dataclass(frozen=True)
class World:
    """A random federation: layers of unequal sides, ranks by client and layer, sizes of clients."""

    shapes: dict
    rank: int
    alpha: float
    ranks: dict
    sizes: dict
    seed: int


@st.composite
def worlds(draw, equal: bool = False):
    seed, clients = draw(st.integers(0, 10**6)), draw(st.integers(2, 30))
    rank = draw(st.sampled_from([1, 2, 3, 5, 8, 17, 64]))
    side = st.integers(1, 80)
    shapes = {"tall": (draw(side), draw(side)), "wide": (draw(st.integers(1, 12)), draw(side))}
    generator = np.random.default_rng(seed)
    names = [f"c{k:02d}" for k in range(clients)]
    ranks = {} if equal else {n: {layer: int(generator.integers(1, rank + 1)) for layer in shapes} for n in names if generator.random() < 0.8}
    sizes = {n: int(generator.integers(1, 50)) for n in names}
    return World(shapes, rank, draw(st.floats(0.5, 40.0)), ranks, sizes, seed)


class Clients:
    """Answers made-up factors and remembers them, layer by layer, with their weights."""

    def __init__(self, world: World, rule: str, **more) -> None:
        method, _, flag = rule.partition(" ")
        flags = {"partition": {"partition": True}, "own": {"scale": "own"}, "": {}}
        fields = {"weights": "size", **flags[flag], **more.pop("options", {})}
        self.run = Federation(method, shapes=world.shapes, clients=tuple(world.sizes), rank=world.rank, alpha=world.alpha,
                              ranks=world.ranks, options=fields, **more)
        self.world, self.method = world, method
        self.generator = torch.Generator().manual_seed(world.seed)

    def random(self, shape, letter):
        scale = shape[1] ** -0.5 if letter == "A" else 0.3
        return scale * torch.randn(shape, generator=self.generator)

    def ask(self, requests):
        self.terms = {layer: [] for layer in self.world.shapes}
        total = sum(self.world.sizes.values())
        updates = []
        for request in requests:
            own = self.run.context.rank_of(request.client)
            first = lora.to_tensors(lora.initial(self.world.shapes, self.world.rank, self.world.alpha, self.run.context.seeds))
            factors = lora.leading(first, own) | {n: t for n, t in request.tensors.items() if "/" not in n}
            letters = {"ffa": "B", "fedsvd": "B", "fedsa": "A", "rolora": "BA"[(request.round - 1) % 2]}.get(self.method, "AB")
            change = {n: self.random(tuple(t.shape), n[-1]) for n, t in factors.items() if n[-1] in letters}
            factors |= change if self.method in ABSOLUTE else {n: factors[n] + t for n, t in change.items()}
            updates.append(ClientUpdate(request.client, change, float(self.world.sizes[request.client])))
            for layer in self.world.shapes:
                a, b = factors[f"{layer}.A"].numpy(), factors[f"{layer}.B"].numpy()
                self.terms[layer].append((self.world.sizes[request.client] / total, a, b))
        return updates


def close(found, wanted, what="", relative=1e-4, **more):
    """The sums of thirty clients may be far smaller than their terms, of which the rounding is."""
    assert_near(found, wanted, relative, what=what, **more)


def factors_of(state, layer):
    return state.tensors[f"{layer}.A"].numpy(), state.tensors[f"{layer}.B"].numpy()


def check(rule: str, clients: Clients, before, after) -> None:
    world, run = clients.world, clients.run
    found = dense(run.result(after))
    if rule == "hetlora":
        layers = {layer: terms for layer, terms in clients.terms.items()}
        each = [(size, {layer: layers[layer][k][1:] for layer in layers}) for k, size in enumerate(world.sizes.values())]
        for layer, pair in methods.hetlora(each, world.rank).items():
            for side in (0, 1):
                close(factors_of(after, layer)[side], pair[side], layer)
        return
    for layer, terms in clients.terms.items():
        shape = world.shapes[layer]
        if rule in ("fedavg", "fedit", "fedprox", "fedrot", "lalora", "rolora", "safedlora", "scaffold"):
            pair = methods.fedit(terms, world.rank, factors_of(before, layer))
            close(factors_of(after, layer)[0], pair[0], layer)
            close(factors_of(after, layer)[1], pair[1], layer)
        elif rule in ("fedsa", "ffa"):
            letter = "A" if rule == "fedsa" else "B"
            was = before.tensors[f"{layer}.{letter}"].numpy()
            sent = [(p, a if letter == "A" else b) for p, a, b in terms]
            owners = [(p, a.shape[0]) for p, a, _ in terms]
            wanted = averaging.nested(was.shape, letter, sent, owners)
            unowned = np.arange(world.rank) >= max(rank for _, rank in owners)
            wanted[unowned if letter == "A" else (slice(None), unowned)] = was[unowned if letter == "A" else (slice(None), unowned)]
            close(after.tensors[f"{layer}.{letter}"].numpy(), wanted, layer)
        elif rule == "flexlora":
            close(found[layer], methods.flexlora(shape, terms, world.alpha, world.rank), layer)
        elif rule == "fedsvd":  # the product of the mean B and the A that everybody had, whatever its factors
            pair = methods.fedit([(p, factors_of(before, layer)[0][: b.shape[1]], b) for p, _, b in terms], world.rank, factors_of(before, layer))
            close(found[layer], world.alpha / world.rank * pair[1] @ pair[0], layer)
            a = factors_of(after, layer)[0]
            wide = min(world.rank, shape[1])  # the free rows among them are completed
            close(a[:wide] @ a[:wide].T, np.eye(wide), layer)
        elif rule == "florist":
            cut = methods.florist(shape, terms, world.alpha, world.rank, 0.9)
            close(found[layer], before.tensors.get(f"whole/{layer}", torch.zeros(shape)).double().numpy() + cut, layer)
        elif rule == "fedplora":
            pair = methods.fedplora(terms, factors_of(before, layer), [
                columns(run.context, after.round, name)[layer] for name in world.sizes])
            close(factors_of(after, layer)[0], pair[0], layer)
            close(factors_of(after, layer)[1], pair[1], layer)
        elif rule in ("flexlora partition", "raflora"):
            a, b = factors_of(before, layer)
            most = max(a.shape[0] for _, a, _ in terms)
            stays = world.alpha / world.rank * b[:, most:].astype(np.float64) @ a[most:]
            close(found[layer], methods.flexlora_partition(shape, terms, world.alpha, world.rank, stays), layer)
        elif rule in ("flora", "flora own"):
            common = world.rank if rule == "flora" else None
            stack_a, stack_b = methods.flora(terms, world.alpha, common)
            base = before.tensors.get(f"whole/{layer}", torch.zeros(shape)).double().numpy()
            close(found[layer], base + stack_b @ stack_a, layer)
            close(found[layer], base + methods.ideal(shape, terms, world.alpha, common), layer)
        elif rule == "fedex":
            base = before.tensors.get(f"whole/{layer}", torch.zeros(shape)).double().numpy()
            a, b = (t.astype(np.float64) for t in factors_of(before, layer))
            scale = world.alpha / world.rank
            held = [(p, base - scale * b[:, : own.shape[0]] @ a[: own.shape[0]] + scale * other.astype(np.float64) @ own) for p, own, other in terms]
            close(found[layer], sum(p * update for p, update in held), layer)
            pair = methods.fedit(terms, world.rank, (a, b))
            close(factors_of(after, layer)[0], pair[0], layer)
            close(factors_of(after, layer)[1], pair[1], layer)
            if not world.ranks:  # the paper's own formula: what W0 moves by
                moved = (found[layer].numpy() - scale * pair[1] @ pair[0]) - (base - scale * b @ a)
                size = max(np.abs(base).max(), np.abs(found[layer].numpy()).max())  # of what was subtracted
                close(moved, methods.fedex_residual(terms, world.alpha), layer, size=size)
        else:
            pair = methods.lorafair(terms, world.rank, 0.01, factors_of(before, layer))
            close(factors_of(after, layer)[0], pair[0], layer)
            close(factors_of(after, layer)[1], pair[1], layer, 1e-3)  # solved with a small ridge


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12, deadline=None)
@given(world=worlds())
def test_the_server_merges_as_the_paper_says(rule, world):
    clients = Clients(world, rule, options={"initiating": 1.0} if rule == "safedlora" else {})
    state = clients.run.start()
    for _ in range(2):
        after, info = clients.run.round(state, clients.ask)
        assert info["refused"] == 0
        check(rule, clients, state, after)
        state = after


@settings(max_examples=6, deadline=None)
@given(world=worlds(equal=True))
def test_fedex_at_equal_ranks_adds_the_papers_residual_to_the_base(world):
    clients = Clients(world, "fedex")
    state = clients.run.start()
    for _ in range(3):
        after, _ = clients.run.round(state, clients.ask)
        check("fedex", clients, state, after)
        state = after


@settings(max_examples=8, deadline=None)
@given(world=worlds())
def test_flexlora_gives_the_factors_of_every_rank_at_its_own_scale(world):
    """What a client of rank r is sent is the best rank-r approximation, alpha / r included; alpha != r changes nothing."""
    clients = Clients(world, "flexlora")
    state, _ = clients.run.round(clients.run.start(), clients.ask)
    merged = {layer: methods.ideal(world.shapes[layer], terms, world.alpha) for layer, terms in clients.terms.items()}
    seen = []
    clients.run.round(state, lambda requests: seen.extend(requests) or clients.ask(requests))
    for request in seen:
        for layer, update in dense(lora.from_tensors(request.tensors, world.alpha)).items():
            rank = clients.run.context.rank_of(request.client)(layer)
            close(update, methods.products.truncation(merged[layer], rank), f"{request.client} {layer}")


@settings(max_examples=10, deadline=None)
@given(world=worlds())
def test_private_sums_of_unequal_ranks_are_divided_column_by_column(world):
    """Clipped to C as a whole, padded, and every column over the planned clients that own it, whoever replied."""
    clients = Clients(world, "fedit", privacy=ON.model_copy(update={"clip": 0.7}), noise=ZeroNoise(), options={"weights": "uniform"})
    before = clients.run.start()
    answered = {}

    def ask(requests):
        answered.update({r.client: r for r in clients.ask(requests)})
        answered.pop("c00")  # does not update: the denominator knows nothing of it
        return list(answered.values())

    after, _ = clients.run.round(before, ask)
    short = {n: averaging.shorten({k: t.numpy() for k, t in r.tensors.items()}, 0.7) for n, r in answered.items()}
    for layer in world.shapes:
        owners = [(1.0, clients.run.context.rank_of(n)(layer)) for n in world.sizes]
        for letter in "AB":
            name = f"{layer}.{letter}"
            wanted = averaging.nested(before.tensors[name].shape, letter, [(1.0, share[name]) for share in short.values()], owners)
            close(after.tensors[name], before.tensors[name].numpy() + wanted, name, 1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "cubic", "exponential"])
@settings(max_examples=5, deadline=None)
@given(world=worlds())
def test_safedlora_cuts_to_the_best_approximation_and_averages_below_it(schedule, world):
    clients = Clients(world, "safedlora", planned_rounds=4, options={"initiating": 0.5, "schedule": schedule})
    module, run = clients.run.module, clients.run
    state = run.start()
    least = max(1, world.rank // 4)
    for number in (1, 2, 3, 4):
        u = max(0, number - 2) / 2
        wanted = {"cosine": least + (world.rank - least) * (1 + np.cos(np.pi * u)) / 2, "cubic": least + (world.rank - least) * (1 - u) ** 3,
                  "exponential": world.rank * (least / world.rank) ** u}[schedule]
        rank = module.rank_at(run.config, run.context, number)
        assert rank == max(least, int(wanted + 0.5)) if number > 2 else rank == world.rank
        seen = []
        after, info = run.round(state, lambda requests, seen=seen: seen.extend(requests) or clients.ask(requests))
        assert info["rank"] == rank
        for layer in world.shapes:
            a, b = (t.astype(np.float64) for t in factors_of(state, layer))
            cut = methods.products.truncation(b @ a, rank)
            for request in seen:
                own = min(rank, run.context.rank_of(request.client)(layer))
                sent = request.tensors[f"{layer}.A"].double().numpy(), request.tensors[f"{layer}.B"].double().numpy()
                assert sent[0].shape[0] == own
                assert np.abs(sent[0]).max(axis=1).min() > 0, "a column with A = 0 and B = 0 would never learn"
                if own == rank:
                    close(sent[1] @ sent[0], cut, f"{number} {layer}")
            full = next((o.tensors for o in seen if o.tensors[f"{layer}.A"].shape[0] == rank), None)
            if full is not None:
                start = full[f"{layer}.A"].numpy(), full[f"{layer}.B"].numpy()
                pair = methods.fedit(clients.terms[layer], rank, start)
                close(factors_of(after, layer)[0][:rank], pair[0], layer)
                close(factors_of(after, layer)[1][:, :rank], pair[1], layer)
            if number > 2:
                assert not factors_of(after, layer)[1][:, rank:].any()
        state = after


@settings(max_examples=8, deadline=None)
@given(world=worlds(equal=True), lr=st.floats(0.1, 1.0), mu=st.floats(0.0, 0.95))
def test_fdlora_takes_the_outer_nesterov_step_of_the_paper(world, lr, mu):
    """Line 7: the plain mean of stage 1. Lines 8 to 19: the mean pseudo-gradient through Nesterov momentum."""
    clients = Clients(world, "fdlora", options={"server_lr": lr, "momentum": mu, "weights": "uniform"})
    state, _ = clients.run.round(clients.run.start(), clients.ask)
    velocity = {}
    for layer, terms in clients.terms.items():
        for side in (0, 1):
            close(factors_of(state, layer)[side], np.mean([term[1 + side] for term in terms], axis=0), layer)
            velocity[layer, side] = np.zeros(())
    for _ in range(3):
        after, _ = clients.run.round(state, clients.ask)
        for layer, terms in clients.terms.items():
            for side in (0, 1):
                wanted, velocity[layer, side] = methods.outer(
                    factors_of(state, layer)[side], [term[1 + side] for term in terms], velocity[layer, side], lr, mu)
                close(factors_of(after, layer)[side], wanted, layer)
        state = after


# -- server optimisers -----------------------------------------------------------------------------------------

KINDS = ["plain", "momentum", "nesterov", "adagrad", "adam", "adamw", "yogi"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), lr=st.floats(0.01, 2.0), beta1=st.floats(0.0, 0.99), beta2=st.floats(0.0, 0.999), tau=st.floats(1e-4, 0.1))
def test_server_optimisers_entry_by_entry(kind, seed, lr, beta1, beta2, tau):
    config = server_optimizer.ServerConfig(server=kind, server_lr=lr, momentum=beta1, beta2=beta2, tau=tau, server_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    theta = {"x": torch.randn(3, 2, generator=generator)}
    state = server_optimizer.initial_state(config, theta)
    assert len(state.tensors) == 1 + {"plain": 0, "momentum": 1, "nesterov": 1}.get(kind, 2)
    updates = [torch.randn(3, 2, generator=generator) * 10 ** (-k) for k in range(4)]
    for update in updates:
        state = State(state.round + 1, server_optimizer.server_step(config, state, {"x": update}))
    wanted = averaging.serve(kind, theta["x"].numpy(), [u.numpy() for u in updates], lr=lr, beta1=beta1, beta2=beta2, tau=tau, decay=0.05)
    close(state.factors["x"], wanted, relative=3e-5)


@pytest.mark.parametrize("kind", ["momentum", "nesterov"])
def test_momentum_is_that_of_torch_on_the_negative_update(kind):
    config = server_optimizer.ServerConfig(server=kind, server_lr=0.3, momentum=0.8)
    generator = torch.Generator().manual_seed(0)
    ours = {"x": torch.randn(3, 2, generator=generator)}
    theirs = torch.nn.Parameter(ours["x"].clone())
    optimizer = torch.optim.SGD([theirs], lr=0.3, momentum=0.8, nesterov=kind == "nesterov")
    state = server_optimizer.initial_state(config, ours)
    for _ in range(5):
        update = torch.randn(3, 2, generator=generator)
        state = State(state.round + 1, server_optimizer.server_step(config, state, {"x": update}))
        theirs.grad = -update
        optimizer.step()
    close(state.factors["x"], theirs, relative=1e-5)


def test_parameters_that_no_update_names_keep_their_values_and_moments():
    config = server_optimizer.ServerConfig(server="adamw", server_decay=0.5)
    theta = {"x": torch.ones(2), "y": torch.ones(2)}
    state = server_optimizer.initial_state(config, theta)
    after = server_optimizer.server_step(config, state, {"x": torch.ones(2)})
    assert torch.equal(after["y"], theta["y"])
    assert torch.equal(after["m/y"], state.tensors["m/y"])
    assert not torch.equal(after["x"], theta["x"])
    assert torch.equal(theta["x"], torch.ones(2))
