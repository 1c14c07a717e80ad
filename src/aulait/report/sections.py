"""The sections about the work: who did it where, what it brought, what it took, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aulait.report import figures, markup, numbers, story
from aulait.report.folder import MISSING, Run, Table, at, number, sequence, total, words
from aulait.report.markup import Html, Section

PLACES = {"local": "on its own machine", "split": "front at the site, rest on the server", "proxy": "on the server"}
STAGES = (("synthesis", "1 · synthesis", "synthesis_s"), ("train", "2 · training", "train_s"))


def tiers(run: Run) -> Section:
    """The tiers, their placement and the share of clients with each placement."""
    rows = story.tier_rows(run)
    if not rows:
        return Section("tiers", "Who did what, and where", markup.absent("Tiers and placements"))
    head = ["tier", "placement", "clients", "rank", "steps", "batch", "reason"]
    body = markup.join(_bar(story.placements(run)), markup.table(head, rows, words=(0, 1, 6)))
    return Section("tiers", "Who did what, and where", body)


def _bar(shares: dict[str, float]) -> Html:
    everyone = sum(shares.values())
    if not everyone:
        return Html("")
    pieces = "".join(
        f'<span class="{place}" style="flex-grow:{clients:g}"></span>' for place, clients in shares.items()
    )
    keys = "".join(
        f'<li><i class="{place}"></i><b>{place}</b> {PLACES[place]}: {numbers.counted(clients, "client")}'
        f" ({numbers.percent(clients / everyone, 0)})</li>"
        for place, clients in shares.items()
    )
    return Html(f'<div class="bar" aria-hidden="true">{pieces}</div><ul class="keys">{keys}</ul>')


def learning(run: Run) -> Section:
    """Held-out loss and token accuracy by round, and the rounds one by one."""
    parts, charts = [], {}
    lines = run.stage("train")
    measures = (
        ("loss", "Loss on held-out text, nats per token", False),
        ("token_accuracy", "Tokens guessed right", True),
    )
    for key, title, percent in measures:
        points = _points(lines, key)
        if points:
            first = number(at(run.result, "base_eval", key))
            charts[f"curve-{key}"] = figures.curve(points, first, percent)
            parts.append(markup.chart(f"curve-{key}", title))
    warning = (
        "Both are measured by the simulation on held-out text of all clients, outside the door and without noise. "
    )
    warning += "In a deployment nobody holds that text together, and these figures are not released."
    shown = markup.join(markup.columns(*parts), markup.note(warning)) if parts else markup.absent("Evaluation by round")
    rounds = markup.folded("Round by round", _rounds(lines)) if lines else markup.absent("Training rounds")
    return Section("learning", "What the model learnt", markup.join(shown, rounds), charts)


def _points(lines: Iterable[Table], key: str) -> list[tuple[float, float]]:
    found = [(number(line.get("round")), number(at(line, "eval", key))) for line in lines]
    return [(r, value) for r, value in found if r is not None and value is not None]


def _rounds(lines: Iterable[Table]) -> Html:
    head = ["round", "at sites", "proxies", "clip bound", "noise std", "signal / noise", "update norm", "train loss"]
    keys = ("clip_bound", "noise_std", "signal_to_noise", "update_norm", "train_loss")
    rows = []
    for line in lines:
        who = [numbers.count(line.get(key)) for key in ("round", "local_clients", "proxies")]
        measured = [_or_dash(line.get(key), numbers.significant) for key in keys]
        held = [
            _or_dash(at(line, "eval", "loss"), numbers.loss),
            _or_dash(at(line, "eval", "token_accuracy"), numbers.percent),
        ]
        rows.append([*who, *measured, *held, numbers.duration(line.get("wall_s"))])
    return markup.table([*head, "held-out loss", "accuracy", "time"], rows, words=())


def _or_dash(value: Any, style: Any) -> str:
    return "–" if number(value) is None else str(style(value))


def cost(run: Run) -> Section:
    """Bytes and seconds by stage, and what a client of stage 1 has to carry."""
    rows, charts, parts = [], {}, []
    for stage, name, clock in STAGES:
        lines = run.stage(stage)
        if lines:
            up, down = (total(line.get(key) for line in lines) for key in ("up_bytes", "down_bytes"))
            seconds = number(at(run.result, "time", clock))
            seconds = total(line.get("wall_s") for line in lines) if seconds is None else seconds
            rows.append(
                [name, numbers.count(len(lines)), numbers.size(up), numbers.size(down), numbers.duration(seconds)]
            )
    traffic, wall = run.result.get("traffic"), at(run.result, "time", "wall_s")
    whole = [numbers.size(at(traffic, "up_bytes")), numbers.size(at(traffic, "down_bytes")), numbers.duration(wall)]
    rows.append(["whole run", "", *whole])
    if run.rounds:
        charts = {"bytes": _bytes_chart(run), "seconds": _seconds_chart(run)}
        bars = (markup.chart("bytes", "Bytes on the wire by round, all clients together", 260),)
        parts.append(markup.columns(*bars, markup.chart("seconds", "Seconds by round", 260)))
    head = ["stage", "rounds", "up to the server", "down to the sites", "time"]
    remark = "The whole run also counts the first evaluation, loading and saving; its bytes are those of all rounds."
    body = markup.join(markup.table(head, rows), markup.note(remark), *parts, _client_cost(run))
    return Section("cost", "What it took", body, charts)


def _axes(run: Run) -> tuple[list[Table], list[str], list[str]]:
    lines = [line for stage, *_ in STAGES for line in run.stage(stage)]
    names = {"synthesis": "synthesis", "train": "training"}
    return lines, [names[line["stage"]] for line in lines], [figures.label(line.get("round", "?"), 8) for line in lines]


def _bytes_chart(run: Run) -> figures.Figure:
    lines, stages, rounds = _axes(run)
    both = {"up": "up_bytes", "down": "down_bytes"}
    values = {name: [number(line.get(key)) for line in lines] for name, key in both.items()}
    largest = max((value for series in values.values() for value in series if value is not None), default=0.0)
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= s), ("B", 1.0))
    scaled = {name: [None if v is None else v / scale for v in series] for name, series in values.items()}
    return figures.stacks(stages, rounds, scaled, unit)


def _seconds_chart(run: Run) -> figures.Figure:
    lines, stages, rounds = _axes(run)
    return figures.stacks(stages, rounds, {"seconds": [number(line.get("wall_s")) for line in lines]}, "s")


def _client_cost(run: Run) -> Html:
    facts = run.result.get("synthesis")
    heading = markup.subtitle("What stage 1 asks of one client")
    if not isinstance(facts, dict):
        return markup.join(heading, markup.absent("Stage 1")) if "proxy" in story.placements(run) else Html("")
    rows = []
    for name, key in (("down, each round", "down"), ("up, each round", "up")):
        measured = numbers.size(facts.get(f"client_{key}_bytes_per_round"))
        rows.append([name, measured, words(facts.get(f"{key}_formula")) or numbers.NOT_RECORDED])
    rows.append(["computing, each round", numbers.duration(facts.get("client_s_mean")), "embed once, then compare"])
    offered = number(facts.get("candidates"))
    legend = markup.note(f"J is the number of candidates, here {numbers.count(offered)}.") if offered else Html("")
    return markup.join(heading, markup.table(["", "measured", "formula"], rows, words=(0, 2)), legend)


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
            markup.folded(title, markup.table(["", ""], rows, words=(0, 1))) if rows else markup.absent(title)
        )
    return Section("settings", "Settings, machine, versions", markup.join(*blocks))


def _flat(tree: Any, prefix: str = "") -> list[list[str]]:
    """A tree as rows (dotted key, value)."""
    if not isinstance(tree, dict):
        return []
    rows: list[list[str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) and value else [[name, _plain(name, value)]]
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
