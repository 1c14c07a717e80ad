"""What sites remember, through a checkpoint and back."""

from __future__ import annotations

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.federation import WIDE, Federation, unlike

from aulait.core.types import Plan, Site
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import client_state
from aulait.runs.progress import Progress


def through(memories: dict) -> dict:
    """Packed, written as JSON and tensors, and unpacked."""
    tensors, plain = client_state.packed(memories)
    return client_state.unpacked({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(plain)))


plain_values = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none(), st.builds(
    lambda n: torch.arange(n, dtype=torch.float32), st.integers(0, 4)))
nested = st.recursive(plain_values, lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=4), st.dictionaries(st.text(max_size=4), nested, max_size=3), max_size=4))
def test_any_memory_comes_back_as_it_was(memories):
    wanted = {name: own for name, own in memories.items() if own}
    assert unlike(through(memories), wanted) == ""


def test_names_like_those_of_the_packing_are_names_like_others():
    tricky = {"ann": {"tensor": 3, "mapping": {"value": torch.ones(1), "tensor": {"mapping": 0}}, "value": {}}}
    assert unlike(through(tricky), tricky) == ""


def test_what_is_equal_by_chance_stays_apart_and_what_is_one_is_stored_once():
    one, twin = torch.ones(3), torch.ones(3)
    tensors, _ = client_state.packed({"ann": {"x": one, "y": one}, "bob": {"x": one, "z": twin}})
    assert len(tensors) == 2
    back = through({"ann": {"x": one, "y": one}, "bob": {"x": one, "z": twin}})
    assert back["ann"]["x"] is back["ann"]["y"] is back["bob"]["x"]
    assert back["bob"]["z"] is not back["bob"]["x"]


def test_mappings_that_sites_share_are_one_object_again():
    """Sites that stand on one folded base keep standing on one, or every pass over the base would be made for each."""
    whole = {"one": torch.ones(2, 3), "two": torch.zeros(3)}
    back = through({name: {"kept": {"round": 2, "before": {}, "after": whole}} for name in ("ann", "bob")})
    assert back["ann"]["kept"]["after"] is back["bob"]["kept"]["after"]
    assert back["ann"]["kept"] is not back["bob"]["kept"]
    assert back["ann"]["kept"]["before"] == {}
    assert back["ann"]["kept"]["round"] == 2


def test_sites_that_remember_nothing_leave_no_trace():
    assert client_state.packed({"ann": {}, "bob": {}}) == ({}, {})
    assert client_state.unpacked({}, {}) == {}


def test_a_resumed_run_of_folding_sites_trains_on_one_shared_base(tmp_path):
    for method in ("flora", "fedex"):
        run = Federation(method, shapes=WIDE, clients=tuple(f"c{k}" for k in range(6)), rank=2)
        progress = Progress()
        progress.bind(run.sites)
        progress.state = run.rounds(3)
        folder = RunFolder(tmp_path / method)
        progress.save(folder)
        stored, _ = folder.restore()
        grown = [t for name, t in stored.items() if name.startswith(client_state.PREFIX)]
        assert len(grown) == 2 * len(WIDE)  # G before and after the last round, once for all six sites
        loaded = Progress.load(folder)
        resumed = Federation(method, shapes=WIDE, clients=run.clients, rank=2)
        loaded.bind(resumed.sites)
        resumed.round(loaded.state)
        assert len({id(work.fold) for work in resumed.learner.works}) == 1
        assert all(site.memory is loaded.memory[name] for name, site in resumed.sites.items())


def test_binding_gives_sites_their_memory_and_follows_what_they_learn(tmp_path):
    site = Site("ann", Plan("t", "local", 1, 1, 1), ())
    progress = Progress(memory={"ann": {"kept": {"round": 1, "x": torch.ones(2)}}, "gone": {"y": 1}})
    progress.bind({"ann": site})
    assert torch.equal(site.memory["kept"]["x"], torch.ones(2))
    site.memory["more"] = 5
    progress.save(RunFolder(tmp_path))
    back = Progress.load(RunFolder(tmp_path)).memory
    assert unlike(back, {"ann": site.memory}) == ""
