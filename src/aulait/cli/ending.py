"""The short table at the end of a run: what it gained, what it cost, where the report is, what to
try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aulait.cli import terminal
from aulait.cli.next_steps import print_next_steps
from aulait.cli.terminal import Document
from aulait.reporting import numbers as n
from aulait.runfolder.naming import LOG


def ending(result: Document, path: Path) -> None:
    """The short table after a run, the path of its report, and what to try next."""
    before, after = result["base_eval"], result["eval"]
    measures = (
        (f"{'held-out loss' if 'measured_on' not in after else 'loss on public text'} (nats a "
         "token)", "loss", n.loss),
        ("perplexity", "perplexity", n.perplexity),
        ("token accuracy", "token_accuracy", n.percent),
    )
    rows = [(name, style(before.get(key)), style(after.get(key))) for name, key, style in measures]
    size = f"{n.counted(result['clients'], 'client')}, {n.counted(result['rounds'], 'round')}"
    terminal.table(f"{result['name']}: {result['algorithm']}, {size}", ("", "before", "after"),
                   rows, right=(1, 2))
    terminal.say()
    facts = [
        *_guarantee(result),
        ("bytes up, all clients", n.size(result["traffic"]["up_bytes"])),
        ("bytes down, all clients", n.size(result["traffic"]["down_bytes"])),
        *_seconds(result["time"]),
        *_virtual(result.get("clock")),
    ]
    terminal.table("what it cost", ("", ""), facts, right=(1,))
    terminal.say()
    if (after.get("loss") or 0.0) > (before.get("loss") or 0.0):
        terminal.note(
            "the run made the base worse on held-out text; lower algorithm.local_weight or "
            "train.lr, or train fewer coordinates")
    if result["privacy"].get("stopped_early"):
        terminal.note(f"stopped early: {result['privacy']['stopped_early']}")
    terminal.say(f"report  {path / 'report.html'}")
    if (path / LOG).is_file():
        terminal.say(f"log     {path / LOG}")
    print_next_steps(result, path)


def epsilon_in_words(value: float | None) -> str:
    """An epsilon as a table shows it; None is infinite."""
    return n.epsilon(value).replace(n.INFINITE, "infinite")


def _guarantee(result: Document) -> list[tuple[str, str]]:
    """Epsilon of every role that exists."""
    privacy = result["privacy"]
    if privacy["off"]:
        return [("epsilon", "infinite (privacy is off)")]
    roles = sorted({tier["placement"] for tier in result["tiers"]})
    at = f"delta {privacy['delta']:g}"
    seeded = ", noise is seeded: not private" if privacy["noise_seeded"] else ""
    spent = {role: epsilon_in_words(privacy["epsilon"].get(role)) for role in roles}
    return [(f"epsilon of {role} clients", f"{value} ({at}{seeded})")
            for role, value in spent.items()]


def _seconds(spent: Mapping[str, float]) -> list[tuple[str, str]]:
    parts = (
        ("synthesis", "synthesis_s"),
        ("training", "train_s"),
        ("evaluation", "evaluate_s"),
        ("everything", "wall_s"),
    )
    return [(f"time, {name}", n.duration(spent.get(key))) for name, key in parts]


def _virtual(clock: Document | None) -> list[tuple[str, str]]:
    """How long the federation would have taken, and how much of it its clients waited; nothing
    where no machine is named."""
    if not clock:
        return []
    return [("virtual time, modelled",
        f"{n.duration(clock['total_s'])}, clients waiting {n.percent(clock['idle_share'], 0)}")]
