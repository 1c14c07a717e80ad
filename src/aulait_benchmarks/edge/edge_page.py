"""The page of ``aulait bench edge``: six figures in the shape of the "Very Edge" study, and its
claims beside this run.

Reads the JSON document of ``aulait_benchmarks.edge.study.edge`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aulait.reporting import markup, numbers, page
from aulait.reporting.markup import Html, Section
from aulait_benchmarks.edge import edge_figures as draw
from aulait_benchmarks.edge import edge_reading as reading

Document = Mapping[str, Any]
STUDY = (
    "Woisetschlaeger et al., “Federated Fine-Tuning of LLMs on the Very Edge: The Good, the Bad, "
    "the Ugly”, DEEM 2024"
)
HERE = "this machine"


def html(document: Document) -> str:
    """The whole page, self-contained.

    Args:
        document: as ``bench_edge.edge`` returns it, or read back from its JSON.
    """
    sections = [_claims(document), _steps(document), _mfu(document), _efficiency(document),
                _granularity(document)]
    sections += [_servers(document)] if document.get("servers") else []
    sections += [_energy(document), _method(document)]
    return page.page("Fine-tuning at the very edge", _subtitle(document), _opening(document),
                     sections)


def _subtitle(document: Document) -> str:
    names = ", ".join(model["name"] for model in document["models"])
    lengths = document["settings"]["lengths"]
    return (
        f"{names} · rows of {lengths['source']} + {lengths['target']} tokens · LoRA of rank "
        f"{document['settings']['rank']}"
    )


def _opening(document: Document) -> Html:
    said = (f"Figures in the shape of those of {STUDY}. The numbers of the study are not public to "
            "us: only the shape is compared. Steps "
            "of this machine are measured where it could; everything else is modelled from counted "
            "work and published figures of machines "
            "and links. Filled marks and coloured stacks are measured, open marks and hatched bars "
            "are modelled.")
    return markup.join(page.banners([("remark", said)]), page.tiles(reading.tiles(document)))


def _claims(document: Document) -> Section:
    rows = [[each["claim"], each["answer"], each["evidence"]] for each in document["claims"]]
    body = markup.table(["what the study claims, in shape", "here", "what this run shows"], rows,
                        words=(0, 1, 2), wide=True)
    return Section("claims", "The study's claims, and this run", body)


def _steps(document: Document) -> Section:
    charts, places = {}, []
    for number, model in enumerate(model["name"] for model in document["models"]):
        mine = [line for line in document["steps"] if line["model"] == model]
        if any(line["step_s"] is not None for line in mine):
            charts[f"parts-{number}"] = draw.parts(mine)
            places.append(markup.chart(f"parts-{number}",
                f"{model}, {numbers.count(mine[0]['parameters'])} weights: {_bases(mine)}", 300))
    lines = markup.folded("All steps of this machine", _step_table(document))
    body = markup.join(markup.paragraph(reading.steps(document)), markup.columns(*places), lines)
    return Section("steps", "(a) Where a step's time goes on this machine", body, charts)


def _bases(lines: Sequence[Mapping[str, Any]]) -> str:
    many = sum(line["basis"] == "measured" for line in lines)
    missing = (
        "; gaps do not fit the memory" if any(line["step_s"] is None for line in lines) else ""
    )
    return (
        ("measured" if many == len(lines) else "modelled" if not many
         else f"{many} of {len(lines)} measured") + missing
    )


def _step_table(document: Document) -> Html:
    rows = [[line["model"], draw.WAYS[line["way"]], numbers.count(line["batch"]), line["basis"],
             _or(line["step_s"], numbers.duration),
             _or(line["predicted_s"], numbers.duration),
             _or(line["tokens_per_s"], numbers.significant),
             _or(line["mfu_model"], numbers.percent), _or(line["mfu_actual"], numbers.percent),
             _or(line.get("peak_bytes"), numbers.size), numbers.size(line["predicted_bytes"]),
             line.get("reason", "")] for line in document["steps"]]
    head = ["model", "", "batch", "basis", "step", "as modelled", "tokens/s", "MFU, model",
            "MFU, actual", "peak of the process",
            "as modelled", "why it is modelled"]
    return markup.table(head, rows, words=(0, 1, 3, 11))


def _or(value: Any, style: Any) -> str:
    return "–" if value is None else str(style(value))


def _every(document: Document) -> list[Any]:
    return [*document["steps"], *document["devices"]]


def _machines(document: Document) -> list[str]:
    return [HERE, *document["settings"]["devices"]]


def _mfu(document: Document) -> Section:
    model = reading.shown_model(document)
    lines = [line for line in _every(document) if line["model"] == model and line["way"] == "lora"]
    charts = {"mfu-model": draw.by_batch(lines, _machines(document), "mfu_model", "MFU, model"),
              "mfu-actual": draw.by_batch(lines, _machines(document), "mfu_actual", "MFU, actual")}
    places = markup.columns(markup.chart("mfu-model", f"{model}, LoRA: 6 N FLOP over the peak",
        360),
                            markup.chart("mfu-actual",
                                         f"{model}, LoRA: executed FLOP over the peak", 360))
    known = bool(document["machine"]["peak_flop_per_s"])
    here = (
        "" if known
        else " For this machine, whose data sheet is not known, it is what a large matrix product "
             "was measured to sustain."
    )
    remark = (f"The peak is that of the data sheet at the precision in use.{here} LoRA leaves out "
              "the gradients "
              "of frozen weights, so its model MFU can exceed the actual one by half, and 100 %.")
    return Section("mfu", "(b) MFU by batch", markup.join(markup.paragraph(reading.mfu(document)),
        places, markup.note(remark)), charts)


def _efficiency(document: Document) -> Section:
    model, charts, places = reading.shown_model(document), {}, []
    for way, said in draw.WAYS.items():
        lines = [line for line in _every(document) if line["model"] == model and line["way"] == way]
        charts[f"joule-{way}"] = draw.by_batch(lines, _machines(document), "tokens_per_joule",
            "tokens a joule", logarithmic=True)
        places.append(markup.chart(f"joule-{way}", f"{model}, {said}", 360))
    basis = sorted({str(line["energy_basis"]) for line in document["steps"]
                    if line["energy_basis"]})
    here = "; ".join(basis) or "not known"
    remark = (
        f"Energy of this machine: {here}. Energy of the others: the preset's power under load, "
        "times seconds."
    )
    body = markup.join(markup.paragraph(reading.efficiency(document)), markup.columns(*places),
                       markup.note(remark))
    return Section("efficiency", "(c) Energy efficiency by batch", body, charts)


def _granularity(document: Document) -> Section:
    charts, places = {}, []
    slowest = {link: max(line["communicating_s"] for line in document["rounds"]
                         if line["link"] == link) for link in
               document["settings"]["links"]}
    links = sorted(slowest, key=lambda link: -slowest[link])
    for number, machine in enumerate(reading.two_machines(document)):
        mine = [line for line in document["rounds"] if line["device"] == machine]
        if any(line["granularity"] for line in mine):
            charts[f"granularity-{number}"] = draw.granularity(mine, links)
            places.append(markup.chart(f"granularity-{number}", f"{machine}, over modelled links",
                                       420))
    head = ["model", "weights", "LoRA factors, one way", "all weights, one way", "times as many"]
    ratios = {model["name"]: 4 * model["parameters"] / model["adapter_bytes"]
              for model in document["models"]}
    sizes = [[model["name"], numbers.count(model["parameters"]),
              numbers.size(model["adapter_bytes"]),
              numbers.size(4 * model["parameters"]), numbers.significant(ratios[model["name"]])]
              for model in document["models"]]
    body = markup.join(markup.paragraph(reading.granularity(document)), markup.columns(*places),
                       markup.table(head, sizes),
                       markup.note(
                           "Bytes are those of float32; a machine that trains all weights in "
                           "bfloat16 sends half as many."))
    return Section("granularity", "(d) Granularity: computing over communicating", body, charts)


def _servers(document: Document) -> Section:
    found = document["servers"]
    places = markup.chart("servers",
        f"held-out loss of {found['base']} with LoRA, {found['clients']} clients: measured", 340)
    rows = [[arm["name"], f"{each['rate']:g}" + (" (shown)" if each["rate"] == arm["rate"] else ""),
             numbers.loss(each["last_loss"])]
            for arm in found["arms"] for each in arm["rates_tried"]]
    remark = (f"{found['rounds']} rounds of {found['steps']} steps of {found['batch']} on "
              f"{found['data']}, method {found['algorithm']}, "
              "one seed. Each optimiser is shown at the rate with the lowest last loss of those "
              "tried. The study fine-tunes FLAN-T5 on "
              "SAMSum and tells ROUGE-1; here it is a small causal model and the loss.")
    body = markup.join(markup.paragraph(reading.servers(document)), places, markup.note(remark),
                       markup.folded("Rates tried",
                           markup.table(["optimiser", "rate", "loss after the last round"], rows)))
    return Section("servers", "(e) Server optimisers by round", body,
                   {"servers": draw.servers(found["arms"], found["base_loss"])})


def _energy(document: Document) -> Section:
    model = reading.shown_model(document)
    mine = [line for line in reading.on_usual_links(document) if line["model"] == model]
    remark = ("Computing: the machine's power under load. Waiting: its idle power while the link "
              "works. Network: all bytes both ways, "
              "times the joules a byte of that link (averages of whole networks; estimates differ "
              "tenfold; set your own with "
              "--joules-per-byte). A way that does not fit a machine's memory has no bar.")
    place = markup.chart("energy",
        f"{model}, a round on each machine's usual link: modelled, except measured steps of this "
        "machine", 360)
    body = markup.join(markup.paragraph(reading.energy(document)), place, markup.note(remark))
    return Section("energy", "(f) Energy of a round: computing or network", body,
                   {"energy": draw.energy(mine)})


def _method(document: Document) -> Section:
    scope, ratio = document["settings"], document["model_ratio"]
    here = document["machine"]
    speed = numbers.significant(here["flop_per_s"][scope["dtype"]] / 1e9)
    rows = [
        ["this machine",
            f"{here['device']}, {numbers.counted(here['threads'], 'thread')}, torch "
            f"{here['torch']}, {speed} GFLOP/s of "
         f"{scope['dtype']} in a large matrix product"],
        ["a step",
            "tokenise and pad, forward, loss, backward, clip and AdamW; medians of at most "
            f"{scope['repetitions']} steps after one "
         "to warm up"],
        ["a round",
            f"{scope['steps']} steps of {scope['round_batch']} rows, or as many rows in smaller "
            "steps; the model down and up once"],
        ["the model of time", "not compared: nothing was measured" if ratio is None else
         f"measured over modelled seconds on this machine: median {ratio['median']:.2f}, "
         f"{ratio['least']:.2f} to {ratio['greatest']:.2f} "
         f"over {ratio['steps']} measured steps; this machine's modelled steps are multiplied by "
         "the median, other machines' are not"],
        ["weights",
         "random, by the published sizes; the time of a step does not depend on their values"],
    ]
    return Section("method", "How it was found", markup.table(["", ""], rows, words=(0, 1)))
