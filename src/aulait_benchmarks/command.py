"""``aulait bench``: measure this installation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.core.errors import ConfigError, did_you_mean
from aulait.core.files import JsonObject
from aulait.reporting import numbers as n
from aulait_benchmarks import (
    aggregate,
    cost,
    embed,
    growth,
    peers,
    plan_size,
    retrieve,
    scale,
    secagg,
    simulate,
    writing,
)
from aulait_benchmarks.edge import edge_command
from aulait_benchmarks.edge.edge_command import EdgeOptions

_NAMES = ("simulate: federated rounds against plain training of the same batches; aggregate: "
          "FlexLoRA's merge against a dense SVD; cost: the cost model against the clock; deploy: "
          "an exchange over Flower beside bare Flower; retrieve: votes over a million public "
          "texts; plan: a plan of 740,920 rows; secagg: a client's seconds and bytes of secure "
          "aggregation beside plain sums; scale: up to 100,000 clients; generate: the batched "
          "generator beside one text at a time; embed: the embedder beside its library alone; "
          "growth: time against clients, tokens, rank and candidates.")
REPETITIONS, CLIENTS = 5, 16
_EDGE = (
    "edge: a step in its parts, MFU, energy and granularity on this machine and on modelled ones."
)


def bench(  # noqa: PLR0913 (the options of a command)
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{_NAMES} {_EDGE}")],
    repetitions: Annotated[
        int | None,
        typer.Option("--repetitions", min=3,
            help=f"How often each takes its turn, {REPETITIONS}; medians are told. Not in "
            "deploy, retrieve, plan, secagg and scale."),
    ] = None,
    clients: Annotated[int | None,
        typer.Option("--clients", min=2,
                     help=f"simulate: sites that train together, {CLIENTS}.")] = None,
    quick: Annotated[bool,
        typer.Option("--quick",
                     help="Small layers or tiny models: seconds instead of minutes.")] = False,
    beside_peers: Annotated[bool, typer.Option("--peers",
        help="simulate: beside a loop with PEFT and Flower's simulation, for several models and "
             "batches.")] = False,
    out: edge_command.EdgeOutOption = None,
    family: edge_command.FamilyOption = None,
    model: edge_command.ModelOption = None,
    batches: edge_command.BatchesOption = None,
    lengths: edge_command.LengthsOption = None,
    minutes: edge_command.MinutesOption = None,
    watts: edge_command.WattsOption = None,
    joules_per_byte: edge_command.JoulesPerByteOption = None,
    servers: edge_command.ServersOption = True,
    as_json: JsonOption = False,
) -> None:
    """Measure this installation beside the straightforward way to the same result.

    simulate: what a federation in one process costs beside plain training of one adapter; a ratio
    of 1 is parity, below 1.15 is as it should be. With --peers the same work also goes through
    the loop that a user would write with PEFT, and (extra peers) through Flower's own simulation
    of that loop; ratios are how many times as fast aulait is. aggregate: how many times faster
    replies of unequal ranks are merged than by a dense SVD, how exact the singular values are,
    and what a thousand clients take in memory. edge: the figures of the "Very Edge" study,
    measured here where memory and time allow and modelled elsewhere; see docs/edge.md. cost:
    seconds that the closed-form cost model predicts for this machine against what the work then
    takes; a ratio of 1 is exact. deploy: seconds of an exchange with sites over Flower beside
    bare Flower with the same bytes, in turns, on this machine. retrieve: seconds and memory of
    two levels of votes of 100 clients over a million public texts whose vectors are made up.
    plan: seconds and memory of a plan of 740,920 rows. secagg: seconds and bytes of a client, and
    seconds of the server, for rounds of secure aggregation in which a tenth of the clients drop
    out. scale: ten rounds of a tiny model with 1,000, 10,000 and 100,000 registered clients of
    which 1,000 train in a round: seconds of set-up and of a round, memory. generate: new tokens a
    second of the generator of synthetic texts beside transformers' own generate for one text
    after the other. embed: texts a second of the embedder beside sentence-transformers alone.
    growth: seconds at several numbers of clients, tokens, ranks and candidates, with the exponent
    fitted to them beside the one that is expected.
    """
    with terminal.work(as_json):
        if name not in simulate.names():
            raise ConfigError(
                f"benchmark '{name}' is unknown; {did_you_mean(name, simulate.names())}")
        _unused(name, repetitions, clients, beside_peers)
        size = Size(quick, repetitions or REPETITIONS, clients or CLIENTS)
        if name == "edge":
            options = EdgeOptions(family, model, batches, lengths, minutes, watts,
                                  joules_per_byte, servers)
            asked = edge_command.scope(options, quick, size.repetitions)
            found = edge_command.measure(asked, out)
        elif beside_peers:
            found = _peers(model, batches, clients, size)
        else:
            found = _measured(name, size, out)
    if as_json:
        terminal.document(found)
    elif beside_peers:
        _show_peers(found)
    else:
        {"edge": edge_command.show, "aggregate": _show_aggregate, "cost": _show_cost,
         "deploy": _show_deploy, "retrieve": _show_retrieve,
         "plan": _show_plan, "secagg": _show_secagg,
         "scale": _show_scale, "generate": _show_generate, "embed": _show_embed,
         "growth": _show_growth}.get(name, _show)(found)


@dataclass(frozen=True)
class Size:
    """How much a benchmark does.

    Attributes:
        quick: small layers or tiny models.
        repetitions: how often each takes its turn.
        clients: of "simulate".
    """

    quick: bool
    repetitions: int
    clients: int


def _peers(model: str | None, batches: str | None, clients: int | None,
           size: Size) -> JsonObject:
    """The same work through aulait, a loop with PEFT and plain training."""
    rows = edge_command.numbers(batches, "--batches", "rows of a step, as 1,2,4,8") if (
        batches is not None) else ()
    asked = peers.scope(model, tuple(sorted({int(each) for each in rows})), clients,
                        size.repetitions, size.quick)
    return peers.compare(asked, terminal.note)


def _unused(name: str, repetitions: int | None, clients: int | None, beside_peers: bool) -> None:
    """Refuse what a benchmark would not heed."""
    if beside_peers and name != "simulate":
        raise ConfigError(
            f"found --peers with benchmark '{name}', expected it with 'simulate' alone; leave it "
            "out")
    if clients is not None and name != "simulate":
        raise ConfigError(
            f"found --clients with benchmark '{name}', expected it with 'simulate' alone; leave it "
            "out")
    if repetitions is not None and name in ("deploy", "retrieve", "plan", "secagg", "scale"):
        raise ConfigError(
            f"found --repetitions with benchmark '{name}', which has its own numbers of turns; "
            "leave it out, or take --quick")


def _measured(name: str, size: Size, out: Path | None) -> JsonObject:
    """What a benchmark found, all but "edge", which has options of its own."""
    if name == "aggregate":
        return aggregate.aggregate(aggregate.QUICK if size.quick else aggregate.FULL,
                                   size.repetitions)
    if name == "cost":
        return cost.predict(cost.QUICK if size.quick else cost.FULL, size.repetitions)
    if name == "retrieve":
        return retrieve.measure(retrieve.QUICK if size.quick else retrieve.FULL)
    if name == "plan":
        return plan_size.measure(plan_size.QUICK if size.quick else plan_size.FULL)
    if name == "secagg":
        return secagg.measure(secagg.QUICK if size.quick else secagg.FULL, terminal.note)
    if name == "scale":
        return scale.measure(scale.QUICK if size.quick else scale.FULL)
    if name == "generate":
        return writing.measure(writing.QUICK if size.quick else writing.full(),
                               size.repetitions, terminal.note)
    if name == "embed":
        return embed.measure(embed.QUICK if size.quick else embed.FULL, size.repetitions)
    if name == "growth":
        return growth.measure(growth.QUICK if size.quick else growth.FULL, size.repetitions,
                              terminal.note)
    if name == "deploy":
        from aulait_benchmarks import deploy  # needs the extra "flower", which is optional

        return deploy.measure(deploy.QUICK if size.quick else deploy.FULL, out)
    return simulate.simulate(clients=size.clients, repetitions=size.repetitions)


def _show(found: JsonObject) -> None:
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
    title = (
        f"{found['clients']} clients in one process on {where}, medians of {found['repetitions']}"
    )
    terminal.table(
        title, ("method", "tokens", "aulait tokens/s", "plain tokens/s", "ratio to plain"), rows,
        right=range(1, 5)
    )
    terminal.say(
        f"peak memory {n.size(found['peak_rss_bytes'])}, the base was loaded "
        f"{n.counted(found['base_loads'], 'time')}"
    )


def _show_peers(found: JsonObject) -> None:
    rows = [
        (f"{case['model']} {case['dtype']}", case["method"], case["targets"], str(case["batch"]),
         str(case["clients"]), n.count(case["tokens"]),
         *(_peer(case[f"{name}_tokens_per_s"], n.significant)
           for name in ("aulait", "loop", "flower", "floor")),
         *(_peer(case[f"ratio_to_{name}"], "{:.2f}".format)
           for name in ("loop", "flower", "floor")),
         _peer(case["search_share"], n.percent))
        for case in found["cases"]
    ]
    title = (
        f"tokens a second of {found['clock']} on {found['device']}, "
        f"{n.counted(found['threads'], 'thread')}, medians of {found['repetitions']} turns"
    )
    terminal.table(title, ("model", "method", "targets", "batch", "clients", "tokens", "aulait",
                           "PEFT loop", "Flower", "plain", "times the loop", "times Flower",
                           "times plain", "search beside"), rows, right=range(3, 14))
    flower = max((case["flower_peak_rss_bytes"] or 0 for case in found["cases"]), default=0)
    beside = f"; that of all processes of Flower's simulation {n.size(flower)}" if flower else ""
    terminal.say(f"peak memory {n.size(found['peak_rss_bytes'])}, two copies of the base{beside}")


def _peer(value: float | None, style: Callable[[float], str]) -> str:
    """A figure of one that may not have taken part."""
    return "none" if value is None else style(value)


def _show_aggregate(found: JsonObject) -> None:
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
    title = (
        f"merge of one layer on {n.counted(found['threads'], 'thread')}, medians of "
        f"{found['repetitions']}, dense once"
    )
    terminal.table(title, ("layer", "merge", "dense SVD", "times faster", "largest error"), rows,
                   right=range(1, 5))
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
    terminal.table("memory of a fresh process", ("layer", "peak", "above its start", "time"), peaks,
                   right=range(1, 4))
    for each in found["memory"]:
        many, few = n.count(each["many"]["clients"]), n.count(each["few"]["clients"])
        ratios = (
            f"{each['peak_ratio']:.2f} times the peak, {each['above_start_ratio']:.2f} times what "
            "is above the start"
        )
        terminal.say(f"rank {each['rank']}: {many} clients take {ratios} of {few} clients")


def _show_retrieve(found: JsonObject) -> None:
    rows = [(f"level {k}, {n.counted(level['candidates'], 'cell')}, {n.count(level['kept'])} kept",
             n.duration(level["seconds"]), n.duration(level["processor_s"]),
             n.size(level["down_bytes"]), n.size(level["up_bytes"]))
            for k, level in enumerate(found["levels"], 1)]
    title = (f"{n.count(found['texts'])} public texts, {n.counted(found['clients'], 'client')}, "
             f"{n.counted(found['threads'], 'thread')}")
    terminal.table(title, ("vote", "time", "processor time", "bytes down", "bytes up"), rows,
                   right=range(1, 5))
    terminal.say(f"clusters, made once: {n.duration(found['cluster_s'])}; 1,000 texts drawn in "
                 f"{n.duration(found['draw_s'])}; peak memory {n.size(found['peak_bytes'])} beside "
                 f"{n.size(found['vector_bytes'])} of vectors on disk")


def _show_plan(found: JsonObject) -> None:
    terminal.table(
        f"a plan of {n.count(found['rows'])} rows of {n.counted(found['clients'], 'client')}, "
        f"{n.size(found['file_bytes'])}, {n.counted(found['threads'], 'thread')}",
        ("the process", "time", "processor time", "peak memory"),
        [(name, n.duration(found[key]["seconds"]), n.duration(found[key]["processor_s"]),
          n.size(found[key]["peak_bytes"]))
         for name, key in (("up to a plan of 2,000 rows", "few"), ("up to this plan", "many"))],
        right=range(1, 4))
    terminal.say(f"a row takes {found['processor_us_row']:.0f} microseconds of processor time and "
                 f"{found['bytes_row']:.0f} bytes")


def _show_secagg(found: JsonObject) -> None:
    rows = [(n.count(case["clients"]), n.count(case["numbers"]), n.count(case["neighbours"]),
             n.count(case["survivors"]), n.duration(case["client_s"]), n.size(case["up_bytes"]),
             n.size(case["plain_up_bytes"]), n.size(case["down_bytes"]),
             n.duration(case["server_s"]), n.duration(case["plain_server_s"]))
            for case in found["cases"]]
    title = (f"one round of secure aggregation, {found['dropouts']:.0%} of the clients drop out, "
             f"processor time, {n.counted(found['threads'], 'thread')}")
    heads = ("clients", "numbers", "neighbours", "in the sum", "a client", "up", "up, plain",
             "down beside the model", "server", "server, plain")
    terminal.table(title, heads, rows, right=range(10))
    exact = all(case["error_steps"] == 0 for case in found["cases"])
    terminal.say(f"the sums {'are' if exact else 'are NOT'} the plain sums of what clients sent")


def _show_scale(found: JsonObject) -> None:
    rows = [(n.count(case["clients"]), n.count(case["cohort"]), n.duration(case["setup_s"]),
             n.duration(case["round_s"]), n.size(case["peak_bytes"]), n.size(case["round_bytes"]),
             n.size(case["ledger_bytes"])) for case in found["cases"]]
    terminal.table(f"registered clients on {n.counted(found['threads'], 'thread')}",
                   ("clients", "in a round", "set-up", "a round", "peak memory",
                    "line of rounds.jsonl", "line of the ledger"), rows, right=range(7))
    terminal.say(f"the most take {found['peak_ratio']:.2f} times the memory of the fewest: "
                 f"{n.size(found['bytes_per_client'])} a client")


def _show_generate(found: JsonObject) -> None:
    rows = [(f"{case['model']} {case['dtype']}", n.count(case["parents"] * case["children"]),
             n.count(case["parents"]), n.count(case["most_tokens"]),
             n.significant(case["aulait_tokens_per_s"]), n.significant(case["loop_tokens_per_s"]),
             f"{case['ratio_to_loop']:.2f}") for case in found["cases"]]
    terminal.table(f"new tokens a second on {n.counted(found['threads'], 'thread')}, medians of "
                   f"{found['repetitions']} turns",
                   ("model", "texts", "prompts", "most tokens", "aulait", "one text at a time",
                    "times the loop"), rows, right=range(1, 7))


def _show_embed(found: JsonObject) -> None:
    terminal.table(f"{n.counted(found['texts'], 'text')} of {n.count(found['words'])} words on "
                   f"{n.counted(found['threads'], 'thread')}, medians of {found['repetitions']}",
                   ("embedder", "texts a second"),
                   [("aulait", n.significant(found["aulait_texts_per_s"])),
                    ("sentence-transformers alone", n.significant(found["peer_texts_per_s"]))],
                   right=(1,))
    terminal.say(f"aulait is {found['ratio_to_peer']:.2f} times as fast; vectors differ by at "
                 f"most {found['error']:.1e}")


def _show_growth(found: JsonObject) -> None:
    for table in found["tables"]:
        terminal.table(f"{table['work']}, {found['clock']}", (table["name"], "time"),
                       [(n.count(row["size"]), n.duration(row["seconds"]))
                        for row in table["rows"]], right=(0, 1))
        terminal.say(f"time grows with the power {table['exponent']:.2f} of {table['name']}; "
                     f"expected {table['expected']:.2f}, as {table['why']}")


def _show_cost(found: JsonObject) -> None:
    rows = [
        (
            case["name"],
            n.duration(case["predicted_s"]),
            n.duration(case["measured_s"]),
            f"{case['ratio']:.2f}",
            *(f"{case[term] / case['predicted_s']:.0%}"
              for term in ("flop_s", "moved_s", "operation_s")),
        )
        for case in found["cases"]
    ]
    machine = found["machine"]
    title = (f"cost model on {machine['name']}, {n.counted(found['threads'], 'thread')}, "
             f"{found['clock']}: {machine['flop_per_s'] / 1e9:.3g} GFLOP/s, "
             f"{n.size(machine['memory_bytes_per_s'])}/s, {1e6 * machine['operation_s']:.3g} us an "
             "operation")
    terminal.table(title, ("work", "predicted", "measured", "ratio", "arithmetic", "traffic",
                           "operations"), rows, right=range(1, 7))
    terminal.say(f"{found['within']:.0%} of the ratios within 0.75 to 1.25")


def _show_deploy(found: JsonObject) -> None:
    rows = [
        (
            n.size(found[size]["bytes"]),
            *(n.duration(found[size][key]) for key in ("aulait_s", "bare_s", "after_poll_s",
                "bare_after_poll_s", "work_s")),
            f"{found[size]['overhead_s']:+.2f} s",
        )
        for size in ("small", "large")
    ]
    title = (
        f"an exchange of {n.counted(found['sites'], 'site')} over Flower {found['flower']}, "
        "medians; each site's node asks every 3 s"
    )
    heads = ("each way", "aulait", "bare Flower", "once asked for", "bare, once asked for",
             "site's work", "overhead")
    terminal.table(title, heads, rows, right=range(7))
    loading, moved = found["loading"], found["bytes"]
    loads = ", ".join(f"{name} {count}" for name, count in found["base_loads"].items())
    terminal.say(
        f"base loads: {loads}; a process that loads it takes "
        f"{n.duration(loading['import_s'] + loading['load_s'])}, so "
        f"{n.duration(loading['saved_s'])} saved in {n.counted(loading['messages'], 'message')}")
    same = all(moved[size][way] == moved[size][f"formula_{way}"] for size in ("small", "large")
               for way in ("down", "up"))
    more = " and ".join(f"{moved[f'flower_{way}'] / moved[f'bodies_{way}'] - 1:.2%} more {way}"
                        for way in ("down", "up"))
    terminal.say(
        f"bytes of tensors {'are' if same else 'are NOT'} those of the method's formula; Flower "
        f"moved {more}")
