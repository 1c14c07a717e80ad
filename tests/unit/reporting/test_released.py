"""The page for release: nothing that was not released is in it, at any place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import personal, virtual, write_run

from aulait.core.errors import PrivacyError
from aulait.reporting import report
from aulait.reporting.folder import read_run
from aulait.reporting.released import released_only

SECRET = 7.654321
DISTANCES = {"origins": {"public": 10, "varied": 590}, "verbatim_public": 0.1, "words_mean": 9.0, "words_shortest": 3, "words_longest": 20}


def disturbed(tree: Any, key: str = "") -> Any:
    """A tree with other values in everything that is measured outside the accountant."""
    if isinstance(tree, dict):
        return {name: disturbed(value, name) for name, value in tree.items()} | (
            {"malformed": 4711, "left_out": 4712, "a_count_of_records": 4713} if key == "data" else {})
    if isinstance(tree, list):
        return [disturbed(item, key) for item in tree]
    measured = ("loss", "perplexity", "token_accuracy", "worst_client_loss", "mean_client_loss", "accuracy", "count", "train_loss", "wall_s",
                "client_s", "client_s_mean", "synthesis_s", "train_s", "local_clients", "refused", "distance", "distance_of_random_public")
    return SECRET if key in measured and isinstance(tree, int | float) else tree


def disturb(folder: Path) -> None:
    for name in ("result.json", "rounds.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        extra = {"refused": 3, "refused_clients": ["client 7: secret"], "train_loss": SECRET, "something_new": SECRET} if name == "rounds.jsonl" else {}
        (folder / name).write_text("\n".join(json.dumps({**disturbed(line), **extra}) for line in lines), encoding="utf-8")


@pytest.mark.parametrize("with_clock", [False, True])
def test_two_runs_that_differ_in_what_is_not_released_have_one_page(tmp_path: Path, with_clock: bool) -> None:
    """The strongest form of "nothing else is in the file": what was not released does not change a byte of it."""
    pages = []
    for name in ("plain", "disturbed"):
        (tmp_path / name).mkdir()
        folder = write_run(tmp_path / name / "run", change=lambda result: (personal(result), result["synthesis"].update(
            set=DISTANCES | {"distance": 0.31, "distance_of_random_public": 0.42, "private": False})))
        folder = virtual(folder) if with_clock else folder
        if name == "disturbed":
            disturb(folder)
        page = report.write_report(folder, release=True)
        assert page.name == "report-release.html"
        pages.append(page.read_text(encoding="utf-8"))
        assert not (folder / "report.html").exists()
    assert pages[0] == pages[1]
    full = report.write_report(tmp_path / "plain" / "run").read_text(encoding="utf-8")
    for shown in ("3.412", "35.3", "4.032", "62.0 %", "not private", "8 min 32 s", "cosine distance", "malformed"):
        assert shown in full.replace("\u00a0", " "), shown
        assert shown not in pages[0].replace("\u00a0", " "), shown
    assert "this page leaves it out" in pages[0]
    assert "released values only" in pages[0]
    assert re.search(r"readers of this page</td><td[^>]*>nothing besides these", pages[0])
    assert 'id="learning"' not in pages[0]
    assert 'id="votes"' in pages[0]
    assert "2.65" in pages[0]


def test_a_page_for_release_keeps_scores_on_public_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", change=lambda result: result["eval"].update(measured_on="public text"))
    assert "3.412" in report.write_report(folder, release=True).read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["off", "seeded", "exact_votes"])
def test_a_run_without_a_guarantee_has_nothing_to_release(tmp_path: Path, how: str) -> None:
    folder = write_run(tmp_path / "run", **{how: True})
    with pytest.raises(PrivacyError, match="without a guarantee"):
        report.write_report(folder, release=True)
    assert not (folder / "report-release.html").exists()


def test_every_key_of_a_round_is_kept_or_left_out_on_purpose(tmp_path: Path) -> None:
    """A key that this version does not know is not released."""
    folder = write_run(tmp_path / "run")
    disturb(folder)
    lines = released_only(read_run(folder)).training
    kept = {"stage", "round", "up_bytes", "down_bytes", "noise_std", "epsilon", "proxies", "clip_bound", "signal_to_noise", "update_norm"}
    for line in lines:
        given = {key for key, value in line.on_disk().items() if value not in (None, [], {})}
        assert given <= kept, given - kept
