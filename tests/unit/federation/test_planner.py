"""The planner: nothing exceeds a machine's memory or the dial, more machine never means less work, and reasons are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.factors import Trainable
from aulait.core.types import Profile
from aulait.federation import planner
from aulait.federation.config import ComputeConfig
from aulait.federation.planner import Demand
from aulait.resources import cost_model
from aulait.resources.cost_model import Block, ModelShape

WIDTH, BLOCKS = 64, 4


def model_shape() -> ModelShape:
    layers = {"q_proj": (WIDTH, WIDTH), "o_proj": (WIDTH, WIDTH), "up_proj": (4 * WIDTH, WIDTH), "down_proj": (WIDTH, 4 * WIDTH)}
    blocks = tuple(Block({f"model.layers.{i}.{name}": shape for name, shape in layers.items()}, WIDTH, "decoder", False) for i in range(BLOCKS))
    inner = sum(m * n for m, n in layers.values())
    parameters = BLOCKS * inner + 1000 * WIDTH
    return ModelShape(blocks, WIDTH, 1000, parameters, 1000 * WIDTH, 4 * parameters, "causal", True)


def demand(**changes) -> Demand:
    body = model_shape()
    names = [name for block in body.blocks for name in block.layers]
    made = Demand(
        model_shape=body, dtype="float32", trainable=Trainable.AB, ranks=lambda rank: dict.fromkeys(names, rank), steps=8, row=(32, 0, 32),
        travels=lambda rank: (40_000 * rank, 40_000 * rank), front=lambda rank, cut: (10_000 * rank * cut, 10_000 * rank * cut),
        vote=(cost_model.voting(10, 20, 32), (80, 2560)), cut=1, wire_bytes=4, server=machine(1e13))
    return replace(made, **changes)


def machine(flop_per_s=1e11, memory_bytes=10**9, link=1e6, **more) -> Profile:
    return Profile("toy", flop_per_s={"float32": flop_per_s}, memory_bytes=memory_bytes, memory_bytes_per_s=1e11,
                   up_bytes_per_s=link, down_bytes_per_s=link, power_w=10.0, **more)


RANKS = (8, 4, 2, 1)


def test_a_large_machine_gets_the_whole_share():
    found = planner.choose_placement(demand(), machine(1e13, link=1e9), ComputeConfig(), RANKS, 4)
    assert (found.placement, found.rank, found.steps, found.batch, found.why) == ("local", 8, 8, 4, "fits whole")


@settings(max_examples=60, deadline=None)
@given(flop=st.floats(1e7, 1e13), memory=st.integers(10**5, 10**8), link=st.floats(1e3, 1e9), dial=st.floats(0.01, 100.0),
       batch=st.integers(1, 16))
def test_nothing_planned_exceeds_memory_or_dial(flop, memory, link, dial, batch):
    profile, asked = machine(flop, memory, link), ComputeConfig(round_s=dial)
    found = planner.choose_placement(demand(), profile, asked, RANKS, batch)
    if isinstance(found, str):
        assert "nearest" in found
        return
    assert found.memory_bytes <= memory
    assert found.round_s <= dial * (1 + 1e-9)
    assert 1 <= found.rank <= 8
    assert 1 <= found.steps <= 8
    assert 1 <= found.batch <= batch
    again = planner.WAYS[found.placement](demand(), profile, found.rank, found.steps, found.batch)
    assert again.round_s == found.round_s


@settings(max_examples=40, deadline=None)
@given(flop=st.floats(1e8, 1e12), memory=st.integers(10**6, 10**8), dial=st.floats(0.05, 10.0))
def test_a_better_machine_never_reads_less(flop, memory, dial):
    def work(profile):
        found = planner.choose_placement(demand(), profile, ComputeConfig(round_s=dial), RANKS, 4)
        return -1 if isinstance(found, str) else 0 if found.placement == "proxy" else found.steps * found.batch

    own = work(machine(flop, memory))
    assert work(machine(2 * flop, memory)) >= own
    assert work(machine(flop, 2 * memory)) >= own


def test_the_choice_is_the_best_of_all_that_are_possible():
    """Against a search over every rank, batch and number of steps."""
    for flop in (1e8, 1e9, 1e10):
        for dial in (0.3, 1.0, 5.0):
            profile, asked = machine(flop, link=1e5), ComputeConfig(round_s=dial)
            found = planner.choose_placement(demand(cut=None, no_split="not here"), profile, asked, RANKS, 4)
            every = [planner.local(demand(), profile, rank, steps, batch) for rank in RANKS for steps in range(1, 9) for batch in (4, 2, 1)]
            possible = [one for one in every if one.memory_bytes <= profile.memory_bytes and one.round_s <= dial]
            if not possible:
                assert isinstance(found, str) or found.placement == "proxy"
                continue
            best = max(one.steps * one.batch for one in possible)
            assert found.steps * found.batch == best
            assert found.rank == max(one.rank for one in possible if one.steps * one.batch == best)


def test_a_machine_that_holds_only_the_front_is_split():
    whole = planner.local(demand(), machine(), 1, 1, 1).memory_bytes
    front = planner.split(demand(), machine(), 1, 1, 1).memory_bytes
    assert front < whole
    found = planner.choose_placement(demand(), machine(memory_bytes=int((front + whole) / 2)), ComputeConfig(), RANKS, 4)
    assert found.placement == "split"
    assert "local takes" in found.why


def test_a_machine_that_holds_no_part_votes_and_says_why():
    votes = planner.proxy(demand(), machine(), 1, 1, 1).memory_bytes
    front = planner.split(demand(), machine(), 1, 1, 1).memory_bytes
    assert votes < front
    found = planner.choose_placement(demand(), machine(memory_bytes=int((votes + front) / 2)), ComputeConfig(), RANKS, 4)
    assert found.placement == "proxy"
    assert "local takes" in found.why


def test_an_impossible_plan_is_one_line_with_the_nearest_settings_that_work():
    asked = ComputeConfig(round_s=1e-6)
    found = planner.choose_placement(demand(), machine(), asked, RANKS, 4)
    assert isinstance(found, str)
    assert "\n" not in found
    assert "compute.round_s = 1e-06" in found
    nearest = float(found.rpartition("compute.round_s = ")[2])
    assert not isinstance(planner.choose_placement(demand(), machine(), ComputeConfig(round_s=nearest), RANKS, 4), str)
    tiny = planner.choose_placement(demand(), machine(memory_bytes=1000), ComputeConfig(), RANKS, 4)
    assert isinstance(tiny, str)
    assert "a machine with more memory" in tiny


def test_a_crowd_of_split_clients_waits_for_the_server():
    """By hand: ten clients of batch 4 at 16 rows a pass are three passes, two full ones and their like."""
    alone, crowded = (planner.split(demand(crowd=n, server=machine(1e9)), machine(), 8, 2, 4) for n in (1, 10))
    body = demand(server=machine(1e9))
    full = cost_model.split_step(body.model_shape, cost_model.Cut(1), body.batch(16), body.ranks(8)).server
    assert crowded.server_s == pytest.approx(2 * 3 * cost_model.seconds(full, body.server))
    assert crowded.compute_s - crowded.server_s == pytest.approx(alone.compute_s - alone.server_s)
    slow = machine(memory_bytes=10**9)
    found = planner.choose_placement(demand(crowd=1000, server=machine(1e8)), slow, ComputeConfig(round_s=alone.round_s), RANKS, 4)
    assert isinstance(found, str) or found.placement != "split"


def test_under_privacy_nobody_is_split():
    whole = planner.local(demand(), machine(), 1, 1, 1).memory_bytes
    front = planner.split(demand(), machine(), 1, 1, 1).memory_bytes
    between = machine(memory_bytes=int((front + whole) / 2))
    found = planner.choose_placement(demand(cut=None, no_split="split is refused under privacy"), between, ComputeConfig(), RANKS, 4)
    assert not isinstance(found, str)
    assert found.placement == "proxy"


def test_seconds_by_hand():
    """A split share: client and server in turn, one exchange in every step, the front's factors once."""
    body, profile = demand(), machine(latency_s=0.1)
    step = cost_model.split_step(body.model_shape, cost_model.Cut(1, 4), body.batch(4), body.ranks(8), trainable=Trainable.AB, dtype="float32")
    found = planner.split(body, profile, 8, 3, 4)
    own = 3 * (cost_model.seconds(step.client, profile) + cost_model.seconds(step.server, body.server))
    link = 3 * (0.2 + (step.up_bytes + step.down_bytes) / 1e6) + 0.2 + 160_000 / 1e6
    assert found.compute_s == pytest.approx(own)
    assert found.transfer_s == pytest.approx(link)
    assert found.up_bytes == 80_000 + 3 * step.up_bytes
    assert step.up_bytes == 4 * 32 * WIDTH * 4 + 4 * 4 * 32
    assert found.energy_j == pytest.approx(10.0 * 3 * cost_model.seconds(step.client, profile))


