"""The section on privacy, for whoever must approve the run: the promise, what it means, who sees
what, the ledger."""

from __future__ import annotations

import math
from typing import Any

from aulait.reporting import figures, markup, numbers, story
from aulait.reporting.folder import MISSING, Run, at, number, words
from aulait.reporting.markup import Html, Section

UNITS = {"client": "one client with everything it holds", "record": "one record of one client"}
RELATIONS = {
    "add-remove": "with and without it (add or remove one)",
    "replace": "with it and with any other in its place (replace one)",
}
ROLES = {
    "proxy": "voted on synthetic texts",
    "local": "trained on its own machine",
    "split": "trained together with the server",
    "max": "any client",
}


def section(run: Run) -> Section:
    """Privacy in plain words, epsilon by role over the releases, the ledger, and who is trusted
    with what."""
    chart, charts = _staircase(run)
    body = markup.join(
        _split(run),
        _promise(run),
        markup.subtitle(f"What that means for one {unit(run)}"),
        *(markup.paragraph(sentence) for sentence in story.attack(run)),
        markup.subtitle("How the budget was spent"),
        chart,
        _ledger(run),
        markup.subtitle("Who is trusted with what"),
        _trust(run),
    )
    return Section("privacy", "Privacy", body, charts)


def _split(run: Run) -> Html:
    """What leaves the site of a split client; nothing where there is none. Split exists without
    privacy only."""
    clients = story.placements(run).get("split")
    if clients is None:
        return Html("")
    whose = "1 client" if clients == 1 else f"{numbers.count(clients)} clients"
    text = (
        "Split: activations leave the site. In every step the server received, record by record, "
        f"the hidden states of {whose} "
    )
    text += (
        "and the tokens that the model had to predict. Texts can be read or guessed from them; no "
        "ε covers that, no noise hides it, "
    )
    text += "and a split placement exists only with privacy off."
    return Html(f'<p class="banner alarm" role="alert">{markup.safe(text)}</p>')


def unit(run: Run) -> str:
    """What is protected: "client" or "record", as the ledger says; without one, as the result
    says."""
    lines = {words(line.get("unit")) for line in run.ledger}
    told = next(iter(lines)) if len(lines) == 1 else words(at(run.result, "privacy", "unit"))
    return told or "client"


def _promise(run: Run) -> Html:
    privacy = run.result.get("privacy")
    if not isinstance(privacy, dict):
        return markup.absent("The guarantee")
    relation = words(privacy.get("relation"))
    protected = UNITS.get(unit(run), unit(run))
    compared = RELATIONS.get(relation or "", relation or numbers.NOT_RECORDED)
    delta, off = number(privacy.get("delta")), story.is_off(run)
    odds = f", about 1 in {numbers.count(1 / delta)}" if delta and 1e-15 < delta < 1 else ""
    facts = [
        ("what is protected", protected),
        ("two runs are compared", compared),
        ("δ, what the promise may leak besides ε", "–" if off else f"{numbers.delta(delta)}{odds}"),
    ]
    rows = [[role, text, _epsilon(run, role)] for role, text in ROLES.items()]
    listed = markup.table(["role", "a client that", "ε"], rows, words=(0, 1))
    return markup.join(markup.pairs(facts), listed, markup.note(_meaning(run)))


def _meaning(run: Run) -> str:
    """The definition of differential privacy with this run's number in it."""
    if story.is_off(run):
        return "Privacy was off: values were released as they are, without noise."
    spent = number(at(run.result, "privacy", "epsilon", "max"))
    times = (
        f", here {numbers.significant(math.exp(spent), 2)} times," if spent is not None
        and spent < 700 else ""
    )
    text = (
        f"Nothing that was released is more than e to the power of ε times{times} as likely with a "
        f"{unit(run)} "
    )
    text += (
        "as without it, apart from δ. Smaller is safer. A client pays only for the roles it has."
    )
    if unit(run) == "record":
        text += (
            " How many records a client has is public; a person with several records is protected "
            "one record at a time."
        )
    return text


def _epsilon(run: Run, role: str) -> str:
    value = at(run.result, "privacy", "epsilon", role, default=MISSING)
    if story.is_off(run):
        return numbers.INFINITE if story.has_role(run, role) else "no such client"
    if value is None and not story.has_role(run, role):
        return "no such client"
    return numbers.epsilon(value)


