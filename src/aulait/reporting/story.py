"""What happened, in words: the sentences and warnings that open the page, made from the numbers
alone."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.reporting import measures, numbers, promise
from aulait.reporting.folder import RunFiles
from aulait.reporting.guarantee import Bounds
from aulait.reporting.key_figure import KeyFigure
from aulait.reporting.measures import Measure
from aulait.reporting.numbers import Style
from aulait.reporting.values import number, sum_of, value_at
from aulait.runfolder.schema import Scores, TierResult

ROLE_ORDER = ("proxy", "local", "split")

HELD_OUT = "held-out text"
NOT_PRIVATE = "not private"
"""Stands at every figure that was measured on clients' text outside the accountant."""

LEFT_OUT = ("How well the model does was measured on held-out text, which no ε covers; this page "
            "leaves it out, with everything else that was not released.")


def placements(run: RunFiles) -> dict[str, float]:
    """Clients by placement, in the order local, split, proxy; only those that have clients."""
    found = {
        place: sum_of(tier.clients for tier in run.result.tiers if tier.placement == place) or 0
        for place in ("local", "split", "proxy")
    }
    return {place: clients for place, clients in found.items() if clients > 0}


def has_role(run: RunFiles, role: str) -> bool:
    """Whether some client had this role; true when the tiers are not recorded."""
    return role == "max" or not run.result.tiers or role in placements(run)


def is_off(run: RunFiles) -> bool:
    """Whether privacy was switched off."""
    privacy = run.result.privacy
    told = privacy.off if privacy.records("off") else value_at(run.config, "privacy", "off")
    return told is True


def is_seeded(run: RunFiles) -> bool:
    """Whether the noise came from a seed, so that anyone with the seed can take it away again.

    The flag "private" is also false without any noise; that is another warning (`exact_releases`).
    """
    if is_off(run):
        return False
    seeded = any(line.private is False and line.sigma != 0 for line in run.ledger)
    return seeded or (run.result.privacy.private is False and not any(exact_releases(run)))


def is_personal(run: RunFiles) -> bool:
    """Whether clients ended with adapters of their own, so that the final scores are those of their
    own adapters."""
    shared = run.result.eval.shared
    return shared is not None and shared.loss is not None


def exact_releases(run: RunFiles) -> tuple[bool, bool]:
    """Whether (votes, updates) of clients were released without noise although privacy was on."""
    if is_off(run):
        return False, False
    bare = [line.stage for line in run.ledger if line.sigma == 0]
    quiet = any(line.noise_std == 0 for line in run.synthesis) and not _without_voters(run)
    return quiet or "synthesis" in bare, any(stage != "synthesis" for stage in bare)


def is_bounded(run: RunFiles) -> bool:
    """Whether every value of the run was released under secret noise."""
    return not (is_off(run) or is_seeded(run) or any(exact_releases(run)))


def warning_banners(run: RunFiles) -> list[tuple[str, str]]:
    """What must be seen first: ("alarm" or "remark", text), worst first."""
    votes, updates = exact_releases(run)
    alarms = (
        (is_off(run), "Privacy was off. Nothing limits what the model, the synthetic texts and "
                      "this page reveal about a client."),
        (is_seeded(run), "Not private: the noise was seeded. Whoever knows the seed can subtract "
                         "it; use this run for tests only."),
        (votes, "The votes were exact. They carried no noise, so the synthetic texts are not "
                "covered by any guarantee."),
        (updates, "Some updates were released without noise. They are not covered by any "
                  "guarantee; the ledger names them."),
    )
    remarks = (
        (is_personal(run), "Clients ended with adapters of their own. No ε covers a personal "
                           "adapter: it is as sensitive as the text of its client."),
        (run.result.privacy.stopped_early,
         f"The privacy budget stopped the run early{_rounds_of_all(run)}: the next release would "
         "have exceeded it."),
    )
    return [*(("alarm", text) for holds, text in alarms if holds),
            *(("remark", text) for holds, text in remarks if holds)]


def _rounds_of_all(run: RunFiles) -> str:
    """How far a run came that ended early; empty where its plan is not recorded."""
    planned = number(value_at(run.config, "train", "rounds"))
    if not planned:
        return ""
    return f" after {numbers.count(rounds_done(run))} of {numbers.counted(planned, 'round')}"


def rounds_done(run: RunFiles) -> float | None:
    """Training rounds that took place."""
    return float(len(run.training)) if run.training else run.result.rounds


def lead_sentences(run: RunFiles) -> tuple[str, str, str]:
    """Who took part and where; what it brought; what it cost."""
    left_out = run.released and evaluated_texts(run) == HELD_OUT
    return _who(run), LEFT_OUT if left_out else _gain(run), _cost(run)


def _who(run: RunFiles) -> str:
    clients, done = run.result.clients, rounds_done(run)
    if clients is None:
        return f"How many clients took part is {numbers.NOT_RECORDED}."
    method = run.result.algorithm
    where = f" in {numbers.counted(done, 'round')}" if done is not None else ""
    start = (
        f"{numbers.counted(clients, 'client')} took part{where}{f' of {method}' if method else ''}"
    )
    parts = [f"{numbers.count(n)} {_work(place, n, run)}" for place, n in placements(run).items()]
    where = (f": {_and(parts)}." if parts
             else f"; where their work was done is {numbers.NOT_RECORDED}.")
    return start + where + order_of_stages(run)