def test_auto_takes_only_what_is_allowed():
    front = planner.split(demand(), machine(), 1, 1, 1).memory_bytes
    whole = planner.local(demand(), machine(), 1, 1, 1).memory_bytes
    found = planner.choose_placement(demand(), machine(memory_bytes=int((front + whole) / 2)), ComputeConfig(allowed=("local", "proxy")), RANKS, 4)
    assert not isinstance(found, str)
    assert found.placement == "proxy"
    none = planner.choose_placement(demand(), machine(memory_bytes=1000), ComputeConfig(allowed=("local",)), RANKS, 4)
    assert isinstance(none, str)
    assert "split: not in compute.allowed" in none


def test_a_split_share_says_what_the_whole_model_would_have_read():
    slow = machine(flop_per_s=2e8, link=1e8)
    local = planner.local(demand(), slow, 1, 8, 4).round_s
    found = planner.choose_placement(demand(), slow, ComputeConfig(round_s=local / 2), RANKS, 4)
    assert not isinstance(found, str)
    assert found.placement == "split"
    assert "records a round, the whole model" in found.why


@settings(max_examples=40, deadline=None)
@given(flop=st.floats(1e7, 1e13), memory=st.integers(10**5, 10**7), link=st.floats(1e4, 1e9), crowd=st.integers(1, 4000),
       dial=st.one_of(st.none(), st.floats(0.01, 100.0)))
