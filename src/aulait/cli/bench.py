"""``aulait bench``: measure this installation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aulait.cli import terminal
from aulait.cli.run import Json
from aulait.errors import ConfigError

NAMES = "simulate: federated rounds against plain training of the same batches; aggregate: FlexLoRA's merge against a dense SVD."


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAMES)],
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=3, help="How often each takes its turn; medians are told.")
    ] = 5,
    clients: Annotated[int, typer.Option("--clients", min=2, help="Sites that train together, in simulate.")] = 16,
    quick: Annotated[bool, typer.Option("--quick", help="Small layers in aggregate: seconds instead of minutes.")] = False,
    as_json: Json = False,
) -> None:
    """Measure this installation beside the straightforward way to the same result.

    simulate: what a federation in one process costs beside plain training of one adapter; a ratio of 1 is parity, below
    1.15 is as it should be. aggregate: how many times faster replies of unequal ranks are merged than by a dense SVD, how
    exact the singular values are, and what a thousand clients take in memory.
    """
    with terminal.work(as_json):
        from aulait import bench as benchmarks
        from aulait import bench_aggregate
        from aulait.registry import nearest

        if name not in benchmarks.names():
            raise ConfigError(f"benchmark '{name}' is unknown; {nearest(name, benchmarks.names())}")
        if name == "aggregate":
            sizes = bench_aggregate.QUICK if quick else bench_aggregate.FULL
            found = bench_aggregate.aggregate(sizes, repetitions)
        else:
            found = benchmarks.simulate(clients=clients, repetitions=repetitions)
    if as_json:
        terminal.document(found)
    elif name == "aggregate":
        _show_aggregate(found)
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


def _show_aggregate(found: dict[str, Any]) -> None:
    from aulait.report import numbers as n

    rows = [
        (
            case["name"],
            n.duration(case["merge_s"]),
            n.duration(case["dense_s"]),
            n.significant(case["ratio_to_dense"]),
            n.power(case["error_to_float64"]),
        )
        for case in found["cases"]
    ]
    title = f"merge of one layer on {n.counted(found['threads'], 'thread')}, medians of {found['repetitions']}, dense once"
    terminal.table(title, ("layer", "merge", "dense SVD", "times faster", "largest error"), rows, right=range(1, 5))
    peaks = [
        (
            f"{each['m']}x{each['n']}, rank {each['rank']}, {n.count(some['clients'])} clients",
            n.size(some["peak_bytes"]),
            n.size(some["above_start_bytes"]),
            n.duration(some["merge_s"]),
        )
        for each in found["memory"]
        for some in (each["few"], each["many"])
    ]
    terminal.table("memory of a fresh process", ("layer", "peak", "above its start", "time"), peaks, right=range(1, 4))
    for each in found["memory"]:
        many, few = n.count(each["many"]["clients"]), n.count(each["few"]["clients"])
        ratios = f"{each['peak_ratio']:.2f} times the peak, {each['above_start_ratio']:.2f} times what is above the start"
        terminal.say(f"rank {each['rank']}: {many} clients take {ratios} of {few} clients")
