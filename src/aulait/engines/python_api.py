"""The Python API: what the commands run, plan, sweep and compare do, without what they print.

    import aulait

    done = aulait.run("experiments/cafe.toml", {"train.rounds": 3, "privacy.epsilon": 4.0})
    print(done.path, done.base_loss, done.loss, done.epsilon)
    done.rounds.plot("round", "eval.loss")
    model, tokenizer = done.model()

Everything runs in this process, as with ``aulait run``. Nothing is printed but what libraries
print.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas
import tomli_w

from aulait.core.errors import ConfigError, DataError, require
from aulait.core.files import JsonTree
from aulait.core.parsing import parsed_json
from aulait.data.given_records import GivenRecords, source_of
from aulait.engines.inline import InlineEngine
from aulait.models import exported
from aulait.reporting import numbers as n
from aulait.reporting.folder import read_run
from aulait.reporting.grouping import comparison_rows, largest_epsilon
from aulait.reporting.report import write_comparison
from aulait.runfolder.naming import fresh_folder
from aulait.runfolder.run_folder import RunFolder
from aulait.runfolder.schema import ResultFile
from aulait.runs import experiment_file, loop, setup
from aulait.runs import sweep as sweeps
from aulait.runs.composed_epsilon import composed_epsilon_of
from aulait.runs.experiment_file import Settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer, RunWatch, unwatched
from aulait.runs.sweep import JobOutcome
from aulait.training.own_training import TrainSite

if TYPE_CHECKING:  # take seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Overrides = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over.

    Attributes:
        path: its folder; report.html is in it.
        result: what result.json holds. A value that is not known, or an epsilon without bound, is
            None.
    """

    path: Path
    result: ResultFile

    @property
    def loss(self) -> float | None:
        """Held-out loss after the run, nats a token."""
        return self.result.eval.loss

    @property
    def base_loss(self) -> float | None:
        """The same before any training."""
        return self.result.base_eval.loss

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any client; infinite without privacy, None where none is
        recorded."""
        return largest_epsilon(read_run(self.path))

    @property
    def adapter(self) -> Path:
        """The folder of the shared adapter, in PEFT format."""
        return exported.adapter(self.path)

    @property
    def rounds(self) -> pandas.DataFrame:
        """A row for every round of both stages, as rounds.jsonl has them; nested values under
        dotted names, as "eval.loss" and "epsilon.local"."""
        return pandas.json_normalize(RunFolder(self.path).lines())

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        rows = [("held-out loss", f"{n.loss(self.base_loss)} → {n.loss(self.loss)}"),
                ("epsilon", n.epsilon(self.epsilon)), ("report", str(self.path / "report.html"))]
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>"
                        for name, value in rows)
        return f"<table>{cells}</table>"

    def model(self, *, client: str | None = None, merged: bool = True,
              device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What the run has learnt, as a Hugging Face model, and its tokenizer.

        Args:
            client: whose personal adapter, where the method makes them; None takes the shared one.
            merged: fold the adapter into the base; False leaves it beside the base, as a
                ``peft.PeftModel``.
            device: where to.

        Raises:
            ConfigError: the client has no adapter.
            ModelError: the base cannot be loaded, or the adapter does not fit it.
        """
        if merged:
            return exported.load_exported(self.path, client=client, device=device)
        return exported.load_worn(self.path, client=client, device=device)


def run(  # noqa: PLR0913 (all but two by name)
        experiment: Settings | Path | str, overrides: Overrides = (), *,
        records: GivenRecords | None = None, train: TrainSite | None = None,
        out: Path | str | None = None, resume: bool = False,
        progress: RunWatch = unwatched) -> FinishedRun:
    """Run an experiment: the two stages, the evaluation, the report.

    Args:
        experiment: a TOML file, or settings.
        overrides: of a file's keys, as {"train.rounds": 3} or ["train.rounds=3"].
        records: rows in place of ``data.source``: any iterable of mappings, such as a list or a
            ``datasets.Dataset``. A run that is resumed is given the same ones.
        train: trains a site in place of the built-in steps: a function of an
            ``aulait.SiteTraining``.
        out: the run folder; None makes runs/NAME-DATE-TIME.
        resume: go on with the interrupted run in ``out``.
        progress: called as ``progress(stage, done, total, note)``: before the first round of
            "prepare", "synthesis", "train" and "finish", and after each.

    Raises:
        AulaitError: bad settings, data or model, before any work; a broken privacy condition at any
            time.
    """
    settings = _settings(experiment, overrides, records)
    path = fresh_folder(settings.run.name) if out is None else Path(out)
    loop.run(settings, path, InlineEngine(train), resume=resume, observer=Observer(progress))
    return load_run(path)


