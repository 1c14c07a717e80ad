"""The dossier: one printable page for the person who approves a run, before it from its privacy
plan, after it from its ledger.

A planned run has the form of a run folder that was read (``RunFiles``, with the planned releases as
ledger lines), so every sentence and figure is made the same way for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path

from aulait.core.files import JsonObject
from aulait.reporting import dossier_risks, numbers, page, promise, story
from aulait.reporting.folder import RunFiles
from aulait.reporting.guarantee import Bounds
from aulait.reporting.markup import PageTable, rendered
from aulait.reporting.privacy import trust_table
from aulait.reporting.values import value_at, words
from aulait.runfolder.schema import LedgerEntry, SamplingEntry, SelectionFile

MECHANISMS = {
    ("client", "gaussian"): "Gaussian noise on the sum over clients, at the coordinator",
    ("client", "banded"): "Gaussian noise on the sum over clients, at the coordinator, which takes "
                          "away a part of that of earlier rounds",
    ("client", "distributed-gaussian"): "discrete Gaussian noise, a part from every client, on the "
                                        "sum that secure aggregation shows",
    ("record", "distributed-records"): "discrete Gaussian noise, a part from every site, on the "
                                       "sum of clipped gradients, or votes, of all sites' units",
    ("record", "gaussian-votes"): "Gaussian noise on each site's sum of clipped votes, at the site",
    ("record", "dp-sgd"): "Gaussian noise on a step's sum of clipped gradients, at the site "
                          "(DP-SGD)",
    ("record", "gaussian-batch"): "Gaussian noise on the clipped gradient of a batch, at the site",
}
NO_PURPOSE = (
    "No purpose is stated. Write it into the experiment file before the run is approved, under "
    "[run]: purpose = \"what the model is for, and for whom\"")


@dataclass(frozen=True)
class SentBytes:
    """What a group of clients sends and receives; None where it is not known.

    Attributes:
        who: name of the tier or of the role.
        what: "votes" or "updates".
        clients: how many there are.
        up_round: bytes that one of them sends in a round.
        up_all: bytes that all of them send in all rounds.
        down_all: bytes that all of them receive in all rounds.
    """

    who: str
    what: str
    clients: float | None
    up_round: float | None
    up_all: float | None
    down_all: float | None


@dataclass(frozen=True)
class DossierSubject:
    """What a dossier is about.

    Attributes:
        run: as planned, or as it was.
        planned: whether it has not run yet.
        personal: whether clients end with adapters of their own.
        sent: what leaves the sites.
        hashes: (name, hash or version).
        curves: role -> further pairs (epsilon, delta) that its releases keep; a role without
            sampling has none.
    """

    run: RunFiles
    planned: bool
    personal: bool
    sent: Sequence[SentBytes]
    hashes: Sequence[tuple[str, str]]
    curves: Mapping[str, promise.Curve] = field(default_factory=dict)

    @property
    def bounds(self) -> list[Bounds]:
        """What is known of each role's releases."""
        return [promise.bounds_of(self.run, role, self.curves.get(role, ()))
                for role in story.placements(self.run)]


@dataclass(frozen=True)
class RolePromise:
    """What a unit of a role's clients is promised.

    Attributes:
        role: "proxy", "local" or "split".
        clients: of that role.
        releases: that its account is charged for.
        steps: noised steps in them.
        epsilon: after all of them; None is infinite.
        success: the attacker's best share of right guesses, from an even prior.
    """

    role: str
    clients: float
    releases: int
    steps: int
    epsilon: float | None
    success: float


def role_promises(subject: DossierSubject) -> list[RolePromise]:
    """The promise of every role that has clients."""
    run = subject.run
    bare = bool(dossier_risks.alarms(run))
    found = []
    for role, clients in story.placements(run).items():
        lines = [line for line in run.ledger if role in (line.role or "").split("+")]
        epsilon = run.result.privacy.epsilon.value(role)
        best = promise.bounds_of(run, role, subject.curves.get(role, ())).success()
        found.append(RolePromise(role, clients, len(lines),
                                 round(sum(line.steps_taken or 0 for line in lines)),
                                 None if story.is_off(run) else epsilon, 1.0 if bare else best))
    return found


