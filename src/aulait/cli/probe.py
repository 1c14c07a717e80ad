"""``aulait probe``: what this machine can do, measured, and what work of a federation it could
carry."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from aulait.cli import terminal
from aulait.cli.options import JsonOption
from aulait.cli.terminal import Document
from aulait.core.errors import ConfigError, did_you_mean
from aulait.core.types import Profile
from aulait.reporting import numbers as n
from aulait.resources import capacity, devices, energy, profiles
from aulait.resources.capacity import SHAPES, Task, precision
from aulait.resources.links import measure_link, serve_echo
from aulait.resources.meters import Meter
from aulait.resources.profiles import PRECISIONS, PRESETS, dump_profile

DEVICES = ("cpu", "cuda", "mps")
LOAD_S = 1.0
"""Seconds under full load, and at rest, in which power is measured where there is a counter."""

ProfileOption = Annotated[Path | None, typer.Option("--out", metavar="FILE.json",
    help="Save the profile; a tier names it as machine = 'FILE.json'. "
                "Its folder is made, for you alone, where it is missing.")]
LinkOption = Annotated[str | None, typer.Option("--link", metavar="URL",
    help="Measure the link to an echo server, as http://server:8123.")]
EchoOption = Annotated[str | None, typer.Option("--echo", metavar="[HOST:]PORT",
    help="Be that echo server until interrupted; nothing is "
                 "measured. HOST defaults to 127.0.0.1; it asks for no password, so run it only "
                 "while sites measure.")]
DtypeOption = Annotated[str | None,
    typer.Option("--dtype",
                 help="Precisions to measure, separated by commas: float32, bfloat16, float16. "
                                           "Left out: float32, and bfloat16 on a GPU.")]
SecondsOption = Annotated[float,
    typer.Option("--seconds", min=0.2, help="About how long the machine is measured.")]
PowerOption = Annotated[float | None, typer.Option("--power", min=0.1, metavar="W",
    help="Power under load, as a plug meter shows it; goes "
                                             "before what counters say.")]


def probe(  # noqa: PLR0913 (the options of a command)
    link: LinkOption = None,
    out: ProfileOption = None,
    dtype: DtypeOption = None,
    device: Annotated[str | None,
        typer.Option("--device",
                     help="cpu, cuda or mps; the fastest there is if left out.")] = None,
    seconds: SecondsOption = 3.0,
    power: PowerOption = None,
    echo: EchoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: speed, memory, link, energy counters, and what work it could carry.

    Run it while nothing else runs: it measures what is left for it.

    Example: aulait probe --link http://server:8123 --out site.json
    """
    if echo is not None:
        _serve(echo)
        return
    if device not in (None, *DEVICES):
        raise ConfigError(
            f"found --device {device}, expected one of {', '.join(DEVICES)}; leave it out for the "
            "fastest there is")
    with terminal.work(as_json):
        if out is not None:
            _folder(out.parent)
        terminal.note(f"measuring for about {seconds + 5:.0f} s{_busy()}")
        found = _measured(_precisions(dtype, device), device, seconds, link, power)
    if out is not None:
        out.write_text(dump_profile(found["machine"]), encoding="utf-8")
    if as_json:
        terminal.document({"profile": asdict(found.pop("machine")), **found, "saved": out})
    else:
        _print(found, out)


