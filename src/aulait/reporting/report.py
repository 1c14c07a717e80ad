"""The page of one run, the page that compares several, and the same comparison as rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aulait.core.errors import DataError
from aulait.reporting import (
    arms,
    clock,
    comparison,
    numbers,
    page,
    privacy,
    scores,
    sections,
    story,
    synthesis,
)
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.grouping import comparison_rows
from aulait.reporting.values import value_at, words

__all__ = ["comparison_rows", "write_comparison", "write_report"]


def write_report(run: Path) -> Path:
    """Writes report.html into a run folder and returns its path. Missing files and keys are said to
    be missing.

    Raises:
        DataError: the path is not a run folder.
    """
    found = read_run(run)
    parts = [sections.tiers_section(found), sections.learning_section(found),
             privacy.privacy_section(found)]
    proxied = not found.result.tiers or "proxy" in story.placements(found)
    if found.synthesis or found.synthetic or proxied:
        parts += [synthesis.votes_section(found), synthesis.samples_section(found)]
    timed = clock.virtual_time_section(found)
    parts += [sections.cost_section(found), *([timed] if timed else []),
              sections.settings_section(found)]
    opening = page.opening_of(story.lead_sentences(found),
                              banners=[*story.warning_banners(found), *_remarks(found)],
                              tiles=story.key_figures(found))
    title = found.result.name or found.path.resolve().name
    return page.save_page(run / "report.html",
                          page.whole_page(title, _subtitle(found), opening, parts))


def write_comparison(runs: Sequence[Path], out: Path, target_loss: float | None = None,
                     remark: str = "") -> Path:
    """Writes a page that compares runs, grouped by arm over seeds, and returns its path;
    ``target_loss`` as in ``comparison_rows``, ``remark`` is shown at its top.

    Raises:
        DataError: there is no run, or a path is not a run folder.
    """
    if not runs:
        raise DataError(
            "found no run to compare, expected one run folder or more; give their paths")
    found = [read_run(run) for run in runs]
    subtitle = (
        f"{numbers.counted(len(found), 'run')} in "
        f"{numbers.counted(len(arms.runs_by_arm(found)), 'arm')}"
    )
    text = page.whole_page("Comparison of runs", subtitle,
                           comparison.comparison_opening(found, remark),
                           comparison.comparison_sections(found, target_loss))
    return page.save_page(out, text)


def _remarks(run: RunFiles) -> list[tuple[str, str]]:
    """What could not be read, and that replies were left out."""
    found = []
    if run.remarks:
        found.append(("remark", f"Not all of this run could be read. {' '.join(run.remarks)}"))
    left_out = scores.refused_replies(run)
    if left_out:
        said = "1 reply was" if left_out == 1 else f"{numbers.count(left_out)} replies were"
        found.append(("remark",
            f"{said} refused and left out; “What the model learnt” names clients and reasons."))
    return found


def _subtitle(run: RunFiles) -> str:
    """Method, engine, seed and model in one line."""
    result = run.result
    named = [
        ("arm", result.arm),
        ("method", result.algorithm),
        ("base model", words(value_at(run.config, "model", "name"))),
        ("engine", result.engine),
        ("seed", result.seed),
    ]
    return " · ".join(f"{name} {value}" for name, value in named if value is not None)