def purpose(run: RunFiles) -> str | None:
    """What the run is for, as the experiment file says; None where it does not."""
    return words(value_at(run.config, "run", "purpose"))


def figures(subject: DossierSubject) -> JsonObject:
    """The figures of the page as plain values."""
    run = subject.run
    return {
        "from": "plan" if subject.planned else "ledger",
        "name": run.result.name,
        "purpose": purpose(run),
        "unit": promise.protected_unit(run),
        "unit_field": promise.unit_field(run),
        "relation": run.result.privacy.relation,
        "delta": run.result.privacy.delta,
        "not_private": dossier_risks.alarms(run),
        "selection": run.selection and run.selection.on_disk(),
        "roles": {found.role: {"clients": found.clients, "releases": found.releases,
                               "steps": found.steps, "epsilon": found.epsilon,
                               "best_success": found.success} for found in role_promises(subject)},
        "sent": [vars(row) for row in subject.sent],
        "risks": [name for name, _, _ in
                  dossier_risks.risks(run, subject.personal, subject.bounds)],
        "hashes": dict(subject.hashes),
    }


def write_dossier(subject: DossierSubject, out: Path, written: date) -> Path:
    """Writes the page and returns its path."""
    run = subject.run
    text = rendered(
        "dossier.html.j2",
        style=page.asset("dossier.css"),
        name=run.result.name or run.path.resolve().name,
        planned=subject.planned,
        written=f"{written:%Y-%m-%d}",
        subtitle=_subtitle(run),
        alarms=dossier_risks.alarms(run),
        purpose=purpose(run),
        no_purpose=NO_PURPOSE,
        promised=not story.is_off(run),
        facts=_facts(run),
        promises=_promise_table(subject),
        limits=promise.unit_limits(run),
        attack=story.attack_sentences(run, subject.bounds),
        work=_work_table(run),
        sent=_sent_table(subject),
        trust=_trust_table(run),
        risks=PageTable(["what remains", "here", "what lowers it"],
                        dossier_risks.risks(run, subject.personal, subject.bounds),
                        words=(0, 1, 2)),
        not_covered=dossier_risks.NOT_COVERED,
        releases=release_table(run),
        hashes=subject.hashes,
    )
    return page.save_page(out, text)


def _subtitle(run: RunFiles) -> str:
    """Method, model, rounds and clients in one line."""
    result, model = run.result, words(value_at(run.config, "model", "name"))
    parts = [numbers.counted(result.clients, "client"), f"method {result.algorithm or '?'}",
             f"base model {model or '?'}", numbers.counted(result.rounds, "training round")]
    if result.synthesis is not None and result.synthesis.voters:
        parts.append(numbers.counted(result.synthesis.rounds, "vote"))
    parts.append("sites on their own machines" if story.is_deployed(run)
                 else "a simulation in one process")
    return " · ".join(parts)


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """The terms of the promise."""
    delta, selection = run.result.privacy.delta, run.selection
    odds = f": a chance of 1 in {numbers.count(1 / delta)}" if delta and delta > 1e-15 else ""
    return [
        ("What is protected", promise.unit_explained(run)),
        ("Which runs are compared", promise.relation_explained(run)),
        ("δ, the chance that ε fails", f"{numbers.delta(delta)}{odds}"),
        *([] if selection is None else [("How this run was chosen", _chosen(selection))]),
        *_signal(run),
        *([("Texts that stand for those who vote", texts)]
          if (texts := story.texts_in_words(run)) else []),
    ]


def _signal(run: RunFiles) -> list[tuple[str, str]]:
    """How loud the noise of training is; of a plan and of a run."""
    noise = run.result.privacy.noise
    return [] if noise is None or not noise.in_words else [("Noise beside the signal",
                                                            f"{noise.in_words}.")]


