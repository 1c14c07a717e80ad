"""The sections about the work: who did it where, what it brought, what it took, and with which
settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from aulait.reporting import figures, markup, measures, numbers, scores, story
from aulait.reporting.folder import MISSING, Run, Table, at, number, sequence, total, words
from aulait.reporting.markup import Html, Section

PLACES = {
    "local": "on its own machine",
    "split": "front of the model at the site, rest on the server; activations leave the site",
    "proxy": "on the server",
}
STAGES = (("synthesis", "1 · synthesis", "synthesis_s"), ("train", "2 · training", "train_s"))


def tiers(run: Run) -> Section:
    """The tiers, their placement and the share of clients with each placement."""
    rows = story.tier_rows(run)
    if not rows:
        return Section("tiers", "Who did what, and where", markup.absent("Tiers and placements"))
    head = ["tier", "placement", "clients", "rank", "steps", "batch", "machine", "reason"]
    if not any(map(story.machine, run.tiers)):
        head, rows = [*head[:6], head[7]], [[*row[:6], row[7]] for row in rows]
    body = markup.join(_bar(story.placements(run)), markup.table(head, rows, words=(0, 1, 6, 7)),
                       _unequal(run))
    return Section("tiers", "Who did what, and where", body)


def _unequal(run: Run) -> Html:
    """A line about unequal ranks, where there are some."""
    full = at(run.config, "adapter", "rank")
    found = story.ranks(run)
    if not found or found == {numbers.count(full)} or (len(found) == 1 and number(full) is None):
        return Html("")
    whole = f" of {numbers.count(full)}" if number(full) is not None else ""
    text = (
        f"Ranks are unequal: where a tier's rank is smaller than the adapter's{whole}, a client "
        "trains the leading columns only."
    )
    return markup.note(text)


def _bar(shares: dict[str, float]) -> Html:
    everyone = sum(shares.values())
    if not everyone:
        return Html("")
    pieces = "".join(
        f'<span class="{place}" style="flex-grow:{clients:g}"></span>' for place,
        clients in shares.items()
    )
    keys = "".join(
        f'<li><i class="{place}"></i><b>{place}</b> {PLACES[place]}: '
        f'{numbers.counted(clients, "client")}'
        f" ({numbers.percent(clients / everyone, 0)})</li>"
        for place, clients in shares.items()
    )
    return Html(f'<div class="bar" aria-hidden="true">{pieces}</div><ul class="keys">{keys}</ul>')


def learning(run: Run) -> Section:
    """The final scores, held-out loss and accuracy by round, refused replies, and the rounds one by
    one."""
    lines = run.stage("train")
    charts = _curves(run, lines)
    warning = story.measured(run)
    if story.is_personal(run):
        warning += (
            " The open circle is the shared adapter after the last round; a method that makes "
            "personal adapters "
        )
        warning += "in the last round only was measured under the shared adapter before."
    places = [markup.chart(name, title) for name, (title, _) in charts.items()]
    curves = (
        markup.join(markup.columns(*places), markup.note(warning)) if places
        else markup.absent("Evaluation by round")
    )
    rounds = (
        markup.folded("Round by round", _rounds(lines)) if lines
        else markup.absent("Training rounds")
    )
    body = markup.join(scores.table(run), curves, scores.refused(run), rounds)
    return Section("learning", "What the model learnt", body,
                   {name: figure for name, (_, figure) in charts.items()})


def _curves(run: Run, lines: Sequence[Table]) -> dict[str, tuple[str, figures.Figure]]:
    """Name -> (title, figure) of every measure that has points."""
    task = measures.task(run.result.get("eval"))
    shown = [("Loss on held-out text, nats per token", measures.LOSS),
             ("Tokens guessed right", measures.TOKENS)]
    shown += [(f"{task.name[0].upper()}{task.name[1:]} in the task", task)] if task else []
    found = {}
    for title, measure in shown:
        points = _points(lines, measure.key)
        if points:
            first, after = (number(at(run.result, *path, measure.key))
                            for path in (("base_eval",), ("eval", "shared")))
            found[f"curve-{measure.key}"] = (title, figures.curve(points, first, measure.rising,
                after))
    return found


def _points(lines: Iterable[Table], key: str) -> list[tuple[float, float]]:
    found = [(number(line.get("round")), number(at(line, "eval", key))) for line in lines]
    return [(r, value) for r, value in found if r is not None and value is not None]


def _rounds(lines: Sequence[Table]) -> Html:
    """A row for each round; a column that no round has is left out."""
    columns: list[tuple[str, tuple[str, ...], Any]] = [
        ("round", ("round",), numbers.count),
        ("at sites", ("local_clients",), numbers.count),
        ("proxies", ("proxies",), numbers.count),
        ("refused", ("refused",), numbers.count),
        ("clip bound", ("clip_bound",), numbers.significant),
        ("noise std", ("noise_std",), numbers.significant),
        ("signal / noise", ("signal_to_noise",), numbers.significant),
        ("update norm", ("update_norm",), numbers.significant),
        ("train loss", ("train_loss",), numbers.significant),
        ("held-out loss", ("eval", "loss"), numbers.loss),
        *((m.name, ("eval", m.key), m.style) for m in (measures.TOKENS, *measures.TASKS)),
        ("time", ("wall_s",), numbers.duration),
    ]
    kept = [column for column in columns if any(number(at(line, *column[1])) is not None
        for line in lines)]
    rows = [[_or_dash(at(line, *path), style) for _, path, style in kept] for line in lines]
    return markup.table([name for name, *_ in kept], rows, words=())


def _or_dash(value: Any, style: Any) -> str:
    return "–" if number(value) is None else str(style(value))


def cost(run: Run) -> Section:
    """Bytes and seconds by stage, and what a client of stage 1 has to carry."""
    rows, charts, parts = [], {}, []
    for stage, name, clock in STAGES:
        lines = run.stage(stage)
        if lines:
            up, down = (total(line.get(key) for line in lines)
                        for key in ("up_bytes", "down_bytes"))
            seconds = number(at(run.result, "time", clock))
            seconds = total(line.get("wall_s") for line in lines) if seconds is None else seconds
            rows.append(
                [name, numbers.count(len(lines)), numbers.size(up), numbers.size(down),
                 numbers.duration(seconds)]
            )
    traffic, wall = run.result.get("traffic"), at(run.result, "time", "wall_s")
    whole = [numbers.size(at(traffic, "up_bytes")), numbers.size(at(traffic, "down_bytes")),
             numbers.duration(wall)]
    rows.append(["whole run", "", *whole])
    if run.rounds:
        charts = {"bytes": _bytes_chart(run), "seconds": _seconds_chart(run)}
        bars = (markup.chart("bytes", "Bytes on the wire by round, all clients together", 260),)
        parts.append(markup.columns(*bars, markup.chart("seconds", "Seconds by round", 260)))
    head = ["stage", "rounds", "up to the server", "down to the sites", "time"]
    remark = (
        "The whole run also counts the first evaluation, loading and saving; its bytes are those "
        "of all rounds."
    )
    body = markup.join(markup.table(head, rows), markup.note(remark), *parts, _client_cost(run))
    return Section("cost", "What it took", body, charts)


def _axes(run: Run) -> tuple[list[Table], list[str], list[str]]:
    lines = [line for stage, *_ in STAGES for line in run.stage(stage)]
    names = {"synthesis": "synthesis", "train": "training"}
    return lines, [names[line["stage"]] for line in lines], [figures.label(line.get("round", "?"),
        8) for line in lines]


def _bytes_chart(run: Run) -> figures.Figure:
    lines, stages, rounds = _axes(run)
    both = {"up": "up_bytes", "down": "down_bytes"}
    values = {name: [number(line.get(key)) for line in lines] for name, key in both.items()}
    largest = max((value for series in values.values() for value in series if value is not None),
                  default=0.0)
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= s),
                       ("B", 1.0))
    scaled = {name: [None if v is None else v / scale for v in series] for name,
              series in values.items()}
    return figures.stacks(stages, rounds, scaled, unit)


def _seconds_chart(run: Run) -> figures.Figure:
    lines, stages, rounds = _axes(run)
    return figures.stacks(stages, rounds,
                          {"seconds": [number(line.get("wall_s")) for line in lines]}, "s")


def _client_cost(run: Run) -> Html:
    facts = run.result.get("synthesis")
    heading = markup.subtitle("What stage 1 asks of one client")
    if not isinstance(facts, dict):
        return (
            markup.join(heading, markup.absent("Stage 1")) if "proxy" in story.placements(run)
            else Html("")
        )
    rows = []
    for name, key in (("down, each round", "down"), ("up, each round", "up")):
        measured = numbers.size(facts.get(f"client_{key}_bytes_per_round"))
        rows.append([name, measured, words(facts.get(f"{key}_formula")) or numbers.NOT_RECORDED])
    rows.append(["computing, each round", numbers.duration(facts.get("client_s_mean")),
                 "embed once, then compare"])
    offered = number(facts.get("candidates"))
    legend = (
        markup.note(f"J is the number of candidates, here {numbers.count(offered)}.") if offered
        else Html("")
    )
    return markup.join(heading, markup.table(["", "measured", "formula"], rows, words=(0, 2)),
                       legend)


def settings(run: Run) -> Section:
    """The experiment file, the machine, the data and the versions."""
    if run.config_text is None:
        config = markup.absent("config.toml")
    else:
        config = markup.folded("config.toml", markup.verbatim(run.config_text))
    blocks = [config]
    for title, tree in (
        ("Data", run.result.get("data")),
        ("Machine", run.machine),
        ("Versions", run.result.get("versions")),
    ):
        rows = _flat(tree)
        blocks.append(
            markup.folded(title, markup.table(["", ""], rows, words=(0, 1))) if rows
            else markup.absent(title)
        )
    return Section("settings", "Settings, machine, versions", markup.join(*blocks))


def _flat(tree: Any, prefix: str = "") -> list[list[str]]:
    """A tree as rows (dotted key, value)."""
    if not isinstance(tree, dict):
        return []
    rows: list[list[str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value,
            dict) and value else [[name, _plain(name, value)]]
    return rows


def _plain(name: str, value: Any) -> str:
    if number(value) is not None:
        if name.endswith("_bytes"):
            return numbers.size(value)
        return f"{value:,}" if isinstance(value, int) else numbers.significant(value, 4)
    if value is None or value is MISSING:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if sequence(value) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
