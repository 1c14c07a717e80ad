"""``aulait account``: noise for an epsilon, an epsilon for noise, or a run's ledger counted
again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError, DataError
from aulait.core.parsing import parsed_json
from aulait.privacy import accounting as arithmetic
from aulait.privacy.accounting import Event
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise_ratio import REFUSED, WARNED, NoiseRatio, ratio_in_words
from aulait.reporting import numbers
from aulait.reporting.folder import read_run
from aulait.runfolder.finished_ledger import check_finished

TOLERANCE = 0.01
USUAL_DELTA = 1e-5  # with --clients
TARGET_RATIO = float(PrivacyConfig().target_ratio)


RecountArgument = Annotated[Path | None,
                typer.Argument(metavar="[RUN]", help="A run folder: count its ledger again.")]
EpsilonOption = Annotated[float | None,
                    typer.Option("--epsilon", help="Target; answers with the noise multiplier.")]
NoiseOption = Annotated[
    float | None,
    typer.Option("--noise-multiplier", help="Noise over sensitivity; answers with epsilon.")
]
DeltaOption = Annotated[float | None,
                  typer.Option("--delta", help="Probability with which epsilon may fail.")]
ReleasesOption = Annotated[int | None,
    typer.Option("--releases", min=1,
                 help="How many sums are released; for records: noised steps.")]
ClientsOption = Annotated[int | None, typer.Option("--clients", min=1,
    help="How many clients train: answers with the trained numbers that the noise leaves room "
         "for. --delta is then 1e-5 and --releases 1 unless you say otherwise.")]
NumbersOption = Annotated[int | None, typer.Option("--numbers", min=1,
    help="Trained numbers, as 'aulait plan' shows them; with --clients: what to expect of them.")]
RateOption = Annotated[float,
    typer.Option("--rate",
        help="Probability with which a client, or a record in a step, takes part (Poisson).")]


def account(  # noqa: PLR0913 (the options of a command)
    run: RecountArgument = None,
    epsilon: EpsilonOption = None,
    noise_multiplier: NoiseOption = None,
    delta: DeltaOption = None,
    releases: ReleasesOption = None,
    rate: RateOption = 1.0,
    clients: ClientsOption = None,
    numbers: NumbersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn epsilon into noise, or noise into epsilon; or check a run.

    With RUN, every role's epsilon is computed from ledger.jsonl alone and compared with
    result.json; exit code 1 when they differ by more than 1 %. Before that the ledger's chain of
    hashes, its head in result.json and in the checkpoint, and the rounds done are held against one
    another; exit code 2 when they do not fit.

    With --clients, whole clients are protected, and what counts is how many numbers are trained:
    noise over signal is sqrt(numbers) / (mu clients), however many rounds there are.

    Examples: aulait account --epsilon 8 --delta 1e-5 --releases 10

    aulait account --clients 9 --epsilon 8
    """
    given = [value for value in (epsilon, noise_multiplier) if value is not None]
    if run is not None:
        if given or any(value is not None for value in (delta, releases, clients, numbers)):
            raise ConfigError(
                "account found a run folder together with numbers; expected one of them; the run "
                "knows its own"
            )
        _check(run, as_json)
        return
    if len(given) != 1:
        found = "both" if given else "neither"
        raise ConfigError(
            f"account found {found} of --epsilon and --noise-multiplier, expected exactly one, or "
            "a run folder"
        )
    if numbers is not None and clients is None:
        raise ConfigError("account found --numbers without --clients, expected both; add how many "
                          "clients train")
    if clients is not None:
        delta, releases = delta or USUAL_DELTA, releases or 1
    if delta is None or releases is None:
        raise ConfigError(
            "account needs --delta and --releases; add both, for example --delta 1e-5 --releases "
            "10")
    whole = _converted(Promise(epsilon, noise_multiplier, delta, releases, rate))
    law = None if clients is None else _law(whole, clients, numbers)
    if as_json:
        terminal.document({**vars(whole), **(law or {})})
        return
    answer = (f"noise multiplier  {whole.noise_multiplier:.6g}" if epsilon is not None
              else f"epsilon  {_epsilon_word(whole.epsilon)}")
    terminal.prose(f"{answer}  ({releases} releases, delta {delta:g}, rate {rate:g})")
    if law is not None:
        terminal.prose(law["in_words"])


@dataclass(frozen=True)
class Promise:
    """A promise about some releases, one of epsilon and noise multiplier to be found.

    Attributes:
        epsilon, noise_multiplier: of all releases, and of each.
        delta: of that epsilon.
        releases: how many.
        rate: probability with which a client takes part.
    """

    epsilon: float | None
    noise_multiplier: float | None
    delta: float
    releases: int
    rate: float


