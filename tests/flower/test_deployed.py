"""The same run, here and at sites: messages as bytes, everything else as in a deployment, no network."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run
from tests.flower.local_post import LocalPost, deploy, site

from aulait import inline, loop
from aulait.assemble import Workshop
from aulait.flower.resident import Resident

WORKSHOP = Workshop()


def logger(lines):
    return lambda event, **fields: lines.append({"event": event, **fields})


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def tables(**more):
    tiers = [{"name": "gpu", "clients": ["c0", "c1"], "placement": "local"}, {"name": "laptop", "clients": ["c2", "c3"], "placement": "proxy"},
             {"name": "half", "clients": ["c4"], "placement": "split"}]
    return {"federation": {"tier": tiers}, "algorithm": {"name": "fedit"}, "compute": {"cut": 2}, "adapter": {"rank": 2, "targets": "attention", "layers": "all"}} | more


def five(folder):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["client"] in {"c0", "c1", "c2", "c3", "c4"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: [row for row in rows if row["client"] == name] for name in sorted({row["client"] for row in rows})}


def residents(folder, own, lines=None, **limits):
    lines = [] if lines is None else lines
    return {name: Resident(site(folder, name, rows, **limits), logger(lines)) for name, rows in own.items()}


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def products(run):
    """B A of every layer: what an adapter does, whatever the basis of directions that have no weight (FLoRA's sums)."""
    found = adapter(run)
    return {name: found[name.replace("lora_A", "lora_B")] @ a for name, a in found.items() if "lora_A" in name}


def same(first, second, read=adapter, tolerance=1e-5):
    one, two = read(first), read(second)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "hetlora", "flora", "flexlora"])
def test_sites_give_the_adapter_and_scores_of_one_process(places, method):
    own = five(places)
    alone = {"rounds": 3, "steps": 2, "batch": 2, "rows_at_once": 2}  # every site in a pass of its own, as on its own machine
    plain = tiny_run.settings(places, **tables(algorithm={"name": method}, train=alone))
    here = loop.run(plain, places / "here", inline.connect, workshop=tiny_run.fresh(WORKSHOP))
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    away_settings = tiny_run.settings(places, **tables(algorithm={"name": method}, engine=engine, train=alone))
    post = LocalPost(residents(places, own))
    away = deploy(post, away_settings, places, places / "away")
    same(places / "here", places / "away", products if method == "flora" else adapter)
    for key in ("loss", "token_accuracy", "worst_client_loss", "mean_client_loss"):
        assert away["eval"][key] == pytest.approx(here["eval"][key], rel=1e-5), key
        assert away["base_eval"][key] == pytest.approx(here["base_eval"][key], rel=1e-5), key
    assert away["traffic"] == here["traffic"]
    assert all(resident.facts["loads"] == 1 for resident in post.residents.values())
    kinds = {packet.kind for name, packet in post.asked if name == "c2"}
    assert kinds == {"hello", "brief", "order", "evaluate"}
    assert not any(packet.kind == "order" and packet.head["stage"] == "train" for name, packet in post.asked if name in ("c2", "c3"))
    assert {packet.kind for name, packet in post.asked if name == "c4"} == {"hello", "brief", "split", "evaluate"}
