"""Write docs/methods/: a page for every method, from its docstring, and what was measured of it.

    python scripts/write_methods.py

What a method says of itself stands in the last paragraph of its docstring (aulait.methods.
description); the paragraphs before it are its notes. When to use it stands in docs/methods.md. The
figure is drawn from results/banking77-methods.json. A test fails when a page is stale.
"""

from __future__ import annotations

import ast
import html
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from aulait.methods import METHODS
from aulait.methods.description import sections

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "methods"
MEASURED = ROOT / "results" / "banking77-methods.json"
LEFT, WIDE, ROW = 110, 640, 18  # of the figure: the names, all of it, one row
HEAD = "<!-- Made by scripts/write_methods.py from the method's docstring: change that. -->\n"


def docstring(name: str) -> str:
    """Of a method's module, without importing it."""
    source = (ROOT / "src" / "aulait" / "methods" / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def advice(name: str) -> list[str]:
    """The items of "When to use which" that name the method."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    text = page.partition("\n## When to use which\n")[2].partition("\n## ")[0]
    items = [" ".join(item.split()) for item in re.split(r"\n- ", "\n" + text.strip())]
    return [item.removeprefix("- ") for item in items if f"`{name}`" in item]


def measured(ranks: str) -> dict[str, list[float]]:
    """Method -> losses over seeds of the comparison on Banking77."""
    found: dict[str, list[float]] = {}
    for row in json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]:
        if row["ranks"] == ranks and row["rank"] == 8:
            found.setdefault(row["method"], []).append(row["loss"])
    return found


def figure(name: str) -> str:
    """Losses of all methods at rank 8, this one's set off, as SVG in the page's own colours."""
    losses = measured("equal")
    if name not in losses:
        return ""
    order = sorted(losses, key=lambda method: statistics.fmean(losses[method]))
    low = min(map(min, losses.values()))
    span = max(map(max, losses.values())) - low or 1.0
    rows = "".join(_row(index, method, losses[method], (low, span), method == name)
                   for index, method in enumerate(order))
    height = ROW * len(order) + 26
    told = (f"Held-out loss of {len(order)} methods; {name} has "
            f"{statistics.fmean(losses[name]):.3f} on average.")
    return (
        f'<svg viewBox="0 0 {WIDE} {height}" role="img" aria-label="{html.escape(told)}" '
        f'style="max-width:{WIDE}px;width:100%" font-size="12" fill="currentColor">{rows}'
        f'<text x="{LEFT}" y="{height - 6}">{low:.2f}</text>'
        f'<text x="{WIDE - 10}" y="{height - 6}" text-anchor="end">{low + span:.2f} nats a token'
        "</text></svg>\n")


def _row(index: int, method: str, losses: Sequence[float], scale: tuple[float, float],
         own: bool) -> str:
    """A method's name, and a dot for each seed."""
    low, span = scale
    y = ROW * index + 14
    weight = ' font-weight="bold"' if own else ' opacity="0.7"'
    dots = "".join(
        f'<circle cx="{LEFT + (WIDE - LEFT - 10) * (loss - low) / span:.1f}" cy="{y - 4}" '
        f'r="{5 if own else 3}"/>' for loss in losses)
    return f'<g{weight}><text x="{LEFT - 8}" y="{y}" text-anchor="end">{method}</text>{dots}</g>'


def page(name: str) -> str:
    """The page of a method."""
    text = docstring(name)
    *notes, _ = text.split("\n\n")
    told = sections(text)
    up, _, down = told["travels"].removeprefix("up ").partition("; down ")
    parts = [f"{HEAD}# {name}\n", f"{told['what'][:1].upper()}{told['what'][1:]}.\n",
             f"*{told['source']}*\n",
             "| | |\n|---|---|\n"
             f"| a client sends in a round, bytes | {up} |\n"
             f"| it receives | {down} |\n"
             f"| merge equals the mean of dense updates | {told['exact']} |\n"
             f"| clients of unequal rank | {told['unequal ranks']} |\n"
             f"| privacy | {told['privacy']} |\n"
             f"| differs from the paper | {told['differs']} |\n"]
    if found := advice(name):
        parts.append("## When to use it\n\n" + "\n".join(f"- {item}" for item in found) + "\n")
    if drawn := figure(name):
        parts.append("## Beside the others\n\n" + drawn + "\n30 clients with intents that few "
                     "share, rank 8 for all, three seeds, without privacy; lower is better. "
                     "Personal methods are measured with the clients' own adapters. Command and "
                     "tables: [results](../../results/banking77-methods.md).\n")
    if notes:
        body = "\n\n".join(" ".join(note.split()) for note in notes)
        parts.append(f"## Notes\n\n{html.escape(body, quote=False)}\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File name -> its text, of all methods and the list of them."""
    names = sorted(METHODS.built_in)
    found = {f"{name}.md": page(name) for name in names}
    rows = "".join(f"| [{name}]({name}.md) | {sections(docstring(name))['what']} |\n"
                   for name in names)
    found["index.md"] = (
        f"{HEAD}# Methods one by one\n\nAll of them in one table, and their common rules: "
        f"[methods](../methods.md).\n\n| method | what |\n|---|---|\n{rows}")
    return found


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {FOLDER}")


if __name__ == "__main__":
    main()