def test_the_planner_cuts_where_most_is_read_and_the_round_ends_soonest(flop, memory, link, crowd, dial):
    """Against all cuts one after another, each as if it were the only one."""
    profile, asked = machine(flop, memory, link), ComputeConfig(round_s=dial, allowed=("split",))
    work = demand(cuts=(1, 2, 3), crowd=crowd)
    found = planner.choose_placement(work, profile, asked, RANKS, 4)
    alone = [planner.choose_placement(replace(work, cut=cut, cuts=(cut,)), profile, asked, RANKS, 4) for cut in (1, 2, 3)]
    possible = [one for one in alone if not isinstance(one, str)]
    if not possible:
        assert isinstance(found, str)
        return
    best = max(possible, key=lambda one: (one.steps * one.batch, one.rank, one.batch, -one.round_s))
    assert (found.cut, found.rank, found.steps, found.batch) == (best.cut, best.rank, best.steps, best.batch)
    assert f"the front {found.cut} blocks" in found.why


def test_a_machine_of_little_memory_is_cut_early_and_a_fast_one_beside_a_busy_server_late():
    small, roomy = (planner.at_best_cut("split", demand(cuts=(1, 2, 3), crowd=4000), machine(1e13, memory, link=1e9), 4, 8, 4)
                    for memory in (800_000, 10**9))
    assert (small.cut, roomy.cut) == (1, 3)
    assert planner.at_best_cut("split", demand(cuts=(1, 2, 3)), machine(1e8), 4, 8, 4).cut == 1
    nowhere = planner.at_best_cut("split", demand(cuts=(1, 2, 3)), machine(1e13, 1000), 4, 8, 4)
    assert nowhere.cut == 1
    assert not planner.fits(nowhere, machine(1e13, 1000))
