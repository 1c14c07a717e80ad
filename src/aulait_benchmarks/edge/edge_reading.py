"""One sentence a figure of the edge page, each computed from the document it is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from aulait.reporting import numbers
from aulait_benchmarks.edge.document import (
    EDGE_DEVICE,
    HERE,
    REFERENCE_DEVICE,
    StudyDocument,
    StudyLine,
    rounds_on_usual_links,
)

GAIN = 0.05  # of MFU by doubling the batch: below it the curve counts as flat


def shown_model(document: StudyDocument) -> str:
    """The model of the figures by batch: the largest that was measured with LoRA here, else the
    smallest."""
    measured = [line for line in document["steps"] if line["basis"] == "measured"
                and line["way"] == "lora"]
    return str(max(measured, key=lambda line: line["parameters"])["model"] if measured
               else document["models"][0]["name"])


def two_machines(document: StudyDocument) -> list[str]:
    """The machines of the granularity figure: this one, and the study's edge device or the first
    preset there is."""
    devices = document["settings"]["devices"]
    return [HERE, *([EDGE_DEVICE] if EDGE_DEVICE in devices else list(devices)[:1])]


def key_figures(document: StudyDocument) -> list[tuple[str, str, str]]:
    """Name, value and remark of the four key figures."""
    lines, rounds = document["steps"], rounds_on_usual_links(document)
    measured = [line for line in lines if line["basis"] == "measured"]
    fastest = max(measured, key=lambda line: line["tokens_per_s"], default=None)
    ratio = document["model_ratio"]
    shares = [line["communication_share"] for line in rounds
              if line["communication_share"] is not None]
    return [
        ("steps measured", f"{len(measured)} of {len(lines)}",
         "on this machine; the rest is modelled"),
        ("fastest step here", "–" if fastest is None
         else f"{numbers.significant(fastest['tokens_per_s'])} tokens/s",
         "nothing measured" if fastest is None
         else f"{fastest['model']}, {_way(fastest)}, batch {fastest['batch']}"),
        ("measured over modelled", "–" if ratio is None else f"{ratio['median']:.2f}",
         "seconds of a step, median"),
        ("communication", f"{sum(share > 0.5 for share in shares)} of {len(shares)}",
         "rounds on usual links spend over half of their energy on it"),
    ]


def steps_sentence(document: StudyDocument) -> str:
    """Of figure (a)."""
    measured = {(line["model"], line["batch"], line["way"]): line for line in document["steps"]
                if line["basis"] == "measured"}
    pairs = [(line, measured[model, batch, "full"]) for (model, batch, way),
             line in measured.items()
             if way == "lora" and (model, batch, "full") in measured]
    if not pairs:
        return "No step was measured with LoRA and with full fine-tuning, so nothing is compared."
    lora, full = max(pairs, key=lambda pair: (pair[0]["parameters"], pair[0]["batch"]))
    largest = {line["way"]: max(line["part_s"], key=line["part_s"].get) for line in (lora, full)}
    shares = {line["way"]: line["part_s"][largest[line["way"]]] / line["step_s"]
              for line in (lora, full)}
    return (f"A full step of {lora['model']} at batch {lora['batch']} takes "
            f"{full['step_s'] / lora['step_s']:.2f} times a LoRA step (measured: "
            f"{numbers.duration(full['step_s'])} and {numbers.duration(lora['step_s'])}); its "
            f"largest part is {_part(largest['full'])} with {numbers.percent(shares['full'], 0)}, "
            f"that of LoRA is {_part(largest['lora'])} with {numbers.percent(shares['lora'], 0)}.")


def mfu_sentence(document: StudyDocument) -> str:
    """Of figure (b)."""
    said = []
    for name in (HERE, EDGE_DEVICE, REFERENCE_DEVICE):
        found = _curve(document, name, "mfu_actual")
        if found:
            best = max(found, key=lambda line: line["mfu_actual"])
            flat = _flat_from([(line["batch"], line["mfu_actual"]) for line in found])
            gains = "still gains at its largest batch"
            if flat is not None:
                gains = f"gains less than {100 * GAIN:.0f} % a doubling from batch {flat} on"
            said.append(
                f"{name} reaches {numbers.percent(best['mfu_actual'], 0)} ({best['basis']}) and "
                f"{gains}")
    return (
        f"Of executed FLOP with {shown_model(document)} and LoRA: {'; '.join(said)}." if said
        else "No machine's peak is known."
    )


def _flat_from(curve: Sequence[tuple[int, float]]) -> int | None:
    """The batch from which on no larger one that was tried raises the MFU by ``GAIN``; None where
    the last one still does."""
    flat = None
    for (batch, value), (_, following) in reversed(list(pairwise(curve))):
        if following >= (1 + GAIN) * value:
            break
        flat = batch
    return flat


def efficiency_sentence(document: StudyDocument) -> str:
    """Of figure (c)."""
    best = {}
    for name in (HERE, *document["settings"]["devices"]):
        found = _curve(document, name, "tokens_per_joule")
        if found:
            best[name] = max(found, key=lambda line: line["tokens_per_joule"])
    if not best:
        return "No machine's power is known."
    ranked = sorted(best.items(), key=lambda pair: -pair[1]["tokens_per_joule"])
    (first, top), (last, low) = ranked[0], ranked[-1]
    here = (
        f"; {HERE} reaches {_joule(best[HERE])}" if HERE in best and HERE not in (first, last)
        else ""
    )
    return (f"With {shown_model(document)} and LoRA most tokens a joule come from {first}, "
            f"{_joule(top)} at batch {top['batch']}, "
            f"{top['tokens_per_joule'] / low['tokens_per_joule']:.3g} times those of {last}, "
            f"{_joule(low)}{here}.")


def granularity_sentence(document: StudyDocument) -> str:
    """Of figure (d)."""
    found = [line for line in document["rounds"] if line["granularity"] is not None]
    ruled = {way: [line["granularity"] < 1 for line in found if line["way"] == way]
             for way in ("lora", "full")}
    both = {(line["device"], line["model"], line["link"], line["way"]): line["granularity"]
            for line in found}
    gains = sorted(value / both[device, model, link, "full"] for (device, model, link, way),
                   value in both.items()
                   if way == "lora" and (device, model, link, "full") in both)
    middle = f"; LoRA raises G by a factor of {gains[0]:.3g} to {gains[-1]:.3g}" if gains else ""
    return (f"The link rules the round (G below 1) in {sum(ruled['full'])} of {len(ruled['full'])} "
            f"rounds that send all weights and in {sum(ruled['lora'])} of {len(ruled['lora'])} "
            f"that send LoRA factors, over all machines and links{middle}.")


def servers_sentence(document: StudyDocument) -> str:
    """Of figure (e)."""
    arms = document["servers"]["arms"]
    plain = next(arm for arm in arms if arm["server"] == "plain")
    said = [f"{arm['name']} in round {arm['rounds_to_fedavg']}" if arm["rounds_to_fedavg"]
            else f"{arm['name']} not at all"
            for arm in arms if arm is not plain]
    ends, rounds, base = plain["losses"][-1], len(plain["losses"]), document["servers"]["base_loss"]
    return (
        f"FedAvg goes from {base:.3f} to {ends:.3f} in {rounds} rounds; that loss is reached by "
        f"{', '.join(said)}."
    )


def energy_sentence(document: StudyDocument) -> str:
    """Of figure (f)."""
    mine = [line for line in rounds_on_usual_links(document)
            if line["model"] == shown_model(document) and line["communication_share"] is not None]
    said = []
    for way, name in (("full", "all weights are sent"), ("lora", "LoRA factors are sent")):
        shares = sorted((line["communication_share"], line["device"]) for line in mine
                        if line["way"] == way)
        if shares:
            (low, least), (high, most) = shares[0], shares[-1]
            said.append(
                f"{numbers.percent(low)} ({least}) to {numbers.percent(high)} ({most}) where "
                f"{name}")
    return (
        f"Of a round's energy, communication takes {', and '.join(said)}." if said
        else "No round's energy is known."
    )


def _curve(document: StudyDocument, machine: str, key: str) -> list[StudyLine]:
    """Lines of the shown model with LoRA on a machine, by batch, that have a value."""
    found = [line for line in (*document["steps"], *document["devices"])
             if (line["device"], line["model"], line["way"]) == (machine, shown_model(document),
                 "lora") and line[key] is not None]
    return sorted(found, key=lambda line: int(line["batch"]))


def _way(line: StudyLine) -> str:
    return "LoRA" if line["way"] == "lora" else "full"


def _part(name: str) -> str:
    return {"load": "loading the batch", "optimizer": "the optimiser"}.get(name, f"the {name} pass"
        if name != "loss" else "the loss")


def _joule(line: StudyLine) -> str:
    return (
        f"{numbers.significant(line['tokens_per_joule'])} "
        f"({line['basis'] if line['basis'] == 'modelled' else 'measured time'})"
    )
