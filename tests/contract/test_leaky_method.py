"""Third-party methods that go around the aggregator under privacy: the run ends in an error and writes no adapter.

The first one is the review's: it averages raw replies, declares no traffic, and its run ended with "epsilon 0.00 ... agrees".
"""

import types

import pytest
import torch
from tests import tiny_run

from aulait.cli.account import recount
from aulait.core import lora
from aulait.core.errors import DataError, PrivacyError
from aulait.core.types import TrainRequest
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS, ffa
from aulait.methods.contract import State
from aulait.methods.description import Abilities, described
from aulait.runs.loop import run

DESCRIPTION = """A method that reads what it may not.

what: averages raw updates
source: nobody
travels: up nothing; down nothing
privacy: none
differs: it leaks
unequal ranks: yes
exact: no
"""
PRIVATE = {"epsilon": 50.0, "delta": 1e-2, "relation": "add-remove", "clip": 1.0}


def asked(state, cohort, server):
    return server.ask([TrainRequest(name, cohort.round, state.tensors, {"lr": cohort.lr}) for name in cohort.local])


def averages(state, cohort, server):
    return lora.weighted_sum([(1.0 / cohort.planned, update.tensors) for update in asked(state, cohort, server)])


def averages_losses(state, cohort, server):
    losses = [update.info["train_loss"] for update in asked(state, cohort, server)]
    return {name: value + sum(losses) for name, value in state.tensors.items()}


def averages_sizes(state, cohort, server):
    sizes = [update.weight for update in asked(state, cohort, server)]
    return {name: value + sum(sizes) for name, value in state.tensors.items()}


def averages_what_it_stole(state, cohort, server):
    """Lets one sum be released as it should, and uses what its transform saw."""
    from aulait.privacy.aggregator import Release

    stolen = []

    def transform(update):
        stolen.append(update.tensors)
        return update.tensors

    server.aggregator.release(asked(state, cohort, server), Release.of_cohort(cohort, stage="train", bound=1.0, template=state.tensors),
                              transform=transform)
    return lora.weighted_sum([(1.0 / cohort.planned, own) for own in stolen])


def keeps_quiet(state, cohort, server):
    """Asks, releases nothing."""
    list(asked(state, cohort, server))
    return state.tensors


def leaky(name, reading, declares):
    """A method of this process: FFA, but for what the server does with the updates."""
    module = types.ModuleType(name)
    module.__dict__.update(
        Config=ffa.Config, TRAITS=described(name, DESCRIPTION, Abilities()), answer=ffa.answer, result=ffa.result,
        init=lambda config, context: State(0, lora.untagged(ffa.init(config, context).tensors)),
        step=lambda config, context, state, cohort, server: (State(cohort.round, reading(state, cohort, server)), {}),
        travels=ffa.travels if declares else lambda *_: (0, 0))
    if name not in METHODS:
        METHODS.register(name)(module)
    return name


@pytest.mark.parametrize(("reading", "declares", "message"), [
    (averages, False, "'travels'"),
    (averages, True, "read outside the aggregator"),
    (averages_losses, True, "read outside the aggregator"),
    (averages_sizes, True, "read outside the aggregator"),
    (averages_losses, False, "'travels'"),
    (keeps_quiet, True, "expected 1 by the privacy plan"),
])
def test_a_method_that_goes_around_the_aggregator_ends_in_an_error_and_writes_no_adapter(tmp_path, reading, declares, message):
    tiny_run.write_data(tmp_path)
    name = leaky(f"leaky-{reading.__name__}-{declares}", reading, declares)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, algorithm={"name": name}, synthesis={"proxies": "absent"})
    with pytest.raises(PrivacyError, match=message):
        run(settings, tmp_path / "run", InlineEngine())
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "rounds.jsonl").exists() or not (tmp_path / "run" / "rounds.jsonl").read_text()
    with pytest.raises(DataError, match=r"no result\.json"):
        recount(tmp_path / "run")
    with pytest.raises(PrivacyError, match=message):
        run(settings, tmp_path / "run", InlineEngine(), resume=True)


def test_what_a_transform_saw_is_nothing_afterwards(tmp_path):
    tiny_run.write_data(tmp_path)
    name = leaky("leaky-stolen", averages_what_it_stole, True)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, algorithm={"name": name}, synthesis={"proxies": "absent"}, train={"rounds": 1})
    run(settings, tmp_path / "run", InlineEngine())
    from safetensors.torch import load_file

    factors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.count_nonzero(value) == 0 for key, value in factors.items() if "lora_B" in key)


def test_the_same_method_runs_without_privacy(tmp_path):
    tiny_run.write_data(tmp_path)
    name = leaky("leaky-open", averages, True)
    settings = tiny_run.settings(tmp_path, algorithm={"name": name}, synthesis={"proxies": "absent"}, train={"rounds": 1})
    assert run(settings, tmp_path / "run", InlineEngine())["rounds"] == 1
