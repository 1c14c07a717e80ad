"""The section on privacy, for whoever must approve the run: the promise, what it means, who sees
what, the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.reporting import figures, markup, numbers, promise, story
from aulait.reporting.folder import RunFiles
from aulait.reporting.guarantee import Bounds
from aulait.reporting.markup import PageTable, PlacedFigure, Section
from aulait.reporting.values import value_at, words
from aulait.runfolder.schema import SamplingEntry


def privacy_section(run: RunFiles, bounds: Sequence[Bounds] = ()) -> Section:
    """Privacy in plain words, epsilon by role over the releases, the ledger, and who is trusted
    with what; ``bounds`` as in ``story.attack_sentences``."""
    clients = story.placements(run).get("split")
    spent = run.result.privacy.epsilon.max
    return markup.section(
        "privacy", "Privacy", _staircase(run),
        split_clients="" if clients is None else numbers.counted(clients, "client"),
        promised=run.result.records("privacy"), facts=_facts(run),
        epsilons=PageTable(["role", "a client that", "ε"],
                           [[role, text, _epsilon(run, role)]
                            for role, text in promise.ROLES.items() if _is_charged(run, role)],
                           words=(0, 1)),
        off=story.is_off(run), unit=promise.one_unit(run), limits=promise.unit_limits(run),
        times=promise.factor(spent),
        attack=story.attack_sentences(run, bounds), ledger=_ledger_table(run),
        releases=numbers.counted(len(run.ledger), "release"), trust=trust_table(run))


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """The terms of the promise."""
    delta = run.result.privacy.delta
    odds = f", about 1 in {numbers.count(1 / delta)}" if delta and 1e-15 < delta < 1 else ""
    noise = run.result.privacy.noise
    law = [("noise of all rounds beside the signal", noise.in_words)] if (
        noise is not None and noise.in_words) else []
    told = [line.signal_to_noise for line in run.training if line.signal_to_noise is not None]
    if told and max(told) > 0:
        low, high = numbers.significant(min(told)), numbers.significant(max(told))
        law.append(("signal in the sums that training released",
                    f"{low} to {high} times their noise, by round"))
    return [
        *law,
        ("what is protected", promise.unit_explained(run)),
        ("two runs are compared", promise.relation_explained(run)),
        ("δ, what the promise may leak besides ε",
         "–" if story.is_off(run) else f"{numbers.delta(delta)}{odds}"),
    ]


def _is_charged(run: RunFiles, role: str) -> bool:
    """Whether some client has the role, or a release was charged to it."""
    spent = run.result.privacy.epsilon
    if not run.result.tiers:
        return spent.records(role)
    return story.has_role(run, role) or (bool(spent.value(role)) and not story.is_off(run))


def _epsilon(run: RunFiles, role: str) -> str:
    return numbers.INFINITE if story.is_off(run) else story.epsilon_text(run, role)


def _staircase(run: RunFiles) -> list[PlacedFigure]:
    """Epsilon by release; nothing where no line tells it."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    notes: dict[str, list[str]] = {}
    for index, line in enumerate(run.ledger, start=1):
        round = "?" if line.round is None else numbers.count(line.round)
        where = f"{line.stage or '?'}, round {round}"
        for role in story.ROLE_ORDER:
            spent = line.epsilon.value(role)
            if spent is not None and _is_charged(run, role):
                releases, values = series.setdefault(role, ([], []))
                releases.append(index if line.release is None else float(line.release))
                values.append(spent)
                notes.setdefault(role, []).append(where)
    if not series:
        return []
    title = "ε so far, by role, after every release"
    return [PlacedFigure("epsilon", title, figures.epsilon_steps(series, notes), 200)]


