"""Every method gives the same adapter at sites as in one process; no network."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from tests import tiny_run
from tests.closeness import assert_same_adapters
from tests.flower import wire
from tests.flower.local_transport import LocalTransport, deploy, site

from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS
from aulait.runs import experiment_file as _config  # noqa: F401  (files the methods)
from aulait.runs import loop
from aulait.runs.prepared import SharedCache

CACHE = SharedCache()
CLIENTS = ("c0", "c1", "c2")


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS.names())
def test_sites_give_the_adapter_of_one_process(tmp_path, method):
    tiny_run.write_data(tmp_path)
    rows = [row for row in map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()) if row["client"] in CLIENTS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    placement = "split" if method == "splitlora" else "local"
    told = {"federation": {"tier": [{"name": "all", "placement": placement}]}, "algorithm": {"name": method},
            "train": {"rounds": 2, "steps": 2, "batch": 2, "rows_at_once": 2}, "evaluate": {"every": 2, "records_per_client": 1}, "compute": {"cut": 4}}
    loop.run(tiny_run.settings(tmp_path, **told), tmp_path / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    handlers = {name: SiteHandler(site(tmp_path, name, [row for row in rows if row["client"] == name]), lambda event, **fields: None) for name in CLIENTS}
    away = tiny_run.settings(tmp_path, **told, engine={"name": "flower", "threads": 1, "wait_s": 5.0})
    deploy(LocalTransport(handlers), away, tmp_path, tmp_path / "away")
    one, two = adapter(tmp_path / "here"), adapter(tmp_path / "away")
    assert_same_adapters(one, two)
    here, there = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("here", "away"))
    assert there["eval"]["loss"] == pytest.approx(here["eval"]["loss"], rel=1e-5)
    if "shared" in here["eval"]:
        assert there["eval"]["shared"]["loss"] == pytest.approx(here["eval"]["shared"]["loss"], rel=1e-5)
    assert there["traffic"] == here["traffic"]


def test_sites_that_are_cut_elsewhere_give_the_adapter_of_one_process(tmp_path):
    tiny_run.write_data(tmp_path)
    rows = [row for row in map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()) if row["client"] in CLIENTS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiers = [{"name": "whole", "clients": ["c1"], "placement": "local"}, {"name": "early", "clients": ["c0"], "placement": "split", "cut": 1},
             {"name": "late", "placement": "split", "rank": 1}]
    told = {"federation": {"tier": tiers}, "algorithm": {"name": "hsplitlora", "renew": 1, "importance_texts": 6}, "compute": {"cut": 5},
            "adapter": {"rank": 2, "layers": "all"}, "train": {"rounds": 2, "steps": 2, "batch": 2, "rows_at_once": 2},
            "evaluate": {"every": 2, "records_per_client": 1}}
    loop.run(tiny_run.settings(tmp_path, **told), tmp_path / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    handlers = {name: SiteHandler(site(tmp_path, name, [row for row in rows if row["client"] == name]), lambda event, **fields: None) for name in CLIENTS}
    away = tiny_run.settings(tmp_path, **told, engine={"name": "flower", "threads": 1, "wait_s": 5.0})
    deploy(LocalTransport(handlers), away, tmp_path, tmp_path / "away")
    here, there = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("here", "away"))
    assert {tier["name"]: tier["cut"] for tier in there["tiers"]} == {"whole": None, "early": 1, "late": 5}
    assert there["eval"]["loss"] == pytest.approx(here["eval"]["loss"], rel=1e-5)
    assert there["eval"]["loss"] != pytest.approx(there["base_eval"]["loss"], rel=1e-6)
    assert there["traffic"] == here["traffic"]


@pytest.mark.parametrize("algorithm", [{"name": "fedit"}, {"name": "flora"}, {"name": "cores", "renew": 1}, {"name": "dplora", "mode": "ffa"}], ids=lambda a: a["name"])
def test_records_are_protected_by_the_site_itself(tmp_path, algorithm):
    """The site adds the noise, charges its own account first, and tells its number of records and nothing else."""
    tiny_run.write_data(tmp_path)
    rows = [row for row in map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()) if row["client"] in CLIENTS]
    lines = []
    handlers = {name: SiteHandler(site(tmp_path, name, [row for row in rows if row["client"] == name], privacy=True, epsilon=50.0, delta=0.05),
                                lambda event, **fields: lines.append({"event": event, **fields})) for name in CLIENTS}
    settings = tiny_run.settings(
        tmp_path, federation={"tier": [{"name": "all", "placement": "local"}]}, algorithm=algorithm,
        train={"rounds": 2, "steps": 2, "batch": 2}, synthesis={"proxies": "absent"}, data={"public": str(tmp_path / "public.txt")},
        privacy={"epsilon": 20.0, "delta": 0.01, "relation": "zero-out", "unit": "record", "clip": 1.0},
        engine={"name": "flower", "threads": 1, "wait_s": 5.0})
    heads = []

    def seen(name, asked, answer):
        head = wire.seen(answer).head
        lacks_basis = head["kind"] == "refusal" and head["why"] == "kept"  # it is sent that, and asked again
        heads.extend([head] if asked.kind in ("train", "vote") and not lacks_basis else [])
        return answer

    result = deploy(LocalTransport(handlers, seen), settings, tmp_path, tmp_path / "away")
    assert result["rounds"] == 2
    assert result["privacy"]["private"] is True
    assert len(heads) == 2 * len(CLIENTS)
    for head in heads:
        assert set(head) == {"kind", "run", "epoch", "number", "client", "receipt", "weight", "info", "error"}
        assert head["info"] == {}
        assert head["weight"] == json.loads((tmp_path / "away" / "serve" / "records.json").read_text())[head["client"]]
    for name in CLIENTS:
        accounts = list((tmp_path / name / "state" / "account").glob("*.jsonl"))
        assert len(accounts[0].read_text().splitlines()) == 2
    assert result["privacy"]["epsilon"]["local"] <= 20.0 + 1e-6
