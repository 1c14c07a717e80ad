"""What the pages and files of a deployment tell an operator to type exists: commands, options, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from aulait import cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def text(name):
    found = (ROOT / name).read_text(encoding="utf-8")
    return found.partition("## Between institutions")[2].partition("\n## ")[0] if name == "README.md" else found


def typed(name):
    """The words after ``aulait`` of every command in a file: indented lines, between backticks, of a unit, of a container."""
    found = re.findall(r"^    (?:aulait) (.*)$", text(name), re.M) + re.findall(r"`aulait ([^`]*)`", text(name))
    found += re.findall(r"^ExecStart=.*/bin/aulait ([^'\n]*)", text(name), re.M)
    found += re.findall(r"^exec srun aulait (.*)$", text(name), re.M)
    found += re.findall(r"^ +command: (.*)$", text(name), re.M)
    found += re.findall(r"docker compose run .*? coordinator (serve .*)$", text(name), re.M)
    return [[word for word in shlex.split(line.replace("$$", "$"), comments=True) if word != "..."] for line in found]


CASES = [(name, tuple(words)) for name in ("docs/deploy.md", "docs/slurm.md", "README.md", *(f"deploy/{path.name}" for path in sorted(DEPLOY.iterdir()) if path.is_file()))
         for words in typed(name)]


def test_the_scan_sees_what_is_there():
    seen = {(name, words[0]) for name, words in CASES}
    assert {("docs/deploy.md", word) for word in ("keys", "probe", "join", "serve", "status", "plan")} <= seen
    assert {("README.md", word) for word in ("keys", "join", "serve")} <= seen
    assert {("deploy/aulait-site.service", "join"), ("deploy/aulait-coordinator.service", "serve"), ("deploy/compose.yaml", "serve"),
            ("deploy/compose.yaml", "join"), ("deploy/aulait-site.sbatch", "join"), ("docs/slurm.md", "status")} <= seen
    assert len(CASES) > 20


@pytest.mark.parametrize(("name", "words"), CASES, ids=[f"{Path(name).name}: {' '.join(words)[:60]}" for name, words in CASES])
def test_every_command_and_option_exists(name, words):
    assert words[0] in cli.COMMANDS, f"{name}: {words}: no command '{words[0]}', expected one of {', '.join(cli.COMMANDS)}"
    command, rest = cli.loaded(words[0]), list(words[1:])
    while hasattr(command, "commands"):
        assert rest, f"{name}: {words} names no command"
        known = command.commands
        assert rest[0] in known, f"{name}: {words}: no command '{rest[0]}', expected one of {', '.join(known)}"
        command = known[rest.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = re.findall(r"--[a-z-]+", " ".join(rest))
    assert set(asked) <= options, f"{name}: {words}: {sorted(set(asked) - options)}"


@pytest.mark.parametrize("name", ["docs/deploy.md", "docs/security.md", "README.md", *(f"deploy/{path.name}" for path in sorted(DEPLOY.iterdir()) if path.is_file())])
def test_files_of_the_folder_that_are_named_exist(name):
    named = re.findall(r"deploy/([\w.-]*\w)", (ROOT / name).read_text(encoding="utf-8"))
    missing = [each for each in named if "." in each and not (DEPLOY / each).is_file()]
    assert not missing
    assert name != "docs/deploy.md" or {path.name for path in DEPLOY.iterdir() if path.is_file()} <= set(named)


def test_the_build_context_holds_what_the_image_copies_and_no_more():
    """A key or a text beside the sources must not come into a layer."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from=)(.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.M) for word in line.split()[:-1]}
    assert copied == allowed == {"LICENSE", "README.md", "pyproject.toml", "src", "deploy/requirements-flower.lock"}
    assert all((ROOT / word).exists() for word in allowed)
    mounted = re.findall(r'volumes: \["\./([\w-]+):', (DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert mounted
    assert "/deploy/*/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
