"""What to try after a run, by what it learnt and who stands behind it."""

from __future__ import annotations

import shlex
from pathlib import Path

from aulait.cli import terminal
from aulait.cli.terminal import Document
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.values import value_at

WORDS = 3  # of a beginning


def next_steps(result: Document, path: Path) -> list[tuple[str, str]]:
    """(command, what it does), the most likely first.

    Args:
        result: what result.json holds.
        path: the run folder.
    """
    run, asking = shlex.quote(str(path)), _asking(read_run(path))
    found = [(f"aulait generate {run} {asking}", "what it has learnt")]
    if own := sorted((path / "personal").glob("*/adapter_config.json")):
        name = shlex.quote(own[0].parent.name)
        found.append((f"aulait generate {run} --client {name} {asking}",
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


def _asking(run: RunFiles) -> str:
    """What to ask: a conversation where the data had answers, else a beginning."""
    if value_at(run.config, "data", "format") in ("pairs", "chat"):
        return "--chat"
    return shlex.quote(_beginning(run))


def _beginning(run: RunFiles) -> str:
    """The first words of a text that the run has released; of a client's text never."""
    words = [word for line in run.synthetic[:1] for word in (line.text or "").split()[:WORDS]]
    return " ".join(words) or "The"
