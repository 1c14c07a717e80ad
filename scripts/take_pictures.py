"""Take the README's pictures: of a report and a comparison in Chromium, of a plan as letters.

    python scripts/take_pictures.py --report RUN --compare compare.html --plan experiment.toml

Each argument is optional. Written into docs/figures: report.png, compare.png (the first screen, in
few colours so that the files stay small) and plan.svg (letters, no picture of any).
"""

from __future__ import annotations

import argparse
import html
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
WIDTH, HEIGHT = 1180, 900  # pixels of a first screen
COLORS = 96
COLUMNS, LINES = 100, 22
LETTER, LINE = 7.8, 18.0  # pixels of a letter and of a line in the terminal's picture


def screen(page: Path, to: Path) -> None:
    """The first screen of a page."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=os.environ.get("AULAIT_CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        shown.goto(page.resolve().as_uri())
        taken = Image.open(BytesIO(shown.screenshot()))
        browser.close()
    taken.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(to, optimize=True)
    print(f"wrote {to} ({to.stat().st_size / 1000:.0f} kB)")


def terminal(words: list[str], to: Path) -> None:
    """What a command shows, as letters of an SVG."""
    told = subprocess.run(
        [sys.executable, "-c", "from aulait.cli import main; main()", *words], check=True,
        capture_output=True, text=True, env={**os.environ, "COLUMNS": str(COLUMNS)}).stdout
    shown = [f"$ aulait {' '.join(Path(word).name for word in words)}", "",
             *told.splitlines()[:LINES], "..."]
    to.write_text(drawn(shown), encoding="utf-8")
    print(f"wrote {to} ({to.stat().st_size / 1000:.0f} kB)")


def drawn(lines: list[str]) -> str:
    """Lines of a terminal as an SVG, in the colours of day and night."""
    width, height = COLUMNS * LETTER + 32, len(lines) * LINE + 28
    rows = "\n".join(
        f'<text x="16" y="{24 + LINE * index:.0f}" xml:space="preserve">{html.escape(line)}</text>'
        for index, line in enumerate(lines))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'role="img" aria-label="aulait plan in a terminal">\n'
            "<style>rect { fill: #f6f3ee } text { fill: #241f1b; font: 13px ui-monospace, Menlo, "
            "Consolas, 'DejaVu Sans Mono', monospace } @media (prefers-color-scheme: dark) { rect "
            "{ fill: #181513 } text { fill: #ece5dd } }</style>\n"
            f'<rect width="100%" height="100%" rx="8"/>\n{rows}\n</svg>\n')


def main() -> None:
    """Take what is asked for."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("report", "compare", "plan"):
        asked.add_argument(f"--{name}", type=Path)
    told = asked.parse_args()
    FIGURES.mkdir(exist_ok=True)
    if told.report:
        screen(told.report / "report.html", FIGURES / "report.png")
    if told.compare:
        screen(told.compare, FIGURES / "compare.png")
    if told.plan:
        terminal(["plan", str(told.plan), "--not-here"], FIGURES / "plan.svg")


if __name__ == "__main__":
    main()
