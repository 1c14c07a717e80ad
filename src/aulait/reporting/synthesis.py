"""The sections on stage 1: the votes round by round beside the texts that won, and samples of the
synthetic texts."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist
from typing import Any

from aulait.reporting import figures, markup, numbers
from aulait.reporting.folder import Run, Table, at, number, sequence, tables, words
from aulait.reporting.markup import Html, Section

FAR = 2.0
"""How many noise deviations count as clearly above the noise."""

SHOWN = 6
LONGEST = 900


def votes(run: Run) -> Section:
    """The released votes of every round over the noise band, with a control to choose the round."""
    lines = run.stage("synthesis")
    if not lines:
        return Section("votes", "The votes", markup.absent("Stage 1"))
    ranked = at(run.result, "synthesis", "selection", default="rank") == "rank"
    panels, charts = [], {}
    for index, line in enumerate(lines):
        histogram = [n for n in map(number, sequence(line.get("histogram"))) if n is not None]
        kept = number(line.get("kept")) if ranked else None
        if histogram:
            charts[f"votes-{index}"] = figures.votes(histogram, max(0, int(kept or 0)),
                number(line.get("noise_std")))
        panels.append(_panel(index, line, histogram, last=index == len(lines) - 1))
    names = [numbers.count(line.get("round")) for line in lines]
    body = markup.join(_facts(run), _picker(names),
                       Html(f'<div class="panels">{"".join(panels)}</div>'))
    return Section("votes", "The votes", body, charts)


def _facts(run: Run) -> Html:
    facts = at(run.result, "synthesis", default={})
    cap, bound = numbers.count(at(facts, "records_per_client")), numbers.significant(at(facts,
        "vote_sensitivity"))
    text = (
        "The server offers candidates; each record of a client votes for the candidate nearest to "
        "it. "
    )
    text += (
        f"A client votes with at most {cap} records, and its whole ballot is clipped to length "
        f"{bound}. "
    )
    text += "Only the released sums below leave the door."
    rows = [
        ("voters", numbers.count(at(facts, "voters"))),
        ("selection", words(at(facts, "selection")) or numbers.NOT_RECORDED),
        ("generator", words(at(facts, "generator")) or numbers.NOT_RECORDED),
        ("synthetic texts at the end", numbers.count(at(facts, "texts"))),
    ]
    return markup.join(markup.paragraph(text), markup.pairs(rows))


def _picker(names: list[str]) -> Html:
    if len(names) < 2:
        return Html("")
    last = len(names) - 1
    listed = markup.safe("|".join(names))
    return Html(
        f'<label class="picker"><span>round <output>{markup.safe(names[-1])}</output> of '
        f'{len(names)}</span>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" data-picker="votes" '
        f'data-names="{listed}" '
        'aria-label="round"></label>'
    )


def _panel(index: int, line: Table, histogram: list[float], last: bool) -> str:
    left = (
        [markup.chart(f"votes-{index}", "Released votes of all candidates", 300)] if histogram
        else []
    )
    left.append(_reading(line, histogram) if histogram
                else markup.absent("The votes of this round"))
    winners = tables(line.get("winners"))[:8]
    right = [markup.subtitle("Texts that won"), *(_winner(winner) for winner in winners)]
    won = (
        Html(f'<div class="winners">{markup.join(*right) if winners else markup.absent("The texts that won")}</div>')
    )
    style = "panel" if last else "panel away"
    return (
        f'<div class="{style}" data-panel="votes" '
        f'data-index="{index}">{markup.columns(markup.join(*left), won)}</div>'
    )


def _reading(line: Table, histogram: list[float]) -> Html:
    """How far the votes stand out of the noise; the released values alone decide it, so it costs
    nothing."""
    noise = number(line.get("noise_std"))
    offered, kept = len(histogram), number(line.get("kept"))
    start = f"{numbers.counted(offered, 'candidate')}" + (
        f", {numbers.count(kept)} kept. " if kept is not None else ". "
    )
    if noise is None:
        return markup.note(start + "The noise is not recorded.")
    if noise == 0:
        return markup.note(start + "The votes carry no noise.")
    above = sum(value > FAR * noise for value in histogram)
    expected = offered * (1 - NormalDist().cdf(FAR))
    text = (
        f"{numbers.count(above)} lie more than {FAR:.0f} noise deviations above zero; noise alone "
        "would lift "
    )
    text += (
        f"about {expected:.1f} that far." if expected < 10
        else f"about {numbers.count(expected)} that far."
    )
    return markup.note(start + text)


def _winner(winner: Table) -> Html:
    received = number(winner.get("votes"))
    parts = [f"{received:,.1f} votes" if received is not None else ""]
    parent = winner.get("parent")
    if words(parent):
        parts.append(f"varied from “{_short(str(parent), 80)}”")
    elif number(parent) is not None:
        parts.append(f"varied from text {numbers.count(parent)}")
    return markup.quotation(_short(_whole(winner), 420), " · ".join(part for part in parts if part))


def samples(run: Run) -> Section:
    """Texts kept in the first, the later and the last round, and of the final set."""
    blocks = []
    lines = [line for line in run.stage("synthesis") if sequence(line.get("samples"))]
    for position, line in enumerate(lines):
        texts = [markup.quotation(_short(str(text))) for text in sequence(line.get("samples"))[:5]]
        title = f"Round {numbers.count(line.get('round'))}"
        blocks.append(markup.folded(title, _wall(texts), unfolded=position in (0, len(lines) - 1)))
    if not blocks:
        blocks.append(markup.absent("Samples by round"))
    blocks.append(_final(run))
    intro = markup.paragraph(
        "How the texts change as the votes steer them. All of them were written by the generator.")
    return Section("samples", "Synthetic text through the rounds", markup.join(intro, *blocks))


def _final(run: Run) -> Html:
    found = [line for line in run.synthetic if words(line.get("text"))]
    if not found:
        return markup.absent("The final set")
    texts = [_whole(line) for line in found]
    owners = Counter(str(line.get("client")) for line in found if line.get("client") is not None)
    distinct = len(set(texts))
    length = sum(map(len, texts)) / len(texts)
    summary = (
        f"{numbers.counted(len(texts), 'text')}, {numbers.percent(distinct / len(texts))} of them "
        "distinct, "
    )
    summary += f"{numbers.count(length)} characters on average"
    summary += f", dealt to {numbers.count(len(owners))} proxies." if owners else "."
    step = max(1, len(found) // SHOWN)
    shown: list[Any] = [markup.quotation(_short(_whole(line)), _origin(line))
                        for line in found[::step][:SHOWN]]
    return markup.folded(
        "The final set", markup.join(markup.note(summary), _wall(shown)),
        unfolded=not run.stage("synthesis")
    )


def _whole(line: Table) -> str:
    """A text, after its prompt where it has one."""
    prompt = words(line.get("prompt"))
    return f"{prompt}\n{line.get('text', '')}" if prompt else str(line.get("text", ""))


def _origin(line: Table) -> str:
    parts = []
    if number(line.get("round")) is not None:
        parts.append(f"round {numbers.count(line.get('round'))}")
    if line.get("client") is not None:
        parts.append(f"proxy {_short(str(line['client']), 40)}")
    return " · ".join(parts)


def _wall(texts: list[Html]) -> Html:
    return Html(f'<div class="wall">{"".join(texts)}</div>')


def _short(text: str, limit: int = LONGEST) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
