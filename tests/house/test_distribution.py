"""The wheel and the sdist: they build, their description renders, and what is in the wheel alone
works away from the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def _version_of(tree: Path, **told: str) -> str:
    done = subprocess.run([sys.executable, "-m", "hatchling", "version"], cwd=tree, capture_output=True, text=True,
                          env={**os.environ, **told})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_version_follows_the_tags_and_a_tree_without_any_builds(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    assert _version_of(tmp_path) == "0.1.dev0"  # no git: an archive, the build of an image
    (variable,) = re.findall(r'RUN (\w+)="\$VERSION"', (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    assert _version_of(tmp_path, **{variable: "3.2.1"}) == "3.2.1"

    def git(*words: str) -> None:
        own = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *own, *words], cwd=tmp_path, capture_output=True, check=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert re.fullmatch(r"0\.1\.dev\d+", _version_of(tmp_path))  # a clone without tags
    git("tag", "v1.2.3")
    assert _version_of(tmp_path) == "1.2.3"
    git("commit", "--allow-empty", "-m", "two")
    assert _version_of(tmp_path) == "1.2.4.dev1"


@pytest.mark.parametrize("extra", ["", "flower"])
def test_the_lock_holds_every_requirement_to_a_hash(extra: str) -> None:
    """``make lock`` writes it again."""
    path = ROOT / "deploy" / f"requirements{extra and '-'}{extra}.lock"
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# Python 3.11")
    found = dict(re.fullmatch(r"([a-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line).groups() for line in lines)
    pinned = {canonicalize_name(name): Version(version) for name, version in found.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text
    assert not [name for name, version in pinned.items() if version.local]


def test_the_citation_names_the_newest_version_of_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert f"\nversion: {newest}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
