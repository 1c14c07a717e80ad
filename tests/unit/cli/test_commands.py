"""The command line: every command on a tiny federation, purity of JSON, error lines and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import typer
from tests.closeness import assert_near
from typer.testing import CliRunner

from aulait import cli
from aulait.core.types import Profile
from aulait.engines.inline import InlineEngine
from aulait.methods import ffa
from aulait.runs import sweep

CLIENTS, TEXTS = 6, 8
TOML = """
[run]
name = "tiny"
[model]
context = 32
[adapter]
rank = 1
targets = "attention"
[data]
source = "{source}"
public = ""
records_per_client = 6
[[federation.tier]]
name = "all"
placement = "local"
[synthesis]
proxies = "absent"
[train]
rounds = 2
steps = 1
batch = 2
lr = 1e-2
[privacy]
epsilon = 8.0
delta = 1e-2
relation = "add-remove"
clip = 0.1
noise_acknowledged = true
"""
OFF = ("--set", "privacy={off=true}")


def write(folder: Path, extra: str = "") -> Path:
    rows = [{"client": f"c{k}", "text": f"Record {i} of client {k} has the number {i * k}."} for k in range(CLIENTS) for i in range(TEXTS)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + extra)
    (folder / "tiny.toml").write_text(TOML.format(source=folder / "data.jsonl"))
    return folder / "tiny.toml"


def call(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def told(*words: object):
    """The JSON document of a command: stdout must hold it and nothing else."""
    result = call(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def problem(*words: object) -> str:
    """The error lines of a command that must be refused."""
    result = call(*words)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines
    return "\n".join(lines)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("cli"), extra="not json\n")


@pytest.fixture(scope="module")
def finished(experiment) -> tuple[Path, dict]:
    """A private run, and what ``run --json`` printed."""
    path = experiment.parent / "run"
    return path, told("run", experiment, "--out", path)


def test_run_writes_the_folder_and_tells_its_result(finished):
    path, result = finished
    for name in ("config.toml", "rounds.jsonl", "ledger.jsonl", "result.json", "report.html", "adapter/adapter_config.json"):
        assert (path / name).is_file(), name
    kept = json.loads((path / "result.json").read_text())
    assert {key: result[key] for key in kept} == kept
    assert result["rounds"] == 2
    assert result["clients"] == CLIENTS
    assert 7.9 < result["privacy"]["epsilon"]["local"] <= 8.0


def test_run_prints_a_table_lines_of_progress_and_malformed_rows(experiment, tmp_path):
    result = call("run", experiment, "--out", tmp_path / "r", *OFF, "--set", "train.rounds=1")
    assert result.exit_code == 0
    assert "infinite (privacy is off)" in result.stdout
    assert f"aulait generate {tmp_path / 'r'}" in result.stdout
    assert str(tmp_path / "r" / "report.html") in result.stdout
    assert "1 malformed row was left out: data.jsonl line 49" in result.stderr
    assert "training 0/1" in result.stderr
    assert tomllib.loads((tmp_path / "r" / "config.toml").read_text())["train"]["rounds"] == 1


def test_default_folder_is_named_after_the_run(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = told("run", experiment, *OFF, "--set", "train.rounds=0", "--set", "run.name=a b/c")
    assert Path(result["path"]).parent == Path("runs")
    assert Path(result["path"]).name.startswith("a-b-c-2")
    assert (tmp_path / result["path"] / "result.json").is_file()


def test_an_interrupt_says_how_to_resume_and_resume_ends_as_if_nothing_happened(experiment, tmp_path, monkeypatch):
    whole = told("run", experiment, "--out", tmp_path / "whole", *OFF)
    real, path = ffa.step, tmp_path / "broken"

    def stops(*arguments):
        if arguments[3].round == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ffa, "step", stops)
    result = call("run", experiment, "--out", path, *OFF)
    assert result.exit_code == 130
    line = next(line for line in result.stderr.splitlines() if line.startswith("error: interrupted"))
    assert line.endswith(f"--out {path} --resume")
    monkeypatch.setattr(ffa, "step", real)
    again = told("run", experiment, "--out", path, *OFF, "--resume")
    assert again["eval"] == whole["eval"]


def test_plan_foretells_bytes_and_epsilon(experiment, finished):
    plan, result = told("plan", experiment), finished[1]
    assert plan["total"] == {key: result["traffic"][key] for key in ("down_bytes", "up_bytes")}
    assert plan["privacy"]["epsilon"]["local"] == pytest.approx(result["privacy"]["epsilon"]["local"], rel=1e-6)
    (tier,), (release,) = plan["tiers"], plan["releases"]
    assert (tier["clients"], tier["placement"], tier["steps"], tier["batch"]) == (CLIENTS, "local", 1, 2)
    assert tier["flop_round_estimate"] == pytest.approx(4 * plan["parameters"] * 2 * 32, rel=0.3)  # by blocks: test_compute_cost
    ledger = [json.loads(line) for line in (finished[0] / "ledger.jsonl").read_text().splitlines()]
    assert len(ledger) == release["releases"]
    assert [line["sigma"] for line in ledger] == [pytest.approx(release["sigma"])] * 2


def test_plan_tells_of_a_model_out_of_reach_before_it_measures(experiment, monkeypatch):
    monkeypatch.setattr("aulait.cli.plan.measure_device", lambda **_: pytest.fail("it measured"))
    told = problem("plan", experiment, "--set", "model.name=nobody/nothing-of-the-name")
    assert "the hub cannot be reached" in told


@pytest.mark.parametrize(("free_bytes", "said"), [(1, True), (10**12, False), (None, False)])
def test_plan_says_what_no_memory_here_could_hold(experiment, monkeypatch, free_bytes, said):
    machine = Profile("toy", flop_per_s={"float32": 1e9}, memory_bytes=free_bytes, memory_bytes_per_s=1e9)
    monkeypatch.setattr("aulait.cli.plan.measure_device", lambda **_: machine)
    told = " ".join(call("plan", experiment).stdout.split())
    assert ("ends for want of memory; lower adapter.rank, model.context or train.batch" in told) == said


def test_plan_counts_both_factors_of_fedit_and_the_votes(experiment):
    ffa_tier = told("plan", experiment)["tiers"][0]
    fedit_tier = told("plan", experiment, "--set", "algorithm.name=fedit")["tiers"][0]
    assert fedit_tier["train_up_bytes_round"] > ffa_tier["train_up_bytes_round"] == 4 * ffa_tier["trainable"]
    votes = (
        "--set",
        "synthesis={proxies='synthetic', rounds=3, candidates=4, variations=1}",
        "--set",
        f"data.public={json.dumps('stdlib')}",
        "--set",
        "federation.tier=[{name='a', share=0.5}, {name='b', placement='proxy'}]",
    )
    a, b = told("plan", experiment, *votes)["tiers"]
    assert (a["clients"], b["clients"], a["vote_up_bytes_round"], b["train_up_bytes_round"]) == (3, 3, 0, 0)
    assert (b["vote_down_bytes_round"], b["vote_up_bytes_round"]) == (4 * 8 * 384, 4 * 8)
    assert b["up_bytes_run"] == 3 * 3 * 4 * 8
    assert "3 proxies" in call("plan", experiment, *votes).stdout


def test_export_copies_or_folds_in(finished, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from aulait.models.loading import BREW

    path = finished[0]
    assert told("export", path, "--to", tmp_path / "adapter")["merged"] is False
    assert told("export", path, "--to", tmp_path / "model", "--merge")["merged"] is True
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(BREW, dtype=torch.float32)
        bare = base(ids).logits
        worn = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(ids).logits
        folded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    assert_near(worn, folded, 1e-5)
    assert not torch.allclose(bare, folded, atol=1e-3)
    assert "already holds something" in problem("export", path, "--to", tmp_path / "model")
    for form, library in (("adapter", "peft"), ("model", "transformers")):
        assert f"library_name: {library}" in (tmp_path / form / "README.md").read_text()


def test_export_writes_a_gguf_file_that_says_the_same(finished, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    document = told("export", finished[0], "--to", tmp_path / "g", "--gguf")  # small: in float32
    assert document["files"] == ["Modelfile", "README.md", "model.gguf"]
    assert (document["merged"], document["gguf"]) == (False, "f32")
    told("export", finished[0], "--to", tmp_path / "m", "--merge")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = tokenizer("Return the", return_tensors="pt")["input_ids"]
    said = [net.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist() for net in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "g", gguf_file="model.gguf", dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(tmp_path / "m"))]
    assert said[0] == said[1]
    assert "expected one of them" in problem("export", finished[0], "--to", tmp_path / "x", "--gguf", "--merge")
    assert "did you mean 'q8_0'" in problem("export", finished[0], "--to", tmp_path / "x", "--gguf", "--precision", "q8")
    assert "without --gguf" in problem("export", finished[0], "--to", tmp_path / "x", "--precision", "f32")
    assert not (tmp_path / "x").exists()


def test_generate_is_seeded_and_knows_the_base(finished):
    one = told("generate", finished[0], "Return the", "--tokens", 8, "--seed", 3)
    assert one == told("generate", finished[0], "Return the", "--tokens", 8, "--seed", 3)
    assert told("generate", finished[0], "Return the", "--tokens", 8, "--base")["adapter"] is False
    assert call("generate", finished[0], "Return the", "--tokens", 4).stdout.startswith("Return the")
    assert "no finished run" in problem("generate", finished[0].parent, "x")


def test_report_is_written_again(finished):
    path = finished[0] / "report.html"
    path.unlink()
    assert told("report", finished[0]) == {"report": str(path)}
    assert path.stat().st_size > 1000


def test_account_agrees_with_the_closed_form():
    found = told("account", "--epsilon", 8, "--delta", "1e-5", "--releases", 10)
    z = found["noise_multiplier"]
    mu = math.sqrt(10) / z  # ten Gaussians are one with this mu; its exact profile is known (Balle and Wang 2018)

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    assert phi(mu / 2 - 8 / mu) - math.exp(8) * phi(-mu / 2 - 8 / mu) == pytest.approx(1e-5, rel=1e-3)
    back = told("account", "--noise-multiplier", z, "--delta", "1e-5", "--releases", 10)
    assert back["epsilon"] == pytest.approx(8, rel=1e-4)
    assert "infinite" in call("account", "--noise-multiplier", 0, "--delta", "1e-5", "--releases", 1).stdout
    numbers = ("--delta", "1e-5", "--releases", 10)
    assert "found both" in problem("account", "--epsilon", 8, "--noise-multiplier", 1, *numbers)
    assert "found neither" in problem("account", *numbers)
    assert "needs --delta" in problem("account", "--epsilon", 8)


def test_account_recounts_a_run_and_notices_a_changed_number(finished, tmp_path):
    agreed = told("account", finished[0])
    assert agreed["agrees"] is True
    assert {r["role"]: r["releases"] for r in agreed["roles"]} == {"proxy": 0, "local": 2, "split": 0}
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    result = json.loads((copy / "result.json").read_text())
    result["privacy"]["epsilon"]["local"] = 4.0
    (copy / "result.json").write_text(json.dumps(result))
    answer = call("account", copy, "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["agrees"] is False
    assert "disagree" in answer.stderr
    (copy / "ledger.jsonl").write_text("{}\n")
    assert "line 1 is malformed" in problem("account", copy)


def test_list_names_methods_with_their_traits():
    from typing import get_args

    from aulait.evaluation.tasks import TaskConfig
    from aulait.federation.presets import SHARES

    found = told("list")
    methods = {method["name"]: method for method in found["methods"]}
    assert {name: methods[name]["exact"] for name in ("ffa", "fedit", "flora")} == {"ffa": "at equal ranks", "fedit": "no", "flora": "yes"}
    assert methods["fedsa"]["up"] == "4 sum r_k N"
    assert methods["flora"]["instead"] == "ffa"
    assert {"private", "secure", "personal", "unit", "down", "source", "differs"} <= set(methods["ffa"])
    assert [preset["name"] for preset in found["presets"]] == list(SHARES)
    assert tuple(task["name"] for task in found["tasks"]) == get_args(TaskConfig.model_fields["task"].annotation)
    assert {"docstrings", "stdlib"} <= {source["name"] for source in found["sources"]}
    assert "minilm" in {embedder["name"] for embedder in found["embedders"]}
    assert {"phone", "laptop", "h100"} <= {machine["name"] for machine in found["machines"]}
    assert {"4g", "home"} <= {link["name"] for link in found["links"]}


def test_every_method_has_its_row_in_the_page_of_methods():
    page = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.split("\n## ")[0].splitlines() if line.startswith("| `")]
    methods = {f"`{method['name']}`": method for method in told("list")["methods"]}
    assert {name for name, *_ in rows} == set(methods)
    for name, _, _, _, exact, unequal, privacy in rows:
        method = methods[name]
        assert exact.startswith(method["exact"]), name
        assert (unequal == "no") == (not method["unequal_ranks"]), name
        clients = method["private"] or "client" in method["units"]
        nearest = f"nearest `{method['instead']}`"
        assert (privacy == f"refused; {nearest}") == (not method["units"] and name != "`alone`"), name
        assert privacy.endswith(f"refused for clients, {nearest}") == (
            not clients and "record" in method["units"] and name != "`dplora`"), name
        told_units = set(privacy.split(";")[0].split(", ")) & {"client", "record"}
        assert told_units == set(method["units"]) or name == "`alone`", name


def test_list_fits_on_100_columns():
    text = call("list").stdout
    assert max(map(len, text.splitlines())) <= 100
    assert "4 sum r_k(M+N)" in text
    assert "no → fedit" in text
    assert "heavy-tail-light" in text
    assert next(line for line in text.splitlines() if line.startswith("dplora")).split()[:4] == ["dplora", "no", "no", "record"]


@pytest.fixture(scope="module")
def personal(experiment) -> Path:
    """A run with personal adapters, the first under a name that must be quoted."""
    path = experiment.parent / "personal"
    told("run", experiment, "--out", path, *OFF, "--set", "algorithm.name=fedsa", "--set", "train.rounds=1")
    (path / "personal" / "c0").rename(path / "personal" / "ward%2F7")
    return path


def test_export_and_generate_take_a_clients_own_adapter(personal, finished, tmp_path):
    document = told("export", personal, "--client", "ward/7", "--to", tmp_path / "own")
    assert (document["client"], document["merged"]) == ("ward/7", False)
    weights = (personal / "personal" / "ward%2F7" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "own" / "adapter_model.safetensors").read_bytes() == weights
    told("export", personal, "--client", "c1", "--to", tmp_path / "whole", "--merge")
    told("export", personal, "--to", tmp_path / "base", "--merge")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "base")]
    assert files[0] != files[1]  # the shared adapter of fedsa is the base
    words = ("generate", personal, "Return the", "--tokens", 6, "--temperature", 0)
    assert told(*words, "--client", "c1")["client"] == "c1"
    assert told(*words)["text"] == told(*words, "--base")["text"]
    for command in (("generate", personal, "x"), ("export", personal, "--to", tmp_path / "none")):
        assert "6 clients have; did you mean 'c1'?" in problem(*command, "--client", "c11")
        assert "did you mean" in problem(*command, "--client", "..")
    assert "holds no personal adapters" in problem("generate", finished[0], "x", "--client", "c1")
    assert "found --base and --client" in problem("generate", personal, "x", "--client", "c1", "--base")
    assert not (tmp_path / "none").exists()


def test_compare_ranks_methods_and_tells_whose_adapters(personal, finished, tmp_path):
    found = told("compare", personal, finished[0], "--out", tmp_path / "page.html")
    assert found["ranked_by"] == "loss"
    assert sorted(row["arm"] for row in found["rows"]) == ["tiny fedsa", "tiny ffa"]
    assert [row["loss"] for row in found["rows"]] == sorted(row["loss"] for row in found["rows"])
    page, table = tmp_path / "compare.html", tmp_path / "table.json"  # what RUNS/* names after a sweep
    page.touch()
    table.touch()
    assert told("compare", personal, finished[0], page, table)["rows"] == found["rows"]
    shared = next(row for row in found["rows"] if row["personal"])
    assert shared["shared_loss"] == pytest.approx(shared["base_loss"], rel=1e-5)
    text = call("compare", personal, finished[0]).stdout
    assert "lowest loss first" in text
    assert "fedsa: scores of the clients' own adapters" in text
    assert "MB up" in text


def test_sweep_runs_skips_resumes_and_survives_a_bad_arm(experiment, tmp_path):
    words = (
        "sweep",
        experiment,
        *OFF,
        "--set",
        "train.rounds=1",
        "--over",
        "train.lr=1e-3,3e-3",
        "--arm",
        "bad: train.lr=-1",
        "--seeds",
        "0,1",
        "--out",
        tmp_path / "s",
    )
    result = call(*words, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert sorted((row["arm"], row["n"], row["seeds"]) for row in found["rows"]) == [("lr=1e-3", 2, [0, 1]), ("lr=3e-3", 2, [0, 1])]
    assert [run["status"] for run in found["runs"]] == ["finished", "finished", "failed"] * 2
    assert "bad seed 0: train.lr" in result.stderr
    assert (tmp_path / "s" / "lr=1e-3-s1" / "result.json").is_file()
    assert json.loads((tmp_path / "s" / "table.json").read_text())["rows"] == found["rows"]
    assert (tmp_path / "s" / "compare.html").stat().st_size > 1000
    (tmp_path / "s" / "lr=3e-3-s1" / "result.json").unlink()
    again = json.loads(call(*words, "--json").stdout)
    assert [run["status"] for run in again["runs"] if run["label"] != "bad"] == ["skipped", "skipped", "skipped", "resumed"]
    assert [row["loss"] for row in again["rows"]] == [row["loss"] for row in found["rows"]]
    changed = call(*words, "--set", "adapter.rank=2")
    assert changed.exit_code == 1
    assert "finished run with other settings" in changed.stderr
    table = told("compare", tmp_path / "s", "--out", tmp_path / "page.html")
    assert table["rows"] == again["rows"]
    assert (tmp_path / "page.html").is_file()
    assert "± " in call("compare", tmp_path / "s").stdout


def test_sweep_splits_values_outside_brackets_and_quotes():
    assert sweep.separated('[0.1, 0.2],"a,b",c', ",") == ["[0.1, 0.2]", '"a,b"', "c"]
    arms = sweep.arms_over(["train.lr=1e-3,3e-3", "adapter.rank=4,8"])
    assert [arm.label for arm in arms] == ["lr=1e-3 rank=4", "lr=1e-3 rank=8", "lr=3e-3 rank=4", "lr=3e-3 rank=8"]
    assert arms[1].overrides == ("train.lr=1e-3", "adapter.rank=8")
    same = sweep.arms_over(["run.name=a", "model.name=b"])
    assert same[0].label == "run.name=a model.name=b"
    arm = sweep.named_arm('all local: federation.tier=[{name = "a", share = 1.0}] train.lr=1e-3')
    assert arm == sweep.Arm("all local", ('federation.tier=[{name = "a", share = 1.0}]', "train.lr=1e-3"))


def test_sweep_in_two_processes_does_all_jobs(experiment, tmp_path, monkeypatch):
    seen = []

    class Context:  # threads stand for processes: loading torch twice more would take longer than all other tests
        def Queue(self):
            import queue

            return queue.Queue()

        def Process(self, target, args, daemon):
            import threading

            return threading.Thread(target=target, args=args, daemon=daemon)

    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda kind: Context())
    monkeypatch.setattr(sweep.signal, "signal", lambda number, action: None)
    monkeypatch.setattr(sweep, "run_one", lambda job, engine, cache: sweep.JobOutcome(job.path, job.arm.label, job.seed, "finished"))
    work = sweep.sweep_jobs(experiment, sweep.arms_over(["train.lr=1e-3,2e-3,3e-3"]), [0, 1], (), tmp_path)
    threads = torch.get_num_threads()
    outcomes = sweep.run_all(work, InlineEngine(), 4, seen.append)
    torch.set_num_threads(threads)
    assert sorted(o.path for o in outcomes) == sorted(job.path for job in work)
    assert outcomes == seen


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--set", "train.rouds=3"), "unknown key 'train.rouds'; did you mean 'rounds'?"),
        (("--set", "adaptr.rank=3"), "did you mean 'adapter'?"),
        (("--set", "data.source=/nowhere/data.jsonl"), "/nowhere/data.jsonl"),
        (("--set", "federation.tier.0.share=0.7"), "sum to 0.7; expected 1"),
        (("--set", "privacy.noise_multiplier=1.0"), "expected exactly one of epsilon and noise_multiplier"),
        (("--set", "privacy={delta=1e-3, relation='add-remove'}"), "neither epsilon nor noise_multiplier"),
        (("--set", "privacy.delta=0.3"), "expected less than 1/6"),
        (("--set", "adapter.targets=['q_prj']"), "did you mean 'q_proj'?"),
        (("--set", "model.context=8"), "longer than model.context = 8"),
        (("--set", "model.name=/nowhere"), "model.name = '/nowhere' is no folder"),
        (("--set", "bogus"), "expected key=value"),
        (("--resume",), "--resume found no --out"),
        (("--sett", "a=1"), "--sett"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(experiment, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in problem("run", experiment, *words)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_listed_at_once(experiment):
    text = problem("plan", experiment, "--set", "train.rouds=3", "--set", "adapter.rnk=3")
    assert "train.rouds" in text
    assert "adapter.rnk" in text
    assert len(text.splitlines()) == 2


def test_missing_files_and_folders(experiment, finished, tmp_path):
    assert "not found" in problem("run", tmp_path / "no.toml")
    assert "already holds a run; add --resume" in problem("run", experiment, "--out", finished[0])
    assert "other settings" in problem("run", experiment, "--out", finished[0], "--resume", "--set", "run.seed=5")
    assert f"no run in --out {tmp_path}" in problem("run", experiment, "--out", tmp_path, "--resume")
    assert "no run in" in problem("compare", tmp_path)
    assert "error: found no" in problem("report", tmp_path / "none")
    assert "did you mean 'simulate'?" in problem("bench", "simulat")
    assert "no such command 'rnu'" in problem("rnu")
    assert "expected whole numbers" in problem("sweep", experiment, "--over", "train.lr=1e-3", "--seeds", "a")
    assert "the sweep has no arm" in problem("sweep", experiment)
    assert "train.rouds" in problem("sweep", experiment, "--over", "train.rouds=1,2", "--out", tmp_path / "s")


def test_no_space_is_one_line(experiment, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2**20))
    assert "1 MiB free" in problem("run", experiment, "--out", tmp_path / "r")


def test_a_refusal_of_the_system_is_one_line(experiment, finished, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in problem("run", experiment, "--out", tmp_path / "file" / "r")
    assert "the system refused" in problem("compare", finished[0], "--out", tmp_path / "file" / "page.html")


def test_traceback_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("AULAIT_TRACEBACK", "1")
    result = call("run", tmp_path / "no.toml")
    assert type(result.exception).__name__ == "ConfigError"


def test_demo_settings_keep_what_the_page_promises(monkeypatch):
    from importlib.resources import files

    from aulait.models import named
    from aulait.runs import experiment_file

    monkeypatch.setattr(named, "package_file", lambda name: Path(__file__))  # also where it is not installed
    for name, clients in (("demo.toml", 60), ("demo-real.toml", 40)):
        settings = experiment_file.read_settings(Path(str(files("aulait") / "cli" / name)))
        assert settings.privacy.epsilon == 8.0
        assert settings.privacy.delta is not None
        assert settings.privacy.delta < 1 / clients
        assert [tier.placement for tier in settings.federation.tier] == ["local", "proxy"]
    shown = experiment_file.read_settings(Path(str(files("aulait") / "cli" / "demo.toml")))
    assert (shown.synthesis.source, shown.algorithm["name"]) == ("retrieve", "cores")
    assert shown.adapter.auto == ("rank", "layers")


def test_help_is_instant_and_loads_no_arithmetic():
    code = (
        "import sys; from aulait import cli\ntry: cli.app(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pydantic', 'plotly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f" {name} " in done.stdout


@pytest.mark.parametrize(("code", "seconds"), [
    ("import sys; from aulait import cli; sys.argv[1:] = ['--help']; cli.app(standalone_mode=False)", 0.3),
    ("import sys; from aulait import cli; sys.argv[1:] = ['list', '--json']; cli.app(standalone_mode=False)", 1.0),
    ("import sys; from aulait import cli; sys.argv[1:] = ['run', '--help']; cli.app(standalone_mode=False)", 0.4),
    ("import sys, aulait", 0.2)])
def test_the_door_opens_at_once(code, seconds):
    """Processor time of this process, doubled for a slower machine."""
    ended = ("\nimport resource; own = resource.getrusage(resource.RUSAGE_SELF)\n"
             "print(own.ru_utime + own.ru_stime, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code + ended], capture_output=True, text=True, check=True)
    spent, heavy = done.stdout.splitlines()[-1].split()
    assert heavy == "False"
    assert float(spent) < 2 * seconds


@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_the_line_of_the_list_is_the_first_paragraph_of_a_commands_help(name):
    assert cli.loaded(name).help.split("\n\n")[0] == cli.COMMANDS[name].line
    assert cli.loaded(name).name == name


@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_the_help_that_is_written_down_is_the_help_of_the_command(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")

    def shown(command) -> list[str]:
        inner = getattr(command, "commands", {})
        context = typer.Context(command, info_name=name, help_option_names=["-h", "--help"])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print(command.get_help(context))
        return [out.getvalue(), *(text for each in inner.values() for text in shown(each))]

    written, real = shown(cli.explained(name)), shown(cli.loaded(name))
    assert written == real
    assert all("--help" in text for text in real)


def test_help_where_a_value_is_expected_is_one_line():
    assert problem("plan", "file.toml", "--set", "--help").startswith("error: found --help where an option expects its value")


def test_the_shell_completes_commands_without_loading_them_and_options_of_one():
    def completed(*words: str) -> list[str]:
        code = ("import sys, typer; from click.shell_completion import ShellComplete; from aulait import cli\n"
                "root = typer.main.get_command(cli.app)\n"
                "found = ShellComplete(root, {}, 'aulait', '_X').get_completions(sys.argv[1:-1], sys.argv[-1])\n"
                "print(*[item.value for item in found]); print('torch' in sys.modules)")
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert completed("") == [" ".join(cli.COMMANDS), "False"]
    assert completed("s")[0].split() == ["sweep", "serve", "status"]
    assert "--target-loss" in completed("compare", "--")[0]
    assert completed("compare", "--")[1] == "False"
    assert completed("keys", "")[0].split() == ["server", "site", "sums", "enrol", "list"]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "aulait_benchmarks", None)
    monkeypatch.delitem(sys.modules, "aulait_benchmarks.command", raising=False)
    assert problem("bench", "simulate") == (
        "error: aulait bench needs the package aulait_benchmarks, which belongs to this distribution, and it is missing; "
        "install aulait again")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for name in [name for name in sys.modules if name.startswith(("aulait.cli.keys", "aulait.engines.deployment.pki", "cryptography."))]:
        monkeypatch.delitem(sys.modules, name)
    assert problem("keys", "list", "folder").startswith("error: aulait keys needs the package cryptography and it is missing; in the checkout")


def test_an_unknown_command_is_one_line_with_the_nearest():
    for typed in ("rnu", "runn"):
        said = problem(typed)
        assert said.startswith(f"error: no such command '{typed}'. Did you mean")
        assert "'run'" in said
        assert said.lower().count("did you mean") == 1


@pytest.mark.slow
def test_bench_loads_the_base_once():
    from aulait.models import loading
    from aulait_benchmarks import simulate

    real = loading.load_base
    found = simulate.simulate(clients=2, repetitions=3, steps=1, batch=2)
    assert loading.load_base is real
    assert found["base_loads"] == 1
    for each in found["methods"].values():
        assert each["ratio_to_floor"] == pytest.approx(each["floor_tokens_per_s"] / each["aulait_tokens_per_s"])
    assert found["tokens"] == found["methods"]["ffa"]["tokens"] > 0
    assert found["peak_rss_bytes"] > 10**8
    assert 0.1 < found["dpsgd_ratio_to_floor"] < 100
