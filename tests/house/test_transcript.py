"""docs/transcript.md: a stranger's commands, typed again in a fresh copy of the repository."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def stranger() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stranger", ROOT / "scripts" / "stranger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fresh_copy(to: Path) -> Path:
    """What a clone would hold: all that git knows, or the whole source where there is no git."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "scripts"],
                            cwd=ROOT, capture_output=True, text=True, check=False)
    files = listed.stdout.splitlines() if listed.returncode == 0 and listed.stdout else [
        str(path.relative_to(ROOT)) for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts]
    for name in files:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def test_the_readme_has_the_words_that_are_typed() -> None:
    for command in stranger().COMMANDS:
        assert " ".join(command.split()[:3]) in README, command
    assert 'PeftModel.from_pretrained(base, "adapter")' in README


def test_the_page_shows_what_is_shown(tmp_path: Path) -> None:
    copy, module = fresh_copy(tmp_path / "clone"), stranger()
    done = subprocess.run(
        [sys.executable, str(copy / "scripts" / "stranger.py")], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(copy / "src"), "HF_HUB_OFFLINE": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = re.findall(r"```text\n(.*?)```\n", module.PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert module.settled(done.stdout) == module.settled(written), "renew it by: python scripts/stranger.py --write"
