"""A method, a generator and a mechanism that other distributions add: installed, listed, run.

The folders beside this file are the distributions; CONTRIBUTING.md shows the same files.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from aulait import cli
from aulait.methods import METHODS
from aulait.privacy.mechanisms import MECHANISMS
from aulait.synthesis.variation import GENERATORS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGINS = ("method", "generator", "mechanism")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXPERIMENT = """
[run]
seed = 3
[model]
context = 32
[adapter]
rank = 1
targets = "attention"
layers = 1
[data]
source = "{folder}/data.jsonl"
public = "{folder}/public.txt"
records_per_client = 4
[[federation.tier]]
name = "gpu"
count = 2
placement = "local"
[[federation.tier]]
name = "laptop"
placement = "proxy"
[synthesis]
rounds = 1
candidates = 4
variations = 1
texts = 6
proxy_count = 1
[synthesis.generate]
min_words = 1
[train]
rounds = 2
steps = 1
batch = 2
[evaluate]
records_per_client = 1
[engine]
threads = 1
"""
OFF = "privacy={off=true}"
PRIVATE = ('privacy={epsilon=8.0, delta=1e-2, relation="add-remove", clip=0.1, noise_seed=5, '
           'mechanism="MECHANISM"}')


def install(plugin: str, target: Path) -> None:
    """What pip makes of a distribution in a folder of packages; no network, no build tool."""
    project = tomllib.loads((HERE / plugin / "pyproject.toml").read_text())["project"]
    for module in (HERE / plugin).glob("*.py"):
        shutil.copy(module, target)
    about = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    about.joinpath("entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in places.items())
        for group, places in project["entry-points"].items()))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for plugin in PLUGINS:
        install(plugin, folder)
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    rows = [{"client": f"c{client}", "text": f"Client {client} wrote the number {number * 7}."}
            for client in range(5) for number in range(5)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "public.txt").write_text("".join(f"Return the {noun} of a {other}.\n"
        for noun in ("sum", "name", "mean") for other in ("list", "file", "line")))
    (folder / "experiment.toml").write_text(EXPERIMENT.format(folder=folder))
    return folder / "experiment.toml"


@pytest.fixture(autouse=True)
def installed(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-ins are there for one test, and forgotten after it."""
    monkeypatch.syspath_prepend(str(packages))
    for registry in (METHODS, GENERATORS, MECHANISMS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    for module in ("polyak", "word_order", "thresholded"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def run(experiment: Path, out: Path, *settings: str) -> dict:
    words = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(
        cli.app, ["run", str(experiment), "--out", str(out), "--json", *words])
    assert done.exit_code == 0, done.stderr or done.exception
    return json.loads(done.stdout)


def factors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_is_small_and_contributing_shows_it_whole(plugin: str) -> None:
    (module,) = (HERE / plugin).glob("*.py")
    text = module.read_text()
    assert len(text.splitlines()) < 40
    assert f"```python\n{text}```" in CONTRIBUTING
    points = re.search(r'\n(\[project.entry-points.*)', (HERE / plugin / "pyproject.toml")
                       .read_text(), re.S)
    assert points is not None
    assert f"```toml\n{points[1]}```" in CONTRIBUTING


def test_plugins_are_listed_and_a_broken_one_is_named_and_skipped(
        packages: Path, tmp_path: Path) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    about.joinpath("entry_points.txt").write_text(
        "[aulait.algorithm]\nundescribed = broken\nabsent = nowhere\n")
    text = (packages / "polyak.py").read_text()
    (tmp_path / "broken.py").write_text(text.replace("\nexact: no", ""))
    program = (f"import sys; sys.path[:0] = {[str(packages), str(tmp_path)]}; "
               "from aulait.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", program, "list", "--json"], capture_output=True,
                          text=True, check=True)
    found = json.loads(done.stdout)
    (polyak,) = [method for method in found["methods"] if method["name"] == "polyak"]
    assert polyak["exact"] == "no"
    assert polyak["up"] == "4 sum r_k (M + N)"
    told = {kind: {item["name"]: item["what"] for item in found[kind]}
            for kind in ("generators", "mechanisms")}
    assert told["generators"]["word-order"].startswith("The words of a text in another order")
    assert told["mechanisms"]["thresholded"].startswith("Gaussian noise, and zero wherever")
    assert not {"undescribed", "absent"} & {method["name"] for method in found["methods"]}
    broken = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert len(broken) == 2
    assert "algorithm 'absent' of the distribution broken is broken" in broken[0]
    assert "section 'exact' is missing" in broken[1]


def test_a_plugin_method_runs(experiment: Path, tmp_path: Path) -> None:
    """Its result is the mean of what FedIT has after one round and after two."""
    settings = (OFF, "synthesis.proxies=absent")
    result = run(experiment, tmp_path / "polyak", *settings, "algorithm.name=polyak")
    assert result["algorithm"] == "polyak"
    run(experiment, tmp_path / "one", *settings, "algorithm.name=fedit", "train.rounds=1")
    run(experiment, tmp_path / "two", *settings, "algorithm.name=fedit")
    one, two = factors(tmp_path / "one"), factors(tmp_path / "two")
    assert any(not torch.equal(one[name], two[name]) for name in one)
    for name, mean in factors(tmp_path / "polyak").items():
        torch.testing.assert_close(mean, (one[name] + two[name]) / 2, rtol=1e-5,
                                   atol=1e-6 * float(one[name].abs().max()))


def test_a_plugin_method_runs_privately(experiment: Path, tmp_path: Path) -> None:
    private = PRIVATE.replace("MECHANISM", "gaussian")
    result = run(experiment, tmp_path / "run", private, "algorithm.name=polyak")
    assert 7.9 < result["privacy"]["epsilon"]["local"] <= 8.0
    assert {line["role"] for line in lines(tmp_path / "run" / "ledger.jsonl")} == {"proxy", "local"}


def test_a_plugin_generator_writes_what_the_proxies_learn_from(
        experiment: Path, tmp_path: Path) -> None:
    run(experiment, tmp_path / "run", OFF, "synthesis.generate.kind=word-order")
    public = [sorted(text.split())
              for text in (experiment.parent / "public.txt").read_text().splitlines()]
    made = [line["text"] for line in lines(tmp_path / "run" / "synthetic.jsonl")]
    assert made
    assert all(sorted(text.split()) in public for text in made)
    told = set((experiment.parent / "public.txt").read_text().splitlines())
    assert not told >= set(made)


def test_a_plugin_mechanism_makes_the_noise(experiment: Path, tmp_path: Path) -> None:
    """One round of FFA from B = 0: the released B, times the number of clients, is zero or large."""
    settings = ("synthesis.proxies=absent", "train.rounds=1", "algorithm.name=ffa",
                "algorithm.server=plain", "algorithm.server_lr=1.0")
    for mechanism in ("thresholded", "gaussian"):
        result = run(experiment, tmp_path / mechanism, PRIVATE.replace("MECHANISM", mechanism),
                     *settings)
        assert 7.9 < result["privacy"]["epsilon"]["local"] <= 8.0
    (line,) = lines(tmp_path / "thresholded" / "ledger.jsonl")
    assert line["mechanism"] == "thresholded"
    assert CliRunner().invoke(cli.app, ["account", str(tmp_path / "thresholded")]).exit_code == 0
    within = {
        mechanism: torch.cat([
            (tensor.double() * line["planned"] / line["sigma"]).abs().flatten()
            for name, tensor in factors(tmp_path / mechanism).items() if "lora_B" in name])
        for mechanism in ("thresholded", "gaussian")}
    released = within["thresholded"]
    assert released[released > 0].min() > 2 * (1 - 1e-5)
    assert 0.5 < float((released == 0).double().mean()) < 1.0
    assert within["gaussian"][within["gaussian"] > 0].min() < 0.1


@pytest.mark.parametrize(("setting", "message"), [
    ("algorithm.name=polyka", "algorithm 'polyka' is unknown; did you mean 'polyak'?"),
    ("synthesis.generate.kind=word-oder",
     "generator 'word-oder' is unknown; did you mean 'word-order'?"),
    (PRIVATE.replace("MECHANISM", "tresholded"),
     "mechanism 'tresholded' is unknown; did you mean 'thresholded'?"),
])
def test_a_wrong_name_gets_the_nearest_plugin(
        experiment: Path, setting: str, message: str) -> None:
    done = CliRunner().invoke(
        cli.app, ["run", str(experiment), "--set", OFF, "--set", setting])
    assert done.exit_code == 2
    assert message in done.stderr
