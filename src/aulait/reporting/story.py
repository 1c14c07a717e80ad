"""What happened, in words: the sentences and warnings that open the page, made from the numbers
alone."""

from __future__ import annotations

from typing import Any

from aulait.reporting import measures, numbers
from aulait.reporting.folder import MISSING, Run, Table, at, number, tables, total, words
from aulait.reporting.guarantee import (
    FALSE_ALARM,
    NEARLY_ALWAYS,
    detection,
    gaussian_detection,
    gaussian_mu,
)

ROLE_ORDER = ("proxy", "local", "split")

HELD_OUT = "held-out text"


def placements(run: Run) -> dict[str, float]:
    """Clients by placement, in the order local, split, proxy; only those that have clients."""
    found = {
        place: total(tier.get("clients") for tier in run.tiers if tier.get("placement") == place)
        or 0
        for place in ("local", "split", "proxy")
    }
    return {place: clients for place, clients in found.items() if clients > 0}


def has_role(run: Run, role: str) -> bool:
    """Whether some client had this role; true when the tiers are not recorded."""
    return role == "max" or not run.tiers or role in placements(run)


def is_off(run: Run) -> bool:
    """Whether privacy was switched off."""
    return at(run.result, "privacy", "off", default=at(run.config, "privacy", "off")) is True


def is_seeded(run: Run) -> bool:
    """Whether the noise came from a seed, so that anyone with the seed can take it away again.

    The flag "private" is also false without any noise; that is another warning (`exact_releases`).
    """
    if is_off(run):
        return False
    seeded = any(line.get("private") is False and line.get("sigma") != 0 for line in run.ledger)
    return (
        seeded or (at(run.result, "privacy", "private") is False and not any(exact_releases(run)))
    )


def is_personal(run: Run) -> bool:
    """Whether clients ended with adapters of their own, so that the final scores are those of their
    own adapters."""
    return number(at(run.result, "eval", "shared", "loss")) is not None


def exact_releases(run: Run) -> tuple[bool, bool]:
    """Whether (votes, updates) of clients were released without noise although privacy was on."""
    if is_off(run):
        return False, False
    bare = [line.get("stage") for line in run.ledger if line.get("sigma") == 0]
    voters = at(run.result, "synthesis", "voters")
    quiet = any(line.get("noise_std") == 0 for line in run.stage("synthesis")) and voters != 0
    return quiet or "synthesis" in bare, any(stage != "synthesis" for stage in bare)


def banners(run: Run) -> list[tuple[str, str]]:
    """What must be seen first: ("alarm" or "remark", text), worst first."""
    found = []
    votes, updates = exact_releases(run)
    if is_off(run):
        text = (
            "Privacy was off. Nothing limits what the model, the synthetic texts and this page "
            "reveal about a client."
        )
        found.append(("alarm", text))
    if is_seeded(run):
        text = (
            "Not private: the noise was seeded. Whoever knows the seed can subtract it; use this "
            "run for tests only."
        )
        found.append(("alarm", text))
    if votes:
        text = (
            "The votes were exact. They carried no noise, so the synthetic texts are not covered "
            "by any guarantee."
        )
        found.append(("alarm", text))
    if updates:
        text = (
            "Some updates were released without noise. They are not covered by any guarantee; the "
            "ledger names them."
        )
        found.append(("alarm", text))
    if is_personal(run):
        text = (
            "Clients ended with adapters of their own. No ε covers a personal adapter: it is as "
            "sensitive as the text of its client."
        )
        found.append(("remark", text))
    if at(run.result, "privacy", "stopped_early"):
        done, planned = rounds_done(run), at(run.config, "train", "rounds")
        share = (
            f" after {numbers.count(done)} of {numbers.counted(planned, 'round')}"
            if number(planned) else ""
        )
        text = (
            f"The privacy budget stopped the run early{share}: the next release would have "
            "exceeded it."
        )
        found.append(("remark", text))
    return found


def rounds_done(run: Run) -> float | None:
    """Training rounds that took place."""
    lines = run.stage("train")
    return float(len(lines)) if lines else number(run.result.get("rounds"))


def sentences(run: Run) -> tuple[str, str, str]:
    """Who took part and where; what it brought; what it cost."""
    return _who(run), _gain(run), _cost(run)


def _who(run: Run) -> str:
    clients, done = run.result.get("clients"), rounds_done(run)
    if number(clients) is None:
        return f"How many clients took part is {numbers.NOT_RECORDED}."
    method = words(run.result.get("algorithm"))
    where = f" in {numbers.counted(done, 'round')}" if done is not None else ""
    start = (
        f"{numbers.counted(clients, 'client')} took part{where}{f' of {method}' if method else ''}"
    )
    parts = [f"{numbers.count(n)} {_work(place, n, run)}" for place, n in placements(run).items()]
    return (
        f"{start}: {_and(parts)}." if parts
        else f"{start}; where their work was done is {numbers.NOT_RECORDED}."
    )


