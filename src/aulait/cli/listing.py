"""``aulait list``: what can be named in an experiment file, and what each method travels, promises and costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aulait.cli import terminal
from aulait.cli.run import Json

FILES = {
    "PATH": "a .jsonl, .jsonl.gz, .csv or .parquet file",
    "hf:DATASET": "a Hugging Face dataset, from the hub or a folder",
}
GENERATORS = {
    "base": "the run's own base continues a part of a text (generate.kind = 'prefix') or is asked ('prompt')",
    "ID or PATH": "another Hugging Face model, in process",
    "http://HOST/v1": "a server that speaks the OpenAI protocol",
}
EMBEDDERS = {"ID or PATH": "any sentence-transformers model"}


def catalogue(as_json: Json = False) -> None:
    """List methods, data sources, generators and embedders."""
    with terminal.work(as_json):
        found = known()
    if as_json:
        terminal.document(found)
        return
    head = ("method", "what", "unequal ranks", "exact", "private", "travels, a client and round")
    rows = [
        (m["name"], m["what"], _yes(m["unequal_ranks"]), _yes(m["exact"]), _yes(m["private"]), m["travels"])
        for m in found["methods"]
    ]
    terminal.table("methods (algorithm.name)", head, rows)
    for key, title in (
        ("sources", "data sources (data.source, data.public)"),
        ("generators", "generators (synthesis.generator)"),
        ("embedders", "embedders (synthesis.embedder)"),
    ):
        terminal.say()
        terminal.table(title, ("name", "what"), [(item["name"], item["what"]) for item in found[key]])


def known() -> dict[str, list[dict[str, Any]]]:
    """Everything that has a name, as plain values."""
    from aulait import algorithms, data, embed, registry  # noqa: F401  (importing them files their names)

    methods = [
        {"name": name, **asdict(registry.find("algorithm", name).TRAITS)} for name in registry.names("algorithm")
    ]
    return {
        "methods": methods,
        "sources": [*_built_in("source"), *_named(FILES)],
        "generators": _named(GENERATORS),
        "embedders": [*_built_in("embedder"), *_named(EMBEDDERS)],
    }


def _built_in(kind: str) -> list[dict[str, Any]]:
    from aulait import registry

    return [{"name": name, "what": _first_line(registry.find(kind, name))} for name in registry.names(kind)]


def _first_line(thing: Any) -> str:
    text = (thing.__doc__ or "").strip().split("\n\n")[0].partition("; see ")[0]
    return " ".join(text.replace("``", "").split()).rstrip(".")


def _named(table: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "what": what} for name, what in table.items()]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
