"""What the browser tests look for on every page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

WIDTHS = (390, 768, 1400)
SCHEMES = ("light", "dark")
SCROLLERS = "pre, .texts, .md-typeset__scrollwrap, .highlight, code"  # scrolled, by keyboard too

OVERFLOWING = """(scrollers) => {
  const wide = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
  const cut = (place) => place.scrollWidth > place.clientWidth + 1 && getComputedStyle(place).overflowX !== "visible";
  for (const place of document.querySelectorAll("body *")) {
    if (place.closest("svg, nav, .md-header, .md-sidebar, .md-search, .md-tabs") || place.matches(scrollers) || !place.offsetParent) continue;
    if (place.clientWidth > 3 && cut(place)) wide.push(`${place.tagName}.${place.className}: ${place.scrollWidth} in ${place.clientWidth}`);
  }
  for (const table of document.querySelectorAll("table")) {
    const box = table.getBoundingClientRect();
    if (table.offsetParent && !table.closest(scrollers) && box.right > innerWidth + 1) wide.push(`table ends at ${box.right}`);
  }
  for (const cell of document.querySelectorAll("td, th, p, li")) {
    const words = document.createRange();
    words.selectNodeContents(cell);
    const width = words.getBoundingClientRect().width;
    if (cell.offsetParent && cell.innerText.length > 60 && width < 60)
      wide.push(`${cell.innerText.length} letters in ${Math.round(width)} pixels: ${cell.innerText.slice(0, 40)}`);
  }
  return wide;
}"""

FOCUSABLE = """() => {
  const seen = (place) => place.checkVisibility({ visibilityProperty: true }) && place.getClientRects().length > 0;
  const found = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")].filter(
    (place) => seen(place) && !place.disabled && place.tabIndex >= 0);
  found.forEach((place, index) => { place.dataset.stop = index; });
  document.activeElement.blur();
  return found.length;
}"""

STOP = """() => {
  const place = document.activeElement, style = getComputedStyle(place);
  const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== "none";
  return [place.dataset.stop || null, shown, place.outerHTML.slice(0, 120)];
}"""


class Looked:
    """A page in a browser, with everything it said and asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def elsewhere(self) -> list[str]:
        """What it asked for outside its own folder or server."""
        own = self.address[: self.address.index("/", 8)] if self.address.startswith("http") else "file://"
        return [url for url in self.asked if not url.startswith((own, "data:", "blob:"))]


@contextmanager
def looking(browser: Any, address: str, width: int = 1400, scheme: str = "light", **options: Any) -> Iterator[Looked]:
    """A page, open at a width and in a colour scheme."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    try:
        found = Looked(context.new_page(), address)
        found.page.goto(address)
        yield found
    finally:
        context.close()


@cache
def axe_script() -> str:
    """axe-core, as a package carries it."""
    import axe_playwright_python

    (path,) = Path(axe_playwright_python.__file__).parent.glob("axe.min.js")
    return path.read_text(encoding="utf-8")


def findings(page: Any) -> list[str]:
    """The serious and critical findings of axe-core, a line each."""
    page.evaluate(axe_script())
    told = page.evaluate("axe.run(document, { resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })")
    return [f"{rule['impact']} {rule['id']}: {rule['help']}: {[node['target'] for node in rule['nodes']][:4]}"
            for rule in told["violations"] if rule["impact"] in ("serious", "critical")]


def unreached(page: Any) -> list[str]:
    """What the Tab key does not reach, or reaches without showing it."""
    count = page.evaluate(FOCUSABLE)
    reached, hidden = set(), []
    for _ in range(count + 3):
        page.keyboard.press("Tab")
        stop, shown, text = page.evaluate(STOP)
        if stop is not None and stop not in reached:
            reached.add(stop)
            hidden += [] if shown else [f"no mark of focus: {text}"]
    missed = [page.evaluate("(stop) => document.querySelector(`[data-stop='${stop}']`).outerHTML.slice(0, 120)", str(stop))
              for stop in range(count) if str(stop) not in reached]
    return [*hidden, *(f"not reached: {text}" for text in missed)]


UNFOLD = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
PAPER = "getComputedStyle(document.body).backgroundColor"


def faults(browser: Any, address: str, checked: Collection[tuple[int, str]]) -> list[object]:
    """What is wrong with a page at any width in any scheme: what is cut off, folded and unfolded; findings of axe-core at the
    widths and schemes of ``checked``; what it said, and what it asked for outside. One load a scheme, as resizing is quicker."""
    found: list[object] = []
    papers = set()
    for scheme in SCHEMES:
        with looking(browser, address, WIDTHS[0], scheme) as seen:
            for width in WIDTHS:
                seen.page.set_viewport_size({"width": width, "height": 900})
                found += [(width, scheme, cut) for cut in seen.page.evaluate(OVERFLOWING, SCROLLERS)]
                seen.page.evaluate(UNFOLD)
                found += [(width, scheme, "unfolded", cut) for cut in seen.page.evaluate(OVERFLOWING, SCROLLERS)]
                if (width, scheme) in checked:
                    found += [(width, scheme, rule) for rule in findings(seen.page)]
            papers.add(seen.page.evaluate(PAPER))
            found += [(scheme, told) for told in (*seen.said, *seen.elsewhere())]
    return found + ([] if len(papers) == len(SCHEMES) else ["both schemes have the same paper"])
