"""What can be known before work is told before it; what ends in nothing says so."""

from __future__ import annotations

import json

import pytest
from tests.tiny_run import settings, write_data
from typer.testing import CliRunner

from aulait.cli import app
from aulait.core.errors import ConfigError, DataError, NobodyTrained, PrivacyError
from aulait.engines.inline import InlineEngine
from aulait.models import exported
from aulait.runfolder.naming import fresh_folder
from aulait.runs.experiment_file import dump_settings
from aulait.runs.loop import run

WEAK = {"tier": [{"name": "laptop", "placement": "proxy"}]}


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def test_more_neighbours_than_candidates_are_told_by_their_settings(folder):
    with pytest.raises(ConfigError, match=r"synthesis\.neighbours = 50, expected at most the 8"):
        settings(folder, synthesis={"neighbours": 50})
    settings(folder, synthesis={"neighbours": 50, "proxies": "absent"})


@pytest.mark.parametrize(("table", "key"), [
    ("train", "lr"), ("adapter", "alpha"), ("algorithm", "server_lr")])
def test_a_number_without_end_is_none(folder, table, key):
    asked = {"name": "ffa"} if table == "algorithm" else {}
    with pytest.raises(ConfigError, match=rf"{table}\.{key} is inf, expected a finite number"):
        settings(folder, **{table: asked | {key: float("inf")}})
    settings(folder, train={"max_grad_norm": float("inf")})


@pytest.mark.parametrize("name", ["", "  ", "ward\x1b[2J", "a\nb"])
def test_a_tier_has_a_name_that_can_be_read(folder, name):
    tiers = {"tier": [{"name": name, "placement": "local"}]}
    with pytest.raises(ConfigError, match="expected letters that can be read"):
        settings(folder, federation=tiers)


@pytest.mark.parametrize("letter", ["x", "語"])
def test_the_folder_of_a_run_has_a_name_that_file_systems_take(letter):
    name = fresh_folder(letter * 400).name
    assert name.startswith(letter * 40)
    assert len(name.encode()) < 200
    assert fresh_folder("../x").parts[:-1] == ("runs",)


@pytest.mark.parametrize(("model", "told"), [
    ({"dtype": "bfloat16"}, r"model\.dtype is 'bfloat16'.*expected 'float32'"),
    ({"quant": "4bit"}, r"model\.quant is '4bit'.*expected none")])
def test_a_base_of_narrow_weights_is_refused_where_records_are_protected(folder, model, told):
    private = {"unit": "record", "relation": "zero-out", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
    with pytest.raises(ConfigError, match=told):
        settings(folder, model=model, privacy=private, algorithm={"name": "fedit"})
    settings(folder, privacy=private, algorithm={"name": "fedit"})


@pytest.mark.parametrize("unit", ["client", "record"])
@pytest.mark.parametrize("asked", [{"noise_multiplier": 1e-4}, {"epsilon": 1e12}])
def test_noise_too_small_for_exact_sums_is_refused_before_work(folder, unit, asked):
    private = {"unit": unit, "relation": "zero-out" if unit == "record" else "add-remove",
               "delta": 1e-3, "clip": 1.0}
    some = settings(folder, privacy=private | asked, algorithm={"name": "fedit"})
    with pytest.raises(PrivacyError, match=r"noise multiplier \S+ of stage.*expected at least"):
        run(some, folder / "r", InlineEngine())
    assert not (folder / "r" / "rounds.jsonl").exists()


def test_dropping_long_texts_until_nobody_is_left_names_the_cause(folder):
    with pytest.raises(DataError, match=r"too_long = 'drop' leaves no client a text: 32 of 32"):
        run(settings(folder, data={"too_long": "drop"}, model={"context": 8}), folder / "r",
            InlineEngine())
    assert not (folder / "r" / "adapter").exists()


def test_a_run_in_which_nobody_trains_has_a_status_of_its_own(folder):
    some = settings(folder, federation=WEAK, synthesis={"generate": {"min_words": 1000}})
    with pytest.raises(NobodyTrained, match="all 8 clients are proxied and stage 1 wrote no text"):
        run(some, folder / "r", InlineEngine())
    assert not (folder / "r" / "adapter").exists()
    (folder / "x.toml").write_text(dump_settings(some))
    found = CliRunner().invoke(app, ["run", str(folder / "x.toml"), "--out", str(folder / "s")])
    assert found.exit_code == 3
    assert "Traceback" not in found.output


def test_the_records_of_one_client_may_be_pooled(folder):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    (folder / "data.jsonl").write_text("".join(
        json.dumps(row | {"client": "only"}) + "\n" for row in rows))
    tier = {"tier": [{"name": "gpu", "placement": "local"}]}
    with pytest.raises(DataError, match="found one client 'only'"):
        run(settings(folder, federation=tier), folder / "r", InlineEngine())
    pooled = settings(folder, federation=tier, data={"pooled": True}, train={"rounds": 1})
    assert run(pooled, folder / "s", InlineEngine())["eval"]["loss"] > 0


def test_a_client_of_a_long_name_keeps_its_adapter(folder):
    name = "Федеральный центр сердечно-сосудистой хирургии и ещё немного"
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    (folder / "data.jsonl").write_text("".join(
        json.dumps(row | ({"client": name} if row["client"] == "c0" else {})) + "\n"
        for row in rows))
    run(settings(folder, algorithm={"name": "alone"}, train={"rounds": 1},
                 federation={"tier": [{"name": "gpu", "placement": "local"}]}),
        folder / "r", InlineEngine())
    found = exported.clients(folder / "r")
    assert set(found) == {name, *(f"c{i}" for i in range(1, 8))}
    assert len(found[name].name) < 80
    assert exported.adapter(folder / "r", name) == found[name]


@pytest.mark.parametrize("key", ["data.public", "algorithm.basis_text"])
def test_private_text_is_not_read_as_public(tmp_path, key):
    """Whatever is read as public is shown and learnt without noise."""
    write_data(tmp_path)
    own = f"{tmp_path}/../{tmp_path.name}/data.jsonl"  # the same file by another way
    method = {"name": "cores"} | ({"basis_text": own} if key != "data.public" else {})
    tables = {"algorithm": method, "data": {"public": own} if key == "data.public" else {}}
    promise = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove"}
    with pytest.raises(ConfigError, match=f"{key} is .* the clients' own text"):
        settings(tmp_path, privacy=promise, **tables)
    settings(tmp_path, **tables)