def _folder(path: Path) -> None:
    """Make a missing folder with mode 0700, which a site's state must have; not those above it."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"found no folder {path.parent} for --out, expected an existing one; make it first"
        ) from error
    except FileExistsError as error:
        raise ConfigError(
            f"--out: {path} is no folder, expected one; choose another --out") from error


def _precisions(text: str | None, device: str | None) -> tuple[str, ...]:
    """The precisions of --dtype, each once."""

    if text is None:
        gpu = device == "cuda" or (device is None and torch.cuda.is_available())
        return ("float32", "bfloat16") if gpu else ("float32",)
    kinds = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for kind in kinds:
        if kind not in PRECISIONS:
            raise ConfigError(
                f"precision '{kind}' of --dtype is unknown; {did_you_mean(kind, PRECISIONS)}")
    if not kinds:
        raise ConfigError(
            f"--dtype is empty, expected some of {', '.join(PRECISIONS)}; or leave it out")
    return kinds


def _measured(kinds: tuple[str, ...], device: str | None, seconds: float, link: str | None,
              power_w: float | None) -> Document:
    """Everything this command finds out, under the keys of its JSON document; ``machine`` is the
    profile itself."""
    # first: it fails at once where nobody answers
    wire = None if link is None else measure_link(link)
    machine = devices.measure_device(dtypes=kinds, device=device, budget_s=seconds)
    if wire is not None:
        machine = replace(machine, up_bytes_per_s=wire[0], down_bytes_per_s=wire[1],
                          latency_s=wire[2])
    counters = energy.counters()
    told = None
    if counters.found:
        machine, told = _powered(machine)
    if power_w is not None:
        machine, told = replace(machine, power_w=power_w), "given by --power"
    near = profiles.like(machine)
    return {
        "machine": machine,
        "link": link,
        "energy": {"counters": list(counters.found), "note": counters.note, "power_source": told},
        "nearest": None if near is None else near.name,
        "precision": precision(machine) if machine.flop_per_s else None,
        "carries": _carried(machine),
    }


def _carried(machine: Profile) -> list[Document]:
    """For each common size: parameters, and memory, seconds and fit of every placement; empty where
    no speed fits."""
    found = []
    for name, shape in capacity.SHAPES.items():
        shares = capacity.shares(machine, shape)
        best = next((share.placement for share in shares if share.fits is not False), None)
        parameters = capacity.model_shape(shape, "float32").parameters
        each: Document = {
            share.placement: {"memory_bytes": share.memory_bytes, "fits": share.fits,
                              "seconds": share.seconds} for share in shares}
        found.append({"base": name, "like": shape.like, "parameters": parameters, "best": best,
                      **each})
    return found


def _busy() -> str:
    """A clause that says how busy the machine is before anything is measured; empty where it is
    not, or does not tell."""
    try:
        waiting, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (OSError, AttributeError):
        return ""
    if waiting < cores / 4:
        return ""
    return (
        f"; others are at work (load {waiting:.1f} on {cores} processors) and this tells what they "
        "leave: measure again when they rest"
    )


def _powered(machine: Profile) -> tuple[Profile, str | None]:
    """The profile with the power that the counters show under a large matrix product, and at
    rest."""

    full = torch.randn(2048, 2048, device=machine.device)
    with Meter() as resting:
        time.sleep(LOAD_S)
    end = time.perf_counter() + LOAD_S
    with Meter() as working:
        while time.perf_counter() < end:
            float((full @ full)[0, 0])  # a number of the result: a GPU must have come so far
    load, rest = working.reading, resting.reading
    if load.energy_j is None or rest.energy_j is None:
        return machine, None
    return replace(machine, power_w=load.energy_j / load.wall_s,
                   idle_w=rest.energy_j / rest.wall_s), load.energy_source


def _serve(address: str) -> None:
    """Be the other end of --link until Ctrl-C."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(
            f"found --echo {address}, expected PORT or HOST:PORT; for example --echo 0.0.0.0:8123")
    with serve_echo(int(port), host.strip("[]") or "127.0.0.1") as url:
        terminal.note(
            f"echo server at {url}; on a site: aulait probe --link "
            f"http://THIS-MACHINE:{url.rpartition(':')[2]}; Ctrl-C ends it")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            terminal.note("echo server ended")


