"""Secure sums between sites: the same run as in one process, whoever drops out where."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from tests import tiny_run
from tests.closeness import assert_same_adapters
from tests.flower import secure_sites
from tests.flower.local_transport import LocalTransport, deploy

from aulait.core.errors import AulaitError, ConfigError
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.inline import InlineEngine
from aulait.privacy.secure import encoding
from aulait.runs import loop
from aulait.runs.prepared import SharedCache

CACHE = SharedCache()


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


@pytest.fixture
def noiseless(monkeypatch):
    """So that sums of two runs can be compared."""
    monkeypatch.setattr(
        encoding, "discrete_gaussian", lambda count, s, words: np.zeros(count, dtype=np.int64)
    )


def five(folder):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["client"] in secure_sites.NAMES]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: [row for row in rows if row["client"] == name] for name in secure_sites.NAMES}


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "method",
    [
        "cores",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ffa", "fedit", "rolora", "fedsa")
        ),
    ],
)
def test_sites_give_the_adapter_of_one_process(places, noiseless, method):
    own = five(places)
    here = secure_sites.settings(places, method, engine={"threads": 1})
    loop.run(here, places / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    post = LocalTransport(secure_sites.handlers(places, own))
    result = deploy(post, secure_sites.settings(places, method), places, places / "away")
    assert_same_adapters(adapter(places / "here"), adapter(places / "away"))
    assert result["privacy"]["private"] is True
    kinds = [seen.kind for name, seen in post.asked if name == "c0" and seen.kind != "keep"]
    round = ["sum_open", "sum_share", "train", "sum_agree", "sum_reveal"]
    again = (
        ["sum_open", "sum_share", "train"] if method == "cores" else []
    )  # which first lacks its basis
    assert [kind for kind in kinds if kind not in ("hello", "terms", "evaluate")] in (
        round + round,
        [*again[:3], *round[2:], *round],
    )
    assert len((places / "away" / "ledger.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {
            "algorithm": {"name": "cores", "server": "search"},
            "federation": {"tier": [{"name": "gpu", "placement": "local"}]},
            "synthesis": {"rounds": 1, "voters": "all"},
            "privacy": secure_sites.SECURE | {"clip": "adaptive", "clip_start": 0.01},
        },
        {
            "privacy": secure_sites.SECURE
            | {"clip": "proxies", "noise_multiplier": None, "epsilon": 8.0},
            "algorithm": {"name": "fedit", "server": "momentum"},
            "federation": {
                "tier": [
                    {"name": "gpu", "clients": ["c0", "c1", "c2"], "placement": "local"},
                    {"name": "laptop", "placement": "proxy"},
                ]
            },
            "synthesis": {"rounds": 1, "voters": "all"},
        },
        {
            "adapter": {"rank": 2, "targets": "attention", "layers": 2},
            "federation": {
                "tier": [
                    {"name": "gpu", "clients": ["c0", "c1"], "placement": "local"},
                    {"name": "small", "placement": "local", "rank": 1},
                ]
            },
        },
    ],
)
def test_votes_searches_moving_bounds_and_unequal_ranks_are_summed_too(places, noiseless, more):
    own = five(places)
    here = secure_sites.settings(places, **more | {"engine": {"threads": 1}})
    loop.run(here, places / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    post = LocalTransport(secure_sites.handlers(places, own))
    deploy(post, secure_sites.settings(places, **more), places, places / "away")
    assert_same_adapters(adapter(places / "here"), adapter(places / "away"))
    lines = [
        [
            (line["stage"], line["round"])
            for line in map(json.loads, (places / run / "ledger.jsonl").read_text().splitlines())
        ]
        for run in ("here", "away")
    ]
    assert lines[0] == lines[1]


class Died(BaseException):
    """The coordinator, or its machine."""


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        pytest.param("train", 0, marks=pytest.mark.slow),
        pytest.param("sum_agree", 0, marks=pytest.mark.slow),
        ("sum_reveal", 1),
    ],
)
def test_a_run_goes_on_after_its_coordinator_died_and_what_was_charged_stays(places, kind, lines):
    """Sites have charged the round that was lost, so the last of the two rounds is beyond what
    the run promised them."""
    own = five(places)
    post = LocalTransport(secure_sites.handlers(places, own))

    def fault(name, asked, answer):
        if asked.kind == kind and name == "c2":
            raise Died
        return answer

    post.fault = fault
    settings = secure_sites.settings(places)
    with pytest.raises(Died):
        deploy(post, settings, places, places / "away")
    ledger = places / "away" / "ledger.jsonl"
    assert (len(ledger.read_text().splitlines()) if ledger.exists() else 0) == lines
    post.fault = lambda name, asked, answer: answer
    result = deploy(post, settings, places, places / "away", epoch=2, resume=True)
    assert result["rounds"] == 1
    assert "have given what the run promised" in result["privacy"]["stopped_early"]
    assert len(ledger.read_text().splitlines()) == lines + 1


@pytest.mark.parametrize(
    "kind",
    [
        "train",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("sum_open", "sum_share", "sum_agree", "sum_reveal")
        ),
    ],
)
def test_a_site_that_is_killed_at_any_step_stops_no_run_and_takes_part_again(places, kind):
    own = five(places)
    post = LocalTransport(secure_sites.handlers(places, own))
    killed = []

    def fault(name, asked, answer):
        if name == "c1" and asked.kind == kind and not killed:
            killed.append(asked.kind)
            post.handlers["c1"] = SiteHandler(
                post.handlers["c1"]._file, lambda event, **fields: None, secure_sites.MODELS
            )
            return None
        return answer

    post.fault = fault
    patience = {"name": "flower", "threads": 1, "wait_s": 5.0, "deadline_s": 1.0}
    result = deploy(post, secure_sites.settings(places, engine=patience), places, places / "away")
    assert killed
    assert result["rounds"] == 2
    assert len([1 for name, seen in post.asked if name == "c1" and seen.kind == "sum_reveal"]) in (
        1,
        2,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "privacy": secure_sites.SECURE | {"unit": "record", "clip": 0.1},
                "algorithm": {"name": "ffa"},
            },
            "adds all of the noise itself there",
        ),
        ({"privacy": secure_sites.SECURE | {"noise_seed": 1}}, "nobody can compute again"),
        ({"algorithm": {"name": "fedplora"}}, "cannot make its part of the sum alone"),
    ],
)
def test_what_sites_cannot_add_up_is_refused_in_one_line(places, changes, words):
    with pytest.raises(ConfigError, match=words):
        secure_sites.settings(places, **changes)


def test_a_run_over_too_many_sites_or_one_without_a_key_does_not_begin(places):
    own = five(places)
    post = LocalTransport(secure_sites.handlers(places, own))
    (places / "c3" / "site-key").unlink()
    post.handlers["c3"] = SiteHandler(post.handlers["c3"]._file, lambda event, **fields: None)
    with pytest.raises(AulaitError, match="site c3 told no identity"):
        deploy(post, secure_sites.settings(places), places, places / "away")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"trust": ["server"]}, r"this site allows: server"),
        ({"sum_sites": 5}, "wants 5 at least"),
        ({"colluders": 1}, r"hold against 1 at least"),
        ({"clip": 0.1}, "at most 0.1"),
        ({"epsilon": 1.0}, "this site allows at most 1"),
    ],
)
def test_a_site_takes_part_within_its_limits_alone(places, limits, words):
    own = five(places)
    post = LocalTransport(secure_sites.handlers(places, own, **limits))
    with pytest.raises(AulaitError, match=words):
        deploy(post, secure_sites.settings(places), places, places / "away")


def test_a_site_that_trusts_nobody_refuses_runs_whose_server_sees_updates(places):
    own = five(places)
    post = LocalTransport(secure_sites.handlers(places, own, trust=["secure"], privacy=False))
    plain = {"noise_multiplier": 1.0, "delta": 1e-5, "relation": "add-remove", "clip": 0.5}
    for number, privacy in enumerate((plain, {"off": True})):
        with pytest.raises(
            AulaitError, match=r"privacy\.trust is 'server', this site allows: secure"
        ):
            deploy(
                post,
                secure_sites.settings(places, privacy=privacy),
                places,
                places / f"away-{number}",
            )
