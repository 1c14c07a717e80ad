"""Defaults that do not destroy an adapter, and HetLoRA's pruning layer by layer."""

from __future__ import annotations

import torch
from tests.contract.federation import WIDE, Federation, StubLearner

from aulait.core import lora
from aulait.methods import fdlora, fedit, hetlora
from aulait.methods.shared.server_optimizer import ServerConfig
from aulait.runs.experiment_file import build_settings, dump_settings, renewed_settings


def test_an_adaptive_server_has_a_rate_and_a_momentum_of_its_own():
    assert ServerConfig().server_lr == ServerConfig(server="momentum").server_lr == 1.0
    for name in ("adagrad", "adam", "adamw", "yogi"):
        assert fedit.Config(server=name).server_lr == fdlora.Config(server=name).server_lr == 0.01
        assert fedit.Config(server=name, server_lr=0.5, momentum=0.3).momentum == 0.3
        assert fedit.Config(server=name, server_lr=0.5).server_lr == 0.5
    assert fedit.Config(server="adagrad").momentum == 0.0
    assert fedit.Config(server="adam").momentum == 0.9
    again = fedit.Config.model_validate(fedit.Config(server="adam", server_lr=0.2).model_dump())
    assert again.server_lr == 0.2


def test_a_step_of_an_adaptive_server_at_its_defaults_is_no_larger_than_its_rate():
    """An entry moves by about server_lr at most, whatever the size of the update."""
    for name in ("adagrad", "adam", "adamw", "yogi"):
        run = Federation("fedit", options={"server": name})
        state = run.start()
        after, _ = run.round(state)
        moved = lora.subtract(after.factors, state.factors)
        assert 0 < max(float(t.abs().max()) for t in moved.values()) <= 0.0101


def test_fdlora_at_its_defaults_follows_a_steady_stream_of_changes_at_its_own_pace():
    """1 - momentum: what plain averaging would do, and not seven times that."""
    config = fdlora.Config()
    assert config.server_lr / (1 - config.momentum) < 1.0001


class OneShrinks(StubLearner):
    """From the second round on, layer 'one' is halved and layer 'two' doubled."""

    def _moved(self, work):
        first = not any(bool(b.any()) for _, b in work.start.factors.values())
        by = {"one": 0.5, "two": 2.0}
        return work.start.holding({
            layer: (a, torch.ones_like(b)) if first else (by[layer] * a, by[layer] * b)
            for layer, (a, b) in work.start.factors.items()})


def test_a_layer_prunes_itself_where_its_own_tail_has_shrunk():
    """The round in which a layer prunes itself sends zeros; from the next on it is smaller."""
    run = Federation("hetlora", shapes=WIDE, rank=4, learner=OneShrinks(),
                     options={"prune_by": "layer", "keep": 0.75, "tail": 0.0})
    state, seen = run.start(), []
    for _ in range(4):
        seen.append(hetlora.ranks(run.config, run.context, state, "ann"))
        state, info = run.round(state)
        assert info["refused"] == 0
    assert [own["one"] for own in seen] == [4, 4, 3, 2]
    assert [own["two"] for own in seen] == [4, 4, 4, 4]
    sent = [request.tensors["one.A"].shape[0] for request in run.requests if request.client == "ann"]
    assert sent == [4, 4, 3, 2]
    whole = Federation("hetlora", shapes=WIDE, rank=4, learner=OneShrinks(),
                       options={"prune": False, "keep": 0.75, "tail": 0.0})
    assert len(whole.rounds(3).tensors) == 4, "and without pruning nothing is remembered"


def test_an_old_run_of_flora_with_unequal_ranks_keeps_its_scale():
    """A file of resolved settings from before there was a choice."""
    tree = {"algorithm": {"name": "flora"}, "privacy": {"off": True}, "adapter": {"rank": 4},
            "federation": {"tier": [{"name": "a", "count": 1, "rank": 2}, {"name": "b"}]}}
    for own in (True, False):
        if not own:
            tree["federation"] = {"tier": [{"name": "b"}]}
        before = dump_settings(build_settings(tree)).replace('scale = "common"\n', "")
        assert '\nscale = ' not in before
        renewed = renewed_settings(before)
        assert ('scale = "own"' in renewed) == own
        assert ('scale = "common"' in renewed) != own
