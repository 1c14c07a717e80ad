"""Gather runs into results/law-of-size.json and draw how the law of size predicts what is learnt.

    python scripts/draw_law.py [RUNS ...]    # folders of runs, or folders that hold some

Every run with privacy is paired with the run without privacy of the same base, data and clients;
what is kept is the gain of the first over the gain of the second. Without an argument the figure is
drawn again from the file. It is text, circles and lines: no font and no script of anybody.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "results" / "law-of-size.json"
FIGURE = ROOT / "docs" / "figures" / "law-of-size.svg"
COLORS = ("#4f9bd9", "#e07a3f", "#5aa469", "#a06cc9", "#c2566b", "#b59a3c")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 64, 190, 44, 52
LEAST, MOST = 0.1, 12.0  # ratios that the axis shows
LOW, HIGH = -0.6, 1.2  # shares of the gain that it shows; what lies below is a triangle

Row = dict[str, str | float]


def gathered(folders: Sequence[Path]) -> list[Row]:
    """One row a private run that has a partner without privacy.

    Returns:
        rows with the data's name, clients who train, trained numbers, ratio of noise to signal,
        epsilon, seed, gain in nats a token, the partner's gain, and the share that is kept.
    """
    found = [path for folder in folders for path in sorted(folder.rglob("result.json"))]
    results = [json.loads(path.read_text("utf-8")) for path in found]
    plain = {_partner(result): _gain(result) for result in results if result["privacy"]["off"]}
    rows: list[Row] = []
    for result in results:
        noise = result["privacy"].get("noise")
        if not noise or _partner(result) not in plain:
            continue
        gain, most = _gain(result), plain[_partner(result)]
        rows.append({"data": str(result["name"]), "arm": str(result["arm"] or ""),
                     "trained_numbers": noise["trained_numbers"], "clients": noise["clients"],
                     "ratio": noise["ratio"], "epsilon": result["privacy"]["epsilon"]["max"],
                     "seed": result["seed"], "gain": gain, "gain_without_privacy": most,
                     "kept": gain / most})
    return sorted(rows, key=lambda row: float(row["ratio"]))


def _gain(result: Mapping[str, Mapping[str, float]]) -> float:
    return result["base_eval"]["loss"] - result["eval"]["loss"]


def _partner(result: Mapping[str, object]) -> str:
    """What a private run and its partner have in common: all of the arm's name but what it says
    about epsilon (``"8 share 0.1"`` and ``"inf share 0.1"``), the seed, and the base's loss."""
    rest = str(result["arm"] or "").partition(" ")[2]
    return json.dumps([result["name"], rest, result["seed"], result["base_eval"]["loss"]])


def drawn(rows: Sequence[Row]) -> str:
    """The figure as SVG: share of the gain that is kept against the ratio of noise to signal."""
    names = sorted({str(row["data"]) for row in rows})
    color = dict(zip(names, COLORS, strict=False))
    parts = [_axes()]
    for row in rows:
        told = (f"{row['data']}, {row['arm']}: ratio {row['ratio']:.2f}, "
                f"kept {row['kept']:.0%}")
        parts.append(_mark(_x(float(row["ratio"])), float(row["kept"]),
                           color[str(row["data"])], told))
    for place, name in enumerate(names):
        y = TOP + 12 + 20 * place
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{y}" r="5" fill="{color[name]}"/>'
                     f'<text x="{WIDTH - RIGHT + 30}" y="{y + 4}">{escape(name)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{HEIGHT - BOTTOM - 6}">'
                 'below: far above the base</text>')
    title = "What privacy leaves of the gain, against the noise beside the signal"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="#7a8490">'
            f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>'
            f'{"".join(parts)}</svg>\n')


def _mark(x: float, kept: float, color: str, told: str) -> str:
    """A circle; what ends below the picture is a triangle that points there."""
    y = _y(kept)
    title = f"<title>{escape(told)}</title>"
    if kept >= LOW:
        return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}" fill-opacity="0.75">'
                f'{title}</circle>')
    corners = f"{x - 6:.1f},{y - 11:.1f} {x + 6:.1f},{y - 11:.1f} {x:.1f},{y - 1:.1f}"
    return f'<polygon points="{corners}" fill="{color}" fill-opacity="0.75">{title}</polygon>'


def _axes() -> str:
    lines = []
    for kept in (-0.5, 0.0, 0.5, 1.0):
        y = _y(kept)
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                     f'stroke="#9aa5b1" stroke-opacity="{0.9 if kept == 0 else 0.35}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{kept:.0%}</text>')
    for ratio in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        x = _x(ratio)
        lines.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" '
                     f'stroke="#9aa5b1" stroke-opacity="{0.9 if ratio == 1 else 0.25}"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                     f'{ratio:g}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" '
                 'text-anchor="middle">noise over signal, sqrt(d) / (mu n): above 1 aulait warns, '
                 'above 5 it refuses</text>')
    return "".join(lines)


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + share * (WIDTH - RIGHT - LEFT)


def _y(kept: float) -> float:
    share = (min(max(kept, LOW), HIGH) - LOW) / (HIGH - LOW)
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def main() -> None:
    """Gather, where folders are named, and draw."""
    if folders := [Path(name) for name in sys.argv[1:]]:
        text = json.dumps({"unit": "nats a token on held-out records", "rows": gathered(folders)},
                          indent=1)
        NUMBERS.write_text(text + "\n", "utf-8")
        print(f"wrote {NUMBERS}")
    FIGURE.write_text(drawn(json.loads(NUMBERS.read_text("utf-8"))["rows"]), "utf-8")
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
