"""``aulait bench``: measure this installation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aulait.cli import terminal
from aulait.cli.run import Json
from aulait.errors import ConfigError


def bench(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="simulate: federated rounds against plain training of the same batches."),
    ],
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=3, help="How often both take turns; medians are told.")
    ] = 5,
    clients: Annotated[int, typer.Option("--clients", min=2, help="Sites that train together.")] = 16,
    as_json: Json = False,
) -> None:
    """Measure what a federation in one process costs beside plain training of one adapter.

    A ratio of 1 is parity; below 1.15 is as it should be.
    """
    with terminal.work(as_json):
        from aulait import bench as benchmarks
        from aulait.registry import nearest

        if name not in benchmarks.names():
            raise ConfigError(f"benchmark '{name}' is unknown; {nearest(name, benchmarks.names())}")
        found = benchmarks.simulate(clients=clients, repetitions=repetitions)
    if as_json:
        terminal.document(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from aulait.report import numbers as n

    rows = [
        (
            method,
            n.count(m["tokens"]),
            n.significant(m["aulait_tokens_per_s"]),
            n.significant(m["floor_tokens_per_s"]),
            f"{m['ratio_to_floor']:.3f}",
        )
        for method, m in found["methods"].items()
    ]
    where = f"{found['device']}, {n.counted(found['threads'], 'thread')}"
    title = f"{found['clients']} clients in one process on {where}, medians of {found['repetitions']}"
    terminal.table(
        title, ("method", "tokens", "aulait tokens/s", "plain tokens/s", "ratio to plain"), rows, right=range(1, 5)
    )
    terminal.say(
        f"peak memory {n.size(found['peak_rss_bytes'])}, the base was loaded {n.counted(found['base_loads'], 'time')}"
    )
