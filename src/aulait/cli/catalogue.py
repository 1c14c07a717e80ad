"""What can be named in an experiment file, as the code has it.

Asking every method and mechanism loads them all, and torch with them. So what is built in is kept
in ``built_in.json`` beside this file, which ``scripts/write_reference.py`` writes and a test
compares; only where another distribution adds something is the code asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

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
    "PATH": "a .jsonl, .ndjson, .json, .csv or .tsv file (with .gz or without), or a .parquet file",
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


def catalogued(others: bool = True) -> tuple[dict[str, list[Document]], list[str]]:
    """Everything that has a name, as plain values; and a line about each third party's thing that
    is broken and left out.

    Args:
        others: whether to tell what other distributions and this process add.
    """
    broken: list[str] = []

    def every(registry: Registry[Catalogued]) -> dict[str, Catalogued]:
        """The built-in things of a kind by name, then those of other distributions."""
        if not others:
            return {name: registry.find(name) for name in sorted(registry.built_in)}
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


def _described(things: Mapping[str, object], where: str = "") -> list[Document]:
    return [{"name": name, "what": _first_line(thing) + where} for name, thing in things.items()]


def _first_line(thing: object) -> str:
    text = (thing.__doc__ or "").strip().split("\n\n")[0].partition("; see ")[0]
    return " ".join(text.replace("``", "").split()).rstrip(".")


def _named(table: dict[str, str]) -> list[Document]:
    return [{"name": name, "what": what} for name, what in table.items()]
