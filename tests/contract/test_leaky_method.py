"""Third-party methods that go around the aggregator under privacy: the run ends in an error and
writes no adapter.

The first one is the review's: it averages raw replies, declares no traffic, and its run ended with
"epsilon 0.00 ... agrees".
"""

import dataclasses
import json
import types

import pytest
import torch
from tests import tiny_run

from aulait.cli.account import recount
from aulait.core import lora
from aulait.core.errors import DataError, PrivacyError
from aulait.core.types import ClientUpdate, TrainRequest
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS, dplora, ffa
from aulait.methods.contract import State
from aulait.methods.description import Abilities, described
from aulait.privacy.aggregator import BudgetSpent, Release
from aulait.privacy.ledger import Ledger
from aulait.privacy.mechanisms import find_mechanism
from aulait.runs.loop import run
from aulait.runs.prepared import SharedCache

DESCRIPTION = """A method that reads what it may not.

what: averages raw updates
source: nobody
travels: up nothing; down nothing
privacy: none
differs: it leaks
unequal ranks: yes
exact: no
"""
RELATION = find_mechanism("dp-sgd").relations[0]
PRIVATE = {"epsilon": 50.0, "delta": 1e-2, "relation": "add-remove", "clip": 1.0}


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    """What a test files here is gone after it."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))


def asked(state, cohort, server):
    return server.ask([TrainRequest(name, cohort.round, state.tensors, {"lr": cohort.lr})
                       for name in cohort.local])


def averages(state, cohort, server):
    return lora.weighted_sum([(1.0 / cohort.planned, update.tensors)
                              for update in asked(state, cohort, server)])


def averages_losses(state, cohort, server):
    losses = [update.info["train_loss"] for update in asked(state, cohort, server)]
    return {name: value + sum(losses) for name, value in state.tensors.items()}


def averages_sizes(state, cohort, server):
    sizes = [update.weight for update in asked(state, cohort, server)]
    return {name: value + sum(sizes) for name, value in state.tensors.items()}


def averages_what_it_stole(state, cohort, server):
    """Lets one sum be released as it should, and uses what its transform saw."""
    stolen = []

    def transform(update):
        stolen.append(update.tensors)
        return update.tensors

    server.aggregator.release(asked(state, cohort, server), Release.of_cohort(cohort, stage="train",
        bound=1.0, template=state.tensors),
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
        Config=ffa.Config, TRAITS=described(name, DESCRIPTION, Abilities()), answer=ffa.answer,
        result=ffa.result,
        init=lambda config, context: State(0, lora.untagged(ffa.init(config, context).tensors)),
        step=lambda config, context, state, cohort,
        server: (State(cohort.round, reading(state, cohort, server)), {}),
        travels=ffa.travels if declares else lambda *_: (0, 0))
    if name not in METHODS:
        METHODS.register(name)(module)
    return name


def releases_and_then_says_that_it_cannot_pay(state, cohort, server):
    """Pays for one sum, and hides that by a stop that would keep the round out of the
    comparison."""
    server.aggregator.release(asked(state, cohort, server), Release.of_cohort(cohort, stage="train",
        bound=1.0, template=state.tensors))
    raise BudgetSpent("no more")


@pytest.mark.parametrize(("reading", "declares", "message"), [
    (releases_and_then_says_that_it_cannot_pay, True, "and then spends more"),
    (averages, False, "'travels'"),
    (averages, True, "read outside the aggregator"),
    (averages_losses, True, "read outside the aggregator"),
    (averages_sizes, True, "read outside the aggregator"),
    (averages_losses, False, "'travels'"),
    (keeps_quiet, True, "expected 1 by the privacy plan"),
])
def test_a_method_that_goes_around_the_aggregator_ends_in_an_error_and_writes_no_adapter(tmp_path,
        reading, declares, message):
    tiny_run.write_data(tmp_path)
    name = leaky(f"leaky-{reading.__name__}-{declares}", reading, declares)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, algorithm={"name": name},
        synthesis={"proxies": "absent"})
    with pytest.raises(PrivacyError, match=message):
        run(settings, tmp_path / "run", InlineEngine())
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "rounds.jsonl").exists() or not (tmp_path / "run"
        / "rounds.jsonl").read_text()
    with pytest.raises(DataError, match=r"no result\.json"):
        recount(tmp_path / "run")
    with pytest.raises(PrivacyError, match=message):
        run(settings, tmp_path / "run", InlineEngine(), resume=True)


def test_what_a_transform_saw_is_nothing_afterwards(tmp_path):
    tiny_run.write_data(tmp_path)
    name = leaky("leaky-stolen", averages_what_it_stole, True)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, algorithm={"name": name},
        synthesis={"proxies": "absent"}, train={"rounds": 1})
    run(settings, tmp_path / "run", InlineEngine())
    from safetensors.torch import load_file

    factors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.count_nonzero(value) == 0 for key, value in factors.items() if "lora_B" in key)


def test_a_sum_outside_the_plan_cannot_be_released(tmp_path):
    """It says that nothing travels, so nothing is planned, and asks the aggregator for a sum of
    what it made up itself."""
    def makes_up(state, cohort, server):
        made = [ClientUpdate(name, state.tensors) for name in cohort.local]
        return server.aggregator.release(made, Release.of_cohort(cohort, stage="train", bound=1.0,
            template=state.tensors)).total

    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE,
        algorithm={"name": leaky("leaky-made-up", makes_up, False)},
                                 synthesis={"proxies": "absent"})
    with pytest.raises(PrivacyError):
        run(settings, tmp_path / "run", InlineEngine())
    assert not (tmp_path / "run" / "adapter").exists()
    assert Ledger(tmp_path / "run" / "ledger.jsonl").lines == ()


def test_a_first_stage_of_another_run_is_held_against_the_plan_before_it_is_taken_over(tmp_path):
    tiny_run.write_data(tmp_path)
    settings, cache = tiny_run.settings(tmp_path, privacy=PRIVATE), SharedCache()
    run(settings, tmp_path / "one", InlineEngine(), cache=cache)
    (key,) = [key for key in cache.kept if key.startswith("stage-one")]
    cache.kept[key] = dataclasses.replace(cache.kept[key], ledger=cache.kept[key].ledger[:1])
    with pytest.raises(PrivacyError, match="synthesis round 2 has 0 lines"):
        run(settings, tmp_path / "two", InlineEngine(), cache=cache)
    assert Ledger(tmp_path / "two" / "ledger.jsonl").lines == ()


def test_alone_runs_under_privacy_and_tells_no_loss(tmp_path):
    """Its clients send nothing, and what they say of themselves stays sealed."""
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, algorithm={"name": "alone"},
        synthesis={"proxies": "absent"}, train={"rounds": 2})
    result = run(settings, tmp_path / "run", InlineEngine())
    assert (result["rounds"], result["privacy"]["ledger"]["lines"],
            result["privacy"]["ledger"]["releases"]) == (2, 0, {})
    rounds = [json.loads(line)
              for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all("train_loss" not in line for line in rounds)
    assert len([*(tmp_path / "run" / "personal").iterdir()]) == 3
    assert all(row["agrees"] for row in recount(tmp_path / "run"))


def test_the_same_method_runs_without_privacy(tmp_path):
    tiny_run.write_data(tmp_path)
    name = leaky("leaky-open", averages, True)
    settings = tiny_run.settings(tmp_path, algorithm={"name": name},
        synthesis={"proxies": "absent"}, train={"rounds": 1})
    assert run(settings, tmp_path / "run", InlineEngine())["rounds"] == 1


# --- the unit "record": the round is charged first, and once
# -------------------------------------------------------


def asks_early(server):
    def ask(requests):
        return iter(list(server.ask(requests)))

    return ask


def asks_twice(server):
    def ask(requests):
        yield from server.ask(requests)
        yield from server.ask(requests)

    return ask


def repeats_requests(server):
    return lambda requests: server.ask([*requests, *requests])


@pytest.mark.parametrize(("asking", "message"), [
    (asks_twice, "asked twice"), (repeats_requests, "asked twice"),
    (asks_early, "before the round is charged")])
def test_with_the_unit_record_clients_are_asked_after_the_charge_and_once(tmp_path, asking,
        message):
    module = types.ModuleType(asking.__name__)
    module.__dict__.update({name: value for name, value in vars(dplora).items()
                            if not name.startswith("__")})

    def step(config, context, state, cohort, server):
        # even though what it gets is sealed: with the unit "record" it is out when a site sends it
        if asking is asks_early:
            list(server.ask([TrainRequest(name, cohort.round, state.tensors)
                             for name in cohort.local]))
        return dplora.step(config, context, state, cohort,
                           dataclasses.replace(server, ask=asking(server)))

    module.step = step
    METHODS.register(asking.__name__)(module)
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(
        tmp_path, privacy={"noise_multiplier": 1.0, "delta": 1e-3, "relation": RELATION,
                           "unit": "record", "clip": 1.0},
        algorithm={"name": asking.__name__}, synthesis={"proxies": "absent"}, train={"rounds": 1})
    with pytest.raises(PrivacyError, match=message):
        run(settings, tmp_path / "run", InlineEngine())
    assert not (tmp_path / "run" / "adapter").exists()
