"""The sections on stage 1: the votes round by round beside the texts that won, and samples of the
synthetic texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from aulait.reporting import explorer, figures, markup, numbers
from aulait.reporting.explorer import ORIGINS, full_text, shortened
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import PlacedFigure, Section
from aulait.runfolder.schema import SynthesisResult, SynthesisRound, SyntheticLine

FAR: Final = 2.0
"""How many noise deviations count as clearly above the noise."""

MOST_PANELS: Final = 24
"""Rounds whose votes are shown; of more, every so many-th."""

BEST: Final = 4
"""Texts that won, beside the votes of their round; the table of texts has more."""

CaptionedText = tuple[str, str]


@dataclass(frozen=True)
class VotePanel:
    """What the page shows of a round of votes.

    Attributes:
        round: its number.
        chart: the released votes; None where they are not recorded.
        reading: how far they stand out of the noise.
        winners: texts with a line about each.
    """

    round: str
    chart: PlacedFigure | None
    reading: str
    winners: list[CaptionedText]


def votes_section(run: RunFiles) -> Section:
    """The released votes of every round over the noise band, with a control to choose the round."""
    facts = run.result.synthesis or SynthesisResult()
    ranked = (facts.selection or "rank") == "rank"
    step = -(-len(run.synthesis) // MOST_PANELS) or 1
    shown = run.synthesis[::-step][::-1]  # the last round is among them
    panels = [_panel(index, line, ranked) for index, line in enumerate(shown)]
    return markup.section(
        "votes", "The votes", [panel.chart for panel in panels if panel.chart], panels=panels,
        cap="" if facts.records_per_client is None else numbers.count(facts.records_per_client),
        bound=numbers.significant(facts.vote_sensitivity),
        offered=_offered(facts), every=step,
        facts=[(name, value) for name, value in (
            ("voters", numbers.count(facts.voters)),
            ("selection", facts.selection or numbers.NOT_RECORDED),
            ("generator", "none" if facts.source == "retrieve"
             else facts.generator or numbers.NOT_RECORDED),
            ("texts at the end", numbers.count(facts.texts)),
        ) if value != numbers.NOT_RECORDED])


def _offered(facts: SynthesisResult) -> str:
    """What stands for election, where it is not texts from the first round on."""
    if facts.source not in ("retrieve", "both"):
        return ""
    return ": first clusters of the public texts, then the parts of those that won" + (
        ", then texts" * (facts.source == "both"))


def _panel(index: int, line: SynthesisRound, ranked: bool) -> VotePanel:
    """``ranked``: the texts with most votes were kept, so that the kept ones can be set off."""
    histogram = [votes for votes in line.histogram if votes is not None]
    kept = max(0, int(line.kept or 0)) if ranked else 0
    chart = PlacedFigure(f"votes-{index}", "Released votes of all candidates",
                         figures.vote_bars(histogram, kept, line.noise_std), 240)
    return VotePanel(numbers.count(line.round), chart if histogram else None,
                     votes_against_noise(line), list(map(_winner, line.winners[:BEST])))


def votes_against_noise(line: SynthesisRound) -> str:
    """How far the votes stand out of the noise; the released values alone decide it, so it costs
    nothing."""
    histogram = [votes for votes in line.histogram if votes is not None]
    noise, offered = line.noise_std, len(histogram)
    kept = "" if line.kept is None else f", {numbers.count(line.kept)} kept"
    start = f"{numbers.counted(offered, 'candidate')}{kept}. "
    if noise is None:
        return f"{start}The noise is not recorded."
    if noise == 0:
        return f"{start}The votes carry no noise."
    above = sum(value > FAR * noise for value in histogram)
    expected = offered * (1 - NormalDist().cdf(FAR))
    by_chance = f"{expected:.1f}" if expected < 10 else numbers.count(expected)
    return (
        f"{start}{numbers.count(above)} lie more than {FAR:.0f} noise deviations above zero; noise "
        f"alone would lift about {by_chance} that far."
    )


def _winner(winner: SyntheticLine) -> CaptionedText:
    parts = [] if winner.votes is None else [f"{winner.votes:,.1f} votes"]
    if isinstance(winner.parent, str):
        parts.append(f"varied from “{shortened(winner.parent, 80)}”")
    elif winner.parent is not None:
        parts.append(f"varied from text {numbers.count(winner.parent)}")
    elif winner.texts is not None:
        parts.append(f"one of {numbers.counted(winner.texts, 'text')} on {winner.topic}")
    elif winner.origin is not None:
        parts.append(ORIGINS.get(winner.origin, winner.origin))
    return shortened(full_text(winner), 420), " · ".join(parts)


def samples_section(run: RunFiles) -> Section:
    """Every text that won votes, and the final set, with what each descends from."""
    table = explorer.text_table(run)
    final = [line for line in run.synthetic if line.text is not None]
    rounds = dict.fromkeys(numbers.count(row.round) for row in table.rows if row.round is not None)
    origins = dict.fromkeys(row.origin for row in table.rows if row.origin)
    return markup.section(
        "samples", "The texts, round by round", table=table, summary=_summary(final),
        provenance=_provenance(run), rounds=list(rounds), origins=list(origins),
        voted=any(row.votes is not None for row in table.rows),
        places=list(dict.fromkeys(row.place for row in table.rows)))


def _summary(final: list[SyntheticLine]) -> str:
    """The final set in numbers; empty where there is none."""
    if not final:
        return ""
    texts = list(map(full_text, final))
    owners = Counter(str(line.client) for line in final if line.client is not None)
    dealt = f", dealt to {numbers.count(len(owners))} proxies" if owners else ""
    return (
        f"{numbers.counted(len(texts), 'text')}, {numbers.percent(len(set(texts)) / len(texts))} "
        f"of them distinct, {numbers.count(sum(map(len, texts)) / len(texts))} characters on "
        f"average{dealt}."
    )


def _provenance(run: RunFiles) -> str:
    """Where the texts of the final set come from, how long they are, and how near they come to
    held-out records; as far as the run tells."""
    told = run.result.synthesis.set if run.result.synthesis is not None else None
    counts = {kind: number for kind, number in (told.origins if told else {}).items() if number}
    if told is None or not counts:
        return "The first candidates are public texts, or written for a description."
    total = sum(counts.values())
    parts = [f"{numbers.percent(number / total)} {ORIGINS.get(kind, kind)}"
             for kind, number in counts.items()]
    if list(counts) == ["public"]:
        text = "The final set is public text, word for word; nothing was written."
    else:
        text = (f"Of the final set {', '.join(parts)}; {numbers.percent(told.verbatim_public)} of "
                "it stand word for word among the public texts, however they came about.")
    text += (f" Its texts have {numbers.count(told.words_shortest)} to "
             f"{numbers.count(told.words_longest)} words, "
             f"{numbers.significant(told.words_mean)} on average.")
    if told.distance is None:
        return text
    return (f"{text} Held-out records lie at a cosine distance of "
            f"{numbers.significant(told.distance)} from the nearest text of the set, and of "
            f"{numbers.significant(told.distance_of_random_public)} from the nearest of some "
            "random public texts. The simulation measures this on held-out records; it is not "
            "private, and a deployment does not tell it.")
