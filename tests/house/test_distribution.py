"""The wheel and the sdist: they build, their description renders, and what is in the wheel alone
works away from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("distribution")  # built once
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this tree."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_description_renders_wherever_it_is_shown(built: Path) -> None:
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_sdist_has_what_its_tests_and_pages_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff",
                   "docs/privacy.md", "experiments/cafe-commits.toml", "tests/conftest.py",
                   "scripts/write_reference.py", "src/aulait/models/brew/config.json"):
        assert needed in names
    assert not [name for name in names if name.startswith(("runs/", ".venv/"))]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files alone in a folder, as pip would lay them out."""
    (path,) = built.glob("*.whl")
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(place)
    return place


def _called(installed: Path, at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from aulait.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}, cwd=at,
        capture_output=True, text=True)


def test_every_asset_of_the_source_tree_is_in_the_wheel(installed: Path) -> None:
    for package in ("aulait", "aulait_benchmarks"):
        source = ROOT / "src" / package
        files = {path.relative_to(source) for path in source.rglob("*")
                 if path.is_file() and "__pycache__" not in path.parts}
        assert {path for path in files if not (installed / package / path).is_file()} == set()


def test_the_quick_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import aulait; print(aulait.__file__)"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(installed)
    done = _called(installed, tmp_path, "demo", "--quick", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "epsilon of local clients" in done.stdout
