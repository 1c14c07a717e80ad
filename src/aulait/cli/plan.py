"""``aulait plan``: what a run would ask of whom, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from aulait.cli import terminal
from aulait.cli.ending import epsilon_in_words
from aulait.cli.malformed import malformed
from aulait.cli.options import FileArgument, JsonOption, SetOption
from aulait.cli.terminal import Document
from aulait.core.types import Profile
from aulait.reporting import numbers as n
from aulait.reporting import promise, story
from aulait.resources.devices import give_memory_back, keep_freed_memory, measure_device
from aulait.runs import experiment_file, setup
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.virtual_time.forecast import forecast, rough_seconds

QUICKLY_S = 1.0  # of measuring this machine where nobody asked for it
WORK = ("rank", "steps", "batch")
FORMATS = {"text": "texts", "pairs": "pairs of a prompt and its response",
           "chat": "conversations"}
FORMS = {"text": ", between the special tokens that the tokenizer sets",
         "chat template": ", in the model's own chat template", "plain": ", written plainly"}
BYTES = (
    "vote_down_bytes_round",
    "vote_up_bytes_round",
    "train_down_bytes_round",
    "train_up_bytes_round",
    "down_bytes_run",
    "up_bytes_run",
)


def plan(
    file: FileArgument,
    overrides: SetOption = None,
    here: Annotated[bool | None,
        typer.Option("--here/--not-here",
                     help="Measure this machine and say by the records what the run takes on it. "
                          "Default: a rough estimate, and none with --json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """See whether a run will learn and what it costs; then placement, work, bytes, FLOPs, seconds,
    memory, joules and epsilon of every tier, and why. Nothing is trained.

    Bytes of training are exact where everybody answers; those of votes are an upper bound (a
    candidate that fails is not sent). FLOPs, seconds, memory and joules follow from the cost model
    (aulait bench cost sets it against the clock).
    """
    with terminal.work(as_json):
        settings = experiment_file.read_settings(file, overrides or [])
        cache = SharedCache()
        setup.check_base(settings, cache)  # before seconds of measuring
        machine = _machine(here, as_json)
        run = setup.prepare(settings, cache)
        malformed(run.federation.corpus.malformed)
        found = summarise_plan(run)
        if machine is not None:
            found |= ({"here": forecast(run, machine)} if here
                      else {"roughly_s": rough_seconds(run, machine)})
            found["advice"]["hints"] += _beyond_memory(found, machine)
    if as_json:
        terminal.document(found)
    else:
        _print(found)


def _machine(here: bool | None, as_json: bool) -> Profile | None:
    """This machine, measured with care or quickly; None where nobody asks how fast it is.

    Before the base and the data are read, so that the memory it takes is given back before theirs
    is needed.
    """
    if here is False or (here is None and as_json):
        return None
    keep_freed_memory()  # as a run does
    try:
        return measure_device() if here else measure_device(budget_s=QUICKLY_S)
    finally:
        give_memory_back()


def _beyond_memory(found: Document, machine: Profile) -> list[dict[str, str]]:
    """A hint where a step of one client is more than this machine's memory holds: a run here would
    not come through its first round."""
    steps = [tier for tier in found["tiers"] if tier["steps"] and tier["memory_bytes"]]
    largest = max(steps, key=lambda tier: tier["memory_bytes"], default=None)
    if (largest is None or machine.memory_bytes is None
            or largest["memory_bytes"] <= machine.memory_bytes):
        return []
    return [{"topic": "memory", "text": (
        f"a step of a client of tier '{largest['name']}' takes {n.size(largest['memory_bytes'])} "
        f"and {n.size(machine.memory_bytes)} are free here: a run on this machine ends for want of "
        "memory; lower adapter.rank, model.context or train.batch")}]


def _turns(stages: list[Document]) -> str:
    """The order of the stages with their rounds, where it is not synthesis before training."""
    if [stage["stage"] for stage in stages] == ["synthesis", "train"]:
        return ""
    return " by turns: " + ", ".join(f"{s['stage']} {s['rounds']}" for s in stages)


def _print(found: Document) -> None:
    _print_advice(found)
    rounds, millions = found["rounds"], found["parameters"] / 1e6
    terminal.table(
        f"{found['name']}: {found['algorithm']} on {found['model']} ({millions:,.1f} M "
        f"parameters), {n.counted(found['clients'], 'client')}, {rounds['synthesis']} + "
        f"{rounds['train']} rounds{_turns(found['stages'])}",
        ("tier", "clients", "placement", "why", "rank", "steps", "batch", "trainable"),
        [
            (t["name"], t["clients"], t["placement"], t["why"], *(t[k] or "" for k in WORK),
             n.count(t["trainable"]))
            for t in found["tiers"]
        ],
        right=(1, 4, 5, 6, 7),
    )
    terminal.say()
    _print_privacy(found)
    terminal.table(
        "bytes: of a client in a round, and of all clients in the whole run",
        ("tier", "vote down", "vote up", "training down", "training up", "run down", "run up"),
        [(t["name"], *(_size(t[key]) for key in BYTES)) for t in found["tiers"]],
        right=range(1, 7),
    )
    terminal.say()
    terminal.table(
        "FLOPs, estimated, at most: of a client (or the server) in a training round; embedding, "
        "once in a run",
        ("tier", "training round", "embedding"),
        _flop(found),
        right=(1, 2),
    )
    terminal.say()
    _print_machines(found)
    _print_schedule(found["schedule"])
    _print_workers(found["workers"])
    _print_adapter(found["adapter"], found["parameters"])
    if found["data"]["read_as"]:
        terminal.fact("data", found["data"]["read_as"])
    _print_records(found["records"])


def _print_advice(found: Document) -> None:
    """Whether it will learn, what it costs, and what would change that."""
    advice = found["advice"]
    terminal.paragraph(f"{advice['verdict']} {_cost(found)}", bold=True)
    for hint in advice["hints"]:
        terminal.fact(hint["topic"], hint["text"])
    terminal.say()


def _cost(found: Document) -> str:
    """Time and bytes of the whole run in a sentence."""
    total = found["total"]
    sent = f"{_size(total['up_bytes'])} go up and {_size(total['down_bytes'])} down in all"
    seconds = found.get("roughly_s")
    if here := found.get("here"):
        seconds = sum(here[key] for key in ("synthesis_s", "train_s", "evaluate_s"))
    if seconds is None:
        return f"{sent[:1].upper()}{sent[1:]}."
    return f"It takes roughly {_roughly(seconds)} on this machine; {sent}."


def _roughly(time_s: float) -> str:
    """A time with as many digits as an estimate has."""
    if time_s < 90:
        return f"{max(5, 5 * round(time_s / 5))} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"


def _print_adapter(adapter: Document, parameters: int) -> None:
    """The adapted layers by name and number, and what of the base the adapter leaves alone."""
    more = ", rslora" if adapter["scaling"] == "rslora" else ""
    more += f", dropout {adapter['dropout']:g}" if adapter["dropout"] else ""
    terminal.fact("adapter", f"rank {adapter['rank']}, alpha {adapter['alpha']:g}{more}, on "
                  f"{n.counted(adapter['layers'], 'linear layer')}: {_modules(adapter)}")
    for left in adapter["skipped"]:
        terminal.fact("not adapted", f"{_modules(left)}: {left['why']}")
    if routed := adapter["routed_expert_parameters"]:
        terminal.fact("not adapted", f"the routed experts: {n.count(routed)} of "
                      f"{n.count(parameters)} parameters stay as they are")
    if rate := adapter["base_dropout"]:
        terminal.fact("dropout", f"that of the base (up to {rate:g}) is off in training")


def _modules(layers: Document) -> str:
    """How many layers of every name."""
    return ", ".join(f"{count} {name}" for name, count in layers["modules"].items())


def _print_records(records: Document) -> None:
    """The form of the records, with a made-up one in it."""
    terminal.fact("records", f"{FORMATS[records['format']]}{FORMS[records['form']]}. A made-up "
                  "one; what is learnt stands in « »:")
    rest, shown = records["example"], ""
    for part in records["learnt"]:
        before, found, rest = rest.partition(part)
        shown += f"{before}«{found}»"
    for line in (shown + rest).splitlines():
        terminal.paragraph(line, indent="  ")


def _print_schedule(schedule: Document | None) -> None:
    """How clients that work at their own pace fill the buffers of the run."""
    if schedule is None:
        return
    terminal.fact(
        "schedule", f"asynchronous: {n.counted(schedule['at_work'], 'client')} at work, "
        f"{n.counted(schedule['buffer'], 'update')} fill a buffer; "
        f"{n.counted(schedule['buffers'], 'buffer')} take {n.duration(schedule['virtual_s'])} of "
        f"virtual time. Updates begin {schedule['staleness']:.1f} buffers before on average, "
        f"{schedule['stalest']} at most; no client gives more than {schedule['contributions']}")


def _print_workers(workers: Document) -> None:
    """The processes that train, where there are several."""
    if workers["count"] == 1 and not workers["ray"]:
        return
    threads = f" of {n.counted(workers['threads'], 'thread')}" if workers["threads"] else ""
    where = " on the Ray cluster, beside the base of this process" if workers["ray"] else ""
    terminal.fact(
        "workers", f"{n.counted(workers['count'], 'worker')}{threads}{where}: the "
        f"base takes {n.size(workers['base_bytes'])} in each, "
        f"{n.size(workers['bases_bytes'])} in all")


def _print_machines(found: Document) -> None:
    """What a round takes on the tiers' machines, where they are named; and the simulation on this
    one, where it is known."""
    tiers = [t for t in found["tiers"] if t["machine"] is not None]
    if tiers:
        terminal.table(
            "a client's round on its tier's machine, modelled; of votes for proxied clients "
            f"(server: {found['server']['machine']})",
            ("tier", "machine", "compute", "link", "memory", "energy"),
            [(t["name"], story.machine_name(t["machine"]),
              *(_or_unknown(t[key], n.duration) for key in ("compute_s_round", "transfer_s_round")),
              _memory(t), _or_unknown(t["energy_j_round"], n.energy)) for t in tiers],
            right=(2, 3, 4, 5),
        )
        terminal.say()
    here = found.get("here")
    if here:
        parts = (("synthesis", "synthesis_s"), ("training", "train_s"),
                 ("evaluation", "evaluate_s"))
        known = [(name, here[key]) for name, key in parts if here.get(key) is not None]
        whole = n.duration(sum(seconds for _, seconds in known))
        peak = (
            f"; peak memory {n.size(here['peak_bytes'])}" if here.get("peak_bytes") is not None
            else ""
        )
        terminal.fact(
            "here",
            f"{whole}: {', '.join(f'{name} {n.duration(seconds)}' for name, seconds in known)}"
            f"{peak}")
        terminal.say()


def _memory(tier: Document) -> str:
    """Bytes at the client, and of how many."""
    need, whole = tier["memory_bytes"], tier["machine_memory_bytes"]
    return (
        "not known" if need is None else n.size(need) if whole is None
        else f"{n.size(need)} of {n.size(whole)}"
    )


def _or_unknown(value: float | None, style: Callable[[float], str]) -> str:
    return "not known" if value is None else style(value)


def _flop(found: Document) -> list[tuple[str, str, str]]:
    rows = [(t["name"], _work(t["flop_round_estimate"]), _work(t["flop_vote_estimate"]))
            for t in found["tiers"]]
    server = found["server"]
    if server["proxies"]:
        name = "1 proxy" if server["proxies"] == 1 else f"{server['proxies']} proxies"
        rows.append((f"server ({name})", _work(server["flop_round_estimate"]),
                     "none"))
    return rows


def _work(flop: float | None) -> str:
    return "not known" if flop is None else f"{n.significant(flop / 1e9)} GFLOP" if flop else "none"


def _size(size_bytes: float | None) -> str:
    return "not known" if size_bytes is None else n.size(size_bytes) if size_bytes else "none"


def _protected(privacy: Document) -> str:
    """What one unit is, and how many there are."""
    found, field = privacy["units"], privacy["unit_field"]
    told = promise.unit_in_words(privacy["unit"], field)
    if privacy["unit"] == "client":
        return f"{told}; {n.counted(found['total'], 'client')}"
    noun = "unit" if field else "record"
    return (f"{told}; {n.counted(found['total'], noun)}, {n.count(found['least'])} to "
            f"{n.count(found['most'])} a client")


def _print_privacy(found: Document) -> None:
    privacy = found["privacy"]
    if privacy["off"]:
        terminal.fact("privacy", "off: epsilon is infinite")
        terminal.say()
        return
    terminal.fact("protected", _protected(privacy))
    if limits := promise.limits_in_words(privacy["unit"], privacy["unit_field"]):
        terminal.paragraph(limits)
    terminal.say()
    terminal.table(
        "epsilon of a client after the whole run",
        ("role", "epsilon"),
        [(role, epsilon_in_words(value)) for role, value in privacy["epsilon"].items()],
        right=(1,),
    )
    terminal.say()
    adaptive = privacy["adaptive_clip"]
    unknown = "noise multiplier × " + (
        "bound of an update with its answer" if adaptive else "median norm of the proxies' updates")
    rows = [
        (
            r["stage"],
            r["releases"],
            n.significant(r["noise_multiplier"], 4),
            unknown if r["sigma"] is None else n.significant(r["sigma"], 4),
        )
        for r in found["releases"]
    ]
    terminal.table(
        f"releases (delta {privacy['delta']:g}, {privacy['relation']})",
        ("stage", "releases", "noise multiplier", "sigma"),
        rows,
        right=(1, 2),
    )
    terminal.say()
    if adaptive:
        terminal.fact("clip bound", adaptive["in_words"])
        terminal.say()
