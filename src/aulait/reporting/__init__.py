"""The report: reads run folders and writes one page that needs nothing from outside.

`write` makes the page of one run, `compare` the page of several, `table` the same comparison as
rows. Everything is read from files (see the run folder's description); nothing of the training code
is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aulait.core.errors import DataError
from aulait.reporting import (
    arms,
    clock,
    comparison,
    markup,
    numbers,
    page,
    privacy,
    scores,
    sections,
    story,
    synthesis,
)
from aulait.reporting.folder import Run, read, words
from aulait.reporting.grouping import table
from aulait.reporting.markup import Html

__all__ = ["compare", "table", "write"]


def write(run: Path) -> Path:
    """Writes report.html into a run folder and returns its path. Missing files and keys are said to
    be missing.

    Raises:
        DataError: the path is not a run folder.
    """
    found = read(run)
    parts = [sections.tiers(found), sections.learning(found), privacy.section(found)]
    if found.stage(
        "synthesis") or found.synthetic or not found.tiers or "proxy" in story.placements(found):
        parts += [synthesis.votes(found), synthesis.samples(found)]
    timed = clock.section(found)
    parts += [sections.cost(found), *([timed] if timed else []), sections.settings(found)]
    lead = Html(
        f'<div class="lead">{markup.join(*map(markup.paragraph, story.sentences(found)))}</div>')
    remarks = (
        [("remark", f"Not all of this run could be read. {' '.join(found.remarks)}")]
        if found.remarks else []
    )
    left_out = scores.count(found)
    if left_out:
        said = "1 reply was" if left_out == 1 else f"{numbers.count(left_out)} replies were"
        remarks.append(("remark",
            f"{said} refused and left out; “What the model learnt” names clients and reasons."))
    opening = markup.join(page.banners([*story.banners(found), *remarks]), lead,
                          page.tiles(story.key_figures(found)))
    title = words(found.result.get("name")) or found.path.resolve().name
    return page.save(run / "report.html", page.page(title, _subtitle(found), opening, parts))


def compare(runs: Sequence[Path], out: Path, target_loss: float | None = None) -> Path:
    """Writes a page that compares runs, grouped by arm over seeds, and returns its path;
    ``target_loss`` as in ``table``.

    Raises:
        DataError: there is no run, or a path is not a run folder.
    """
    if not runs:
        raise DataError(
            "found no run to compare, expected one run folder or more; give their paths")
    found = [read(run) for run in runs]
    subtitle = (
        f"{numbers.counted(len(found), 'run')} in "
        f"{numbers.counted(len(arms.grouped(found)), 'arm')}"
    )
    text = page.page("Comparison of runs", subtitle, comparison.opening(found),
                     comparison.sections(found, target_loss))
    return page.save(out, text)


def _subtitle(run: Run) -> str:
    """Method, engine, seed and model in one line."""
    model = run.config.get("model")
    named = [
        ("arm", run.result.get("arm")),
        ("method", run.result.get("algorithm")),
        ("base model", model.get("name") if isinstance(model, dict) else None),
        ("engine", run.result.get("engine")),
        ("seed", run.result.get("seed")),
    ]
    return " · ".join(f"{name} {value}" for name, value in named if isinstance(value, str | int)
                      and value != "")