def _staircase(run: Run) -> tuple[Html, dict[str, Any]]:
    series: dict[str, tuple[list[float], list[float]]] = {}
    notes: dict[str, list[str]] = {}
    for index, line in enumerate(run.ledger, start=1):
        release = number(line.get("release"))
        where = figures.label(f"{line.get('stage', '?')}, round {line.get('round', '?')}")
        for role in story.ROLE_ORDER:
            spent = number(at(line, "epsilon", role))
            if spent is not None:
                releases, values = series.setdefault(role, ([], []))
                releases.append(index if release is None else release)
                values.append(spent)
                notes.setdefault(role, []).append(where)
    if not series:
        return markup.absent("Epsilon by release"), {}
    return markup.chart("epsilon", "ε so far, by role, after every release", 260), {
        "epsilon": figures.steps(series, notes)
    }


def _ledger(run: Run) -> Html:
    if not run.ledger:
        return markup.absent("The ledger")
    head = ["no.", "stage", "round", "role", "mechanism", "sensitivity", "σ", "σ / sensitivity",
            "planned"]
    roles = [role for role in story.ROLE_ORDER if any(at(line, "epsilon", role, default=0) != 0
        for line in run.ledger)]
    head += ["steps", "sampling", *(f"ε {role}" for role in roles), "time"]
    rows = []
    for line in run.ledger:
        stage, role, mechanism, time = (words(line.get(key)) or "–"
            for key in ("stage", "role", "mechanism", "time"))
        scale = [numbers.significant(line.get(key))
                 for key in ("sensitivity", "sigma", "noise_multiplier")]
        start = [numbers.count(line.get("release")), stage, numbers.count(line.get("round")), role,
                 mechanism]
        sampled = [numbers.count(line.get("planned")), numbers.count(line.get("steps", 1)),
                   _sampling(line.get("sampling"))]
        so_far = [numbers.epsilon(at(line, "epsilon", role, default=MISSING)) for role in roles]
        rows.append([*start, *scale, *sampled, *so_far, time[:19].replace("T", " ")])
    listed = markup.table(head, rows, words=(1, 3, 4, 10))
    return markup.folded(f"The ledger: {numbers.counted(len(rows), 'release')}", listed)


def _sampling(value: Any) -> str:
    kind = words(at(value, "kind"))
    rate = number(at(value, "rate"))
    shown = "everyone" if kind == "all" else kind or numbers.NOT_RECORDED
    return shown if rate is None else f"{shown}, rate {numbers.significant(rate)}"


def _trust(run: Run) -> Html:
    trust = words(at(run.result, "privacy", "trust")) or words(at(run.config, "privacy", "trust"))
    off = story.is_off(run)
    if off:
        server, cover = "every client's votes and updates as they are", "none: privacy was off"
    elif unit(run) == "record":
        server = "each client's updates, with the noise that the client added to its own gradients"
        cover = (
            "ε and δ above, for each of its records" if not story.is_seeded(run)
            else "none: the noise was seeded"
        )
    elif trust == "server":
        server, cover = (
            "each client's clipped votes and updates, before the noise is added",
            "a contract, not ε: it is trusted",
        )
    elif trust == "secure":
        server = "only the sum over the cohort, with the noise that the clients added"
        cover = "ε, as long as enough clients follow the protocol"
    else:
        server, cover = numbers.NOT_RECORDED, numbers.NOT_RECORDED
    covered = (
        "none: privacy was off" if off else "none: the noise was seeded" if story.is_seeded(run)
        else "ε and δ above"
    )
    kept = "its own texts, which never leave it"
    if "split" in story.placements(run):
        kept += " as they are; of split clients activations and labels do"
        server += "; of split clients the activations and labels of every record"
    rows = [
        ["the site itself", kept, "its own walls"],
        ["the server", server, cover],
        ["the other sites", "the orders: adapters, candidate texts", covered],
        ["whoever gets the adapter, the synthetic texts or the ledger", "released values only",
         covered],
        [
            "readers of this page",
            *_readers(run),
        ],
    ]
    return markup.table(["who", "sees", "what protects a client from it"], rows, words=(0, 1, 2))


def _readers(run: Run) -> tuple[str, str]:
    """What readers of the page see beyond the released values, and what protects a client from
    that."""
    if not story.is_deployed(run):
        return (
            "besides these, the held-out loss and accuracy of a simulation",
            "none for those figures"
        )
    if story.texts(run) == story.HELD_OUT:
        return "besides these, sums over sites of held-out loss and accuracy", (
            "none for those figures"
        )
    return "nothing besides these; scores are those on public text", "ε and δ above"
