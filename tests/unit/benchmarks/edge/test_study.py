"""The benchmark of the edge study on tiny models: the document, what it claims, and the page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.tiny_bases import tiny
from typer.testing import CliRunner

from aulait.core.errors import AulaitError
from aulait.core.files import plain_json
from aulait.core.types import Profile
from aulait.resources.profiles import PRESETS, USUAL_LINK
from aulait_benchmarks.edge import (
    claims,
    edge_reading,
    measured_steps,
    modelled,
    reference_models,
    step_timing,
    study,
)
from aulait_benchmarks.edge import edge_page as page
from aulait_benchmarks.edge.document import rounds_on_usual_links
from aulait_benchmarks.edge.measured_steps import MeasuringPlan
from aulait_benchmarks.edge.modelled import StudyModel
from aulait_benchmarks.edge.step_timing import PARTS, Lengths, StepRows
from aulait_benchmarks.edge.study import QUICK

HERE = Profile("test", "cpu", {"float32": 1e10}, {}, 8 * 10**9, 1e10, 1e-5, power_w=10.0, idle_w=2.0)
SCOPE = replace(QUICK, lengths=Lengths(12, 6), repetitions=1, batches=(1, 2), device_batches=(1, 4), devices=("jetson-orin", "a100", "phone"),
                links=("4g", "home", "office", "datacenter"), minutes=1.0, federation=None)


@pytest.fixture(scope="module")
def document():
    return json.loads(json.dumps(plain_json(study.edge(SCOPE, profile=HERE))))


def test_published_sizes_have_the_published_numbers_of_weights():
    sizes = [reference_models.counted(member).parameters for member in reference_models.members("flan-t5")]
    assert sizes == [76_961_152, 247_577_856, 783_150_080, 2_849_757_184]


def test_layers_counted_without_weights_are_those_of_the_base():
    member = reference_models.members("tiny")[0]
    base = reference_models.base(member, "float32", "cpu", 16)
    body = reference_models.counted(member)
    adapter = step_timing.worn_for(base, 2)
    assert {name: (b.shape[0], a.shape[1]) for name, (a, b) in adapter.factors.items()} == reference_models.adapted(body)
    assert base.parameters == body.parameters


def test_an_unknown_family_or_model_is_one_line(tmp_path):
    with pytest.raises(AulaitError, match="family 'flan' is unknown"):
        reference_models.members("flan")
    with pytest.raises(AulaitError, match="cannot be read"):
        reference_models.configuration(reference_models.Member(str(tmp_path / "none"), {}))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_timed_step_reads_rows_of_the_asked_length_and_leaves_a_bare_frozen_base(tmp_path, kind):
    base = tiny(tmp_path, kind, context=24)
    adapter = step_timing.worn_for(base, 2)
    took = step_timing.timed_step(base, adapter, StepRows(3, Lengths(7, 4)), "lora", 2, 60.0)
    assert took.source_lengths == (7, 7, 7)
    assert took.target_lengths == (4, 4, 4)
    assert tuple(took.part_s) == PARTS
    assert all(seconds > 0 for seconds in took.part_s.values())
    assert took.step_s == sum(took.part_s.values())
    assert took.repetitions == 2
    assert all(slot.worn is None for slot in base.slots.values())
    assert not any(weight.requires_grad for weight in base.model.parameters())


def test_lora_leaves_the_base_as_it_was_and_full_changes_it(tmp_path):
    base = tiny(tmp_path, "t5", context=24)
    before = [weight.clone() for weight in base.model.parameters()]
    adapter = step_timing.worn_for(base, 2)
    step_timing.timed_step(base, adapter, StepRows(1, Lengths(5, 3)), "lora", 1, 60.0)
    assert all(weight.equal(old) for weight, old in zip(base.model.parameters(), before, strict=True))
    step_timing.timed_step(base, adapter, StepRows(1, Lengths(5, 3)), "full", 1, 60.0)
    assert not any(weight.equal(old) for weight, old in zip(base.model.parameters(), before, strict=True) if weight.dim() == 2)


def test_the_budget_ends_repetitions_after_one(tmp_path):
    base = tiny(tmp_path, "t5", context=24)
    assert step_timing.timed_step(base, step_timing.worn_for(base, 2), StepRows(1, Lengths(5, 3)), "lora", 50, 0.0).repetitions == 1


def test_every_step_is_measured_or_says_why_not(document):
    lines = document["steps"]
    assert len(lines) == 2 * 2 * 2
    for line in lines:
        assert line["tokens"] == 18 * line["batch"]
        assert line["device"] == "this machine"
        if line["basis"] == "measured":
            assert line["step_s"] == pytest.approx(sum(line["part_s"].values()))
            assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["step_s"])
            assert line["mfu_actual"] == pytest.approx(line["flop"] / line["step_s"] / 1e10)
            assert line["mfu_model"] == pytest.approx(line["model_flop"] / line["step_s"] / 1e10)
            assert line["reason"] == ""
        else:
            assert line["part_s"] is None
            assert line["reason"]
    assert any(line["basis"] == "measured" for line in lines)


def test_without_time_or_memory_everything_is_modelled():
    works = [StudyModel.of(reference_models.members("tiny")[0], 8, Lengths(12, 6))]
    hurried = measured_steps.measured_lines(works, (1,), MeasuringPlan(HERE, "float32", 1, 0.0), lambda _: None)
    assert {line["basis"] for line in hurried} == {"modelled"}
    assert all("too long" in line["reason"] for line in hurried)
    small = measured_steps.measured_lines(works, (1,), MeasuringPlan(replace(HERE, memory_bytes=1000), "float32", 1, 30.0), lambda _: None)
    assert all(line["step_s"] is None and not line["fits"] and "GB" in line["reason"] for line in small)


def test_modelled_steps_of_this_machine_follow_its_measured_ones(document):
    ratio = document["model_ratio"]["median"]
    works = [StudyModel.of(reference_models.members("tiny")[0], 8, Lengths(12, 6))]
    assert {line["scaled_by"] for line in measured_steps.measured_lines(works, (1,), MeasuringPlan(HERE, "float32", 1, 0.0), lambda _: None)} == {1.0}
    case = measured_steps.Case(works[0], "lora", 1, modelled.modelled(works[0], "lora", 1, HERE, "float32"))
    scaled = measured_steps._reasoned(case, False, HERE, 2.5)
    assert scaled["step_s"] == pytest.approx(2.5 * scaled["predicted_s"])
    assert scaled["energy_j"] == pytest.approx(10.0 * scaled["step_s"])
    assert scaled["mfu_actual"] == pytest.approx(case.line["mfu_actual"] / 2.5)
    measured = [line["step_s"] / line["predicted_s"] for line in document["steps"] if line["basis"] == "measured"]
    assert min(measured) <= ratio <= max(measured)


def test_the_power_that_is_given_wins():
    assert study._powered(HERE, None) == (HERE, "")
    given, basis = study._powered(HERE, 30.0)
    assert (given.power_w, basis) == (30.0, "modelled from 30 W, as given")
    nearest, basis = study._powered(replace(HERE, power_w=None), None)
    assert nearest.power_w == PRESETS["raspberry-pi-5"].power_w
    assert "the power of the nearest preset, raspberry-pi-5" in basis


def test_a_round_by_hand():
    work = StudyModel.of(reference_models.members("tiny")[0], 8, Lengths(12, 6))
    machine = PRESETS["jetson-orin"]
    line = modelled.modelled(work, "full", 4, machine, "bfloat16")
    told = modelled.round_of(line, work, machine, "office", 10, 1e-6)
    size_bytes = 2 * work.parameters
    assert told["steps"] == 3
    assert told["up_bytes"] == told["down_bytes"] == size_bytes
    assert told["computing_s"] == pytest.approx(3 * line["step_s"])
    assert told["communicating_s"] == pytest.approx(2 * (size_bytes / 11.75e6 + 0.005))
    assert told["granularity"] == pytest.approx(told["computing_s"] / told["communicating_s"])
    assert told["network_j"] == pytest.approx(2e-6 * size_bytes)
    spent = machine.power_w * told["computing_s"], machine.idle_w * told["communicating_s"], told["network_j"]
    assert told["communication_share"] == pytest.approx(sum(spent[1:]) / sum(spent))


def test_lora_sends_its_factors_only(document):
    by_way = {way: {line["up_bytes"] for line in document["rounds"] if (line["device"], line["model"], line["way"]) == ("phone", "tiny", way)}
              for way in ("lora", "full")}
    body = reference_models.counted(reference_models.members("tiny")[0])
    shapes, parameters = reference_models.adapted(body), body.parameters
    assert by_way == {"lora": {4 * 8 * sum(m + n for m, n in shapes.values())}, "full": {4 * parameters}}


def _made(losses, **changes):
    """A document with the server part and edge lines that a claim reads."""
    arms = [{"name": name, "server": server, "rate": 1.0, "losses": series, "rounds_to_fedavg": at, "rates_tried": []}
            for (name, server), (series, at) in zip((("FedAvg", "plain"), ("FedAdam", "adam"), ("FedAdamW", "adamw")), losses, strict=True)]
    return {"servers": {"rounds": 3, "arms": arms}, "devices": [], "rounds": [], "usual_links": {}} | changes


FAST, SLOW, LATE = [3.0, 1.0, 0.9], [3.0, 2.5, 2.0], [9.0, 1.0, 0.9]  # LATE gets there earlier and is behind in the mean


@pytest.mark.parametrize(("adam", "adamw", "answer"), [
    ((FAST, 2), (FAST, 2), "yes"), ((FAST, 2), (SLOW, None), "partly"), ((LATE, 2), (LATE, 2), "partly"), ((SLOW, None), (SLOW, None), "no")])
def test_adaptive_is_faster_only_if_it_is_there_in_fewer_rounds_and_ahead_in_the_mean(adam, adamw, answer):
    found = claims.adaptive(_made([([3.0, 2.0, 1.0], 3), adam, adamw]))
    assert found[0] == answer
    assert "mean over the rounds: FedAvg 2.000" in found[1]


def test_a_best_rate_at_the_end_of_its_grid_is_told():
    tried = [{"rate": rate, "last_loss": 1.0} for rate in (0.5, 1.0)]
    document = _made([(FAST, 2)] * 3)
    document["servers"]["arms"][0]["rates_tried"] = tried
    assert "the largest one tried for 1 of 3" in claims.adaptive(document)[1]


def test_communication_dominates_only_above_half():
    def line(way, share):
        return {"device": "phone", "link": "4g", "way": way, "communication_share": share}

    rounds = [line("lora", 0.4), line("full", 0.9)]
    found = claims.communication(_made([([1.0], 1)] * 3, rounds=rounds, usual_links={"phone": "4g"}))
    assert found[0] == "partly"
    assert "0 of 1 rounds with LoRA and in 1 of 1" in found[1]
    assert claims.communication(_made([([1.0], 1)] * 3))[0] == "not shown"


@pytest.mark.parametrize(("mfu", "bound", "answer"), [(0.2, "memory", "yes"), (0.2, "arithmetic", "partly"), (0.6, "memory", "no")])
def test_saturation_needs_a_lower_mfu_and_memory_as_its_reason(mfu, bound, answer):
    devices = [{"device": "jetson-orin", "mfu_actual": mfu, "bound": bound}, {"device": "a100", "mfu_actual": 0.5, "bound": "arithmetic"}]
    assert claims.saturation(_made([([1.0], 1)] * 3, devices=devices))[0] == answer


def test_feasible_asks_for_a_larger_model():
    def line(way, parameters, fits):
        return {"device": "phone", "way": way, "parameters": parameters, "model": f"m{parameters}", "fits": fits}

    devices = [line("lora", 5, True), line("full", 5, False), line("lora", 2, True), line("full", 2, True)]
    assert claims.feasible(_made([([1.0], 1)] * 3, devices=devices)) == (
        "yes", "Largest size that fits, at any batch: phone: m5 with LoRA, m2 without.")
    assert claims.feasible(_made([([1.0], 1)] * 3, devices=devices[2:]))[0] == "no"


def test_the_claims_of_a_run_are_answered(document):
    answers = [each["answer"] for each in document["claims"]]
    assert answers[0] == "not shown"
    assert set(answers[1:]) <= {"yes", "no", "partly"}


def test_the_page_has_every_figure_and_names_its_basis(document):
    arms = [{"name": name, "server": server, "rate": 1.0, "losses": [4.5, last], "rounds_to_fedavg": 2, "rates_tried": [{"rate": 1.0, "last_loss": last}]}
            for name, server, last in (("FedAvg", "plain", 4.0), ("FedAdam", "adam", 3.9))]
    served = document | {"servers": {"base": "brew", "data": "docstrings", "algorithm": "fedit", "clients": 2, "rounds": 2, "steps": 1, "batch": 1,
                                     "base_loss": 5.0, "arms": arms}}
    text = page.study_page(served)
    for figure in ("parts-0", "parts-1", "mfu-model", "mfu-actual", "joule-lora", "joule-full", "granularity-0", "granularity-1", "servers", "energy"):
        assert text.count(f'data-figure="{figure}"') == 1
    assert "not public to us" in text
    assert "modelled" in text
    assert "measured" in text
    assert 'data-figure="servers"' not in page.study_page(document)


def test_a_reading_follows_the_numbers(document):
    changed = json.loads(json.dumps(document))
    for line in changed["steps"]:
        line["basis"], line["part_s"] = "measured", dict.fromkeys(PARTS, 1.0) | {"backward": 6.0 if line["way"] == "full" else 2.0}
        line["step_s"] = sum(line["part_s"].values())
    said = edge_reading.steps_sentence(changed)
    assert "takes 1.67 times a LoRA step" in said
    assert "the backward pass with 60" in said
    for line in changed["rounds"]:
        line["granularity"] = 0.5 if line["way"] == "full" else 50.0
    assert "LoRA raises G by a factor of 100 to 100" in edge_reading.granularity_sentence(changed)
    assert f"in 0 of {sum(line['way'] == 'lora' for line in changed['rounds'])} that send LoRA" in edge_reading.granularity_sentence(changed)


def test_rounds_are_told_on_usual_links(document):
    assert document["usual_links"]["phone"] == USUAL_LINK["phone"]
    assert {line["link"] for line in rounds_on_usual_links(document) if line["device"] == "phone"} == {USUAL_LINK["phone"]}


def test_the_command(monkeypatch, tmp_path, document):
    from aulait import cli

    asked = []
    monkeypatch.setattr(study, "edge", lambda scope, tell: asked.append(scope) or document)
    told = CliRunner().invoke(cli.app, ["bench", "edge", "--quick", "--batches", "2,1", "--lengths", "30,5", "--no-servers", "--json",
                                        "--out", str(tmp_path / "edge")])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["name"] == "edge"
    assert (asked[0].batches, asked[0].lengths, asked[0].federation) == ((1, 2), Lengths(30, 5), None)
    assert json.loads((tmp_path / "edge" / "edge.json").read_text()) == document
    assert 'class="plot"' in (tmp_path / "edge" / "edge.html").read_text()
    shown = CliRunner().invoke(cli.app, ["bench", "edge", "--quick"])
    assert "the study's claims" in shown.stdout
    wrong = CliRunner().invoke(cli.app, ["bench", "edge", "--lengths", "12"])
    assert wrong.exit_code == 2
    assert "source and target tokens" in wrong.output


@pytest.mark.slow
def test_the_server_optimisers_share_their_start(tmp_path):
    from aulait_benchmarks.edge.server_optimizers import FederationSize, server_losses

    size = FederationSize(clients=2, rounds=2, steps=1, batch=2, rates=(("plain", (1.0,)), ("momentum", (1.0,)), ("adam", (0.01, 0.02))))
    found = server_losses(size)
    plain, momentum, adam = found["arms"]
    assert plain["losses"][0] == pytest.approx(momentum["losses"][0])
    assert plain["losses"] != adam["losses"]
    assert plain["rounds_to_fedavg"] is not None
    assert len(adam["rates_tried"]) == 2
    assert adam["losses"][-1] == min(each["last_loss"] for each in adam["rates_tried"])
    assert found["base_loss"] > 0