def order_of_stages(run: RunFiles) -> str:
    """A sentence on the order of the stages, where it is not synthesis before training."""
    order = value_at(run.config, "run", "stages")
    names = [str(name) for name in order] if isinstance(order, list) else []
    if not names or names == ["synthesis", "training"]:
        return ""
    taught = (" After a training the generator wrote with the adapter that had been released, "
              "which costs no privacy." if run.result.synthesis and run.result.synthesis.taught
              else "")
    if len(names) == 1:
        return f" The only stage was {names[0]}."
    return f" The stages were {_and(names)}, in this order.{taught}"


def _work(place: str, clients: float, run: RunFiles) -> str:
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
        "" if _without_voters(run)
        else f" that {'it' if one else 'they'} chose by {votes}"
    )
    facts = run.result.synthesis
    what = "public text" if facts is not None and facts.source == "retrieve" else "synthetic text"
    return f"{'was' if one else 'were'} stood for on the server by {what}{choice}"


def texts_in_words(run: RunFiles) -> str:
    """Where the texts come from that stand for clients which cannot train; empty where none do."""
    facts = run.result.synthesis
    if facts is None or not facts.texts:
        return ""
    public = f"public text (data.public = {value_at(run.config, 'data', 'public') or '?'})"
    chosen = "that no vote chose" if _without_voters(run) else "that the votes chose"
    texts = numbers.counted(facts.texts, "text")
    if facts.source == "retrieve":
        return f"{texts} of {public} {chosen}, word for word; nothing is written."
    writer = f"the generator {facts.generator or '?'} writes"
    if facts.source == "both":
        return f"{texts}: of {public} {chosen}, and what {writer} after them."
    return f"{texts} that {writer}, beginning from {public}; those go on {chosen}."


def _gain(run: RunFiles) -> str:
    before, after = run.result.base_eval, run.result.eval
    if after.loss is None:
        return f"What the run brought is {numbers.NOT_RECORDED}."
    loss = _change(f"the loss on {evaluated_texts(run)}", before.loss, after.loss, numbers.loss)
    perplexity = _arrow(before.perplexity, after.perplexity, numbers.perplexity)
    inside = f" (perplexity {perplexity})" if after.perplexity is not None else ""
    text = loss[0].upper() + loss[1:] + inside
    if after.token_accuracy is not None:
        text += " and " + _change("the share of tokens guessed right", before.token_accuracy,
                                  after.token_accuracy, numbers.percent)
    text += _task(before, after)
    text += ", each client under its own adapter" if is_personal(run) else ""
    worst = after.worst_client_loss
    return text + (
        f"; the client that fares worst ends at a loss of {numbers.loss(worst)}."
        if worst is not None else "."
    )


def _task(before: Scores, after: Scores) -> str:
    measure = measures.leading_task(after)
    if measure is None:
        return ""
    return "; " + _change(f"the {measure.name} in the task", before.value(measure.key),
                          after.value(measure.key), measure.style)


def is_deployed(run: RunFiles) -> bool:
    """Whether the clients were other machines."""
    return run.result.engine == "flower"


def measuring_explained(run: RunFiles) -> str:
    """Who measured the scores, on what, and what that tells."""
    if not is_deployed(run):
        return ("All of this is measured by the simulation on held-out text of all clients, "
                "outside the aggregator and without noise. In a deployment nobody holds that text "
                "together, and these figures are not released.")
    if evaluated_texts(run) != HELD_OUT:
        return ("Measured by the server on public text: what the sites measure on their own "
                "held-out text stays at each site, in its own log. Public text may resemble the "
                "synthetic; a gain here need not be a gain there.")
    return (
        "Measured by every site on its own held-out text and told to the server as sums, without "
        "noise."
    )


def evaluated_texts(run: RunFiles) -> str:
    """What the scores were measured on: held-out text, or public text where the sites keep their
    own measurements."""
    return "public text" if run.result.eval.measured_on is not None else HELD_OUT


def _change(what: str, first: float | None, last: float | None, style: Style) -> str:
    if first is None or last is None:
        return f"{what} is {style(last)}"
    if style(first) == style(last):
        return f"{what} stayed at {style(last)}"
    return f"{what} {'fell' if last < first else 'rose'} from {style(first)} to {style(last)}"


def _arrow(before: float | None, after: float | None, style: Style) -> str:
    return style(after) if before is None else f"{style(before)} → {style(after)}"