def _work(place: str, clients: float, run: Run) -> str:
    one = clients == 1
    if place == "local":
        return f"trained on {'its own machine' if one else 'their own machines'}"
    if place == "split":
        return (
            f"ran the front of the model at {'its' if one else 'their'} own site and the rest on "
            "the server"
        )
    votes = "votes" if is_off(run) or is_seeded(run) or exact_releases(run)[0] else "private votes"
    choice = (
        "" if at(run.result, "synthesis", "voters") == 0
        else f" that {'it' if one else 'they'} chose by {votes}"
    )
    return f"{'was' if one else 'were'} stood for on the server by synthetic text{choice}"


def _gain(run: Run) -> str:
    before, after = at(run.result, "base_eval", default={}), at(run.result, "eval", default={})
    if number(at(after, "loss")) is None:
        return f"What the run brought is {numbers.NOT_RECORDED}."
    loss = _change(f"the loss on {texts(run)}", at(before, "loss"), at(after, "loss"), numbers.loss)
    perplexity = _arrow(at(before, "perplexity"), at(after, "perplexity"), numbers.perplexity)
    inside = f" (perplexity {perplexity})" if number(at(after, "perplexity")) is not None else ""
    text = loss[0].upper() + loss[1:] + inside
    if number(at(after, "token_accuracy")) is not None:
        text += " and " + _change(
            "the share of tokens guessed right",
            at(before, "token_accuracy"),
            at(after, "token_accuracy"),
            numbers.percent,
        )
    text += _task(before, after)
    text += ", each client under its own adapter" if is_personal(run) else ""
    worst = number(at(after, "worst_client_loss"))
    return text + (
        f"; the client that fares worst ends at a loss of {numbers.loss(worst)}."
        if worst is not None else "."
    )


def _task(before: Any, after: Any) -> str:
    measure = measures.task(after)
    if measure is None:
        return ""
    return (
        "; " + _change(f"the {measure.name} in the task", at(before, measure.key),
                       at(after, measure.key), measure.style)
    )


def is_deployed(run: Run) -> bool:
    """Whether the clients were other machines."""
    return run.result.get("engine") == "flower"


def measured(run: Run) -> str:
    """Who measured the scores, on what, and what that tells."""
    if not is_deployed(run):
        return ("All of this is measured by the simulation on held-out text of all clients, "
                "outside the door and without noise. "
                "In a deployment nobody holds that text together, and these figures are not "
                "released.")
    if texts(run) != HELD_OUT:
        return ("Measured by the server on public text: what the sites measure on their own "
                "held-out text stays at each site, "
                "in its own log. Public text may resemble the synthetic; a gain here need not be a "
                "gain there.")
    return (
        "Measured by every site on its own held-out text and told to the server as sums, without "
        "noise."
    )


def texts(run: Run) -> str:
    """What the scores were measured on: held-out text, or public text where the sites keep their
    own measurements."""
    return "public text" if at(run.result, "eval", "measured_on") is not None else HELD_OUT


def _change(what: str, before: Any, after: Any, style: Any) -> str:
    first, last = number(before), number(after)
    if first is None or last is None:
        return f"{what} is {style(after)}"
    if style(first) == style(last):
        return f"{what} stayed at {style(last)}"
    return f"{what} {'fell' if last < first else 'rose'} from {style(first)} to {style(last)}"


def _arrow(before: Any, after: Any, style: Any) -> str:
    return style(after) if number(before) is None else f"{style(before)} → {style(after)}"


def _cost(run: Run) -> str:
    epsilon = at(run.result, "privacy", "epsilon", "max", default=MISSING)
    delta = at(run.result, "privacy", "delta")
    spoken = f"ε = {numbers.epsilon(epsilon)}"
    at_delta = f" at δ = {numbers.delta(delta)}" if number(delta) else ""
    if is_off(run):
        price = f"Nothing bounds what was learnt about a client (ε = {numbers.INFINITE})"
    elif epsilon is MISSING:
        price = f"What it cost in privacy is {numbers.NOT_RECORDED}"
    elif number(epsilon) is None or any(exact_releases(run)):
        price = f"What was learnt about a client has no finite bound (ε = {numbers.INFINITE})"
    elif is_seeded(run):
        price = (
            f"What was learnt about a client has no bound (with honest noise: {spoken}{at_delta})"
        )
    else:
        unit = words(at(run.result, "privacy", "unit")) or "client"
        price = f"It cost a {unit} at most {spoken}{at_delta}"
    up, down = (at(run.result, "traffic", key) for key in ("up_bytes", "down_bytes"))
    traffic = f"; {numbers.size(up)} went up to the server and {numbers.size(down)} came down"
    wall = at(run.result, "time", "wall_s")
    took = f", in {numbers.duration(wall)}" if number(wall) is not None else ""
    return (
        price + (traffic if number(up) is not None and number(down) is not None else "") + took
        + _virtual(run) + "."
    )