def _print(found: Document, out: Path | None) -> None:
    machine, energy, near = found["machine"], found["energy"], found["nearest"]
    traffic = machine.memory_bytes_per_s
    terminal.table(f"{machine.name} ({machine.device}), {machine.source}", ("", ""), [
        *((f"{kind} products", _rate(speed, machine.peak_flop_per_s.get(kind)))
          for kind, speed in machine.flop_per_s.items()),
        ("memory a run may fill", "not known" if machine.memory_bytes is None
         else n.size(machine.memory_bytes)),
        ("memory traffic", "not known" if traffic is None
         else f"{n.size(traffic)}/s, into fresh memory"),
        ("starting one operation", f"{1e6 * machine.operation_s:.3g} µs"),
        *_link(machine),
        ("power", _power(machine, energy)),
        ("energy counters", ", ".join(energy["counters"]) or "none"),
    ])
    if energy["note"]:
        terminal.paragraph(f"energy: {energy['note']}")
    if near is not None:
        speed = PRESETS[near].flop_per_s["float32"]
        ratio = n.significant(machine.flop_per_s["float32"] / speed, 2)
        terminal.prose(
            f"nearest preset: {near} with {_rate(speed)} in float32; this machine has {ratio} of "
            "that")
    terminal.say()
    _print_carried(found)
    terminal.say()
    if out is None:
        terminal.prose(
            "--out FILE.json saves this profile for machine = \"FILE.json\" in a tier of an "
            "experiment file")
    else:
        terminal.prose(f"saved  {out}  (in a tier of an experiment file: machine = \"{out}\")")


def _print_carried(found: Document) -> None:
    task, rows = Task(), []
    for one in found["carries"]:
        size = (
            f"{one['parameters'] / 1e9:.2f} B" if one["parameters"] >= 1e9
            else f"{one['parameters'] / 1e6:.3g} M"
        )
        cells = [_cell(one[placement]) for placement in ("local", "split")]
        rows.append((one["base"], SHAPES[one["base"]].like, size, *cells, one["best"] or "none"))
    terminal.table(
        f"what it could carry, estimated: memory and seconds of a training step of {task.rows} "
        f"rows of {task.tokens} tokens, rank {task.rank}, {found['precision']}",
        ("base", "sizes of", "parameters", "local", f"split ({task.cut} blocks here)",
         "first that fits"), rows, right=(2,))
    proxy = found["carries"][0]["proxy"]
    terminal.prose(
        f"proxy, any base: {_cell(proxy)} to embed {task.records} texts and vote on "
        f"{task.candidates} candidates")


def _cell(share: Document) -> str:
    """Memory, and the seconds where it fits."""
    memory = n.size(share["memory_bytes"])
    return (
        f"{memory}: too much" if share["fits"] is False
        else f"{memory}, {n.duration(share['seconds'])}"
    )


def _rate(flop_per_s: float, peak: float | None = None) -> str:
    """FLOP/s with its unit, and its share of the data sheet where that is known."""
    scale, unit = (1e12, "TFLOP/s") if flop_per_s >= 1e12 else (1e9, "GFLOP/s")
    told = f"{n.significant(flop_per_s / scale)} {unit}"
    return told if peak is None else f"{told}, {flop_per_s / peak:.0%} of the data sheet's"


def _link(machine: Profile) -> list[tuple[str, str]]:
    if machine.up_bytes_per_s is None or machine.down_bytes_per_s is None:
        return [("link", "not measured; --link URL does")]
    rates = f"{n.size(machine.up_bytes_per_s)}/s up, {n.size(machine.down_bytes_per_s)}/s down"
    return [("link", f"{rates}, latency {1e3 * machine.latency_s:.3g} ms one way")]


def _power(machine: Profile, energy: Document) -> str:
    if machine.power_w is None:
        return "not known: runs tell no energy of this machine; --power W takes a meter's figure"
    rest = "" if machine.idle_w is None else f", {machine.idle_w:.3g} W at rest"
    return f"{machine.power_w:.3g} W under load{rest}, {energy['power_source']}"
