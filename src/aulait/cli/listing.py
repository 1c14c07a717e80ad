"""``aulait list``: what can be named in an experiment file, and what each method travels, promises
and costs."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.cli.terminal import Document

HEAD = ("method", "unequal\nranks", "exact", "private", "secure\nagg.", "personal", "bytes up",
        "bytes down")
LEGEND = (
    "Bytes are those of one client in one round; sums run over the adapted layers (M x N), r_k is "
    "the rank of client k, R adapter.rank.",
    "exact: the merge is the mean of the clients' dense updates. private: the unit of differential "
    "privacy, or the nearest method with it.",
    "secure agg.: the server needs sums only, so secure aggregation can hide single updates "
    "(privacy.trust = 'secure').",
)
NAMED = (
    ("sources", "data sources (data.source, data.public)"),
    ("generators", "generators (synthesis.generator)"),
    ("embedders", "embedders (synthesis.embedder)"),
    ("mechanisms",
     "noise mechanisms (privacy.mechanism for clients; for records, those of methods)"),
    ("tasks", "task metrics (evaluate.task)"),
    ("machines",
     "machines (machine of a federation.tier, compute.server); docs/machines.md has the sources"),
    ("links", "links (link of a federation.tier)"),
)
WIDTH = 100


def catalogue(as_json: JsonOption = False) -> None:
    """List methods, federation presets, data sources, generators, embedders, task metrics, machines
    and links."""
    with terminal.work(as_json):
        found, broken = _known()
    for line in broken:
        terminal.note(f"left out: {line}")
    if as_json:
        terminal.document(found)
        return
    terminal.table("methods (algorithm.name)", HEAD, [_row(method) for method in found["methods"]],
                   width=WIDTH)
    for line in LEGEND:
        terminal.paragraph(line, WIDTH)
    terminal.say()
    terminal.table("what they do", ("method", "what"),
                   [(m["name"], m["what"]) for m in found["methods"]], width=WIDTH)
    terminal.say()
    _presets(found["presets"])
    for key, title in NAMED:
        terminal.say()
        terminal.table(title, ("name", "what"),
                       [(item["name"], item["what"]) for item in found[key]], width=WIDTH)


def _known() -> tuple[dict[str, list[Document]], list[str]]:
    """What ``catalogue.catalogued`` says; from the file of what is built in, which is read in no
    time, where no other distribution adds anything."""
    if any(group.startswith("aulait.") for group in entry_points().groups):
        found: tuple[dict[str, list[Document]], list[str]]
        found = import_module("aulait.cli.catalogue").catalogued()
        return found
    built_in = files("aulait") / "cli" / "built_in.json"
    return json.loads(built_in.read_text(encoding="utf-8")), []


def _row(method: Document) -> tuple[str, ...]:
    private = ", ".join(method["units"]) or f"no → {method['instead']}"
    answers = [_yes(method[key]) for key in ("unequal_ranks", "secure", "personal")]
    exact = method["exact"].replace(" ranks", "\nranks")
    return (method["name"], answers[0], exact, private, *answers[1:], _close(method["up"]),
            _close(method["down"]))


def _close(formula: str) -> str:
    """A formula without blanks inside its terms, so that it breaks between them."""
    return formula.replace(" + ", "+").replace(" (", "(")


def _presets(found: list[Document]) -> None:
    """Shares of the four client types, the smallest first."""
    types = {tier["name"]: tier for tier in reversed(found[0]["tiers"])}
    rows = []
    for preset in found:
        shares = {tier["name"]: tier["share"] for tier in preset["tiers"]}
        rows.append((preset["name"], *(f"{100 * shares.get(name, 0):g} %" for name in types)))
    title = "federation presets (federation.preset): shares of the clients"
    terminal.table(title, ("preset", *types), rows, right=range(1, 5), width=WIDTH)
    ranks = "; ".join(f"{name} {_rank(tier)}" for name, tier in types.items())
    terminal.paragraph(
        f"Ranks where adapter.rank is 200, in proportion elsewhere, at least 1: {ranks}.", WIDTH)


def _rank(tier: Document) -> str:
    attention = tier.get("attention_rank")
    return str(tier["rank"]) if attention is None else f"{tier['rank']} ({attention} in attention)"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
