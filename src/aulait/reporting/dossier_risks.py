"""What remains for whoever approves a run to weigh: what follows from the settings of this run, and
what no setting covers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from aulait.reporting import numbers, promise, story
from aulait.reporting.folder import RunFiles
from aulait.reporting.guarantee import Bounds
from aulait.reporting.values import value_at, words

Risk = tuple[str, str, str]
"""What it is, what follows here, what lowers it."""

GROUP: Final = 5
"""Units of one person at one site in the example of the page."""

NOT_COVERED: Final = (
    ("Retention", "How long text, updates, models and logs are kept, and by whom: a matter of "
                  "contracts. An adapter cannot be made to forget one person afterwards."),
    ("Contamination", "What the base model, the generator and the public texts have already seen. "
                      "If they hold a site's text, its appearance in the result is no release of "
                      "this run, and no ε speaks of it."),
    ("Machines", "Whoever can read a site's disk or memory has its text as before. aulait is "
                 "trusted as installed, with its packages and the operating system."),
    ("Conclusions", "What people conclude from the model about groups, or about somebody who took "
                    "no part: differential privacy limits only what one unit adds."),
    ("Quality", "Whether the model is right, fair or safe to use on patients, customers or "
                "citizens."),
)
"""Subjects that the promise does not touch, whatever the settings."""


def alarms(run: RunFiles) -> list[str]:
    """What must be seen first: reasons why there is no guarantee."""
    votes, updates = story.exact_releases(run)
    found = (
        (story.is_off(run), "Not private: privacy is off. Nothing limits what the model and the "
                            "synthetic texts reveal."),
        (story.is_seeded(run), "Not private: the noise is drawn from a seed. Whoever knows the "
                               "seed can subtract it."),
        (votes, "Not private: votes are released without noise."),
        (updates, "Not private: updates are released without noise."),
        ("split" in story.placements(run),
         "Split clients send activations and labels of single records. No ε covers them."),
    )
    return [text for holds, text in found if holds]


def generator_host(run: RunFiles) -> str | None:
    """The host of the generator service, without port, path or password; None where texts are
    written in the coordinator's own process, or nobody writes any."""
    if run.result.synthesis is None:
        return None
    for keys in (("synthesis", "generator"), ("synthesis", "generate", "url")):
        address = words(value_at(run.config, *keys)) or ""
        if address.startswith(("http://", "https://")):
            try:
                return urlsplit(address).hostname or "an unreadable address"
            except ValueError:
                return "an unreadable address"
    return None


def risks(run: RunFiles, personal: bool, roles: Sequence[Bounds] = ()) -> list[Risk]:
    """The risks that the settings of this run leave, the gravest kinds first.

    Args:
        run: as planned, or as it was.
        personal: whether clients end with adapters of their own.
        roles: what is known of each role's releases, more than the run itself tells.
    """
    if story.is_off(run):
        return [("no privacy", "Every update and vote is used as it is.",
                 "Set privacy.epsilon, delta, relation; see docs/privacy.md.")]
    known = () if alarms(run) else roles or (promise.bounds_of(run),)
    return [*_size(run, known), *_unit(run, known), *_membership(run), *_beyond(run, personal)]


def _size(run: RunFiles, known: Sequence[Bounds]) -> Iterator[Risk]:
    """Numbers that promise little."""
    privacy, clients = run.result.privacy, run.result.clients
    delta, best = privacy.delta, max((own.success() for own in known), default=1.0)
    if 0.9 < best < 1.0:
        yield ("ε is large", f"The best guess is right in up to {promise.rate(best)} of cases.",
               "A smaller privacy.epsilon, fewer rounds, or more data for the same use.")
    if delta and clients and delta * clients >= 1:
        yield ("δ is large", "As much as one whole client may be lost in the δ.",
               "privacy.delta far below one over the number of units.")
    if privacy.stopped_early:
        yield ("the budget ended the run", "The model is that of the last round that was paid.",
               "Fewer rounds, or another budget, decided before the next run.")


def _unit(run: RunFiles, known: Sequence[Bounds]) -> Iterator[Risk]:
    """People who are more than one unit."""
    unit, field = promise.protected_unit(run), promise.unit_field(run)
    record = unit == "record"
    if record and field is None:
        yield (f"one person, {GROUP} records at a site",
               _guess(own.group_success(GROUP) for own in known),
               "privacy.unit_field, where a field of the rows names the person.")
    if field is not None:
        yield (f"one person under two values of “{field}”",
               _guess(own.group_success(2) for own in known),
               "One value a person, checked by each site before it takes part.")
    best = (own.spread_success(2) if record else own.group_success(2) for own in known)
    yield (f"one person at two {'sites' if record else 'clients'}", _guess(best),
           "Sites that serve the same people join as one client, or halve their budgets.")


def _guess(successes: Iterable[float]) -> str:
    """What the attacker can do about more than one unit, in the worst role."""
    best = max(successes, default=1.0)
    if best == 1.0:
        return "No bound."
    return (f"The costs add up: the best guess about the person is right in up to "
            f"{promise.rate(best)} of cases.")


def _membership(run: RunFiles) -> Iterator[Risk]:
    """What is known of clients beside their records."""
    record = promise.protected_unit(run) == "record"
    if record:
        yield ("that a client takes part", "Not protected: names of sites, their tiers and their "
               "numbers of records are public.", "Do not join where taking part is the secret.")
    else:
        yield ("that a client takes part", "Protected in what is released; the coordinator and "
               "the network see who answers.", "Sites that take part in every round alike.")
    rates = [line.sampling.rate for line in run.ledger if line.sampling.kind == "poisson"]
    if rates and not record:
        yield ("secret sampling", f"ε counts on clients drawn with probability "
               f"{numbers.significant(max(filter(None, rates), default=None))} in secret; whoever "
               "watches the network sees who was drawn.", "federation.sampling = 'all'.")
    if rates and record:
        yield ("secret sampling", "ε counts on batches that only the site knows.",
               "Site logs and timings stay at the site.")


def _beyond(run: RunFiles, personal: bool) -> Iterator[Risk]:
    """What leaves or adds up outside the ledger of this run."""
    deployed = story.is_deployed(run)
    yield ("other runs on the same text", "ε is that of this run alone; runs add up. Looking at "
           "several runs and keeping one counts all of them.",
           "limits.lifetime_epsilon of each site, over all runs." if deployed
           else "Choose settings on public text; add up the ε of every run that was looked at.")
    if story.evaluated_texts(run) == story.HELD_OUT and not deployed:
        yield ("held-out scores", "The simulation measures them on private text, without noise; "
               "they are in result.json, rounds.jsonl and report.html.",
               "Do not hand these files on with the model; a deployment does not release them.")
    if personal and promise.protected_unit(run) == "client":  # of records they carry the noise
        yield ("personal adapters", "They have seen a client's text without noise; ε does not "
               "cover them.", "Each goes to its own client, to nobody else.")
    if value_at(run.config, "evaluate", "task") == "rank":
        yield ("closed set of answers", "evaluate.task = 'rank' takes the set of all responses as "
               "public.", "Use it where the classes are known beforehand.")
    host = generator_host(run)
    if host is not None:
        yield ("the generator service", f"{host} reads candidate texts and prompts: released or "
               "public, yet of the subject of this run.", "A generator of the federation's own.")