def _cost(run: RunFiles) -> str:
    privacy, traffic, wall_s = run.result.privacy, run.result.traffic, run.result.time.wall_s
    spoken = f"ε = {epsilon_text(run, 'max')}"
    at_delta = f" at δ = {numbers.delta(privacy.delta)}" if privacy.delta else ""
    if is_off(run):
        price = f"Nothing bounds what was learnt about a client (ε = {numbers.INFINITE})"
    elif not privacy.epsilon.records("max"):
        price = f"What it cost in privacy is {numbers.NOT_RECORDED}"
    elif privacy.epsilon.max is None or any(exact_releases(run)):
        price = f"What was learnt about a client has no finite bound (ε = {numbers.INFINITE})"
    elif is_seeded(run):
        price = (
            f"What was learnt about a client has no bound (with honest noise: {spoken}{at_delta})"
        )
    else:
        price = f"It cost a {promise.one_unit(run)} at most {spoken}{at_delta}"
    up, down = traffic.up_bytes, traffic.down_bytes
    moved = (
        f"; {numbers.size(up)} went up to the server and {numbers.size(down)} came down"
        if up is not None and down is not None else ""
    )
    took = f", in {numbers.duration(wall_s)}" if wall_s is not None else ""
    return f"{price}{moved}{took}{_virtual(run)}."


def _virtual(run: RunFiles) -> str:
    """How long the real federation would have taken; empty where the tiers name no machines."""
    clock = run.result.clock
    if clock is None or clock.total_s is None:
        return ""
    return (
        f"; on its own machines the federation would have taken {numbers.duration(clock.total_s)}, "
        "by the cost model"
    )


def attack_sentences(run: RunFiles, roles: Sequence[Bounds] = ()) -> list[str]:
    """What epsilon means for one unit, as sentences for someone who approves runs; ``roles`` as in
    ``promise.attack_sentences``."""
    if not is_bounded(run):
        return [promise.no_bound()]
    return promise.attack_sentences(run, roles)


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def key_figures(run: RunFiles) -> list[KeyFigure]:
    """The figures under the sentences; without those that were not released where the page is to
    leave them out."""
    before, after, own = run.result.base_eval, run.result.eval, is_personal(run)
    told = measures.leading_task(after) or measures.TOKENS
    up, down = run.result.traffic.up_bytes, run.result.traffic.down_bytes
    both = sum_of((up, down))

    def beside(measure: Measure) -> str:
        """The base model's value, and the shared adapter's where clients have their own."""
        text = f"base model {measure.style(before.value(measure.key))}"
        shared = after.shared or Scores()
        return f"{text}, shared adapter {measure.style(shared.value(measure.key))}" if own else text

    held_out = evaluated_texts(run) == HELD_OUT
    mark = NOT_PRIVATE if held_out else ""
    off = is_off(run)
    delta = "privacy off" if off else f"δ = {numbers.delta(run.result.privacy.delta)}"
    scored = [] if run.released and held_out else [
        KeyFigure("held-out loss" if held_out else "loss on public text",
                  numbers.loss(after.loss), beside(measures.LOSS), mark),
        KeyFigure(told.name, told.style(after.value(told.key)), beside(told), mark)]
    return [
        KeyFigure("ε, at most", numbers.INFINITE if off else epsilon_text(run, "max"),
                  "noise was seeded" if is_seeded(run) else delta),
        *scored,
        KeyFigure("traffic", numbers.size(both),
                  "" if both is None else f"↑ {numbers.size(up)}  ↓ {numbers.size(down)}"),
    ]


def epsilon_text(run: RunFiles, role: str) -> str:
    """The epsilon of a role as the result has it: "∞" for null, "not recorded" where it is
    missing."""
    spent = run.result.privacy.epsilon
    return numbers.epsilon(spent.value(role)) if spent.records(role) else numbers.NOT_RECORDED


def tier_rows(run: RunFiles) -> list[list[str]]:
    """The tiers as rows of words and figures."""
    return [[tier.name or numbers.NOT_RECORDED, tier.placement or numbers.NOT_RECORDED,
             numbers.count(tier.clients), rank_text(run, tier), numbers.count(tier.steps),
             numbers.count(tier.batch), machine_name(tier.machine) or "–", tier.reason or ""]
            for tier in run.result.tiers]


def machine_name(named: str | None) -> str | None:
    """A tier's machine: a preset, or the file name of a profile; None where none is named."""
    if named is None:
        return None
    return named.replace("\\", "/").rstrip("/").rpartition("/")[2] or named


def rank_text(run: RunFiles, tier: TierResult) -> str:
    """The rank of a tier, with that of attention layers where it differs."""
    attention = tier.attention_rank if tier.records("attention_rank") else _written_rank(run, tier)
    full = numbers.count(tier.rank)
    return (
        full if attention is None or attention == tier.rank
        else f"{full} (attention {numbers.count(attention)})"
    )


def different_ranks(run: RunFiles) -> set[str]:
    """The different ranks of the tiers."""
    return {rank_text(run, tier) for tier in run.result.tiers if tier.rank is not None}


def _written_rank(run: RunFiles, tier: TierResult) -> float | None:
    """The rank of attention layers that the settings give a tier; None where they give none."""
    listed = value_at(run.config, "federation", "tier")
    for written in listed if isinstance(listed, list) else ():
        if isinstance(written, dict) and written.get("name") == tier.name:
            return number(written.get("attention_rank"))
    return None


def _without_voters(run: RunFiles) -> bool:
    return run.result.synthesis is not None and run.result.synthesis.voters == 0
