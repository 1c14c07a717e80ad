"""Votes at the unit record, asked for by messages: the answers of one process, charged at the site
before they are sent."""

from __future__ import annotations

import json

import pytest
from tests import tiny_run
from tests.flower.local_transport import LocalTransport, deploy, site

from aulait.core.seeds import Seeds
from aulait.engines.deployment.protocol.envelope import packet_bytes
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.inline import InlineEngine
from aulait.privacy.noise import SeededNoise
from aulait.privacy.record_level import PRIVATE, VOTES, SiteNoise
from aulait.runs import loop

pytest.importorskip("opacus")
VOTERS, TRAINER = ("c2", "c3", "c5"), "c0"
RECORD = {"epsilon": 30.0, "delta": 1e-3, "relation": "zero-out", "unit": "record", "clip": 1.0}


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    path = tmp_path / "data.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows
                            if row["client"] in {*VOTERS, TRAINER}))
    return tmp_path


def experiment(folder, privacy, engine=None, **tables):
    tiers = [{"name": "gpu", "clients": [TRAINER], "placement": "local"},
             {"name": "laptop", "placement": "proxy"}]
    return tiny_run.settings(folder, federation={"tier": tiers}, algorithm={"name": "dplora"},
                             privacy=privacy,
                             train={"rounds": 1, "steps": 1, "batch": 2},
                             **({"engine": engine} if engine else {}), **tables)


def handlers(folder, lines, **limits):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    limits = {"epsilon": 50.0, "delta": 0.05, "lifetime_epsilon": 1000.0,
              "lifetime_delta": 0.5} | limits
    return {name: SiteHandler(site(folder, name, [row for row in rows if row["client"] == name],
        **limits),
                              lambda event, **fields: lines.append({"event": event, **fields}))
                              for name in (*VOTERS, TRAINER)}


def charges(folder, name):
    (account,) = (folder / name / "state" / "account").glob("*.jsonl")
    return [json.loads(line) for line in account.read_text().splitlines()]


AWAY = {"name": "flower", "threads": 1, "wait_s": 5.0}


def test_sites_vote_as_in_one_process_with_the_same_seed(places, monkeypatch):
    """A deployment refuses privacy.noise_seed, so the noise of both is made predictable here."""
    monkeypatch.setattr("aulait.synthesis.unit_votes.noise_source",
                        lambda noise, client,
                        round: SeededNoise(Seeds(9).integer("votes", round, client)))
    loop.run(experiment(places, RECORD), places / "here", InlineEngine())
    deploy(LocalTransport(handlers(places, [])), experiment(places, RECORD, AWAY), places,
           places / "away")
    here, there = ([json.loads(line)
        for line in (places / run / "rounds.jsonl").read_text().splitlines()]
        for run in ("here", "away"))
    assert [line["stage"] for line in here] == ["synthesis", "synthesis", "train"]
    for one, other in zip(here[:2], there[:2], strict=True):
        assert one["histogram"] == other["histogram"], "bit for bit"
        assert one["noise_std"] == other["noise_std"]
        assert one["winners"] == other["winners"]


LEVELS = {"source": "both", "rounds": 1, "retrieve": {"levels": 2, "cells": 4}}


@pytest.mark.parametrize("privacy", [RECORD, {"off": True}])
def test_sites_vote_on_cells_of_public_texts_as_in_one_process(places, monkeypatch, privacy):
    """Centroids travel, no text does; two levels and a vote on texts are three charges."""
    public = [f"{a} {b} at once." for a in tiny_run.WORDS for b in tiny_run.WORDS[:3] if a != b]
    (places / "public.txt").write_text("\n".join(public) + "\n")
    monkeypatch.setattr("aulait.synthesis.unit_votes.noise_source",
                        lambda noise, client,
                        round: SeededNoise(Seeds(9).integer("votes", round, client)))
    loop.run(experiment(places, privacy, synthesis=LEVELS), places / "here", InlineEngine())
    transport = LocalTransport(handlers(places, []))
    deploy(transport, experiment(places, privacy, AWAY, synthesis=LEVELS), places, places / "away")
    here, there = ([json.loads(line)
        for line in (places / run / "rounds.jsonl").read_text().splitlines()]
        for run in ("here", "away"))
    assert [line["stage"] for line in there] == ["synthesis"] * 3 + ["train"]
    for one, other in zip(here[:3], there[:3], strict=True):
        assert one["histogram"] == other["histogram"], "bit for bit"
        assert one["winners"] == other["winners"]
        assert one["down_bytes"] == other["down_bytes"]
    asked = [seen for _, seen in transport.asked if seen.kind == "vote"]
    assert len(asked) == 3 * len(VOTERS)
    result = json.loads((places / "away" / "result.json").read_text())
    assert "distance" not in result["synthesis"]["set"], "a deployment looks at no held-out text"
    if privacy is RECORD:
        assert [charge["stage"] for charge in charges(places, "c2")] == ["synthesis"] * 3


def test_every_vote_is_charged_at_the_site_and_a_repeated_request_gets_the_same_bytes(places):
    lines, answers = [], {}

    def twice(name, asked, answer):
        if asked.kind == "vote":
            again = packet_bytes(own[name].answer(asked.packet))
            answers.setdefault(name, []).append((len(charges(places, name)), again == answer))
        return answer

    own = handlers(places, lines, privacy=True)
    transport = LocalTransport(own, twice)
    result = deploy(transport, experiment(places, RECORD, AWAY), places, places / "away")
    assert result["privacy"]["private"] is True
    assert result["privacy"]["epsilon"]["proxy"] <= 30.0
    for name in VOTERS:
        assert answers[name] == [(1, True),
            (2, True)], "charged once, on disk before it leaves; no second draw of the noise"
        assert {charge["stage"] for charge in charges(places, name)} == {"synthesis"}
    assert {charge["stage"] for charge in charges(places, TRAINER)} == {"train"}



@pytest.mark.parametrize("change", [
    {"sigma": 0.01}, {"clip": 10.0}, {"noise_seed": 7}, {"mechanism": "dp-sgd"}, None,
])
def test_a_vote_with_less_noise_than_promised_is_refused_and_not_charged(places, monkeypatch,
        change):
    """Nothing of the site leaves; the reason is in its own log."""
    lines = []
    right = SiteNoise.setting

    def asked_for(self):
        return right(self.model_copy(update=change)) if self.mechanism == VOTES else right(self)

    if change is None:  # no noise asked for at all
        monkeypatch.setattr("aulait.synthesis.voting.PRIVATE", "another key")
    else:
        monkeypatch.setattr(SiteNoise, "setting", asked_for)
    privacy = RECORD | {"epsilon": None, "noise_multiplier": 2.0}
    transport = LocalTransport(handlers(places, lines, privacy=True))
    with pytest.raises(Exception, match=r"nobody|site|client"):
        deploy(transport, experiment(places, privacy, AWAY), places, places / "away")
    refusals = [line["reason"] for line in lines if line["event"] == "refused"]
    assert refusals
    assert all("refused" in reason for reason in refusals)
    for name in VOTERS:
        assert not list((places / name / "state").glob("account/*.jsonl")), "nothing was charged"
    assert PRIVATE == "private"
