"""Write docs/published-epsilons.md: what papers and their code claim of their noise, counted again.

    python scripts/write_epsilons.py

Every claim has its settings here, with where they stand; epsilon is computed by aulait's own
accountant. A test compares the page with what this writes, and the figures with closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aulait.privacy.accounting import Event, calibrate, concentrated_epsilon, epsilon

PAGE = Path(__file__).resolve().parents[1] / "docs" / "published-epsilons.md"
NEAR: Final = 0.01  # claims that differ by less, relatively, are right


@dataclass(frozen=True)
class Claim:
    """An epsilon that was published, and the settings behind it.

    Attributes:
        setting: which of a work's settings.
        claimed: epsilon as it stands there; None where none is given.
        events: the mechanisms as they are run, and how often.
        delta: at which epsilon holds.
        remark: what the reader should know of this line; a sentence without a full stop.
        bounded: whether the mechanism has a finite sensitivity at all.
        rho: zero-concentrated privacy, where a work publishes that instead of a mechanism.
    """

    setting: str
    claimed: float | None
    events: tuple[tuple[Event, int], ...]
    delta: float
    remark: str = ""
    bounded: bool = True
    rho: float | None = None

    @property
    def true(self) -> float:
        """Epsilon as it is."""
        if not self.bounded:
            return math.inf
        if self.rho is not None:
            return concentrated_epsilon(self.rho, self.delta)
        return epsilon(dict(self.events), self.delta)

    @property
    def verdict(self) -> str:
        """The claim beside the truth, in words."""
        if self.claimed is None:
            return "no epsilon is given"
        if math.isinf(self.true):
            return "**wrong: no guarantee**"
        over = self.true / self.claimed - 1
        if abs(over) < NEAR:
            return "right"
        if over > 0:
            return f"**wrong: {over:.0%} more is spent**"
        return f"holds, {-over:.0%} less is spent"


@dataclass(frozen=True)
class Work:
    """A paper, or a paper's code.

    Attributes:
        name: authors, short title, venue.
        where: the settings are from.
        about: what is released how often, to whom the guarantee is given, what is noticed. Full
            sentences.
        claims: its lines.
    """

    name: str
    where: str
    about: str
    claims: tuple[Claim, ...]


def gaussian(z: float, times: int, rate: float = 1.0) -> tuple[tuple[Event, int], ...]:
    """So many releases at one noise multiplier."""
    return ((Event(z, rate), times),)


def usual_delta(records: int) -> float:
    """1 / (n ln n)."""
    return 1 / (records * math.log(records))


def tutorial(z: float, epochs: int, claimed: float) -> Claim:
    """A line of TensorFlow Privacy's table: MNIST, batches of 256."""
    return Claim(f"MNIST, noise {z}, {epochs} epochs", claimed,
                 gaussian(z, epochs * 60_000 // 256, 256 / 60_000), 1e-5,
                 "if batches were drawn by Poisson sampling, which the tutorial does not do")


def fedsvd(target: float) -> tuple[Claim, Claim]:
    """A client of equal share of MNLI's 392,702 records: as planned, and if it is always drawn."""
    rate = 1 / math.ceil(392_702 / 6 / 128)
    z = calibrate(target, 1e-5, 500, rate)
    return (Claim(f"MNLI, epsilon {target:g}, a client in 50 of 100 rounds", target,
                  gaussian(z, 500, rate), 1e-5, f"noise multiplier {z:.3f} from this count"),
            Claim(f"MNLI, epsilon {target:g}, a client in all rounds", target,
                  gaussian(z, 1000, rate), 1e-5,
                  "who is drawn more often than planned is charged for the plan"))


PRE_TEXT = 1.541 * math.sqrt(2)  # its code multiplies the accounted noise by this

WORKS: Final[tuple[Work, ...]] = (
    Work("Xie et al., Aug-PE, ICML 2024 (2403.01749)", "paper and code (AI-secure/aug-pe)",
         "Ten histograms of votes of single records, full participation, one vote a record. The "
         "code solves the exact Gaussian curve.",
         tuple(Claim(f"{name}, sigma {z}", claimed, gaussian(z, 10), usual_delta(n))
               for name, n, row in (
                   ("Yelp", 1_939_290, ((15.34, 1.0), (8.03, 2.0), (4.24, 4.0))),
                   ("OpenReview", 8_396, ((11.60, 1.0), (6.22, 2.0), (3.38, 4.0))),
                   ("PubMed", 75_316, ((13.26, 1.0), (7.01, 2.0), (3.75, 4.0))))
               for z, claimed in row)),
    Work("Hou et al., PrE-Text, ICML 2024 (2406.02958)", "paper and code",
         "Eleven histograms of votes of clients with at most m texts, full participation. The "
         "claims are of Rényi orders, which cost some percent. The code then adds noise of "
         "m · sigma · 1.541 · sqrt 2, 2.18 times what it accounts for, without a word why: if m "
         "is the sensitivity, a run spends less than half of what it says.",
         tuple(claim for z, claimed in ((11.3, 1.29), (2.31, 7.58)) for claim in (
             Claim(f"sigma {z}, as accounted", claimed, gaussian(z, 11), 3e-6),
             Claim(f"sigma {z}, with the noise that the code adds", claimed,
                   gaussian(z * PRE_TEXT, 11), 3e-6)))),
    Work("Hou et al., POPri, ICML 2025 (2504.16438)", "code: noise 19.3, 72,000 clients",
         "Scores of clients, normalised to norm 1, summed over all clients a round. The shipped "
         "accountant holds placeholders; the run script goes to 31 rounds.",
         (Claim("epsilon 1, 20 rounds", 1.0, gaussian(19.3, 20), 3e-6),
          Claim("epsilon 1, 31 rounds as in the run script", 1.0, gaussian(19.3, 31), 3e-6))),
    Work("Liu et al., DP-LoRA, ACM TMIS 2025 (2312.17493)", "paper's constants: sigma 2, 50 rounds",
         "Each site clips the gradient of a whole batch, A and B apart, to C and adds N(0, 4 C²) "
         "to each. Replacing one record can move each clipped gradient by 2 C, so a step is two "
         "Gaussians at noise multiplier 1. The paper names no accountant and no epsilon for it; "
         "sigma = 2 is not epsilon = 2.",
         (Claim("sigma 2, all 50 rounds", None, gaussian(1.0, 100), 1e-5),)),
    Work("Lee et al., FedSVD, NeurIPS 2025 (2505.12805)", "code (seanie12/fed-svd)",
         "Six clients, half of them drawn a round, 100 rounds of 10 steps; DP-SGD at every client "
         "with batches of 128. The noise is calibrated for the expected number of rounds of a "
         "client, 50. A client's own count is Binomial or fixed by the draw and is not looked at, "
         "and the epsilon that is logged is of one round alone.",
         (*fedsvd(6.0), *fedsvd(3.0))),
    Work("Liu et al., LA-LoRA, ICLR 2026 (2602.19926)", "code (junkangLiu0/LA-LORA)",
         "The gradient of a whole batch is clipped, tensor by tensor, to the median of the "
         "tensors' own norms (at most 0.4), and N(0, (sigma C / B)²) is added. The bound C follows "
         "from the records without noise, so the mechanism has no finite sensitivity; dividing by "
         "the batch "
         "B is right for sums of clipped single gradients only. Were C fixed, one tensor's step at "
         "the code's defaults (sigma 0.2, B 16) would have the noise multiplier 0.2 / 32.",
         (Claim("epsilon 1 as claimed, the bound as coded", 1.0, (), 1e-5, "", bounded=False),
          Claim("one step of one tensor, were C fixed", None, gaussian(0.2 / 32, 1), 1e-5))),
    Work("Microsoft DPSDA, client-level votes (private-evolution 0.0.1)", "code",
         "Client-level normalisation acts on the histogram of each label by itself: a client with "
         "data in c labels moves the joint release by sqrt c, and the noise is not scaled.",
         (Claim("noise for epsilon 1 in ten rounds, a client in one label", 1.0,
                gaussian(calibrate(1.0, 1e-5, 10), 10), 1e-5),
          Claim("the same, a client in five labels", 1.0,
                gaussian(calibrate(1.0, 1e-5, 10) / math.sqrt(5), 10), 1e-5))),
    Work("A fork of Aug-PE for medical text, beside CAFE AU LAIT", "code, its notebook",
         "Noise 48.45 / epsilon on counts comes from the classical bound sqrt(2 ln(1.25 / delta)) "
         "added up over ten rounds. A second cell takes n = 30 and delta = 1 / (n ln n), which "
         "allows a failure of one percent a client.",
         (Claim("noise 48.45, delta 1e-5", 1.0, gaussian(48.45, 10), 1e-5,
                "if the sensitivity is 1"),
          Claim("noise 161.5, delta 1e-5", 0.3, gaussian(161.5, 10), 1e-5,
                "if the sensitivity is 1"),
          Claim("noise 5.95, delta 0.0098", 1.0, gaussian(5.95, 10), usual_delta(30)),
          Claim("noise 5.95 at the usual delta 1e-5", 1.0, gaussian(5.95, 10), 1e-5,
                "what the small delta hides"))),
    Work("Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (1607.00133)",
         "paper: q 0.01, sigma 4, 100 epochs",
         "DP-SGD by the moments accountant. Poisson sampling, 10,000 steps.",
         (Claim("q 0.01, sigma 4, 10,000 steps", 1.26, gaussian(4.0, 10_000, 0.01), 1e-5),
          Claim("the same by strong composition, as quoted there", 9.34,
                gaussian(4.0, 10_000, 0.01), 1e-5))),
    Work("TensorFlow Privacy, MNIST tutorial", "tutorials/README.md",
         "DP-SGD, Rényi orders. The accountant assumes Poisson sampling; the tutorial shuffles and "
         "cuts into batches, whose guarantee can be weaker.",
         (tutorial(1.12, 60, 2.92), tutorial(0.6, 30, 9.74), tutorial(1.2, 10, 1.20))),
    Work("Gboard, Spanish next-word model (DP-FTRL), 2022", "published: rho 0.81, delta 1e-10",
         "User-level, without sampling; a device takes part under a minimum separation. From "
         "concentrated privacy the published epsilon follows exactly; were the whole one Gaussian "
         "of that rho, it would be smaller.",
         (Claim("rho 0.81", 8.9, (), 1e-10, rho=0.81),
          Claim("one Gaussian of rho 0.81", 8.9, gaussian(1 / math.sqrt(1.62), 1), 1e-10))),
)


def page() -> str:
    """The whole page."""
    parts = [
        "<!-- Made by scripts/write_epsilons.py from the settings in it: change those. -->",
        "# Published epsilons, counted again\n",
        "What papers and their code say of their noise, and what `aulait`'s accountant makes of "
        "the same settings: exact for Gaussians with full participation, from privacy loss "
        "distributions with Poisson sampling ([how](privacy.md)). \"Holds\" means that less is "
        "spent than claimed, mostly since Rényi orders cost some percent. \"Wrong\" means that "
        "more is. A figure of your own: `aulait account --noise-multiplier 11.3 --releases 11 "
        "--delta 3e-6`.\n"]
    wrong = [(work.name, claim) for work in WORKS for claim in work.claims
             if claim.verdict.startswith("**wrong")]
    lines = sum(len(work.claims) for work in WORKS)
    parts.append(f"{len(WORKS)} works, {lines} settings: {len(wrong)} spend more than they say or "
                 "have no guarantee at all.\n")
    for work in WORKS:
        parts.append(f"## {work.name}\n\nFrom: {work.where}. {work.about}\n\n"
                     f"{_table(work.claims)}\n")
    return "\n".join(parts)


def _table(claims: Sequence[Claim]) -> str:
    rows = ["| setting | delta | claimed | counted | |", "|---|---|---|---|---|"]
    for claim in claims:
        told = "none" if claim.claimed is None else f"{claim.claimed:g}"
        true = "infinite" if math.isinf(claim.true) else f"{claim.true:.5g}"
        verdict = claim.verdict + (f"; {claim.remark}" if claim.remark else "")
        rows.append(f"| {claim.setting} | {claim.delta:.2g} | {told} | {true} | {verdict} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
