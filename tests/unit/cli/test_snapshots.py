"""The terminal at 60, 80 and 120 columns: every screen fits, and is the one that was looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests import snapshots
from tests.fixture_run import write_run
from typer.testing import CliRunner

from aulait.cli import app
from aulait.cli.ending import ending

WIDTHS = (60, 80, 120)
WORDS = ["mild", "pain", "after", "the", "second", "dose,", "no", "fever;", "review", "in", "two", "weeks"]
EXPERIMENT = """
[run]
name = "wards"
[data]
source = "notes.jsonl"
client = "hospital"
public = ""
records_per_client = 30
[adapter]
rank = 4
targets = "attention"
[[federation.tier]]
name = "gpu"
share = 0.5
placement = "local"
machine = "workstation"
[[federation.tier]]
name = "laptop"
placement = "proxy"
machine = "laptop"
[synthesis]
proxies = "absent"
[train]
rounds = 3
steps = 4
[privacy]
epsilon = 8.0
delta = 1e-4
relation = "add-remove"
clip = 0.1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes of eight hospitals with an experiment, and finished runs."""
    folder = tmp_path_factory.mktemp("screens")
    rows = [{"hospital": f"h{k}", "text": " ".join(WORDS[(k + i + j) % len(WORDS)] for j in range(9)) + f" {i}."}
            for k in range(8) for i in range(30)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wards.toml").write_text(EXPERIMENT)
    for name, seed, off in (("cafe", 0, False), ("open", 1, True)):
        for file in write_run(folder / "runs" / name, seed=seed, off=off, arm=name).iterdir():
            if file.is_file():
                os.utime(file, (1.7e9 + seed, 1.7e9 + seed))
    return folder


SCREENS = {
    "plan": "plan wards.toml --not-here",
    "plan-off": "plan wards.toml --not-here --set privacy={off=true}",
    "init": "init notes.jsonl --to init.toml",
    "config-key": "config privacy.relation",
    "compare": "compare runs",
    "runs": "runs",
    "account": "account --clients 9 --epsilon 8",
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_fits_and_is_the_one_that_was_looked_at(
        screen: str, width: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TZ", "UTC")
    (place / "init.toml").unlink(missing_ok=True)
    result = CliRunner().invoke(app, SCREENS[screen].split())
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= width, result.stdout
    snapshots.held(f"{screen}-{width}", result.stdout)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_end_of_a_run_fits(width: int, place: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    """All but the commands, which stay whole to be pasted."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", str(width))
    path = Path("runs") / "cafe"
    result = json.loads((path / "result.json").read_text())
    result["privacy"]["noise_seeded"] = False
    ending(result, path)
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if "aulait " not in line) <= width
    snapshots.held(f"ending-{width}", shown)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["", "plan", "sweep", "keys"])
def test_help_fits(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frame is the libraries' own, so that no snapshot would hold from one version to the next."""
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= width, result.stdout
