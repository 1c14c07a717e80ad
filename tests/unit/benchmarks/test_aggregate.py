"""The benchmark of the merge on tiny layers: what it says is what was done."""

from __future__ import annotations

import json

import pytest
import torch
from tests.closeness import assert_near
from typer.testing import CliRunner

from aulait_benchmarks import aggregate as benchmark
from aulait_benchmarks.aggregate import Case, Sizes

TINY = Sizes(cases=(Case(40, 30, (2,) * 3), Case(30, 50, (1, 4, 9, 4, 20))), layer=(40, 30), ranks=(2,), few=2, many=5)


def test_both_ways_end_with_the_same_products_of_every_rank():
    for case in TINY.cases:
        terms = list(benchmark.clients(case.m, case.n, case.ranks))
        ours, dense = benchmark.merged(case, terms)[0], benchmark.densely(case, terms)[0]
        assert list(ours) == list(dense) == sorted(set(case.ranks), reverse=True)
        for rank, (a, b) in ours.items():
            assert (a.shape, b.shape) == ((rank, case.n), (case.m, rank))
            assert_near(b @ a, dense[rank][1] @ dense[rank][0], 1e-5)


def test_clients_are_drawn_one_by_one_from_their_numbers():
    first, second = benchmark.clients(6, 5, (3, 2)), benchmark.clients(6, 5, (3, 2, 7))
    for one, other in zip(first, second, strict=False):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])


def test_what_is_told():
    found = benchmark.aggregate(TINY, repetitions=1)
    assert found["repetitions"] == 3
    assert [case["rank_sum"] for case in found["cases"]] == [6, 38]
    for case in found["cases"]:
        assert case["error_to_float64"] < 1e-5
        assert case["error_to_dense"] < 1e-5
        assert case["merge_s"] == pytest.approx(case["add_s"] + case["truncate_s"])
        assert case["ratio_to_dense"] == pytest.approx(case["dense_s"] / case["merge_s"])
        assert 0 < case["dense_svd_s"] < case["dense_s"]
    (memory,) = found["memory"]
    assert (memory["few"]["clients"], memory["many"]["clients"]) == (2, 5)
    for some in (memory["few"], memory["many"]):
        assert some["peak_bytes"] == some["start_bytes"] + some["above_start_bytes"] > 5e7
    assert memory["peak_ratio"] == memory["many"]["peak_bytes"] / memory["few"]["peak_bytes"]
    assert found["largest_memory_ratio"] == memory["peak_ratio"]


def test_the_peak_is_of_the_new_process_alone():
    ballast = torch.ones(2**27)  # 512 MiB that a child must not inherit
    assert benchmark._fresh(40, 30, 2, 2)["start_bytes"] < 4 * len(ballast)


def test_many_clients_take_the_memory_of_a_bounded_sum():
    few, many = (benchmark._fresh(600, 600, 40, clients)["above_start_bytes"] for clients in (20, 200))
    assert many < few + 2**24  # the factors of 180 more clients would be 35 MB


def test_the_command(monkeypatch):
    from aulait import cli

    monkeypatch.setattr(benchmark, "QUICK", TINY)
    told = CliRunner().invoke(cli.app, ["bench", "aggregate", "--quick", "--repetitions", "3", "--json"])
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["cases"]) == 2
    shown = CliRunner().invoke(cli.app, ["bench", "aggregate", "--quick", "--repetitions", "3"])
    assert shown.exit_code == 0, shown.output
    assert "40x30, 3 clients of rank 2" in shown.stdout
    assert "5 clients take" in shown.stdout
    wrong = CliRunner().invoke(cli.app, ["bench", "agregate"])
    assert wrong.exit_code == 2
