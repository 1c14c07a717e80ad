"""Draw the table of all methods as a map: a row a method, a column a cell.

    python scripts/draw_methods.py    # from results/methods-table.json

The colour of a field is the method's mean held-out loss beside FedIT's on the same seeds, blue
where it is less and orange where it is more; a field whose 95 percent interval leaves zero out has
a frame. It is text and rectangles: no font and no script of anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import methods_reading

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "results" / "methods-table.json"
FIGURE = ROOT / "docs" / "figures" / "methods-table.svg"
WIDE, HIGH, LEFT, TOP, BOTTOM = 74, 22, 104, 88, 58
FULL: Final = 0.8  # nats a token: a difference from which on the colour is no deeper
LESS, MORE = (79, 155, 217), (224, 122, 63)  # mixed with white where the difference is small
Figures = Mapping[str, Sequence[Mapping[str, Any]]]  # cell -> rows of methods_table.rows


def drawn(figures: Figures) -> str:
    """The map as SVG."""
    cells, order = list(figures), _order(figures)
    width, height = LEFT + WIDE * len(cells) + 12, TOP + HIGH * len(order) + BOTTOM
    title = "Loss beside FedIT: every method in every cell"
    parts = [f'<text x="12" y="24" font-size="14" font-weight="bold">{escape(title)}</text>',
             *_heads(cells)]
    for line, method in enumerate(order):
        y = TOP + HIGH * line
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(method)}</text>')
        for column, cell in enumerate(cells):
            parts += _field(figures[cell], method, LEFT + WIDE * column, y)
    parts += [f'<text x="12" y="{height - 34 + 18 * line}">{escape(words)}</text>'
              for line, words in enumerate((
                  "blue: less loss, orange: more; framed: the interval leaves zero out",
                  "at the bottom, by name: personal methods, scored with clients' own adapters"))]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="#7a8490">'
            f'{"".join(parts)}</svg>\n')


def _order(figures: Figures) -> list[str]:
    """Shared adapters by mean rank, then personal methods by name."""
    shared = [line.split("|")[1].strip() for line in methods_reading.ranks(figures)[2:]]
    every = {row["method"] for rows in figures.values() for row in rows}
    return [*shared, *sorted(every - {*shared})]


def _heads(cells: Sequence[str]) -> Iterator[str]:
    for column, cell in enumerate(cells):
        partition, epsilon, ranks = cell.split("-", 2)
        middle = LEFT + WIDE * (column + 0.5)
        words = (partition, "ε 8" if epsilon == "8" else "ε ∞",
                 "equal" if ranks == "equal" else "unequal")
        yield from (f'<text x="{middle:g}" y="{46 + 15 * line}" text-anchor="middle">'
                    f"{escape(word)}</text>" for line, word in enumerate(words))


def _field(rows: Sequence[Mapping[str, Any]], method: str, x: int, y: int) -> Iterator[str]:
    losses = methods_reading.by_seed(rows)
    if (gap := methods_reading.beside(losses, method, "fedit")) is None:
        return
    depth = min(abs(gap.mean) / FULL, 1.0) if math.isfinite(gap.mean) else 1.0
    frame = ' stroke="#7a8490" stroke-width="1.5"' if gap.told else ""
    hue = LESS if gap.mean < 0 else MORE
    color = ",".join(f"{255 + (part - 255) * (0.08 + 0.92 * depth):.0f}" for part in hue)
    words = "0" if method == "fedit" else f"{gap.mean:+.2f}".replace("-0.00", "+0.00")
    yield (f'<rect x="{x + 2}" y="{y + 2}" width="{WIDE - 4}" height="{HIGH - 4}" rx="3" '
           f'fill="rgb({color})"{frame}><title>'
           f"{escape(f'{method}: {methods_reading.in_words(gap)}')}</title></rect>"
           f'<text x="{x + WIDE / 2:g}" y="{y + 15}" text-anchor="middle" fill="#1c2733">{words}'
           "</text>")


def main() -> None:
    """Draw."""
    FIGURE.write_text(drawn(json.loads(NUMBERS.read_text("utf-8"))), "utf-8")
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
