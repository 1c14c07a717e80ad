"""What the table of all methods says, read for the page: mean ranks, and each paper's claim beside
what was measured here. scripts/methods_table.py writes both below its cells.

A claim is what a paper's abstract or main table says of losses or accuracies beside another method
of the table, in our words. It is read here on another model and other data, so "does not hold here"
says nothing about the paper's own setting.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aulait.reporting.comparability import PairedDifference, mean_difference

Figures = Mapping[str, Sequence[Mapping[str, Any]]]  # cell -> rows of methods_table.rows


@dataclass(frozen=True)
class Claim:
    """That a method ends below others in loss.

    Attributes:
        method: who is said to be better.
        than: beside whom.
        where: what a cell's name must hold for the claim to speak of it, as "-8-"; "" for any.
        words: the claim.
    """

    method: str
    than: tuple[str, ...]
    where: str
    words: str


UNEQUAL: Final = "heavy-tail-light"
CLAIMS: Final = (
    Claim("ffa", ("fedit",), "-8-", "steadier than FedIT under noise"),
    Claim("fedex", ("fedit", "ffa"), "", "an exact merge beats FedIT and FFA-LoRA"),
    Claim("flora", ("fedit",), "", "stacking beats FedIT, at equal and unequal ranks"),
    Claim("flexlora", ("fedit",), UNEQUAL, "ranks that machines can carry beat one common rank"),
    Claim("hetlora", ("fedit",), UNEQUAL, "unequal ranks beat one common rank"),
    Claim("rolora", ("fedit", "ffa"), "", "alternating halves beat FedIT and FFA-LoRA"),
    Claim("fedsa", ("fedit", "ffa"), "", "B that stays at home beats FedIT and FFA-LoRA"),
    Claim("fdlora", ("fedit", "alone"), "", "two adapters beat FedIT and training alone"),
    Claim("lorafair", ("fedit", "ffa", "flexlora", "flora"), "",
          "a corrected mean beats FedIT, FFA-LoRA, FlexLoRA and FLoRA"),
    Claim("fedrot", ("fedit", "ffa", "rolora"), "",
          "turned factors beat FedIT, FFA-LoRA and RoLoRA"),
    Claim("fedsvd", ("fedit", "ffa"), "", "an A from the SVD beats FedIT and FFA-LoRA"),
    Claim("lalora", ("fedit", "ffa"), "-8-", "alternating steps beat FedIT and FFA-LoRA in noise"),
    Claim("raflora", ("flexlora",), UNEQUAL, "no collapse of ranks, so better than FlexLoRA"),
    Claim("fedplora", ("hetlora", "flora", "flexlora"), UNEQUAL,
          "parallel rank-one parts beat HetLoRA, FLoRA and FlexLoRA"),
    Claim("fedprox", ("fedit",), "0.", "a proximal term beats the plain mean on unlike clients"),
    Claim("scaffold", ("fedit",), "0.", "control variates beat the plain mean on unlike clients"),
)


def by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Method -> seed -> held-out loss."""
    return {row["method"]: dict(zip(row["seeds"], row["loss"], strict=True)) for row in rows}


def beside(losses: Mapping[str, Mapping[int, float]], method: str,
           other: str) -> PairedDifference | None:
    """The method's loss minus the other's on the seeds of both; None where there are none."""
    ours, theirs = losses.get(method, {}), losses.get(other, {})
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return mean_difference(found) if found else None


def in_words(gap: PairedDifference) -> str:
    """A difference and its interval, as +0.123 (+0.100 to +0.146)."""
    if gap.low is None or gap.high is None:
        return f"{gap.mean:+.3f} (one seed)"
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def verdict(gap: PairedDifference) -> str:
    """What a difference, below zero where the claim holds, says of it."""
    if gap.told is None:
        return "one seed, for it" if gap.mean < 0 else "one seed, against it"
    if not gap.told:
        return "cannot be told"
    return "holds here" if gap.mean < 0 else "does not hold here"


def in_short(figures: Figures) -> str:
    """What the cells say in plain words: who leads, who trails, how many claims hold."""
    shared = [line.split("|")[1].strip() for line in ranks(figures)[2:]]
    told = [line.rsplit("|", 2)[1].strip() for line in _claim_rows(figures)]
    count = {word: told.count(word)
             for word in ("holds here", "does not hold here", "cannot be told")}
    names = ", ".join(f"`{name}`" for name in shared[:3])
    last = ", ".join(f"`{name}`" for name in shared[-3:])
    begun = f"Of the shared adapters {names} have the best mean ranks, {last} the worst. " if (
        len(shared) >= 6) else ""
    return (f"**In short.** {begun}Of {sum(count.values())} readings of what papers claim, one for "
            f"a claim, a rival and a cell, {count['holds here']} hold here, "
            f"{count['does not hold here']} do not, {count['cannot be told']} cannot be told with "
            "these seeds.\n")


def _claim_rows(figures: Figures) -> Iterator[str]:
    for claim in CLAIMS:
        for other in claim.than:
            found = {cell: beside(by_seed(rows), claim.method, other)
                     for cell, rows in figures.items() if claim.where in cell}
            seen = {cell: gap for cell, gap in found.items() if gap is not None}
            for cell, gap in seen.items():
                yield (f"| {claim.method} | {other} | {claim.words} | {cell} | {in_words(gap)} "
                       f"| {verdict(gap)} |")
            if not seen:
                yield (f"| {claim.method} | {other} | {claim.words} | - | - "
                       "| not measured: no such cell yet |")


def claims(figures: Figures) -> list[str]:
    """The table of the papers' claims, line by line."""
    return ["| method | beside | what its paper says | cell | loss beside the other | reading |",
            "|---|---|---|---|---|---|", *_claim_rows(figures)]


def ranks(figures: Figures) -> list[str]:
    """Mean rank of every method with a shared adapter over cells and seeds, with its t-interval,
    line by line. A seed of a cell counts where every such method of the cell that has any seed has
    this one."""
    places: dict[str, list[float]] = {}
    for rows in figures.values():
        losses = by_seed([row for row in rows if not row["personal"]])
        if len(losses) < 2:
            continue
        for seed in set.intersection(*(set(own) for own in losses.values())):
            order = sorted(losses, key=lambda name, seed=seed: losses[name][seed])
            for place, name in enumerate(order, start=1):
                places.setdefault(name, []).append(float(place))
    lines = ["| method | mean rank | 95 percent interval | runs |", "|---|---|---|---|"]
    for name, own in sorted(places.items(), key=lambda item: statistics.fmean(item[1])):
        gap = mean_difference(own)
        interval = "-" if gap.low is None else f"{gap.low:.1f} to {gap.high:.1f}"
        lines.append(f"| {name} | {gap.mean:.1f} | {interval} | {gap.seeds} |")
    return lines
