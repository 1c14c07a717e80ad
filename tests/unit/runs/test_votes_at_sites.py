"""A whole small run whose sites protect single records in both stages, or all records of a
patient."""

from __future__ import annotations

import json
import math

import pytest
from tests import tiny_run

from aulait.core.errors import AulaitError
from aulait.engines.inline import InlineEngine
from aulait.privacy.accounting import epsilon
from aulait.privacy.ledger import Ledger
from aulait.privacy.record_level import VOTES
from aulait.runs import loop, setup
from aulait.runs.prepared import SharedCache

pytest.importorskip("opacus")
CACHE = SharedCache()
RECORD = {"epsilon": 30.0, "delta": 1e-3, "relation": "zero-out", "unit": "record", "clip": 1.0}


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    path = tmp_path / "data.jsonl"
    rows = [json.loads(line) | {"patient": f"p{i % 2}"} for i,
            line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(data, name="run", resume=False, **tables):
    # with two patients a client, a fifth held out leaves every client one to train or vote with
    common = {"algorithm": {"name": "dplora"}, "privacy": RECORD, "data": {"holdout": 0.2}}
    settings = tiny_run.settings(data, **common | tables)
    return settings, loop.run(settings, data / name, InlineEngine(), cache=tiny_run.fresh(CACHE),
                              resume=resume)


def lines(data, name="run"):
    return [json.loads(line) for line in (data / name / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("privacy", "synthesis", "bound"), [
    ({}, {}, 1.0), ({}, {"neighbours": 2}, math.sqrt(2)),
    ({"unit_field": "patient", "records_per_unit": 3}, {}, math.sqrt(3)),
    ({"unit_field": "patient", "relation": "replace", "records_per_unit": 1}, {"neighbours": 3},
     2 * math.sqrt(3)),
])
def test_votes_are_charged_by_the_plan_and_carry_the_noise_of_every_site(data, privacy, synthesis,
        bound):
    # batches of Poisson samples know no "replace"
    mode = {"mode": "literal"} if privacy.get("relation") == "replace" else {}
    settings, result = run(data, privacy=RECORD | privacy, synthesis=synthesis,
                           algorithm={"name": "dplora"} | mode)
    prepared = setup.prepare(settings, tiny_run.fresh(CACHE))
    release = next(r for r in prepared.privacy.releases if r.stage == "synthesis")
    assert (release.mechanism, release.role, release.rounds) == (VOTES, "proxy", 2)
    assert release.sensitivity == pytest.approx(bound)
    ledger = Ledger(data / "run" / "ledger.jsonl")
    voting = [line for line in ledger.lines if line.stage == "synthesis"]
    assert [(line.mechanism, line.sigma, line.role, line.unit)
            for line in voting] == [(VOTES, release.sigma, "proxy", "record")] * 2
    for line in lines(data)[:2]:
        assert line["noise_std"] == pytest.approx(
            math.sqrt(5) * release.sigma), "five sites answered, each with noise of its own"
    assert result["privacy"]["epsilon"]["proxy"] == pytest.approx(
        epsilon([line.event for line in voting], 1e-3))
    assert result["privacy"]["epsilon"]["proxy"] == pytest.approx(prepared.privacy.epsilon["proxy"])
    assert result["privacy"]["epsilon"]["local"] == pytest.approx(prepared.privacy.epsilon["local"])
    assert result["privacy"]["epsilon"]["max"] <= 30.0
    assert result["privacy"]["private"] is True
    assert result["synthesis"]["vote_sensitivity"] == pytest.approx(release.bound)


def test_local_clients_that_vote_pay_for_both_stages(data):
    _, result = run(data, synthesis={"voters": "all"})
    spent = result["privacy"]["epsilon"]
    assert spent["proxy"] < spent["local"] <= 30.0
    ledger = Ledger(data / "run" / "ledger.jsonl")
    assert [line.role for line in ledger.lines] == ["proxy+local"] * 2 + ["local"] * 3
    assert lines(data)[0]["noise_std"] == pytest.approx(math.sqrt(8) * ledger.lines[0].sigma)


def test_exact_votes_are_a_control_and_said_to_be_one(data):
    _, result = run(data, synthesis={"votes": "exact"})
    assert result["privacy"]["epsilon"]["proxy"] is None
    assert lines(data)[0]["noise_std"] == 0


def test_nobody_is_asked_for_votes_before_the_line_is_in_the_ledger(data, monkeypatch):
    seen = []

    def answer(requests, *_):
        seen.append(len((data / "run" / "ledger.jsonl").read_text().splitlines()))
        raise AulaitError("the site is on fire")

    monkeypatch.setattr("aulait.engines.inline.private_evolution.answer", answer)
    with pytest.raises(AulaitError, match="on fire"):
        run(data)
    assert seen == [1], "charged, though nothing came back"


def test_a_round_that_was_cut_off_is_charged_again(data, monkeypatch):
    """The sites draw fresh noise for the second answer, so both answers count."""
    from aulait.synthesis import private_evolution  # the module whose function is replaced

    right, calls = private_evolution.answer, []

    def answer(requests, *rest):
        calls.append(1)
        if len(calls) == 2:
            raise AulaitError("cut off")
        return right(requests, *rest)

    monkeypatch.setattr("aulait.engines.inline.private_evolution.answer", answer)
    generous = RECORD | {"epsilon": None, "noise_multiplier": 2.0}
    with pytest.raises(AulaitError, match="cut off"):
        run(data, privacy=generous)
    _, result = run(data, privacy=generous, resume=True)
    rounds = [line.round for line in Ledger(data / "run" / "ledger.jsonl").lines
              if line.stage == "synthesis"]
    assert rounds == [1, 2, 2]
    assert result["privacy"]["private"] is True


def test_a_seed_gives_the_same_votes_again(data):
    seeded = RECORD | {"noise_seed": 5}
    run(data, "first", privacy=seeded)
    _, result = run(data, "second", privacy=seeded)
    assert [line.get("histogram") for line in lines(data, "first")] == [line.get("histogram")
        for line in lines(data, "second")]
    assert result["privacy"]["private"] is False
