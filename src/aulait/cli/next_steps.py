"""What to try after a run, by what it learnt and who stands behind it."""

from __future__ import annotations

import shlex
from pathlib import Path

from aulait.cli import terminal
from aulait.cli.terminal import Document
from aulait.reporting.folder import read_run
from aulait.reporting.values import value_at

WORDS = 3  # of a beginning


def next_steps(result: Document, path: Path) -> list[tuple[str, str]]:
    """(command, what it does), the most likely first.

    Args:
        result: what result.json holds.
        path: the run folder.
    """
    run = shlex.quote(str(path))
    found = [(f"aulait generate {run} {_asking(path)}", "what it has learnt")]
    if own := sorted((path / "personal").glob("*/adapter_config.json")):
        name = shlex.quote(own[0].parent.name)
        found.append((f"aulait generate {run} --client {name} {_asking(path)}",
                      "the same of one client's own adapter"))
    found.append((f"aulait export {run} --to exported", "the adapter for PEFT; --merge, --gguf"))
    if not result["privacy"]["off"]:
        found.append((f"aulait dossier {run}", "the page for who approves it"))
    return found


def print_next_steps(result: Document, path: Path) -> None:
    """The steps below one another, whole, to be pasted."""
    steps = next_steps(result, path)
    width = max(len(command) for command, _ in steps)
    room = terminal.columns() or 120
    for index, (command, what) in enumerate(steps):
        lead = "next    " if index == 0 else " " * 8
        more = f"{' ' * (width - len(command))}  # {what}"
        fits = len(lead) + width + len(what) + 4 <= room
        terminal.say(f"{lead}{command}{more if fits else ''}")


def _asking(path: Path) -> str:
    """What to ask: a conversation where the data had answers, else a beginning."""
    if value_at(read_run(path).config, "data", "format") in ("pairs", "chat"):
        return "--chat"
    return shlex.quote(_beginning(path))


def _beginning(path: Path) -> str:
    """The first words of a text that the run has released; of a client's text never."""
    file = path / "synthetic.jsonl"
    if file.is_file():
        for line in read_run(path).synthetic[:1]:
            if words := (line.text or "").split()[:WORDS]:
                return " ".join(words)
    return "The"
