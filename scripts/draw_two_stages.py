"""Draw the figure of README's first screen from results/two-stages.json.

    python scripts/draw_two_stages.py    # writes docs/figures/two-stages.svg

The colours stand on white and on black pages alike; everything is text and rectangles, so that the
picture needs no font and no script of anybody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "results" / "two-stages.json"
FIGURE = ROOT / "docs" / "figures" / "two-stages.svg"
ARMS = {"random public text, everybody proxied": ("random public text, no vote", "#9aa5b1"),
        "votes, everybody proxied": ("all clients only vote", "#4f9bd9"),
        "both stages": ("a tenth trains, the rest vote", "#e07a3f")}
WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 760, 236, 60, 14, 16, 64


def gains(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, list[float]]]:
    """Data set -> arm -> gains at epsilon 8 of all seeds, of data sets that have both stages."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["epsilon_target"] == 8 and row["arm"] in ARMS:
            own = found.setdefault(str(row["data"]), {})
            own.setdefault(str(row["arm"]), []).append(float(str(row["gain"])))
    return {name: own for name, own in found.items() if "both stages" in own}


def drawn(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The figure as SVG."""
    most = max(max(own) for arms in found.values() for own in arms.values())
    scale = (WIDTH - LEFT - RIGHT) / most
    parts, y = [], TOP
    x = LEFT
    for label, color in ARMS.values():
        parts.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{color}"/>'
                     f'<text x="{x + 18}" y="44">{escape(label)}</text>')
        x += 30 + round(6.3 * len(label))
    for name, arms in found.items():
        middle = y + (len(ARMS) * BAR) / 2 + 4
        seeds = max(len(own) for own in arms.values())
        told = f"{name}, {seeds} seed{'s' if seeds > 1 else ''}"
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">'
                     f'{escape(told)}</text>')
        for arm, (_, color) in ARMS.items():
            if arm in arms:
                mean = fmean(arms[arm])
                length = max(0.0, mean) * scale
                parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 3}" '
                             f'fill="{color}"/><text x="{LEFT + length + 6:.1f}" y="{y + 10}">'
                             f'{mean:.2f}</text>')
            y += BAR
        y += GAP
    title = "Held-out loss falls by so many nats a token, at epsilon 8 for a client"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="#7a8490">'
            f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>'
            f'{"".join(parts)}</svg>\n')


def main() -> None:
    """Write the figure."""
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(drawn(gains(json.loads(NUMBERS.read_text("utf-8"))["rows"])), "utf-8")
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
