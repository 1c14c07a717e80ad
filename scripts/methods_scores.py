"""Scores other than the loss for some methods of one cell of the table of methods.

    python scripts/methods_scores.py --data banking77.jsonl --out runs/methods-scores

Rates are those that the table's own search found in that cell (results/methods-table.json), so that
nothing is searched for these scores. Every method runs its seeds once for each score: accuracy of
the most probable response of all there are, and ROUGE-L of a greedy text. Finished runs are
skipped. ``--page FILE`` writes the page and its .json from what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import methods_reading
import methods_table

from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS
from aulait.runs import sweep
from aulait.runs.prepared import SharedCache

TABLE = methods_table.ROOT / "results" / "methods-table.json"
METHOD_NAMES: Final = "fedit,ffa,flexlora,fedsa,rolora,fedsvd"
SCORES: Final = {"rank": "accuracy", "rouge": "rouge_l"}
RECORDS: Final = 48  # held-out records of all clients that a score is taken over
SETTINGS: Final = (f"evaluate.task_records={RECORDS}", "evaluate.rank_by='sum'",
                   "evaluate.max_new_tokens=12")


def rates(cell: methods_table.Cell) -> dict[str, float]:
    """Method -> the rate that the table's search found in a cell."""
    return {row["method"]: row["rate"]
            for row in json.loads(TABLE.read_text("utf-8"))[cell.name]}


def carry_out(out: Path, source: str, cell: methods_table.Cell, methods: Sequence[str],
              seeds: Sequence[int]) -> None:
    """Run what is missing."""
    engine, cache, found = InlineEngine(), SharedCache(), rates(cell)
    for task in SCORES:
        arms = [sweep.Arm(method, (f"algorithm={{name='{method}'}}", f"train.lr={found[method]}"))
                for method in methods]
        overrides = (*cell.overrides, f"data.source={json.dumps(source)}",
                     f"evaluate.task='{task}'", *SETTINGS)
        for job in sweep.sweep_jobs(methods_table.EXPERIMENT, arms, seeds, overrides, out / task):
            outcome = sweep.run_one(job, engine, cache)
            print(outcome.status, outcome.path, outcome.loss, outcome.message, flush=True)


def results(out: Path, task: str, method: str) -> dict[int, dict[str, Any]]:
    """Seed -> result.json of the finished runs."""
    found = [json.loads(file.read_text("utf-8"))
             for file in sorted((out / task).glob(f"{method}-s*/result.json"))]
    return {int(result["seed"]): result for result in found}


def rows(out: Path, cell: methods_table.Cell, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A method's loss and scores by seed, of those whose seeds stand for all scores."""
    for method in methods:
        ran = {task: results(out, task, method) for task in SCORES}
        seeds = sorted(set.intersection(*map(set, ran.values())))
        if seeds:
            first = ran["rank"]
            yield {"method": method, "personal": METHODS.find(method).TRAITS.personal,
                   "rate": rates(cell)[method], "seeds": seeds,
                   "loss": [first[seed]["eval"]["loss"] for seed in seeds],
                   "base_loss": [first[seed]["base_eval"]["loss"] for seed in seeds],
                   **{name: [ran[task][seed]["eval"][name] for seed in seeds]
                      for task, name in SCORES.items()},
                   **{f"base_{name}": [ran[task][seed]["base_eval"][name] for seed in seeds]
                      for task, name in SCORES.items()}}


def paired(found: Sequence[dict[str, Any]], row: dict[str, Any], score: str) -> str:
    """A method's score beside FedIT's, seed by seed; nothing for FedIT itself."""
    by = {one["method"]: dict(zip(one["seeds"], one[score], strict=True)) for one in found}
    gap = methods_reading.beside(by, row["method"], "fedit")
    return "-" if row["method"] == "fedit" or gap is None else methods_reading.in_words(gap)


def write_page(out: Path, page: Path, cell: methods_table.Cell, methods: Sequence[str]) -> None:
    """The page, and its figures as .json."""
    found = list(rows(out, cell, methods))
    lines = ["| method | rate | loss | accuracy | beside fedit | ROUGE-L | beside fedit |",
             "|---|---|---|---|---|---|---|"]
    for row in sorted(found, key=lambda one: statistics.fmean(one["loss"])):
        own = " (personal)" if row["personal"] else ""
        lines.append(
            f"| {row['method']}{own} | {row['rate']:g} | {_spread(row['loss'])} "
            f"| {_spread(row['accuracy'])} | {paired(found, row, 'accuracy')} "
            f"| {_spread(row['rouge_l'])} | {paired(found, row, 'rouge_l')} |")
    base = found[0]
    lines.append(f"| the base | | {_spread(base['base_loss'])} | {_spread(base['base_accuracy'])} "
                 f"| | {_spread(base['base_rouge_l'])} | |")
    head = page.read_text("utf-8").partition("<!-- figures -->") if page.exists() else ("", "", "")
    tail = head[2].partition("<!-- reading -->")
    page.write_text(f"{head[0]}<!-- figures -->\n\n" + "\n".join(lines)
                    + f"\n\n<!-- reading -->{tail[2]}", encoding="utf-8")
    page.with_suffix(".json").write_text(json.dumps({cell.name: found}, indent=1) + "\n", "utf-8")


def _spread(values: Sequence[float]) -> str:
    """Mean, deviation over seeds, seeds."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread} ({len(values)})"


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="banking77.jsonl", help="of scripts/banking77.py")
    parser.add_argument("--out", type=Path, default=Path("runs/methods-scores"))
    parser.add_argument("--cell", default="0.1,inf,equal", help="PARTITION,EPSILON,RANKS")
    parser.add_argument("--methods", default=METHOD_NAMES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--page", type=Path, help="write this page and run nothing")
    asked = parser.parse_args()
    cell, methods = methods_table.Cell(*asked.cell.split(",")), asked.methods.split(",")
    if asked.page is not None:
        write_page(asked.out, asked.page, cell, methods)
        return
    carry_out(asked.out, asked.data, cell, methods, [int(seed) for seed in asked.seeds.split(",")])


if __name__ == "__main__":
    main()
