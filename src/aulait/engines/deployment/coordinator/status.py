"""Where a run stands, read from its folder: nothing is asked of a process, so that it also tells of
a dead one.

Everything in the folder is taken as untrusted: a value of the wrong kind is left out, and texts
that a site may have
written lose what could steer a terminal.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from aulait.core.files import JsonMapping, JsonObject
from aulait.core.log_files import plain_text
from aulait.core.parsing import parsed_json
from aulait.core.process_lock import lock_is_held
from aulait.engines.deployment.coordinator.event_log import FOLDER, read_table
from aulait.reporting import folder
from aulait.reporting.folder import RunFiles
from aulait.reporting.values import number, sum_of, value_at, words
from aulait.runfolder.schema import RoundLine

TAIL_BYTES = 256 * 1024
WARNINGS = 5
LEVELS = ("warning", "error")
LONGEST = 300


def read_status(run: Path) -> JsonObject:
    """Where a run stands, as plain JSON values; None stands for what is not known.

    Returns:
        path, name, engine; state: "running" (a process holds it), "finished", "failed", "dead" (its
        process left without an outcome) or "unknown" (a run without a result of an older version,
        whose process left no mark); stage, round, rounds, note, progress_s (seconds since the last
        progress); private, delta, epsilon (role -> value, None is infinite), budget; loss (held
        out, last measured), up_bytes, down_bytes, refused (updates); sites (name, role, tier,
        state, last_seen_s, round, detail); warnings (time, event, text); error, one line.

    Raises:
        DataError: the path is no run folder.
    """
    serve, found = run / FOLDER, _run(run)
    outcome, progress = read_table(serve / "outcome.json"), read_table(serve / "progress.json")
    stage, done, rounds = _place(found, progress)
    off = value_at(found.config, "privacy", "off")
    return {
        "path": str(run),
        "name": _plain(value_at(found.config, "run", "name")) or run.resolve().name,
        "engine": _plain(value_at(found.config, "engine", "name")) or ("flower" if serve.is_dir()
            else "inline"),
        "state": _state(run, found, outcome),
        "stage": stage, "round": done, "rounds": rounds, "note": _plain(progress.get("note")),
        "progress_s": _age(progress.get("time")) if progress else _touched(run / "rounds.jsonl"),
        "private": not off if isinstance(off, bool) else None,
        "delta": number(value_at(found.config, "privacy", "delta")),
        "budget": number(value_at(found.config, "privacy", "epsilon")),
        "epsilon": epsilon(found),
        "loss": next((line.eval.loss for line in reversed(found.training)
                      if line.eval.loss is not None), None),
        "up_bytes": int(sum_of(line.up_bytes for line in found.rounds) or 0),
        "down_bytes": int(sum_of(line.down_bytes for line in found.rounds) or 0),
        "refused": int(sum_of(line.refused for line in found.rounds) or 0),
        "sites": [_site(name, facts) for name, facts in read_table(serve / "sites.json").items()
                  if isinstance(facts, Mapping)],
        "warnings": warnings(serve / "log.jsonl"),
        "error": _plain(outcome.get("error")) if outcome.get("ok") is False else None,
    }


def epsilon(run: RunFiles) -> dict[str, float | None]:
    """Epsilon spent by role, None for infinite: the largest that the ledger or a round ever told,
    for it only grows."""
    spent: dict[str, float] = {}
    told = [*(line.epsilon for line in run.ledger), *(line.epsilon for line in run.rounds)]
    for by_role in told:
        for role, value in by_role.on_disk().items():
            known = math.inf if value is None else number(value)
            if known is not None:
                name = _plain(role) or "?"
                spent[name] = max(spent.get(name, 0.0), known)
    return {role: value if math.isfinite(value) else None for role, value in spent.items()}


def warnings(log: Path, most: int = WARNINGS) -> list[JsonObject]:
    """The last events of a log that an operator should see: those with the level "warning" or
    "error", or with an error."""
    found = []
    for event in _tail(log):
        if event.get("level") in LEVELS or words(event.get("error")):
            rest = {key: value for key, value in event.items()
                    if key not in ("time", "event", "level")}
            text = ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}"
                             for key, value in rest.items())
            found.append({"time": _plain(event.get("time")), "event": _plain(event.get("event")),
                          "text": _plain(text)})
    return found[-most:]


def _run(run: Path) -> RunFiles:
    """The folder; one that a server has only just begun has no file of a run yet."""
    if (run / FOLDER).is_dir() and not any((run / name).is_file() for name in folder.FILES):
        return RunFiles(run)
    return folder.read_run(run)


def _state(run: Path, found: RunFiles, outcome: JsonMapping) -> str:
    locks = (run / FOLDER / "lock", run / "lock")  # of a server, of a run in one process
    if any(map(lock_is_held, locks)):
        return "running"
    if outcome.get("ok") is False:
        return "failed"
    if found.result.model_fields_set:
        return "finished"
    return "dead" if (run / FOLDER).is_dir() or locks[1].exists() else "unknown"


def _place(found: RunFiles,
           progress: JsonMapping) -> tuple[str | None, int | None, int | None]:
    """Stage, rounds done, rounds of the stage: what the server told, else the last line of
    rounds.jsonl."""
    if words(progress.get("stage")):
        done, rounds = number(progress.get("done")), number(progress.get("total"))
        return _plain(progress["stage"]), None if done is None else int(
            done), None if rounds is None else int(rounds)
    last = found.rounds[-1] if found.rounds else RoundLine()
    stage, done = last.stage, last.round
    rounds = (_votes(found.config) if stage == "synthesis" else
              number(value_at(found.config, "train", "rounds")) if stage == "train" else None)
    return _plain(stage), None if done is None else int(done), None if rounds is None else int(
        rounds)


def _votes(config: JsonMapping) -> int | None:
    """Rounds of all stages of synthesis, as ``SynthesisConfig.votings`` counts them (whose import
    takes longer than a look may); None where the settings do not tell them."""
    source = value_at(config, "synthesis", "source") or "write"
    written = 0 if source == "retrieve" else number(value_at(config, "synthesis", "rounds"))
    levels = 0 if source == "write" else number(value_at(config, "synthesis", "retrieve", "levels"))
    order = value_at(config, "run", "stages")
    stages = order.count("synthesis") if isinstance(order, list) else 1
    return None if written is None or levels is None else int(levels + stages * written)


def _site(name: str, facts: JsonMapping) -> JsonObject:
    at_round = number(facts.get("round"))
    return {"name": _plain(name) or "?",
            **{key: _plain(facts.get(key)) for key in ("role", "tier", "state", "detail")},
            "last_seen_s": _age(facts.get("last_seen")), "round": None if at_round is None
            else int(at_round)}


def _age(told: Any) -> float | None:
    """Seconds since a time, which is ISO 8601 or seconds since 1970; not below 0, whatever the
    clocks say."""
    moment = number(told)
    if moment is None and isinstance(told, str):
        try:
            moment = datetime.fromisoformat(told).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    return None if moment is None else max(0.0, time.time() - moment)


def _touched(path: Path) -> float | None:
    return max(0.0, time.time() - path.stat().st_mtime) if path.exists() else None


def _plain(value: Any) -> str | None:
    """A text fit for a terminal; None for anything else."""
    return plain_text(value, LONGEST) if isinstance(value, str) else None


def _tail(path: Path) -> Iterable[JsonMapping]:
    """The events at the end of a log; a first line cut by the tail, or a last one being written, is
    left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return
    for raw in lines[1:] if size > TAIL_BYTES else lines:
        try:
            event = parsed_json(raw)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
