"""Secure sums with real processes over TLS: a run, one of whose sites is killed in the middle of
a round."""

from __future__ import annotations

import itertools
import statistics
import time
from datetime import datetime

import pytest

pytest.importorskip("flwr")
from tests.flower import trial as trials

pytestmark = pytest.mark.slow
NAMES = (*trials.NAMES, "ward-d")
SECURE = {
    "noise_multiplier": 1.0,
    "delta": 1e-3,
    "relation": "zero-out",
    "trust": "secure",
    "dropouts": 0.25,
    "clip": 0.5,
}


def test_sites_add_up_secretly_over_tls_while_one_is_killed(tmp_path_factory, capfd):
    folder = tmp_path_factory.mktemp("q")
    with trials.federation(
        folder,
        NAMES,
        privacy=True,
        epsilon=1000.0,
        lifetime_epsilon=5000.0,
        trust=["secure"],
        sum_sites=3,
    ) as sites:
        for name in NAMES:
            sites.join(name)
        engine = {
            "threads": 1,
            "wait_s": 120.0,
            "deadline_s": sites.deadline_s,
            "least_sites": len(NAMES),
        }
        run = sites.begin(
            "sums", privacy=SECURE, algorithm={"name": "ffa"}, train={"rounds": 3}, engine=engine
        )
        began_s = time.monotonic()
        run.serve()
        run.caught("train", 1, "ward-b")
        sites.kill("ward-b")
        assert run.finished() == 0, run.story()
        trials.sound(run, 3)
        lines = trials.kept(run, rounds=3)
        assert {line["mechanism"] for line in lines} == {"distributed-gaussian"}
        with capfd.disabled():
            print(
                f"{time.monotonic() - began_s:.0f} s, {[(e['site'], e['reason']) for e in run.events('silent')]}"
            )
        asked = [line["what"] for line in sites.own_events("ward-a", "asked")]
        assert [what for what in asked if what.startswith("sum_") or what == "train"][:5] == [
            "sum_open",
            "sum_share",
            "train",
            "sum_agree",
            "sum_reveal",
        ]


def test_what_a_round_of_cores_takes_beside_one_whose_server_sees_updates(tmp_path_factory, capfd):
    """Seconds from one request to train to the next, at one site; each exchange waits for
    Flower's looking."""
    told = {}
    with trials.federation(
        tmp_path_factory.mktemp("q"), NAMES, privacy=True, epsilon=1000.0, lifetime_epsilon=5000.0
    ) as sites:
        for name in NAMES:
            sites.join(name)
        engine = {"threads": 1, "wait_s": 120.0, "deadline_s": 300.0, "least_sites": len(NAMES)}
        for trust, relation in (("server", "add-remove"), ("secure", "zero-out")):
            run = sites.begin(
                trust,
                privacy=SECURE | {"trust": trust, "relation": relation},
                algorithm={"name": "cores", "server": "momentum"},
                train={"rounds": 6},
                engine=engine,
            )
            before = len(sites.own_events("ward-a", "asked"))
            run.serve()
            assert run.finished() == 0, run.story()
            at_s = [
                datetime.fromisoformat(line["time"]).timestamp()
                for line in sites.own_events("ward-a", "asked")[before:]
                if line["what"] == "train"
            ]
            told[trust] = [later - earlier for earlier, later in itertools.pairwise(at_s[1:])]
    plain, secure = (statistics.median(told[trust]) for trust in ("server", "secure"))
    with capfd.disabled():
        print(
            f"a round takes {plain:.1f} s, under secure trust {secure:.1f} s: {secure / plain:.2f} times; {told}"
        )
