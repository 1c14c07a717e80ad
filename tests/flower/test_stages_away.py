"""Every path of stage 1 and stages by turns, at sites as in one process: the same adapter and bytes,
also where the coordinator dies in a later stage; and a round that no stage has."""

from __future__ import annotations

import json
import shutil

import pytest
from tests import tiny_run
from tests.flower.local_transport import LocalTransport, deploy, site
from tests.flower.test_every_method import adapter

from aulait.core.errors import WireError
from aulait.engines.deployment.protocol.messages import Stamp
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.deployment.site.kept_state import KeptState, round_key
from aulait.engines.inline import InlineEngine
from aulait.runs import loop
from aulait.runs.prepared import SharedCache

CACHE = SharedCache()
CLIENTS = ("c0", "c1", "c2", "c3")
TURNS = ["synthesis", "training", "synthesis", "training"]
RETRIEVE = {"levels": 2, "cells": 6}
AWAY = {"name": "flower", "threads": 1, "wait_s": 5.0}
PATHS = {
    "retrieve": (["synthesis", "training"], {"source": "retrieve", "retrieve": RETRIEVE}, 0),
    "write": (TURNS, {"rounds": 1}, "stages"),
    "both": (TURNS, {"source": "both", "rounds": 1, "retrieve": RETRIEVE, "expansion": "topics"},
             "stages"),
    "other": (["training", "synthesis", "training"], {"rounds": 1}, "stages"),
}


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    path = tmp_path / "data.jsonl"
    rows = [row for row in map(json.loads, path.read_text().splitlines())
            if row["client"] in CLIENTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def experiment(places, path, **tables):
    order, synthesis, renew = PATHS[path]
    tiers = [{"name": "gpu", "clients": ["c0", "c1"], "placement": "local"},
             {"name": "laptop", "placement": "proxy"}]
    return tiny_run.settings(
        places, run={"stages": order}, federation={"tier": tiers}, synthesis=synthesis,
        algorithm={"name": "cores", "renew": renew, "basis_texts": 6},
        train={"rounds": 2, "steps": 1, "batch": 2, "rows_at_once": 2},
        evaluate={"every": 2, "records_per_client": 1}, **tables)


def handlers(places):
    rows = [json.loads(line) for line in (places / "data.jsonl").read_text().splitlines()]
    return {name: SiteHandler(site(places, name, [row for row in rows if row["client"] == name]),
                              lambda event, **fields: None) for name in CLIENTS}


def told(places, name):
    lines = (places / name / "rounds.jsonl").read_text().splitlines()
    return [(line["stage"], line["round"]) for line in map(json.loads, lines)]


@pytest.mark.parametrize("path", PATHS)
def test_sites_give_the_adapter_and_the_bytes_of_one_process(places, path):
    here = loop.run(experiment(places, path), places / "here", InlineEngine(),
                    cache=tiny_run.fresh(CACHE))
    away = deploy(LocalTransport(handlers(places)), experiment(places, path, engine=AWAY), places,
                  places / "away")
    one, two = adapter(places / "here"), adapter(places / "away")
    assert all((one[name] == two[name]).all() for name in one), "bit for bit"
    assert away["traffic"] == here["traffic"]
    assert told(places, "here") == told(places, "away")
    assert (places / "here" / "synthetic.jsonl").read_text() == (
        places / "away" / "synthetic.jsonl").read_text()


def test_a_run_goes_on_where_the_coordinator_died_in_a_later_stage(places):
    """Sites have voted for a round of the second synthesis, and no checkpoint knows it."""
    settings = experiment(places, "write", engine=AWAY)
    deploy(LocalTransport(handlers(places)), settings, places, places / "whole")
    for name in CLIENTS:
        shutil.rmtree(places / name)

    class Died(BaseException):
        pass

    for kind, name in (("vote", "c3"), ("train", "c1")):
        def dies(own, asked, answer, kind=kind, name=name):
            if (asked.kind, own, asked.head.get("round")) == (kind, name, 2):
                raise Died
            return answer

        begun = (places / "torn" / "config.toml").exists()
        with pytest.raises(Died):
            deploy(LocalTransport(handlers(places), dies), settings, places, places / "torn",
                   epoch=2 if begun else 1, resume=begun)
    deploy(LocalTransport(handlers(places)), settings, places, places / "torn", epoch=3,
           resume=True)
    one, two = adapter(places / "whole"), adapter(places / "torn")
    assert all((one[name] == two[name]).all() for name in one)
    assert told(places, "torn") == [("synthesis", 1), ("train", 1), ("synthesis", 2), ("train", 2)]


class Asked:
    """A message's stage and round."""

    def __init__(self, stage: str, round: int) -> None:
        self.stage, self.round = stage, round


class Terms:
    """The part of the terms that orders rounds."""

    stages = (("synthesis", 3), ("train", 2), ("synthesis", 5), ("train", 4))


def test_rounds_are_ordered_by_the_stages_that_they_are_in(tmp_path):
    """A vote after a training is no vote of before, and a training of before stays past."""
    order = [("synthesis", 1), ("synthesis", 3), ("train", 1), ("train", 2), ("synthesis", 4),
             ("synthesis", 5), ("train", 3), ("train", 4), ("train", 5)]
    keys = [round_key(Asked(*one), Terms()) for one in order]
    assert keys == sorted(keys)
    kept = KeptState(tmp_path)
    for number, key in enumerate(keys[:-1]):
        assert kept.admit(Stamp("a" * 32, 1, number + 1), key, "x") is None
    kept.epoch, kept.number = 1, 9
    with pytest.raises(WireError, match="round 3 of stage 1 is past"):
        kept.admit(Stamp("a" * 32, 1, 20), round_key(Asked("synthesis", 3),
                                                                    Terms()), "y")
