"""Draw how many times as fast a round is as the loop with PEFT, by texts of a step.

    python scripts/draw_peers.py    # from results/bench-simulate.json

That file holds the cases that `aulait bench simulate --peers --json` measured, by day. It is text,
circles and lines: no font and no script of anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "results" / "bench-simulate.json"
FIGURE = ROOT / "docs" / "figures" / "peers.svg"
KEYS = ("cases_of_2026_12_01", "cases_of_2026_12_01_loaded")
COLORS = {"brew float32": "#4f9bd9", "smollm2 float32": "#e07a3f", "smollm2 bfloat16": "#5aa469"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 64, 190, 44, 52
LEAST, MOST = 0.8, 2.6  # times the loop
Case = Mapping[str, str | int | float | None]


def drawn(cases: Sequence[Case]) -> str:
    """The figure as SVG: times the loop against texts of a step, attention alone in hollow dots."""
    parts = [_axes()]
    for case in cases:
        kind, hollow = f"{case['model']} {case['dtype']}", case["targets"] == "attention"
        color, ratio = COLORS[kind], float(case["ratio_to_loop"] or math.nan)
        told = f"{kind}, {case['method']}, {case['targets']}, batch {case['batch']}: {ratio:.2f}"
        parts.append(
            f'<circle cx="{_x(case["batch"], kind):.1f}" cy="{_y(ratio):.1f}" r="4.5" '
            f'fill="{"none" if hollow else color}" stroke="{color}" stroke-width="1.5">'
            f"<title>{escape(told)}</title></circle>")
    for place, (kind, color) in enumerate(COLORS.items()):
        y = TOP + 16 + 22 * place
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{y}" r="5" fill="{color}"/>'
                     f'<text x="{WIDTH - RIGHT + 30}" y="{y + 4}">{escape(kind)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 86}">hollow: attention alone</text>')
    title = "Tokens a processor second, times those of the loop with PEFT"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="#7a8490">'
            f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>'
            f'{"".join(parts)}</svg>\n')


def _axes() -> str:
    """Lines of equal ratio, and the texts of a step."""
    parts = []
    for ratio in (1.0, 1.5, 2.0, 2.5):
        y = _y(ratio)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                     f'stroke="#7a8490" stroke-opacity="0.3"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{ratio:g}</text>')
    parts += [f'<text x="{_x(batch, ""):.1f}" y="{HEIGHT - BOTTOM + 20}" '
              f'text-anchor="middle">{batch}</text>' for batch in (1, 2, 4, 8)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(parts) + (f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">'
                             "texts of a step</text>")


def _x(batch: str | int | float | None, kind: str) -> float:
    """Where a number of texts stands; models beside one another."""
    beside = (list(COLORS).index(kind) - 1) * 14 if kind else 0
    share = (math.log2(float(batch or 1)) + 0.5) / 4
    return LEFT + share * (WIDTH - LEFT - RIGHT) + beside


def _y(ratio: float) -> float:
    return TOP + (MOST - ratio) / (MOST - LEAST) * (HEIGHT - TOP - BOTTOM)


def main() -> None:
    found = json.loads(NUMBERS.read_text(encoding="utf-8"))
    FIGURE.write_text(drawn([case for key in KEYS for case in found[key]]), encoding="utf-8")
    print(FIGURE)


if __name__ == "__main__":
    main()
