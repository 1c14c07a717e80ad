"""One table of all methods under equal data, work and tuning: search the rate, run the seeds, write
the page.

    python scripts/methods_table.py --data banking77.jsonl --tasks super_ni.jsonl \\
        --out runs/methods-table

A cell is a partition of the clients, an epsilon and an assignment of ranks. Three partitions deal
BANKING77; in the fourth every client has a task of Super-NaturalInstructions, and a part of the
clients takes part in a round. Where clients are protected there are ten times as many, who train a
smaller adapter: noise on what twelve could train would hide every method. In every cell each
method tries the same learning rates on a seed of its own, which no reported run has; the best
held-out loss of these chooses the rate of the reported seeds. Runs that are finished are skipped,
so the same command goes on where it stopped; cells that are not there yet are named on the page.
With epsilon 8 the search itself reads held-out losses, which no account covers: this compares
methods and protects nobody.

    --only PARTITION,EPSILON,RANKS   some cells: --only 0.1,inf,equal
    --methods NAME,NAME              some methods
    --page FILE                      write the page and its .json from what is there, run nothing;
                                     what is not there stays as the .json beside the page has it;
                                     scripts/draw_methods.py then draws the page's figure
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import methods_reading

from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS
from aulait.runs import sweep
from aulait.runs.prepared import SharedCache

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments" / "methods-table.toml"
TASKS: Final = "tasks"
PARTITIONS: Final = {
    "iid": ("data.partition='iid'",),
    "0.1": ("data.dirichlet_alpha=0.1",),
    "0.01": ("data.dirichlet_alpha=0.01",),
    TASKS: ("data={client='client',prompt='prompt',response='response',public='',min_records=20,"
            "records_per_client=60,holdout=0.1,unseen=12,too_long='cut'}", "model.context=128",
            "federation.sampling='poisson'", "federation.rate=0.15", "train.rounds=10",
            "evaluate.every=10", "evaluate.records_per_client=4")}
EPSILONS: Final = {"inf": (), "8": (
    "privacy={epsilon=8.0,delta=1e-5,relation='add-remove',clip=2,noise_acknowledged=true}",
    "data.clients=120", "data.records_per_client=80", "adapter.rank=4", "adapter.alpha=8",
    "adapter.layers=1", "train.batch=2", "evaluate.records_per_client=2")}
RANKS: Final = {"equal": (), "heavy-tail-light": ("federation.preset='heavy-tail-light'",)}
RATES: Final = (3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED: Final = 100
LEFT_OUT: Final = {
    "cores": "needs public text, which the others do not read",
    "dplora": "protects records, its rounds are noised steps",
    "splitlora": "splits every client, its rounds are exchanges",
    "hsplitlora": "splits every client, as SplitLoRA does",
    "fedavg": "is 'fedit', bit for bit",
}


@dataclass(frozen=True)
class Cell:
    """Where methods are compared: how the data are dealt, the epsilon, the ranks."""

    partition: str
    epsilon: str
    ranks: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the experiment."""
        return (*PARTITIONS[self.partition], *EPSILONS[self.epsilon], *RANKS[self.ranks])

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.partition}-{self.epsilon}-{self.ranks}"

    @property
    def methods(self) -> list[str]:
        """Those that can be in it, what the others stand beside first."""
        found = []
        for name in sorted(METHODS.built_in, key=lambda name: (name != "fedit", name)):
            traits = METHODS.find(name).TRAITS
            fits = (self.epsilon == "inf" or "client" in traits.units) and (
                self.ranks == "equal" or traits.unequal_ranks)
            if name not in LEFT_OUT and fits:
                found.append(name)
        return found


CELLS: Final = tuple(Cell(*parts) for parts in itertools.product(PARTITIONS, EPSILONS, RANKS)
                     if parts[:2] != (TASKS, "8"))


@dataclass(frozen=True)
class DataFiles:
    """Where the two sets of data lie: of scripts/banking77.py and of scripts/super_ni.py."""

    intents: str
    tasks: str


