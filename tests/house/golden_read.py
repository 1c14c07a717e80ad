"""What the golden comparison reads: hashes of tensors, values without times, numbers of pages."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

# Keys whose numbers and texts differ between two runs of the same code, or between two checkouts,
# and why. That a value is there, and whether it is null, is compared all the same.
TAKEN_OUT = {
    "wall_s": "seconds of this machine",
    "wall_s_std": "seconds of this machine",
    "synthesis_s": "seconds of this machine",
    "train_s": "seconds of this machine",
    "evaluate_s": "seconds of this machine",
    "client_s": "seconds of this machine",
    "client_s_mean": "seconds of this machine",
    "progress_s": "seconds since the run went on",
    "last_seen_s": "seconds since a site was heard",
    "time": "date of a ledger line",
    "aulait": "version of the package",
    "run": "name of a run, drawn at random for the chain of its ledger",
    "previous": "hash of a ledger line, which holds its date and the chain",
    "hash": "hash of a ledger line, which holds its date and the chain",
    "base_model_name_or_path": "the built-in base lies in the checkout",
}
OUT = "taken out"
LINES = ("rounds.jsonl", "ledger.jsonl", "synthetic.jsonl")
NUMBER = re.compile(r"[-−]?\d+(?:[.,\u00a0\u202f]\d+)*")  # with blanks or commas between thousands


def timeless(node: Any, number: Any = OUT, text: Any = OUT) -> Any:
    """The tree with numbers and texts under the keys of ``TAKEN_OUT`` replaced; null stays null."""
    if isinstance(node, Mapping):
        found = {}
        for key, item in node.items():
            new = (
                number if isinstance(item, int | float) else text if isinstance(item, str) else None
            )
            taken = key in TAKEN_OUT and new is not None
            found[key] = new if taken else timeless(item, number, text)
        return found
    return [timeless(item, number, text) for item in node] if isinstance(node, list) else node


def digest(content: bytes) -> str:
    """The SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def tensors(path: Path) -> dict[str, str]:
    """Tensor of a safetensors file -> type, shape and SHA-256 of its bytes; and of the file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = {"the whole file": digest(content)}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            own = digest(content[start + first : start + end])
            found[name] = f"{entry['dtype']} {entry['shape']} {own}"
    return found


def content(path: Path) -> Any:
    """What is compared of one file: its tensors, or its JSON or TOML without times, or its hash."""
    if path.suffix == ".safetensors":
        return tensors(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return timeless(json.loads(text))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".toml":
        return tomllib.loads(text)
    return digest(path.read_bytes())


def run_folder(folder: Path) -> dict[str, Any]:
    """What is compared of a run, by file; "files" holds all names but those in ``serve/``."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not name.startswith("serve/")]
    kept = [
        name
        for name in names
        if name.startswith(("adapter/", "personal/"))
        or name in ("result.json", "config.toml", *LINES)
    ]
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    read = {name: content(folder / name) for name in kept}
    return {"files": names, "keys of machine.json": sorted(machine), **read}


def copy_with_constants(folder: Path, to: Path) -> None:
    """Copy a run with constants for its times, so that the page of the copy is always the same."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("report.html"))
    for name in ("result.json", *LINES):
        if (path := to / name).exists():
            text = path.read_text(encoding="utf-8")
            items = [text] if path.suffix == ".json" else text.splitlines()
            told = [timeless(json.loads(item), 1.5, "2026-01-01T00:00:00+00:00") for item in items]
            path.write_text("".join(json.dumps(item) + "\n" for item in told), encoding="utf-8")


def numeric(node: Any) -> Any:
    """The tree without its texts: wording and colours of a figure are not compared."""
    if isinstance(node, Mapping):
        return {key: numeric(item) for key, item in node.items() if not isinstance(item, str)}
    if isinstance(node, list):
        return [numeric(item) for item in node if not isinstance(item, str)]
    return node


class Page(HTMLParser):
    """The numbers that a page shows.

    Attributes:
        numbers: section -> the numbers in its text, in order.
        figures: the figures without their texts.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: dict[str, list[str]] = {}
        self.figures: Any = None
        self._section, self._apart = "opening", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Remember which section or script the next text belongs to."""
        name = dict(attrs).get("id") or tag
        if tag == "section":
            self._section = name
        if tag in ("script", "style"):
            self._apart = name

    def handle_endtag(self, tag: str) -> None:
        """What follows is text of the page again."""
        if tag in ("script", "style"):
            self._apart = ""

    def handle_data(self, data: str) -> None:
        """Take the numbers of a text, or the figures."""
        if self._apart == "figures":
            self.figures = numeric(json.loads(data))
        elif not self._apart:
            self.numbers.setdefault(self._section, []).extend(NUMBER.findall(data))
