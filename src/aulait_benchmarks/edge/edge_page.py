"""The page of ``aulait bench edge``: six figures in the shape of the "Very Edge" study, and its
claims beside this run.

Reads the JSON document of ``aulait_benchmarks.edge.study.edge`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from aulait.reporting import numbers, page
from aulait.reporting.key_figure import KeyFigure
from aulait.reporting.markup import PageTable, PlacedFigure, Section, rendered
from aulait.reporting.numbers import Style
from aulait_benchmarks.edge import edge_figures as draw
from aulait_benchmarks.edge import edge_reading as reading
from aulait_benchmarks.edge.document import (
    HERE,
    StudyDocument,
    StudyLine,
    rounds_on_usual_links,
)

STUDY = (
    "Woisetschlaeger et al., “Federated Fine-Tuning of LLMs on the Very Edge: The Good, the Bad, "
    "the Ugly”, DEEM 2024"
)


def study_page(document: StudyDocument) -> str:
    """The whole page, self-contained.

    Args:
        document: as ``study.edge`` returns it, or read back from its JSON.
    """
    sections = [_claims(document), _steps(document), _mfu(document), _efficiency(document),
                _granularity(document)]
    sections += [_servers(document)] if document.get("servers") else []
    sections += [_energy(document), _method(document)]
    said = (
        f"Figures in the shape of those of {STUDY}. The numbers of the study are not public to us: "
        "only the shape is compared. Steps of this machine are measured where it could; everything "
        "else is modelled from counted work and published figures of machines and links. Filled "
        "marks and coloured stacks are measured, open marks and hatched bars are modelled."
    )
    opening = page.opening_of([], banners=[("remark", said)], tiles=[KeyFigure(*told)
                                     for told in reading.key_figures(document)])
    return page.whole_page("Fine-tuning at the very edge", _subtitle(document), opening, sections)


def _section(slug: str, title: str, charts: Sequence[PlacedFigure] = (),
             **parts: object) -> Section:
    """A section; its parts: lead (a sentence), shown (a table), note, and folded with
    folded_title (a table that the reader opens)."""
    missing = dict.fromkeys(("lead", "shown", "note", "folded", "folded_title"))
    body = rendered("edge_section.html.j2", package="aulait_benchmarks.edge",
                    charts=charts, **{**missing, **parts})
    return Section(slug, title, body, {placed.name: placed.chart for placed in charts})


def _subtitle(document: StudyDocument) -> str:
    names = ", ".join(model["name"] for model in document["models"])
    lengths = document["settings"]["lengths"]
    return (
        f"{names} · rows of {lengths['source']} + {lengths['target']} tokens · LoRA of rank "
        f"{document['settings']['rank']}"
    )


def _claims(document: StudyDocument) -> Section:
    rows = [[each["claim"], each["answer"], each["evidence"]] for each in document["claims"]]
    head = ["what the study claims, in shape", "here", "what this run shows"]
    return _section("claims", "The study's claims, and this run",
                    shown=PageTable(head, rows, words=(0, 1, 2), wide=True))


def _steps(document: StudyDocument) -> Section:
    charts = []
    for number, model in enumerate(model["name"] for model in document["models"]):
        mine = [line for line in document["steps"] if line["model"] == model]
        if any(line["step_s"] is not None for line in mine):
            title = f"{model}, {numbers.count(mine[0]['parameters'])} weights: {_bases(mine)}"
            charts.append(PlacedFigure(f"parts-{number}", title, draw.step_parts(mine), 220))
    return _section("steps", "(a) Where a step's time goes on this machine", charts,
                    lead=reading.steps_sentence(document), folded=_step_table(document),
                    folded_title="All steps of this machine")


def _bases(lines: Sequence[StudyLine]) -> str:
    many = sum(line["basis"] == "measured" for line in lines)
    missing = (
        "; gaps do not fit the memory" if any(line["step_s"] is None for line in lines) else ""
    )
    return (
        ("measured" if many == len(lines) else "modelled" if not many
         else f"{many} of {len(lines)} measured") + missing
    )


def _step_table(document: StudyDocument) -> PageTable:
    columns: list[tuple[str, str, Style]] = [
        ("step", "step_s", numbers.duration),
        ("as modelled", "predicted_s", numbers.duration),
        ("tokens/s", "tokens_per_s", numbers.significant),
        ("MFU, model", "mfu_model", numbers.percent),
        ("MFU, actual", "mfu_actual", numbers.percent),
        ("peak of the process", "peak_bytes", numbers.size),
        ("as modelled", "predicted_bytes", numbers.size),
    ]
    rows = [[line["model"], draw.WAYS[line["way"]], numbers.count(line["batch"]), line["basis"],
             *(numbers.or_dash(line.get(key), style) for _, key, style in columns),
             line.get("reason", "")] for line in document["steps"]]
    head = ["model", "", "batch", "basis", *(title for title, *_ in columns), "why it is modelled"]
    return PageTable(head, rows, words=(0, 1, 3, 11))


def _by_batch(document: StudyDocument, way: str) -> list[StudyLine]:
    """Steps of the shown model on all machines."""
    model = reading.shown_model(document)
    return [line for line in (*document["steps"], *document["devices"])
            if line["model"] == model and line["way"] == way]


def _machines(document: StudyDocument) -> list[str]:
    return [HERE, *document["settings"]["devices"]]


def _mfu(document: StudyDocument) -> Section:
    model, lines, machines = (
        reading.shown_model(document), _by_batch(document, "lora"), _machines(document)
    )
    charts = [PlacedFigure(f"mfu-{kind}", f"{model}, LoRA: {what} FLOP over the peak",
                           draw.measure_by_batch(lines, machines, f"mfu_{kind}", f"MFU, {kind}"),
                           360)
              for kind, what in (("model", "6 N"), ("actual", "executed"))]
    known = bool(document["machine"]["peak_flop_per_s"])
    here = (
        "" if known
        else " For this machine, whose data sheet is not known, it is what a large matrix product "
             "was measured to sustain."
    )
    note = (
        f"The peak is that of the data sheet at the precision in use.{here} LoRA leaves out the "
        "gradients of frozen weights, so its model MFU can exceed the actual one by half, and 100 "
        "%."
    )
    return _section("mfu", "(b) MFU by batch", charts, lead=reading.mfu_sentence(document),
                    note=note)


def _efficiency(document: StudyDocument) -> Section:
    model, machines = reading.shown_model(document), _machines(document)
    charts = [PlacedFigure(f"joule-{way}", f"{model}, {said}",
                           draw.measure_by_batch(_by_batch(document, way), machines,
                                                 "tokens_per_joule", "tokens a joule",
                                                 logarithmic=True), 260)
              for way, said in draw.WAYS.items()]
    basis = sorted({str(line["energy_basis"]) for line in document["steps"]
                    if line["energy_basis"]})
    note = (
        f"Energy of this machine: {'; '.join(basis) or 'not known'}. Energy of the others: the "
        "preset's power under load, times seconds."
    )
    return _section("efficiency", "(c) Energy efficiency by batch", charts,
                    lead=reading.efficiency_sentence(document), note=note)


def _granularity(document: StudyDocument) -> Section:
    slowest = {link: max(line["communicating_s"] for line in document["rounds"]
                         if line["link"] == link)
               for link in document["settings"]["links"]}
    links = sorted(slowest, key=lambda link: -slowest[link])
    charts = []
    for number, machine in enumerate(reading.two_machines(document)):
        mine = [line for line in document["rounds"] if line["device"] == machine]
        if any(line["granularity"] for line in mine):
            charts.append(PlacedFigure(f"granularity-{number}", f"{machine}, over modelled links",
                                       draw.granularity_by_link(mine, links), 300))
    head = ["model", "weights", "LoRA factors, one way", "all weights, one way", "times as many"]
    sizes = [[model["name"], numbers.count(model["parameters"]),
              numbers.size(model["adapter_bytes"]), numbers.size(4 * model["parameters"]),
              numbers.significant(4 * model["parameters"] / model["adapter_bytes"])]
             for model in document["models"]]
    note = (
        "Bytes are those of float32; a machine that trains all weights in bfloat16 sends half as "
        "many."
    )
    return _section("granularity", "(d) Granularity: computing over communicating", charts,
                    lead=reading.granularity_sentence(document), shown=PageTable(head, sizes),
                    note=note)


def _servers(document: StudyDocument) -> Section:
    found = document["servers"]
    title = f"held-out loss of {found['base']} with LoRA, {found['clients']} clients: measured"
    chart = PlacedFigure("servers", title,
                         draw.loss_by_round(found["arms"], found["base_loss"]), 260)
    rows = [[arm["name"], f"{each['rate']:g}" + (" (shown)" if each["rate"] == arm["rate"] else ""),
             numbers.loss(each["last_loss"])]
            for arm in found["arms"] for each in arm["rates_tried"]]
    note = (
        f"{found['rounds']} rounds of {found['steps']} steps of {found['batch']} on "
        f"{found['data']}, method {found['algorithm']}, one seed. Each optimiser is shown at the "
        "rate with the lowest last loss of those tried. The study fine-tunes FLAN-T5 on SAMSum "
        "and tells ROUGE-1; here it is a small causal model and the loss."
    )
    return _section("servers", "(e) Server optimisers by round", [chart],
                    lead=reading.servers_sentence(document), note=note, folded_title="Rates tried",
                    folded=PageTable(["optimiser", "rate", "loss after the last round"], rows))


def _energy(document: StudyDocument) -> Section:
    model = reading.shown_model(document)
    mine = [line for line in rounds_on_usual_links(document) if line["model"] == model]
    title = (
        f"{model}, a round on each machine's usual link: modelled, except measured steps of this "
        "machine"
    )
    note = (
        "Computing: the machine's power under load. Waiting: its idle power while the link works. "
        "Network: all bytes both ways, times the joules a byte of that link (averages of whole "
        "networks; estimates differ tenfold; set your own with --joules-per-byte). A way that does "
        "not fit a machine's memory has no bar."
    )
    return _section("energy", "(f) Energy of a round: computing or network",
                    [PlacedFigure("energy", title, draw.energy_shares(mine), 24 * len(mine) + 12)],
                    lead=reading.energy_sentence(document), note=note)


def _method(document: StudyDocument) -> Section:
    scope, ratio, here = document["settings"], document["model_ratio"], document["machine"]
    speed = numbers.significant(here["flop_per_s"][scope["dtype"]] / 1e9)
    rows = [
        ["this machine",
         f"{here['device']}, {numbers.counted(here['threads'], 'thread')}, torch {here['torch']}, "
         f"{speed} GFLOP/s of {scope['dtype']} in a large matrix product"],
        ["a step",
         "tokenise and pad, forward, loss, backward, clip and AdamW; medians of at most "
         f"{scope['repetitions']} steps after one to warm up"],
        ["a round",
         f"{scope['steps']} steps of {scope['round_batch']} rows, or as many rows in smaller "
         "steps; the model down and up once"],
        ["the model of time",
         "not compared: nothing was measured" if ratio is None else
         f"measured over modelled seconds on this machine: median {ratio['median']:.2f}, "
         f"{ratio['least']:.2f} to {ratio['greatest']:.2f} over {ratio['steps']} measured steps; "
         "this machine's modelled steps are multiplied by the median, other machines' are not"],
        ["weights",
         "random, by the published sizes; the time of a step does not depend on their values"],
    ]
    return _section("method", "How it was found", shown=PageTable(["", ""], rows, words=(0, 1)))
