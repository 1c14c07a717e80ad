"""An experiment of seconds: eight made-up clients, brew's last two blocks, an embedder without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from aulait.runs.experiment_file import Settings, build_settings
from aulait.runs.prepared import SharedCache
from aulait.synthesis.embedding import EMBEDDERS

WORDS = ["read", "write", "open", "close", "file", "line", "name", "value", "list", "sum", "mean", "sort", "join", "split", "parse", "count"]


class WordEmbedder:
    """Unit vectors that follow from the letters of a text."""

    name, width = "words", 8

    def embed(self, texts):
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text[:6])))) for text in texts]
        stacked = torch.stack(rows) if rows else torch.zeros(0, 8)
        return stacked / stacked.norm(dim=1, keepdim=True).clamp(min=1e-9)


if "words" not in EMBEDDERS:
    EMBEDDERS.register("words")(lambda device, max_tokens, capacity: WordEmbedder())


def write_data(folder: Path) -> None:
    """data.jsonl and public.txt."""
    rows = []
    for client in range(8):
        for number in range(4):
            picked = [WORDS[(client * 5 + number * 3 + i * (1 + client % 3)) % len(WORDS)] for i in range(5)]
            rows.append({"client": f"c{client}", "text": " ".join(picked).capitalize() + "."})
    folder.joinpath("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    public = [f"Return the {a} of a {b}." for a in WORDS[:5] for b in WORDS[5:10]]
    folder.joinpath("public.txt").write_text("\n".join(public) + "\n")


def settings(folder: Path, **tables: dict[str, Any]) -> Settings:
    """The experiment; keyword arguments replace keys of its tables."""
    tree: dict[str, Any] = {
        "run": {"name": "tiny", "seed": 1},
        "model": {"name": "brew", "context": 24, "device": "cpu"},
        "adapter": {"rank": 1, "targets": "attention", "layers": 2},
        "data": {"source": str(folder / "data.jsonl"), "public": str(folder / "public.txt"), "holdout": 0.25, "records_per_client": 3,
                 "too_long": "cut"},
        "federation": {"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]},
        "synthesis": {"rounds": 2, "candidates": 4, "variations": 1, "texts": 8, "proxy_count": 2, "embedder": "words",
                      "generate": {"max_tokens": 12, "min_words": 1}},
        "algorithm": {"name": "ffa", "server": "momentum"},
        "train": {"rounds": 3, "steps": 2, "batch": 2},
        "evaluate": {"records_per_client": 1},
        "privacy": {"off": True},
        "engine": {"threads": 1},
    }
    for name, table in tables.items():
        tree[name] = table if name == "privacy" or (name == "algorithm" and "name" in table) else tree.get(name, {}) | table
    if not tree["privacy"].get("off"):  # too few clients to learn anything, and meant
        tree["privacy"] = {"noise_acknowledged": True} | tree["privacy"]
    if tree["privacy"].get("unit") == "record" and "records_per_client" not in tables.get("data", {}):
        tree["data"]["records_per_client"] = 4  # all of them: a cap may not bind there
    return build_settings(tree)


def write_corpus(folder: Path) -> None:
    """data.jsonl, and a public.txt with enough texts to retrieve from."""
    write_data(folder)
    public = [f"{a} {b} at once." for a in WORDS for b in WORDS[:4] if a != b]
    folder.joinpath("public.txt").write_text("\n".join(public) + "\n")


def lines(folder: Path, file: str = "rounds.jsonl", name: str = "run") -> list[dict[str, Any]]:
    """The lines of a file of a run folder."""
    return [json.loads(line) for line in (folder / name / file).read_text().splitlines()]


def fresh(shared: SharedCache) -> SharedCache:
    """The loaded things without finished first stages, so that a run makes its own."""
    return SharedCache({key: thing for key, thing in shared.kept.items() if not key.startswith("stage-one")})