def _converted(given: Promise) -> Promise:
    """With the one of epsilon and noise that is missing."""
    if given.epsilon is not None:
        return replace(given, noise_multiplier=arithmetic.calibrate(
            given.epsilon, given.delta, given.releases, given.rate))
    events = [Event(float(given.noise_multiplier or 0.0), given.rate)] * given.releases
    return replace(given, epsilon=arithmetic.epsilon(events, given.delta))


def _law(found: Promise, clients: int, numbers: int | None) -> Document:
    """The law of size for so many clients, of whom a part takes part in each release."""
    taking_part = found.rate * clients
    promise = f"epsilon {_epsilon_word(found.epsilon)}"
    who = f"{clients:,} client{'' if clients == 1 else 's'}"
    own = NoiseRatio(numbers or 1, taking_part, float(found.noise_multiplier or 0.0),
                     found.releases)
    most = own.affordable(TARGET_RATIO)
    told: Document = {"clients": clients, "mu": own.mu, "target_ratio": TARGET_RATIO,
                      "affordable_numbers": most}
    if numbers is None:
        return told | {"in_words": (
            f"{who}: at {promise} about {most:,} trained numbers (noise {TARGET_RATIO:g} times the "
            f"signal); warned above {own.affordable(WARNED):,}, refused above "
            f"{own.affordable(REFUSED):,}")}
    return told | {"numbers": numbers, "ratio": own.ratio,
                   "in_words": ratio_in_words(own, TARGET_RATIO, who, promise)}


def _epsilon_word(epsilon: float | None) -> str:
    return "infinite" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.6g}"


def _check(run: Path, as_json: bool) -> None:
    rows, ledger = recounted(run)
    agrees = all(row["agrees"] for row in rows)
    selection = read_run(run).selection
    if as_json:
        terminal.document({"agrees": agrees, "chained": ledger.chained, "roles": rows,
                           "selection": selection and selection.on_disk()})
    else:
        lines = [
            (
                r["role"],
                r["releases"],
                _word(r["ledger_epsilon"], r),
                _word(r["result_epsilon"], r),
                "yes" if r["agrees"] else "NO",
            )
            for r in rows
        ]
        terminal.table(
            "epsilon by role, counted again from the ledger",
            ("role", "releases", "ledger", "result.json", "agrees"),
            lines,
            right=(1, 2, 3),
        )
        if not ledger.chained:
            terminal.note("unchained: the ledger is of an earlier version, whose lines do not hold "
                          "the hash of the line before them; only single lines were checked")
        if selection is not None:
            terminal.note("this run was kept of several that a private selection made: together "
                          f"they cost epsilon {numbers.epsilon(selection.epsilon)}, which counts")
    if not agrees:
        terminal.fail(
            f"result.json of {run} and its ledger disagree by more than {TOLERANCE:.0%}, expected "
            "the same epsilon; trust the ledger and ask who changed the files"
        )
        raise typer.Exit(1)


def _word(value: float | None, row: Document) -> str:
    if row["absent"]:
        return "no release"
    return "infinite" if value is None or math.isinf(value) else f"{value:.4f}"


def recount(run: Path) -> list[Document]:
    """Epsilon of every role from the ledger alone, beside what result.json says. Changes no file.

    Raises:
        DataError: the run is not finished.
        PrivacyError: the ledger is malformed, or does not fit what lies beside it.
    """
    return recounted(run)[0]


def recounted(run: Path) -> tuple[list[Document], Ledger]:
    """As ``recount``, and the ledger, every line checked."""
    path = run / "result.json"
    if not path.is_file():
        raise DataError(
            f"found no result.json in {run}, expected a finished run; check the path or finish the "
            "run")
    try:
        result = parsed_json(path.read_bytes())
        privacy = dict(result["privacy"])
        told = {role: privacy["epsilon"].get(role) for role in ("proxy", "local", "split")}
        ledger = check_finished(run, result)
        rows = [_counted(role, epsilon, ledger.events(role), privacy)
                for role, epsilon in told.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is malformed ({error!r}), expected what a run writes; restore it from a copy"
        ) from error
    return rows, ledger


def _counted(
    role: str, told: float | None, events: list[Event], privacy: Document
) -> Document:
    """One role: what its releases amount to, and whether that is what was told."""
    # Exact votes leave no line: the roles that cast them say null, whatever else they released.
    off, exact = privacy["off"], privacy.get("exact_votes") and told is None
    known = not (off or exact) and (bool(events) or told is not None)
    counted = arithmetic.epsilon(events, privacy["delta"]) if known else None
    if counted is None or math.isinf(counted):
        agrees = told is None
    else:
        agrees = told is not None and math.isclose(counted, told, rel_tol=TOLERANCE, abs_tol=1e-9)
    absent = not (events or told is not None or off or exact)
    numbers = {"releases": len(events), "steps": sum(event.steps for event in events),
               "ledger_epsilon": counted, "result_epsilon": told}
    return {"role": role, **numbers, "agrees": agrees, "absent": absent}
