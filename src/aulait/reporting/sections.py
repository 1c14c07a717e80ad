"""The sections about the work: who did it where, what it brought, what it took, and with which
settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from aulait.reporting import figures, markup, measures, numbers, scores, story
from aulait.reporting.chart import Chart
from aulait.reporting.clock_figures import round_label
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import PageTable, PlacedFigure, Section
from aulait.reporting.numbers import Style
from aulait.reporting.stage_names import STAGE_NAMES
from aulait.reporting.values import number, sum_of, value_at
from aulait.runfolder.schema import SynthesisResult, TrainRound

PLACES = {
    "local": "on its own machine",
    "split": "front of the model at the site, rest on the server; activations leave the site",
    "proxy": "on the server",
}


def tiers_section(run: RunFiles) -> Section:
    """The tiers, their placement and the share of clients with each placement."""
    rows = story.tier_rows(run)
    head = ["tier", "placement", "clients", "rank", "steps", "batch", "machine", "reason"]
    if not any(story.machine_name(tier.machine) for tier in run.result.tiers):
        head, rows = [*head[:6], head[7]], [[*row[:6], row[7]] for row in rows]
    shares = story.placements(run)
    places = [{"name": name, "weight": f"{clients:g}", "meaning": PLACES[name],
               "clients": numbers.counted(clients, "client"),
               "share": numbers.percent(clients / sum(shares.values()), 0)}
              for name, clients in shares.items()]
    full, found = number(value_at(run.config, "adapter", "rank")), story.different_ranks(run)
    unequal = found - {numbers.count(full)} if full is not None else len(found) > 1
    return markup.section(
        "tiers", "Who did what, and where", tiers=PageTable(head, rows, words=(0, 1, 6, 7)),
        placements=places, unequal=unequal,
        whole_rank="" if full is None else f" of {numbers.count(full)}")


def learning_section(run: RunFiles) -> Section:
    """The final scores, held-out loss and accuracy by round, refused replies, and the rounds one by
    one."""
    refused = scores.refusals(run)
    shown = list(refused.items())[:scores.SHOWN]
    more = len(refused) - len(shown)
    return markup.section(
        "learning", "What the model learnt", _curves(run),
        scores=scores.scores_table(run), personal=story.is_personal(run),
        unseen=run.result.eval.unseen is not None, measuring=story.measuring_explained(run),
        marked=story.NOT_PRIVATE if story.evaluated_texts(run) == story.HELD_OUT else "",
        refused=PageTable(["client", "reason", "rounds"],
                          [[client, reason, ", ".join(rounds)]
                           for (client, reason), rounds in shown], words=(0, 1, 2)),
        refused_count=numbers.count(scores.refused_replies(run)),
        refused_more=f"{more:,}" if more else "",
        rounds=_rounds_table(run.training))


def _curves(run: RunFiles) -> list[PlacedFigure]:
    """A figure for every measure that has points."""
    task = measures.leading_task(run.result.eval)
    shown = [("Loss on held-out text, nats per token", measures.LOSS),
             ("Tokens guessed right", measures.TOKENS)]
    shown += [(f"{task.name[0].upper()}{task.name[1:]} in the task", task)] if task else []
    found = []
    for title, measure in shown:
        points = [(float(line.round), value) for line in run.training
                  if line.round is not None
                  and (value := line.eval.value(measure.key)) is not None]
        if points:
            shared = run.result.eval.shared
            chart = figures.measure_curve(
                points, run.result.base_eval.value(measure.key), measure.rising,
                None if shared is None else shared.value(measure.key))
            found.append(PlacedFigure(f"curve-{measure.key}", title, chart))
    return found


def _rounds_table(lines: Sequence[TrainRound]) -> PageTable:
    """A row for each round; a column that no round has is left out."""
    columns: list[tuple[str, Style, list[float | None]]] = [
        ("round", numbers.count, [line.round for line in lines]),
        ("at sites", numbers.count, [line.local_clients for line in lines]),
        ("proxies", numbers.count, [line.proxies for line in lines]),
        ("refused", numbers.count, [line.refused for line in lines]),
        ("clip bound", numbers.significant, [line.clip_bound for line in lines]),
        ("noise std", numbers.significant, [line.noise_std for line in lines]),
        ("signal / noise", numbers.significant, [line.signal_to_noise for line in lines]),
        ("update norm", numbers.significant, [line.update_norm for line in lines]),
        ("train loss", numbers.significant, [line.train_loss for line in lines]),
        ("held-out loss", numbers.loss, [line.eval.loss for line in lines]),
        *((m.name, m.style, [line.eval.value(m.key) for line in lines])
          for m in (measures.TOKENS, *measures.TASKS)),
        ("time", numbers.duration, [line.wall_s for line in lines]),
    ]
    kept = [(name, [numbers.or_dash(value, style) for value in values])
            for name, style, values in columns if any(value is not None for value in values)]
    rows = list(zip(*(cells for _, cells in kept), strict=True)) if kept else [()] * len(lines)
    return PageTable([name for name, _ in kept], rows, words=())


def cost_section(run: RunFiles) -> Section:
    """Bytes and seconds by stage, and what a client of stage 1 has to carry."""
    result = run.result
    rows = []
    for name, lines, told_s in (("1 · synthesis", run.synthesis, result.time.synthesis_s),
                                ("2 · training", run.training, result.time.train_s)):
        if lines:
            seconds = sum_of(line.wall_s for line in lines) if told_s is None else told_s
            rows.append([name, numbers.count(len(lines)),
                         numbers.size(sum_of(line.up_bytes for line in lines)),
                         numbers.size(sum_of(line.down_bytes for line in lines)),
                         numbers.duration(seconds)])
    rows.append(["whole run", "", numbers.size(result.traffic.up_bytes),
                 numbers.size(result.traffic.down_bytes), numbers.duration(result.time.wall_s)])
    charts = [
        PlacedFigure("bytes", "Bytes on the wire by round, all clients together",
                     _bytes_chart(run), 180),
        PlacedFigure("seconds", "Seconds by round", figures.stacked_bars(
            *_stages_and_rounds(run), {"seconds": [line.wall_s for line in run.rounds]}, "s"), 180),
    ]
    facts = result.synthesis
    return markup.section(
        "cost", "What it took", charts if run.rounds else (),
        stages=PageTable(["stage", "rounds", "up to the server", "down to the sites", "time"],
                         rows),
        client_cost=None if facts is None or facts.client_down_bytes_per_round is None
        else _client_cost(facts),
        candidates=numbers.count(facts.candidates) if facts and facts.candidates else "",
        proxied="proxy" in story.placements(run))


def _stages_and_rounds(run: RunFiles) -> tuple[list[str], list[str]]:
    """The two lines of labels under bars by round."""
    return [STAGE_NAMES[line.stage or ""] for line in run.rounds], list(map(round_label,
        run.rounds))


def _bytes_chart(run: RunFiles) -> Chart:
    values = {"up": [line.up_bytes for line in run.rounds],
              "down": [line.down_bytes for line in run.rounds]}
    largest = max((value for series in values.values() for value in series if value is not None),
                  default=0.0)
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= s),
                       ("B", 1.0))
    scaled = {name: [None if v is None else v / scale for v in series]
              for name, series in values.items()}
    return figures.stacked_bars(*_stages_and_rounds(run), scaled, unit)


def _client_cost(facts: SynthesisResult) -> PageTable:
    """What a round of stage 1 asks of one client, measured and as formulas."""
    unknown = numbers.NOT_RECORDED
    rows = [
        ["down, each round", numbers.size(facts.client_down_bytes_per_round),
         facts.down_formula or unknown],
        ["up, each round", numbers.size(facts.client_up_bytes_per_round),
         facts.up_formula or unknown],
        ["computing, each round", numbers.duration(facts.client_s_mean),
         "embed once, then compare"],
    ]
    return PageTable(["", "measured", "formula"], rows, words=(0, 2))


def settings_section(run: RunFiles) -> Section:
    """The experiment file, the machine, the data and the versions."""
    trees = (("Data", run.result.data), ("Machine", run.machine.on_disk()),
             ("Versions", run.result.versions))
    return markup.section(
        "settings", "Settings, machine, versions", config=run.config_text,
        blocks=[(title, PageTable(["", ""], _flat_rows(tree), words=(0, 1)))
                for title, tree in trees])


def _flat_rows(tree: Mapping[str, object], prefix: str = "") -> list[list[str]]:
    """A tree as rows (dotted key, value)."""
    rows: list[list[str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat_rows(value, f"{name}.") if isinstance(value, dict) and value else [
            [name, _fact(name, value)]]
    return rows


def _fact(name: str, value: object) -> str:
    """A value of a JSON file as a person writes it."""
    if number(value) is not None:
        if name.endswith("_bytes"):
            return numbers.size(value)
        return f"{value:,}" if isinstance(value, int) else numbers.significant(value, 4)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