def _chosen(selection: SelectionFile) -> str:
    """That other runs looked at the same data, and that what is told counts them."""
    return (
        f"It is the best of a secret number of runs, {numbers.count(selection.runs_on_average)} on "
        f"average, each of one of {numbers.counted(selection.arms, 'arm')} drawn at random. Every "
        f"ε on this page is {numbers.epsilon(selection.epsilon)}, that of the whole selection; the "
        "releases listed below are those of the kept run alone and would cost less. It rests on "
        f"this: {selection.assumed or numbers.NOT_RECORDED}.")


def _promise_table(subject: DossierSubject) -> PageTable:
    rows = []
    for found in role_promises(subject):
        factor = promise.factor(found.epsilon)
        bounded = found.success < 1.0
        rows.append([
            found.role, f"{numbers.count(found.clients)} that {_did(found.role)}",
            numbers.count(found.releases)
            + (f" of {numbers.count(found.steps)} steps" if found.steps != found.releases else ""),
            numbers.epsilon(found.epsilon) if bounded or found.epsilon is None
            else f"no bound ({numbers.epsilon(found.epsilon)} with secret noise)",
            f"{factor} times" if factor and bounded else "no bound",
            promise.rate(found.success) if bounded else "certainty"])
    noun = promise.one_unit(subject.run)
    return PageTable(["role", "clients", "releases", "ε at most", f"likelier with a {noun}",
                      "best guess is right"], rows, words=(0, 1))


def _did(role: str) -> str:
    return {"proxy": "vote on candidate texts", "local": "train on their own machines",
            "split": "train together with the coordinator"}.get(role, role)


def _work_table(run: RunFiles) -> PageTable:
    """Who does what."""
    rows = [[tier.name or "–", numbers.count(tier.clients), _work_of(run, tier.placement,
             tier.steps, tier.batch)] for tier in run.result.tiers]
    made = ""
    if run.result.synthesis is not None:
        offered = {"retrieve": "offers public texts", "both": "offers public texts and writes some "
                   "after them"}.get(run.result.synthesis.source or "", "writes candidate texts")
        made = (f"{offered}, chooses by the votes, trains on the chosen texts in the stead of "
                "those who vote; ")
    noise = (
        "adds no noise" if story.is_off(run)
        else "adds the noise to every sum" if promise.protected_unit(run) == "client"
        else "receives what already carries the sites' noise")
    rows.append(["coordinator", "1", f"Sends requests, {made}sums what sites send, {noise}, writes "
                 "the ledger before anything is released, merges the model."])
    host = dossier_risks.generator_host(run)
    if host is not None:
        rows.append(["generator service", "1", f"{host} writes candidate texts on request."])
    return PageTable(["who", "number", "does what"], rows, words=(0, 2))


def _work_of(run: RunFiles, placement: str | None, steps: float | None,
             batch: float | None) -> str:
    """What a client of a placement does in a round."""
    amount = f"{numbers.counted(steps, 'step')} of {numbers.counted(batch, 'record')} a round"
    own = " with noise in every step" if _noised_steps(run) else ""
    if placement == "local":
        return f"Trains the adapter on its own text{own}: {amount}; sends how it moved."
    if placement == "split":
        return f"Runs the first part of the model on its own text: {amount}."
    noised = " with its own noise" if promise.protected_unit(run) == "record" else ""
    voters = run.result.synthesis.voters if run.result.synthesis is not None else 0
    return (
        f"Counts which candidate texts its own text is nearest to; sends the counts{noised}."
        if voters else "Sends nothing: texts that are not chosen by anybody stand for it.")


def _noised_steps(run: RunFiles) -> bool:
    return promise.protected_unit(run) == "record" and not story.is_off(run)