def results(out: Path, cell: Cell, method: str, rate: float) -> dict[int, dict[str, Any]]:
    """Seed -> result.json of the finished runs."""
    found = {}
    for file in sorted((out / cell.name).glob(f"{method}_lr={rate:g}-s*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found[int(result["seed"])] = result
    return found


def loss_of(result: dict[str, Any]) -> float:
    """The held-out loss; infinite where it is no number."""
    loss = result["eval"]["loss"]
    return float(loss) if loss is not None and math.isfinite(loss) else math.inf


def best_rate(out: Path, cell: Cell, method: str) -> float | None:
    """The rate of least loss on the tuning seed; None as long as a rate was not tried."""
    tried = {rate: results(out, cell, method, rate).get(TUNING_SEED) for rate in RATES}
    losses = {rate: loss_of(result) for rate, result in tried.items() if result}
    return min(losses, key=lambda rate: losses[rate]) if len(losses) == len(RATES) else None


def jobs(out: Path, files: DataFiles, cell: Cell, runs: Sequence[tuple[str, float]],
         seeds: Sequence[int]) -> list[sweep.Job]:
    """Runs of methods at rates."""
    arms = [sweep.Arm(f"{method} lr={rate:g}", (
        f"algorithm={{name='{method}'}}", f"train.lr={rate}")) for method, rate in runs]
    source = files.tasks if cell.partition == TASKS else files.intents
    overrides = (*cell.overrides, f"data.source={json.dumps(source)}")
    return sweep.sweep_jobs(EXPERIMENT, arms, seeds, overrides, out / cell.name)


def carry_out(out: Path, files: DataFiles, places: Sequence[tuple[Cell, str]],
              seeds: Sequence[int]) -> None:
    """Search, then run, method by method of every cell."""
    engine, cache = InlineEngine(), SharedCache()
    for cell, method in places:
        search = [(method, rate) for rate in RATES]
        for job in jobs(out, files, cell, search, [TUNING_SEED]):
            _told(sweep.run_one(job, engine, cache))
        if (rate := best_rate(out, cell, method)) is not None:
            for job in jobs(out, files, cell, [(method, rate)], seeds):
                _told(sweep.run_one(job, engine, cache))


def _told(outcome: sweep.JobOutcome) -> None:
    print(outcome.status, outcome.path, outcome.loss, outcome.message, flush=True)


def rows(out: Path, cell: Cell) -> Iterator[dict[str, Any]]:
    """A method's figures in a cell, of those that have any."""
    for method in cell.methods:
        rate = best_rate(out, cell, method)
        found = {} if rate is None else results(out, cell, method, rate)
        found.pop(TUNING_SEED, None)
        if rate is None or not found:
            continue
        yield {"method": method, "personal": METHODS.find(method).TRAITS.personal,
               "rate": rate, "seeds": sorted(found),
               "loss": [loss_of(found[seed]) for seed in sorted(found)],
               "base_loss": [found[seed]["base_eval"]["loss"] for seed in sorted(found)],
               "up_bytes": statistics.fmean(own["traffic"]["up_bytes"] for own in found.values()),
               "down_bytes": statistics.fmean(
                   own["traffic"]["down_bytes"] for own in found.values()),
               "seconds": statistics.fmean(own["time"]["train_s"] for own in found.values()),
               **_all_runs(out, cell, method)}


def _all_runs(out: Path, cell: Cell, method: str) -> dict[str, Any]:
    """How many runs a method has at all rates, the search's among them, and the rates of those that
    ended worse than their base, one for each such run."""
    every = [(rate, result) for rate in RATES
             for result in results(out, cell, method, rate).values()]
    return {"runs": len(every), "worse_at": [
        rate for rate, result in every if loss_of(result) > result["base_eval"]["loss"]]}


def with_kept(found: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]],
              cell: Cell) -> list[dict[str, Any]]:
    """A cell's rows, and those of an earlier page for methods that have none now."""
    rows_of = {row["method"]: row for row in (*kept, *found)}
    return [rows_of[method] for method in cell.methods if method in rows_of]


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of a cell, the least loss first, each beside FedIT seed by seed."""
    by = methods_reading.by_seed(found)
    lines = ["| method | rate | loss | beside fedit on the same seeds | bytes up | down | seconds "
             "| worse than its base |", "|---|---|---|---|---|---|---|---|"]
    for row in sorted(found, key=lambda one: statistics.fmean(one["loss"])):
        gap = methods_reading.beside(by, row["method"], "fedit")
        paired = ("" if gap is None else "-" if row["method"] == "fedit"
                  else methods_reading.in_words(gap))
        spread = f" ± {statistics.stdev(row['loss']):.3f}" if len(row["loss"]) > 1 else ""
        harmed = sum(loss > base for loss, base in zip(row["loss"], row["base_loss"],
                                                       strict=True))
        edge = ", an end of the search" if row["rate"] in (min(RATES), max(RATES)) else ""
        own = " (personal)" if row["personal"] else ""
        lines.append(
            f"| {row['method']}{own} | {row['rate']:g}{edge} "
            f"| {statistics.fmean(row['loss']):.3f}{spread} ({len(row['loss'])}) "
            f"| {paired} | {row['up_bytes']:,.0f} | {row['down_bytes']:,.0f} "
            f"| {row['seconds']:.0f} | {harmed or 'no'} |")
    return lines


def harm(found: Sequence[dict[str, Any]]) -> str:
    """Which of the runs at any rate ended worse than their base, in a sentence."""
    worse = [f"`{row['method']}` at {rate:g}" for row in found for rate in row["worse_at"]]
    return (f"Of {sum(row['runs'] for row in found)} runs at all rates, the search's among them, "
            + (f"these ended worse than their base: {', '.join(worse)}." if worse
               else "none ended worse than its base."))


def wrapped(text: str) -> str:
    """A page whose paragraphs are 100 columns wide; headings, tables, lists and code stay."""
    return "\n\n".join(
        block if block.startswith(("#", "|", "-", "!", "    ")) or not block.strip()
        else textwrap.fill(block, 100, break_long_words=False, break_on_hyphens=False)
        for block in text.split("\n\n"))


def write_page(out: Path, page: Path) -> None:
    """The page, and all its figures beside it as .json."""
    figures_file = page.with_suffix(".json")
    kept = json.loads(figures_file.read_text("utf-8")) if figures_file.exists() else {}
    figures = {cell: with_kept(list(rows(out, cell)), kept.get(cell.name, ()), cell)
               for cell in CELLS}
    named = {cell.name: found for cell, found in figures.items() if found}
    parts = [
        "# All methods in one table\n",
        methods_reading.in_short(named),
        "![Loss of every method beside FedIT's in every cell](../docs/figures/methods-table.svg)\n",
        "Equal data, equal work, equal tuning: in every cell each method tries the learning rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)} on a seed of its own ({len(RATES)} runs a "
        "method and cell), and runs the reported seeds with the best. Losses are held-out, nats a "
        "token; personal methods are scored with the clients' own adapters, so that they answer "
        "another question than the rest, and the more so the less alike the clients are. "
        "Everything else of a method is its default; at epsilon 8 the bound on a client's update "
        "is one for all, which holds back those that need longer steps (`ffa`, `fedsvd`). Seconds "
        "are of a machine with other work. Made by\n",
        "    python scripts/methods_table.py --data banking77.jsonl --tasks super_ni.jsonl \\\n"
        "        --out runs/methods-table\n",
        "from `experiments/methods-table.toml` (brew). iid, 0.1 and 0.01 deal BANKING77 to 12 "
        "clients, evenly or by Dirichlet's distribution over intents, and to 120 at epsilon 8, "
        "where the adapter is of rank 4 in one layer, so that noise does not hide all of them; "
        "in `tasks` each of 85 clients has a task of Super-NaturalInstructions, a draw of about "
        "13 trains in each of 10 rounds, and the loss is of their held-out records. Left out: "
        + "; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items()) + ".\n"]
    missing = []
    for cell, found in figures.items():
        lacking = sorted({*cell.methods} - {row["method"] for row in found})
        if lacking:
            missing.append(f"- {cell.name}: "
                           + ("all" if not found else ", ".join(f"`{name}`" for name in lacking)))
        if found:
            parts.append(f"## {cell.partition}, epsilon {cell.epsilon}, {cell.ranks} ranks\n\n"
                         + "\n".join(table(found)) + "\n\n" + harm(found) + "\n")
    parts += [
        "## Mean ranks\n",
        "Of the methods with a shared adapter, over cells and seeds in which all of a cell's "
        "methods stand; 1 is the least loss.\n",
        "\n".join(methods_reading.ranks(named)) + "\n",
        "## Beside what the papers say\n",
        "A difference below zero speaks for the claim; \"holds\" and \"does not hold\" are said "
        "where the 95 percent interval leaves zero out. Model and data are not the papers', "
        "so nothing here contradicts what they measured.\n",
        "\n".join(methods_reading.claims(named)) + "\n"]
    if missing:
        parts.append("## Cells that were not measured\n\n" + "\n".join(missing) + "\n")
    page.write_text(wrapped("\n".join(parts)), encoding="utf-8")
    figures_file.write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="banking77.jsonl", help="of scripts/banking77.py")
    parser.add_argument("--tasks", default="super_ni.jsonl", help="of scripts/super_ni.py")
    parser.add_argument("--out", type=Path, default=Path("runs/methods-table"))
    parser.add_argument("--only", action="append", default=[], help="PARTITION,EPSILON,RANKS")
    parser.add_argument("--methods", default="", help="some of them, by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--page", type=Path, help="write this page and run nothing")
    asked = parser.parse_args()
    if asked.page is not None:
        write_page(asked.out, asked.page)
        return
    cells = [Cell(*text.split(",")) for text in asked.only] or list(CELLS)
    chosen = asked.methods.split(",") if asked.methods else sorted(METHODS.built_in)
    places = [(cell, method) for cell in cells for method in cell.methods if method in chosen]
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    carry_out(asked.out, DataFiles(asked.data, asked.tasks), places, seeds)


if __name__ == "__main__":
    main()
