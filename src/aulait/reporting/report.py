"""The page of one run, the page that compares several, and the same comparison as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aulait.core.errors import DataError
from aulait.reporting import (
    arms,
    clock,
    comparison,
    numbers,
    page,
    privacy,
    promise,
    scores,
    sections,
    story,
    synthesis,
)
from aulait.reporting.folder import RunFiles, as_selected, read_run
from aulait.reporting.grouping import comparison_rows
from aulait.reporting.guarantee import Bounds
from aulait.reporting.markup import Section
from aulait.reporting.promise import Curve
from aulait.reporting.released import released_only
from aulait.reporting.values import value_at, words

__all__ = ["LivePage", "comparison_rows", "report_page", "write_comparison", "write_report"]

RELEASE = "report-release.html"


@dataclass(frozen=True)
class LivePage:
    """What a page that follows a run has more: a sentence about where the run stands, and the
    version of what it shows (empty where it does not renew itself)."""

    remark: str
    version: str


def write_report(run: Path, curves: Mapping[str, Curve] | None = None,
                 release: bool = False) -> Path:
    """Writes report.html into a run folder and returns its path. Missing files and keys are said to
    be missing.

    Args:
        run: the folder.
        curves: role -> further pairs (epsilon, delta) that its releases keep, for a tighter bound
            than the run itself tells; nothing of a run that was kept of several is told by them.
        release: writes report-release.html instead, which holds released values only.

    Raises:
        DataError: the path is not a run folder.
        PrivacyError: the page is for release, and the run has no guarantee.
    """
    found = read_run(run)
    curves = curves if curves and found.selection is None else {}
    text = report_page(as_selected(found), curves, release)
    return page.save_page(run / (RELEASE if release else "report.html"), text)


def report_page(found: RunFiles, curves: Mapping[str, Curve], release: bool = False,
                live: LivePage | None = None) -> str:
    """The page of a run, as text; ``curves`` and ``release`` as in ``write_report``, ``live`` for a
    page that follows the run."""
    banners = [*story.warning_banners(found), *_remarks(found)]
    banners += [] if live is None else [("remark", live.remark)]
    shown = released_only(found) if release else found
    bounds = [promise.bounds_of(shown, role, curves.get(role, ()))
              for role in promise.ROLES if shown.result.privacy.epsilon.value(role) is not None]
    lead, tiles = list(story.lead_sentences(shown)), story.key_figures(shown)
    if live is not None:  # what is not known yet is not missing
        lead = [text for text in lead if numbers.NOT_RECORDED not in text]
        tiles = [tile._replace(remark="" if numbers.NOT_RECORDED in tile.remark else tile.remark)
                 for tile in tiles if tile.value != numbers.NOT_RECORDED]
    opening = page.opening_of(lead, banners=banners, tiles=tiles,
                              verdict=promise.verdict_of(shown, bounds, story.is_bounded(shown)))
    title = shown.result.name or shown.path.resolve().name
    subtitle = _subtitle(shown) + (" · released values only" if release else "")
    return page.whole_page(title, subtitle, opening, _parts(shown, bounds),
                           None if live is None else live.version)


def _parts(found: RunFiles, bounds: Sequence[Bounds]) -> list[Section]:
    """The sections of a run's page: the promise, the model, the work, the texts, the costs."""
    hidden = found.released and story.evaluated_texts(found) == story.HELD_OUT
    parts = [privacy.privacy_section(found, bounds)]
    parts += [] if hidden else [sections.learning_section(found)]
    parts.append(sections.tiers_section(found))
    proxied = not found.result.tiers or "proxy" in story.placements(found)
    if found.synthesis or found.synthetic or proxied:
        parts += [synthesis.votes_section(found), synthesis.samples_section(found)]
    timed = clock.virtual_time_section(found)
    return [*parts, sections.cost_section(found), *([timed] if timed else []),
            sections.settings_section(found)]


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