def plan(experiment: Settings | Path | str, overrides: Overrides = (), *,
         records: GivenRecords | None = None) -> dict[str, JsonTree]:
    """Whether it will learn (``advice``), and placement, work, bytes, FLOPs, seconds, memory,
    joules and epsilon of every tier, as ``aulait plan --json`` prints them. The base is loaded and
    nothing is trained.

    Args:
        experiment, overrides, records: as of ``run``.

    Raises:
        AulaitError: bad settings, data or model.
    """
    settings = _settings(experiment, overrides, records)
    return summarise_plan(setup.prepare(settings, SharedCache()))


def sweep(  # noqa: PLR0913 (all but two by name)
        file: Path | str, over: Mapping[str, Sequence[object]], *, out: Path | str,
        seeds: Sequence[int] = (0,), overrides: Overrides = (),
        records: GivenRecords | None = None, jobs: int = 1) -> list[JobOutcome]:
    """Run all combinations of some settings with all seeds; what is finished in ``out`` is skipped.

    Args:
        file: the experiment.
        over: setting -> its values, as {"algorithm.name": ["ffa", "fedit"]}.
        out: folder of the run folders.
        seeds: of every combination.
        overrides: of the file's keys, for all runs.
        records: as of ``run``; they are in this process, so that ``jobs`` is 1.
        jobs: processes; 1 is this one.

    Returns:
        What became of every run: its folder, and why it failed where it did.

    Raises:
        ConfigError: the settings of all runs are wrong, or two would share a folder.
    """
    require(records is None or jobs == 1, ConfigError,
            f"found records together with jobs = {jobs}, expected jobs = 1: they are in this "
            "process alone; write them to a file for more")
    arms = sweeps.arms_over(
        [f"{key}={','.join(_toml(value) for value in values)}" for key, values in over.items()])
    work = sweeps.sweep_jobs(Path(file), arms, seeds, _written(overrides, records), Path(out))
    return sweeps.run_all(work, InlineEngine(), jobs, lambda outcome: None)


def compare(runs: Sequence[FinishedRun | Path | str],
            page: Path | str | None = None) -> list[dict[str, JsonTree]]:
    """One row for each arm, mean and spread over its seeds, the best arm first.

    Args:
        runs: finished runs, or their folders.
        page: also write the comparison as this HTML file.

    Raises:
        DataError: a folder holds no run.
    """
    paths = [one.path if isinstance(one, FinishedRun) else Path(one) for one in runs]
    if page is not None:
        write_comparison(paths, Path(page), remark=composed_epsilon_of(paths).sentence)
    return comparison_rows(paths)


def load_run(folder: Path | str) -> FinishedRun:
    """A finished run, from its folder.

    Raises:
        DataError: there is no finished run in it.
    """
    path = Path(folder)
    require((path / "result.json").is_file(), DataError,
            f"found no result.json in {path}, expected a finished run; check the path or finish "
            "the run")
    try:
        tree = parsed_json((path / "result.json").read_bytes())
    except ValueError as error:
        raise DataError(f"{path / 'result.json'} is not JSON ({error}), expected what a run "
                        "writes; restore it from a copy") from error
    require(isinstance(tree, dict), DataError,
            f"{path / 'result.json'} is no JSON object, expected what a run writes; restore it")
    return FinishedRun(path, ResultFile.fitting(tree))


def _settings(experiment: Settings | Path | str, overrides: Overrides,
              records: GivenRecords | None) -> Settings:
    """The settings of a file with its overrides, or those that were given."""
    if isinstance(experiment, Settings):
        require(not overrides and records is None, ConfigError,
                "found settings together with overrides or records, expected these with a file "
                "alone; change the settings themselves")
        return experiment
    return experiment_file.read_settings(Path(experiment), _written(overrides, records))


def _written(overrides: Overrides, records: GivenRecords | None = None) -> list[str]:
    """Overrides as ``--set`` takes them, the name of the records among them."""
    found = ([f"{key}={_toml(value)}" for key, value in overrides.items()]
             if isinstance(overrides, Mapping) else list(overrides))
    if records is not None:
        found.append(f"data.source={_toml(source_of(records))}")
    return found


def _toml(value: object) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