def _virtual(run: Run) -> str:
    """How long the real federation would have taken; empty where the tiers name no machines."""
    length_s = number(at(run.result, "clock", "total_s"))
    if length_s is None:
        return ""
    return (
        f"; on its own machines the federation would have taken {numbers.duration(length_s)}, by "
        "the cost model"
    )


def attack(run: Run) -> list[str]:
    """What epsilon means for one client, as sentences for someone who approves runs."""
    epsilon = number(at(run.result, "privacy", "epsilon", "max"))
    delta = number(at(run.result, "privacy", "delta"))
    if is_off(run) or is_seeded(run) or any(
        exact_releases(run)) or epsilon is None or delta is None:
        return ["For this run there is no such bound: assume that an attacker can tell with "
                "certainty who took part."]
    unit = words(at(run.result, "privacy", "unit")) or "client"
    question = (
        "a given client took part" if unit == "client" else f"a given {unit} was among the data"
    )
    bound = detection(epsilon, delta)
    best = f"Take an attacker who sees all that was released and must decide whether {question}."
    text = (
        f"If it accepts to be wrong about {numbers.percent(FALSE_ALARM, 0)} of those that were not "
        "there, "
    )
    text += f"it recognises at most {_rate(bound)} of those that were."
    if bound >= NEARLY_ALWAYS:
        text += (
            f" That is practically always: taken alone, ε = {numbers.epsilon(epsilon)} promises "
            "nothing against it."
        )
    found = [best, text]
    mu = gaussian_mu(run)
    sharp = gaussian_detection(mu) if mu is not None else 1.0
    if sharp < bound - 0.005:
        text = (
            "The ledger allows a sharper statement, because every release was Gaussian with known "
            "noise: "
        )
        found.append(text + f"the attacker recognises at most {_rate(sharp)}.")
    guess = numbers.percent(FALSE_ALARM, 0)
    return [*found,
            f"For comparison: blind guessing at the same rate of false alarms recognises {guess}."]


def _rate(share: float) -> str:
    return numbers.percent(share, 0 if share >= 0.99995 else 2 if share >= NEARLY_ALWAYS else 1)


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """The four figures under the sentences: (name, value, remark)."""
    before, after = at(run.result, "base_eval", default={}), at(run.result, "eval", default={})
    privacy = at(run.result, "privacy", default={})
    epsilon = None if is_off(run) else at(privacy, "epsilon", "max", default=MISSING)
    up, down = (at(run.result, "traffic", key) for key in ("up_bytes", "down_bytes"))
    shared = at(after, "shared")
    first = f"base model {numbers.loss(at(before, 'loss'))}"
    first += f", shared adapter {numbers.loss(at(shared, 'loss'))}" if is_personal(run) else ""
    told = measures.task(after) or measures.TOKENS
    guessed = f"base model {told.style(at(before, told.key))}"
    guessed += f", shared adapter {told.style(at(shared, told.key))}" if is_personal(run) else ""
    delta = f"δ = {numbers.delta(at(privacy, 'delta'))}" if not is_off(run) else "privacy off"
    both = total((up, down))
    return [
        ("held-out loss" if texts(run) == HELD_OUT else "loss on public text",
         numbers.loss(at(after, "loss")), first),
        (told.name, told.style(at(after, told.key)), guessed),
        ("ε, at most", numbers.epsilon(epsilon), "noise was seeded" if is_seeded(run) else delta),
        ("traffic", numbers.size(both), f"↑ {numbers.size(up)}  ↓ {numbers.size(down)}"
         if both is not None else ""),
    ]


def tier_rows(run: Run) -> list[list[str]]:
    """The tiers as rows of words and figures."""
    rows = []
    for tier in tables(run.result.get("tiers")):
        counts = [numbers.count(tier.get("clients")), rank(run, tier),
                  *(numbers.count(tier.get(key)) for key in ("steps", "batch"))]
        text = [words(tier.get(key)) or numbers.NOT_RECORDED for key in ("name", "placement")]
        rows.append([*text, *counts, machine(tier) or "–", words(tier.get("reason")) or ""])
    return rows


def machine(tier: Table) -> str | None:
    """A tier's machine: a preset, or the file name of a profile; None where none is named."""
    name = words(tier.get("machine"))
    return None if name is None else name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name


def rank(run: Run, tier: Table) -> str:
    """The rank of a tier, with that of attention layers where it differs."""
    written = [t for t in tables(at(run.config, "federation", "tier"))
               if t.get("name") == tier.get("name")]
    attention = number(tier.get("attention_rank", written[0].get("attention_rank") if written
                                else None))
    full = numbers.count(tier.get("rank"))
    return (
        full if attention is None or attention == number(tier.get("rank"))
        else f"{full} (attention {numbers.count(attention)})"
    )


def ranks(run: Run) -> set[str]:
    """The different ranks of the tiers."""
    return {rank(run, tier) for tier in run.tiers if number(tier.get("rank")) is not None}