def _ledger_table(run: RunFiles) -> PageTable:
    """A row for each release, with the roles that any line charges."""
    roles = [role for role in story.ROLE_ORDER
             if any(line.epsilon.records(role) and line.epsilon.value(role) != 0
                    for line in run.ledger)]
    head = ["no.", "stage", "round", "role", "mechanism", "sensitivity", "σ", "σ / sensitivity",
            "planned", "steps", "sampling", *(f"ε {role}" for role in roles), "time"]
    rows = [[numbers.count(line.release), line.stage or "–", numbers.count(line.round),
             line.role or "–", line.mechanism or "–", numbers.significant(line.sensitivity),
             numbers.significant(line.sigma), numbers.significant(line.noise_multiplier),
             numbers.count(line.planned), numbers.count(line.steps_taken), _sampling(line.sampling),
             *(numbers.epsilon(line.epsilon.value(role)) if line.epsilon.records(role)
               else numbers.NOT_RECORDED for role in roles),
             (line.time or "–")[:19].replace("T", " ")]
            for line in run.ledger]
    return PageTable(head, rows, words=(1, 3, 4, 10))


def _sampling(sampling: SamplingEntry) -> str:
    kind, rate = sampling.kind, sampling.rate
    if sampling.turn is not None:
        return f"cohort {numbers.count(sampling.turn + 1)} of {numbers.count(sampling.cohorts)}"
    if sampling.most is not None:
        return f"a public schedule, at most {numbers.counted(int(sampling.most), 'round')} a client"
    shown = "everyone" if kind == "all" else kind or numbers.NOT_RECORDED
    return shown if rate is None else f"{shown}, rate {numbers.significant(rate)}"


def trust_table(run: RunFiles) -> PageTable:
    """Who sees what, and what protects a client from it."""
    covered = (
        "none: privacy was off" if story.is_off(run)
        else "none: the noise was seeded" if story.is_seeded(run) else "ε and δ above"
    )
    kept, (server, cover) = "its own texts, which never leave it", _seen_by_server(run)
    if "split" in story.placements(run):
        kept += " as they are; of split clients activations and labels do"
        server += "; of split clients the activations and labels of every record"
    rows = [
        ["the site itself", kept, "its own walls"],
        ["the server", server, cover],
        ["the other sites", "the requests: adapters, candidate texts", covered],
        ["whoever gets the adapter, the synthetic texts or the ledger", "released values only",
         covered],
        ["readers of this page", *_seen_by_readers(run, covered)],
    ]
    return PageTable(["who", "sees", "what protects a client from it"], rows, words=(0, 1, 2))


def _seen_by_server(run: RunFiles) -> tuple[str, str]:
    """What the server sees of a client, and what protects the client from that."""
    trust = run.result.privacy.trust or words(value_at(run.config, "privacy", "trust"))
    if story.is_off(run):
        return "every client's votes and updates as they are", "none: privacy was off"
    if trust == "secure":
        return ("only the sum over the cohort, with the noise that the clients added",
                "ε, as long as enough clients follow the protocol")
    if promise.protected_unit(run) == "record":
        return (
            "each client's updates and votes, with the noise that the client added itself, and "
            "how many records it has",
            "none: the noise was seeded" if story.is_seeded(run)
            else f"ε and δ above, for each of its {promise.one_unit(run)}s; none for their number"
        )
    if trust == "server":
        return ("each client's clipped votes and updates, before the noise is added",
                "a contract, not ε: it is trusted")
    return numbers.NOT_RECORDED, numbers.NOT_RECORDED


def _seen_by_readers(run: RunFiles, covered: str) -> tuple[str, str]:
    """What readers of the page see beyond the released values, and what protects a client from
    that; ``covered``: what protects it from the released values."""
    if run.released:
        return "nothing besides these", covered
    if not story.is_deployed(run):
        return ("besides these, the held-out loss and accuracy of a simulation",
                "none for those figures")
    if story.evaluated_texts(run) == story.HELD_OUT:
        return ("besides these, sums over sites of held-out loss and accuracy",
                "none for those figures")
    return "nothing besides these; scores are those on public text", "ε and δ above"
