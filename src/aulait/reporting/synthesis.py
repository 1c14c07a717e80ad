"""The sections on stage 1: the votes round by round beside the texts that won, and samples of the
synthetic texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from aulait.reporting import figures, markup, numbers
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import PlacedFigure, Section
from aulait.runfolder.schema import SynthesisResult, SynthesisRound, SyntheticLine

FAR: Final = 2.0
"""How many noise deviations count as clearly above the noise."""

SHOWN: Final = 6
LONGEST: Final = 900

ORIGINS: Final = {"public": "public word for word", "varied": "varied from a candidate",
                  "written": "written after examples or for a description"}
"""How a text came about, as the page says it."""

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
    panels = [_panel(index, line, ranked) for index, line in enumerate(run.synthesis)]
    return markup.section(
        "votes", "The votes", [panel.chart for panel in panels if panel.chart], panels=panels,
        cap=numbers.count(facts.records_per_client),
        bound=numbers.significant(facts.vote_sensitivity),
        offered=_offered(facts),
        facts=[
            ("voters", numbers.count(facts.voters)),
            ("selection", facts.selection or numbers.NOT_RECORDED),
            ("generator", "none" if facts.source == "retrieve"
             else facts.generator or numbers.NOT_RECORDED),
            ("synthetic texts at the end", numbers.count(facts.texts)),
        ])


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
                         figures.vote_bars(histogram, kept, line.noise_std), 300)
    return VotePanel(numbers.count(line.round), chart if histogram else None,
                     votes_against_noise(line), list(map(_winner, line.winners[:8])))


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
        parts.append(f"varied from “{_shortened(winner.parent, 80)}”")
    elif winner.parent is not None:
        parts.append(f"varied from text {numbers.count(winner.parent)}")
    elif winner.texts is not None:
        parts.append(f"one of {numbers.counted(winner.texts, 'text')} on {winner.topic}")
    elif winner.origin is not None:
        parts.append(ORIGINS.get(winner.origin, winner.origin))
    return _shortened(_with_prompt(winner), 420), " · ".join(parts)


def samples_section(run: RunFiles) -> Section:
    """Texts kept in the first, the later and the last round, and of the final set."""
    rounds = [(numbers.count(line.round), [(_shortened(text), "") for text in line.samples[:5]])
              for line in run.synthesis if line.samples]
    final = [line for line in run.synthetic if line.text is not None]
    step = max(1, len(final) // SHOWN)
    return markup.section(
        "samples", "Synthetic text through the rounds", rounds=rounds,
        summary=_summary(final), provenance=_provenance(run), final_unfolded=not run.synthesis,
        final=[(_shortened(_with_prompt(line)), _origin(line)) for line in final[::step][:SHOWN]])


def _summary(final: list[SyntheticLine]) -> str:
    """The final set in numbers; empty where there is none."""
    if not final:
        return ""
    texts = list(map(_with_prompt, final))
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
    text = (f"Of the final set {', '.join(parts)}; {numbers.percent(told.verbatim_public)} of it "
            "stand word for word among the public texts, however they came about. Its texts have "
            f"{numbers.count(told.words_shortest)} to {numbers.count(told.words_longest)} words, "
            f"{numbers.significant(told.words_mean)} on average.")
    if told.distance is None:
        return text
    return (f"{text} Held-out records lie at a cosine distance of "
            f"{numbers.significant(told.distance)} from the nearest text of the set, and of "
            f"{numbers.significant(told.distance_of_random_public)} from the nearest of some "
            "random public texts. The simulation measures this on held-out records; it is not "
            "private, and a deployment does not tell it.")


def _with_prompt(line: SyntheticLine) -> str:
    """A text, after its prompt where it has one."""
    return f"{line.prompt}\n{line.text or ''}" if line.prompt else line.text or ""


def _origin(line: SyntheticLine) -> str:
    parts = [] if not line.round else [f"round {numbers.count(line.round)}"]
    parts += [] if line.origin is None else [ORIGINS.get(line.origin, line.origin)]
    if line.client is not None:
        parts.append(f"proxy {_shortened(str(line.client), 40)}")
    return " · ".join(parts)


def _shortened(text: str, limit: int = LONGEST) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
