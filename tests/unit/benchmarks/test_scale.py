"""The benchmark of many registered clients: a run of each size, and what a client costs that does not take part."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from aulait import cli
from aulait_benchmarks import scale
from aulait_benchmarks.scale import Scale


def test_a_run_tells_its_set_up_its_rounds_and_what_each_adds_to_the_folder():
    few, many = (scale.here(Scale(clients, cohort=6, rounds=2)) for clients in (12, 48))
    assert (few["clients"], many["clients"]) == (12, 48)
    for found in (few, many):
        assert 0 < found["round_s"] < found["processor_s"] + 60
        assert found["setup_s"] > 0
        assert found["peak_bytes"] > 10**8
    # a line says the same of few and of many but for digits
    assert abs(few["round_bytes"] - many["round_bytes"]) < 100
    assert abs(few["ledger_bytes"] - many["ledger_bytes"]) < 30


def test_the_figures_and_the_command(monkeypatch):
    monkeypatch.setattr(scale, "_apart", lambda one: {
        "clients": one.clients, "cohort": one.cohort, "setup_s": 1.0 + one.clients / 1000, "round_s": 2.0,
        "peak_bytes": 1000 + 2 * one.clients, "round_bytes": 7, "ledger_bytes": 8})
    found = scale.measure((Scale(100), Scale(1100)))
    assert found["peak_ratio"] == pytest.approx(3200 / 1200)
    assert found["bytes_per_client"] == pytest.approx(2.0)
    assert found["setup_s_per_client"] == pytest.approx(0.001)
    done = CliRunner().invoke(cli.app, ["bench", "scale", "--quick", "--json"])
    assert json.loads(done.stdout)["cases"][-1]["clients"] == scale.QUICK[-1].clients
    assert "times the memory" in CliRunner().invoke(cli.app, ["bench", "scale", "--quick"]).stdout
    assert CliRunner().invoke(cli.app, ["bench", "scale", "--repetitions", "5"]).exit_code == 2
