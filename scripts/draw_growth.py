"""Draw how time grows with clients, tokens, rank and candidates.

    python scripts/draw_growth.py    # from results/bench-growth.json

That file is what `aulait bench growth --json` printed.

Sizes and times of each kind are told as multiples of its smallest; a straight line of slope one
stands for what is expected. It is text, circles and lines: no font and no script of anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "results" / "bench-growth.json"
FIGURE = ROOT / "docs" / "figures" / "growth.svg"
COLORS = ("#4f9bd9", "#e07a3f", "#5aa469", "#a06cc9")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 64, 230, 44, 52
MOST = 10.0  # times the smallest size, and times its time


class Table(TypedDict):
    """What the figure reads of one kind of work."""

    name: str
    exponent: float
    expected: float
    rows: Sequence[Mapping[str, float]]


def drawn(tables: Sequence[Table]) -> str:
    """The figure as SVG: time over time of the smallest size, against size over smallest size."""
    parts = [_axes()]
    for place, (table, color) in enumerate(zip(tables, COLORS, strict=False)):
        first = table["rows"][0]
        points = [(row["size"] / first["size"], row["seconds"] / first["seconds"])
                  for row in table["rows"]]
        line = " ".join(f"{_x(size):.1f},{_y(time):.1f}" for size, time in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{_x(size):.1f}" cy="{_y(time):.1f}" r="4" fill="{color}">'
                  f"<title>{escape(table['name'])}: {size:.3g} times the size, {time:.3g} times "
                  "the time</title></circle>" for size, time in points]
        y = TOP + 16 + 22 * place
        told = f"{table['name']}: {table['exponent']:.2f}, expected {table['expected']:.2f}"
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{y}" r="5" fill="{color}"/>'
                     f'<text x="{WIDTH - RIGHT + 30}" y="{y + 4}">{escape(told)}</text>')
    title = "Time against the size of the work, with fitted exponents"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="#7a8490">'
            f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>'
            f'{"".join(parts)}</svg>\n')


def _axes() -> str:
    lines = [f'<line x1="{_x(1):.1f}" y1="{_y(1):.1f}" x2="{_x(MOST):.1f}" y2="{_y(MOST):.1f}" '
             'stroke="#9aa5b1" stroke-dasharray="5 4"/>']
    for times in (1, 2, 4, 8):
        x, y = _x(times), _y(times)
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                     'stroke="#9aa5b1" stroke-opacity="0.3"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{times}</text>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{times}'
                     "</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">times the '
                 'smallest size; upwards: times its time</text>')
    return "".join(lines)


def _x(times: float) -> float:
    return LEFT + _share(times) * (WIDTH - RIGHT - LEFT)


def _y(times: float) -> float:
    return HEIGHT - BOTTOM - _share(times) * (HEIGHT - BOTTOM - TOP)


def _share(times: float) -> float:
    return math.log(min(max(times, 1.0), MOST)) / math.log(MOST)


def main() -> None:
    """Draw."""
    FIGURE.write_text(drawn(json.loads(NUMBERS.read_text("utf-8"))["tables"]), "utf-8")
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