def _sent_table(subject: DossierSubject) -> PageTable:
    """What leaves each site, in words and bytes."""
    run = subject.run
    record = _noised_steps(run)
    described = {
        "votes": "one number for each candidate text" + (", noised at the site" if record else ""),
        "updates": "changes of the trained numbers of the adapter"
                   + (", noised at the site" if record else ""),
    }
    rows = [[row.who, described.get(row.what, row.what), numbers.count(row.clients),
             numbers.size(row.up_round), numbers.size(row.up_all), numbers.size(row.down_all)]
            for row in subject.sent]
    return PageTable(["of whom", "what leaves a site", "clients", "bytes a round, each",
                      "sent in all", "received in all"], rows, words=(0, 1))


def _trust_table(run: RunFiles) -> PageTable:
    """Who sees what, and who is trusted to do what."""
    shown = trust_table(run)
    rows = [list(row) for row in shown.rows[:-1]]  # the last row is about readers of the report
    if story.is_deployed(run):
        rows.append(["the holder of the coordinator's order key",
                     "may ask every site for any work within the limits of the site's own file",
                     "the site's file; the key is kept by one named person"])
    host = dossier_risks.generator_host(run)
    if host is not None:
        rows.append([f"the generator service at {host}", "candidate texts and the prompts for more",
                     "ε and δ above" if promise.protected_unit(run) and not story.is_off(run)
                     else "none"])
    if not story.is_off(run):
        rows.append(["whoever draws the noise: "
                     + ("the coordinator" if promise.protected_unit(run) == "client"
                        else "each site, for its own text"),
                     "the noise before it is added", "trusted to add it and to forget it"])
    return PageTable(shown.head, rows, words=(0, 1, 2))


def release_table(run: RunFiles) -> PageTable:
    """The ledger, or the planned releases, with equal ones in one row."""
    head = ["releases", "stage", "rounds", "role", "mechanism", "σ", "σ / sensitivity", "sampling",
            "ε after"]
    rows = []
    for _, group in groupby(enumerate(run.ledger, start=1), key=lambda pair: _alike(pair[1])):
        found = list(group)
        (first, line), (last, end) = found[0], found[-1]
        unit = line.unit or promise.protected_unit(run)
        steps = round(line.steps_taken or 1)
        rows.append([
            _span(line.release or first, end.release or last), line.stage or "–",
            _span(line.round, end.round), line.role or "–",
            MECHANISMS.get((unit, (line.mechanism or "").partition(":")[0]), line.mechanism or "–")
            + (f", {steps} steps each" if steps > 1 else ""),
            "by public updates" if line.sigma is None else numbers.significant(line.sigma),
            numbers.significant(line.noise_multiplier),
            _sampling(line.sampling),
            _spent(end)])
    return PageTable(head, rows, words=(1, 3, 4, 7))


def _alike(line: LedgerEntry) -> tuple[object, ...]:
    """What two lines of one row have in common."""
    return (line.stage, line.role, line.mechanism, line.sensitivity, line.noise_multiplier,
            line.sampling.kind, line.sampling.rate, line.sampling.cohorts, line.sampling.most,
            line.steps_taken, line.unit)


def _sampling(sampling: SamplingEntry) -> str:
    """Who takes part, as a cell."""
    if sampling.cohorts is not None:
        return f"one of {numbers.count(sampling.cohorts)} cohorts in turn"
    if sampling.most is not None:
        return f"by a public schedule, at most {numbers.counted(int(sampling.most), 'round')}"
    return ("everyone" if sampling.rate is None
            else f"1 in {numbers.significant(1 / sampling.rate)}")


def _span(first: float | None, last: float | None) -> str:
    return numbers.count(first) if first == last else \
        f"{numbers.count(first)}–{numbers.count(last)}"


def _spent(line: LedgerEntry) -> str:
    """The epsilon of the roles that a line charges, after it."""
    roles = (line.role or "").split("+")
    known = [line.epsilon.value(role) for role in roles if line.epsilon.records(role)]
    if not known:
        return numbers.NOT_RECORDED
    return numbers.epsilon(None if None in known else max(filter(None, known), default=0.0))
