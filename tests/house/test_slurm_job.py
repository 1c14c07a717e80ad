"""deploy/aulait-site.sbatch, handed to stand-ins of sbatch and srun: what a site's job runs, where it logs, and that it leaves when it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parents[2] / "deploy" / "aulait-site.sbatch"
SBATCH = """\
#!/bin/bash
# As Slurm does: a copy of the script runs in the folder of the caller, with what its own lines ask for.
while [[ $1 == --* ]]; do shift; done
asked() { sed -n "s/^#SBATCH --$1=//p" "$script"; }
script=$1
cp "$script" copy.sh
SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=$(asked cpus-per-task) setsid bash copy.sh >> "$(asked output)" 2>&1 &
echo $! > job.pid
echo "Submitted batch job 7"
"""
SITE = """\
#!/bin/bash
echo "called: $* | threads $OMP_NUM_THREADS | offline $HF_HUB_OFFLINE | umask $(umask)"
trap 'echo "told to leave"; exit 0' TERM
while true; do sleep 0.05; done
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder of a site, Slurm's two commands, and an environment whose `aulait` is a stand-in."""
    executable(tmp_path / "slurm" / "sbatch", SBATCH)
    executable(tmp_path / "slurm" / "srun", '#!/bin/bash\nexec "$@"\n')
    executable(tmp_path / "venv" / "bin" / "aulait", SITE)
    executable(tmp_path / "venv" / "bin" / "activate", f'PATH="{tmp_path}/venv/bin:$PATH"\n')
    (tmp_path / "site").mkdir()
    return tmp_path


def submitted(cluster: Path) -> Path:
    """The job's log."""
    done = subprocess.run(
        ["sbatch", "--gres=gpu:1", str(JOB)], cwd=cluster / "site", capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{cluster}/slurm:{os.environ['PATH']}", "AULAIT_VENV": str(cluster / "venv"), "OMP_NUM_THREADS": ""})
    assert done.stdout == "Submitted batch job 7\n"
    return cluster / "site" / "aulait-site.log"


def test_the_job_joins_in_its_folder_and_leaves_when_slurm_says_so(cluster: Path) -> None:
    log = submitted(cluster)
    try:
        until(lambda: log.exists() and log.read_text().endswith("\n"))
        assert log.read_text() == "called: join site.toml | threads 8 | offline 1 | umask 0077\n"
    finally:  # --signal=TERM: to the step, which srun is by then
        os.kill(int((cluster / "site" / "job.pid").read_text()), signal.SIGTERM)
    until(lambda: log.read_text().endswith("told to leave\n"))


def test_what_keeps_a_site_out_is_one_line_in_the_log(cluster: Path) -> None:
    """The real command, in a folder without a site file."""
    executable(cluster / "venv" / "bin" / "aulait", f'#!/bin/bash\nexec {sys.executable} -c "from aulait.cli import main; main()" "$@"\n')
    log = submitted(cluster)
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    (line,) = log.read_text().splitlines()
    assert line.startswith("error: ")
    assert "site.toml" in line


def test_the_lines_for_slurm_are_options_of_sbatch() -> None:
    """By the manual of sbatch: a line that is none is an error there."""
    known = {"job-name", "nodes", "ntasks", "cpus-per-task", "mem", "time", "signal", "requeue", "dependency", "open-mode", "output"}
    lines = [line.removeprefix("#SBATCH --") for line in JOB.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
    assert {line.partition("=")[0] for line in lines} == known
