"""Reads a run folder as it is: what is missing or broken becomes a remark, never a crash.

Everything in a run folder is untrusted: a value may have the wrong kind, a line may be cut off. The
models of ``runfolder.schema`` hold what fits; the settings in config.toml are a tree that the
functions of ``values`` read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from aulait.core.errors import DataError
from aulait.core.files import JsonTree
from aulait.core.parsing import parsed_json, parsed_toml
from aulait.runfolder.naming import KEPT_RUN, SELECTION
from aulait.runfolder.schema import (
    EpsilonByRole,
    FileModel,
    LedgerEntry,
    MachineFile,
    ResultFile,
    RoundLine,
    SelectionFile,
    SynthesisRound,
    SyntheticLine,
    TrainRound,
)

ConfigTree = Mapping[str, object]
Model = TypeVar("Model", bound=FileModel)

FILES: Final = ("config.toml", "machine.json", "result.json", "rounds.jsonl", "ledger.jsonl",
                "synthetic.jsonl")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
        path: the folder.
        config_text: config.toml verbatim; None when there is none.
        config: config.toml as a tree; empty when missing or not TOML.
        machine: machine.json.
        result: result.json.
        synthesis: lines of rounds.jsonl of stage 1, in file order.
        training: those of stage 2.
        turns: the stage of every line, in file order; where it does not fit the lines (some were
            left out), synthesis is taken to come first.
        ledger: lines of ledger.jsonl, in the order of release.
        synthetic: lines of synthetic.jsonl.
        selection: selection.json, where the run is the one that a private selection kept.
        remarks: one sentence for every file that could not be read in full.
        released: what was not released has been taken out (``released.released_only``).
    """

    path: Path
    config_text: str | None = None
    config: ConfigTree = field(default_factory=dict)
    machine: MachineFile = field(default_factory=MachineFile)
    result: ResultFile = field(default_factory=ResultFile)
    synthesis: tuple[SynthesisRound, ...] = ()
    training: tuple[TrainRound, ...] = ()
    turns: tuple[str, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()
    synthetic: tuple[SyntheticLine, ...] = ()
    selection: SelectionFile | None = None
    remarks: tuple[str, ...] = ()
    released: bool = False

    @property
    def rounds(self) -> tuple[RoundLine, ...]:
        """The lines of all stages, as they followed one another."""
        if (self.turns.count("synthesis"), self.turns.count("train")) != (
                len(self.synthesis), len(self.training)):
            return (*self.synthesis, *self.training)
        lines: dict[str, Iterator[RoundLine]] = {"synthesis": iter(self.synthesis),
                                                 "train": iter(self.training)}
        return tuple(next(lines[stage]) for stage in self.turns)


def read_run(path: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
        DataError: the path is not a folder, or holds none of a run's files.
    """
    if not path.is_dir():
        raise DataError(
            f"found no folder {path}, expected a run folder; check the path or start a run first")
    if not any((path / name).is_file() for name in FILES):
        raise DataError(
            f"found no run in {path}, expected one of {', '.join(FILES)}; give the folder of a run")
    remarks: list[str] = []
    config_text = _text_of(path / "config.toml")
    config = _toml_tree(config_text, remarks)
    machine = MachineFile.fitting(_json_object(path / "machine.json", remarks))
    result = ResultFile.fitting(_json_object(path / "result.json", remarks))
    rounds = _json_lines(path / "rounds.jsonl", remarks)
    stages = {name: [line for line in rounds if line.get("stage") == name]
              for name in ("synthesis", "train")}
    return RunFiles(
        path, config_text, config, machine, result,
        _fitting(SynthesisRound, stages["synthesis"]),
        _fitting(TrainRound, stages["train"]),
        tuple(str(line["stage"]) for line in rounds if line.get("stage") in stages),
        _fitting(LedgerEntry, _json_lines(path / "ledger.jsonl", remarks)),
        _fitting(SyntheticLine, _json_lines(path / "synthetic.jsonl", remarks)),
        _selection(path, remarks),
        tuple(remarks),
    )


def as_selected(run: RunFiles) -> RunFiles:
    """A run that a private selection kept, with what the selection cost in place of what the run
    alone did; any other as it is."""
    if run.selection is None:
        return run
    privacy = run.result.privacy
    spent = {role: run.selection.epsilon for role in ("proxy", "local", "split", "max")
             if privacy.epsilon.value(role) is not None}
    told = privacy.model_copy(update={
        "epsilon": EpsilonByRole.model_validate(spent), "delta": run.selection.delta})
    return replace(run, result=run.result.model_copy(update={"privacy": told}))


def _selection(path: Path, remarks: list[str]) -> SelectionFile | None:
    """What stands in the folder of a kept run; of a selection of an earlier version, beside it."""
    places = [path / SELECTION]
    places += [path.parent / SELECTION] if path.resolve().name == KEPT_RUN else []
    place = next((each for each in places if each.is_file()), None)
    return None if place is None else SelectionFile.fitting(_json_object(place, remarks))


def _fitting(model: type[Model], lines: list[dict[str, JsonTree]]) -> tuple[Model, ...]:
    return tuple(map(model.fitting, lines))


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _toml_tree(text: str | None, remarks: list[str]) -> ConfigTree:
    try:
        return parsed_toml(text) if text is not None else {}
    except ValueError:
        remarks.append("config.toml is not valid TOML.")
        return {}


def _json_object(path: Path, remarks: list[str]) -> dict[str, JsonTree]:
    text = _text_of(path)
    if text is None:
        return {}
    value = _parsed_json(text)
    if isinstance(value, dict):
        return value
    remarks.append(f"{path.name} could not be read as JSON.")
    return {}


def _json_lines(path: Path, remarks: list[str]) -> list[dict[str, JsonTree]]:
    values = [_parsed_json(line) for line in (_text_of(path) or "").split("\n") if line.strip()]
    found = [value for value in values if isinstance(value, dict)]
    if len(found) < len(values):
        remarks.append(
            f"{path.name}: {len(values) - len(found)} of {len(values)} lines could not be read.")
    return found


def _parsed_json(text: str) -> JsonTree:
    """What the text says; None, which no file of a run is, where it is not JSON."""
    try:
        value: JsonTree = parsed_json(text)
        return value
    except ValueError:
        return None
