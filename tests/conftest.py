"""One thread a process: tests run in parallel processes, and two thread pools on two cores wait for each other."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a change is judged by what it changes, not by a draw. New ones
# are looked for with `pytest --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # of whoever runs the tests; tables would be fitted to it


def pytest_addoption(parser: pytest.Parser) -> None:
    """With ``--fresh-noise`` the tests of one run draw other noise than those of the next."""
    parser.addoption("--fresh-noise", action="store_true",
                     help="let noise, keys and secret choices come from the system's source")


def drawn_from(name: str, asked: pytest.FixtureRequest) -> Iterator[None]:
    """The system's source of entropy in this process, replaced by a stream that NAME decides."""
    if asked.config.getoption("--fresh-noise"):
        yield
        return
    stream = random.Random(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", stream.randbytes)
        patch.setattr(random, "_urandom", stream.randbytes)  # of SystemRandom and secrets
        yield


@pytest.fixture(scope="module", autouse=True)
def repeatable_noise_of_a_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """What fixtures of modules draw."""
    yield from drawn_from(request.node.nodeid, request)


@pytest.fixture(autouse=True)
def repeatable_noise(request: pytest.FixtureRequest,
                     repeatable_noise_of_a_module: None) -> Iterator[None]:
    """What a test draws. Tests of chance then pass or fail by what was changed."""
    yield from drawn_from(request.node.nodeid, request)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages of docs/ and results/; tests that use it are of the group "site"."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)], cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
