"""``aulait list``: what can be named in an experiment file, and what each method travels, promises
and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.cli.terminal import Document
from aulait.core.registry import Registry
from aulait.data.sources import SOURCES
from aulait.federation import presets
from aulait.methods import METHODS
from aulait.privacy.mechanisms import MECHANISMS
from aulait.reporting import numbers as n
from aulait.resources import links, profiles
from aulait.synthesis.embedding import EMBEDDERS
from aulait.synthesis.variation import GENERATORS

Catalogued = TypeVar("Catalogued")
FILES = {
    "PATH": "a .jsonl, .json, .csv or .tsv file (with .gz or without), or a .parquet file",
    "FOLDER or PATTERN": "such files together, or .txt and .md files that are each one text, such "
                         "as 'notes/{client}/*.txt'",
    "hf:DATASET": "a Hugging Face dataset, from the hub or a folder",
}
MODELS = {
    "base": "the run's own base continues a part of a text (generate.kind = 'prefix') or is asked "
            "('prompt')",
    "ID or PATH": "another Hugging Face model, in process",
    "http://HOST/v1": "a server that speaks the OpenAI protocol",
}
MODEL_EMBEDDERS = {"ID or PATH": "any sentence-transformers model"}
TASKS = {
    "none": "losses and token accuracy only",
    "rank": "accuracy: the response is one of a closed set, the most probable one counts",
    "rouge": "ROUGE-1, -2 and -L F1, corpus BLEU and exact match of a greedy text",
    "exact": "exact match of a greedy text, without regard to case and blanks",
}
HEAD = ("method", "unequal\nranks", "exact", "private", "secure\nagg.", "personal", "bytes up",
        "bytes down")
LEGEND = (
    "Bytes are those of one client in one round; sums run over the adapted layers (M x N), r_k is "
    "the rank of client k, R adapter.rank.",
    "exact: the merge is the mean of the clients' dense updates. private: the unit of differential "
    "privacy, or the nearest method with it.",
    "secure agg.: the server needs sums only, so secure aggregation can hide single updates "
    "(privacy.trust = 'secure' is not offered yet).",
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
        found, broken = catalogued()
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


def catalogued() -> tuple[dict[str, list[Document]], list[str]]:
    """Everything that has a name, as plain values; and a line about each third party's thing that
    is broken and left out."""
    broken: list[str] = []

    def every(registry: Registry[Catalogued]) -> dict[str, Catalogued]:
        """The built-in things of a kind by name, then those of other distributions."""
        added, lines = registry.third_party()
        broken.extend(lines)
        return {**{name: registry.find(name) for name in registry.names()}, **added}

    generators = {name: thing for name, thing in every(GENERATORS).items()
                  if name not in GENERATORS.built_in}
    found = {
        "methods": [{"name": name, **asdict(method.TRAITS)}
                    for name, method in every(METHODS).items()],
        "presets": [{"name": name, "tiers": presets.tiers(name, 200)} for name in presets.SHARES],
        "sources": [*_described(every(SOURCES)), *_named(FILES)],
        # the built-in kinds stand among what the models that they use are listed with
        "generators": [*_described(generators, " (generate.kind)"), *_named(MODELS)],
        "embedders": [*_described(every(EMBEDDERS)), *_named(MODEL_EMBEDDERS)],
        "mechanisms": [{"name": name, "what": f"{_first_line(thing)} (for a {thing.unit})"}
                       for name, thing in every(MECHANISMS).items()],
        "tasks": _named(TASKS),
        "machines": [*({"name": name, "what": _machine(own)}
                       for name, own in profiles.PRESETS.items()),
                     {"name": "PATH.json", "what": "a profile that 'aulait probe --out' saved"}],
        "links": [{"name": name, "what": _link(own)} for name, own in links.LINKS.items()],
    }
    return found, broken


def _machine(own: Any) -> str:
    speed = n.significant(own.flop_per_s["float32"] / 1e9, 3)
    return (
        f"{own.device}, {n.size(own.memory_bytes)} for a run, {speed} GFLOP/s in float32, "
        f"{own.power_w:g} W"
    )


def _link(own: Any) -> str:
    return (
        f"{own.down_bytes_per_s * 8e-6:,.4g} Mbit/s down, {own.up_bytes_per_s * 8e-6:,.4g} up, "
        f"{own.latency_s * 1e3:g} ms one way"
    )


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


def _described(things: Mapping[str, object], where: str = "") -> list[Document]:
    return [{"name": name, "what": _first_line(thing) + where} for name, thing in things.items()]


def _first_line(thing: object) -> str:
    text = (thing.__doc__ or "").strip().split("\n\n")[0].partition("; see ")[0]
    return " ".join(text.replace("``", "").split()).rstrip(".")


def _named(table: dict[str, str]) -> list[Document]:
    return [{"name": name, "what": what} for name, what in table.items()]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
