"""What the "Very Edge" study claims, in shape, beside what a run of ``aulait bench edge`` shows:
computed, never asserted.

The study's numbers are not public to us; a claim is answered "yes", "no", "partly" or "not shown"
from the document alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from aulait_benchmarks.edge.document import (
    EDGE_DEVICES,
    REFERENCE_DEVICE,
    StudyDocument,
    StudyLine,
    rounds_on_usual_links,
)

ADAPTIVE = ("FedAdam", "FedAdamW")


def claims_in_shape(document: StudyDocument) -> list[dict[str, str]]:
    """Claim, answer and the evidence in one sentence, for the four claims in shape."""
    found = (
        ("Adaptive server optimisers converge faster than FedAvg", adaptive(document)),
        ("Communication dominates the energy of a round at the edge", communication(document)),
        ("The edge's MFU saturates below the A100's, because of memory bandwidth",
         saturation(document)),
        ("Parameter-efficient tuning makes larger models feasible at the edge", feasible(document)),
    )
    return [{"claim": claim, "answer": answer, "evidence": evidence}
            for claim, (answer, evidence) in found]


def adaptive(document: StudyDocument) -> tuple[str, str]:
    """Whether the adaptive optimisers reach FedAvg's last loss in fewer rounds and are ahead of it
    in the mean over the rounds."""
    if not document.get("servers"):
        return "not shown", "The federated runs were left out."
    arms = {arm["name"]: arm for arm in document["servers"]["arms"]}
    rounds, plain = document["servers"]["rounds"], arms["FedAvg"]
    reached = {name: arms[name]["rounds_to_fedavg"] for name in ADAPTIVE}
    mean = {name: sum(arm["losses"]) / len(arm["losses"]) for name, arm in arms.items()}
    earlier = {name for name, at in reached.items()
               if at is not None and at < plain["rounds_to_fedavg"]}
    ahead = {name for name in ADAPTIVE if mean[name] < mean["FedAvg"]}
    said = "; ".join(f"{name} in round {at}" if at else f"{name} in none of {rounds}"
                     for name, at in reached.items())
    best = min(arms.values(), key=lambda arm: arm["losses"][-1])
    answer = "yes" if earlier & ahead == set(ADAPTIVE) else "partly" if earlier | ahead else "no"
    means = ", ".join(f"{name} {mean[name]:.3f}" for name in ("FedAvg", *ADAPTIVE))
    return answer, (
        f"FedAvg's last held-out loss, {plain['losses'][-1]:.3f}, is reached by {said}; mean over "
        f"the rounds: {means}; lowest at the end: {best['name']}, {best['losses'][-1]:.3f}. One "
        f"seed, and the best rate of a small grid for each{_at_ends(arms)}.")


def _at_ends(arms: Mapping[str, StudyLine]) -> str:
    """Says for how many optimisers the largest rate tried was the best, so that a larger one might
    be better still."""
    ends = sum(len(arm["rates_tried"]) > 1 and arm["rate"] == max(each["rate"]
        for each in arm["rates_tried"]) for arm in arms.values())
    return f" (the largest one tried for {ends} of {len(arms)})" if ends else ""


def communication(document: StudyDocument) -> tuple[str, str]:
    """Whether most rounds at the edge, on each machine's usual link, spend more than half their
    joules on communication."""
    parts, won = [], []
    for way, said in (("lora", "LoRA"), ("full", "full fine-tuning")):
        mine = [line for line in rounds_on_usual_links(document)
                if line["device"] in EDGE_DEVICES and line["way"] == way]
        shares = [line["communication_share"] for line in mine
                  if line["communication_share"] is not None]
        if shares:
            most = sum(share > 0.5 for share in shares)
            won.append(most > len(shares) / 2)
            parts.append(f"{most} of {len(shares)} rounds with {said}")
    if not won:
        return "not shown", (
            "No round at the edge fits the memory of a machine whose power is known."
        )
    answer = "yes" if all(won) else "partly" if any(won) else "no"
    return answer, (
        f"More than half of the energy is communication in {' and in '.join(parts)} (each machine "
        "on its usual link)."
    )


def saturation(document: StudyDocument) -> tuple[str, str]:
    """Whether the best MFU of every edge machine is below the A100's, and whether bandwidth bounds
    it there."""
    reference = _best(document, REFERENCE_DEVICE)
    edge = {name: line for name in EDGE_DEVICES if (line := _best(document, name)) is not None}
    if reference is None or not edge:
        return "not shown", "The machines of the comparison were left out."
    top = reference["mfu_actual"]
    below = [name for name, line in edge.items() if line["mfu_actual"] < top]
    memory = [name for name in below if edge[name]["bound"] == "memory"]
    answer = "yes" if len(below) == len(memory) == len(edge) else "partly" if below else "no"
    said = ", ".join(f"{name} {100 * line['mfu_actual']:.0f} % (bound by {_said(line['bound'])})"
                     for name, line in edge.items())
    return answer, (
        f"Best MFU of executed FLOP: {said}; {REFERENCE_DEVICE} {100 * top:.0f} % (bound by "
        f"{_said(reference['bound'])}). All are modelled, and the share of its peak that a machine "
        "can sustain is a figure of its preset.")


def feasible(document: StudyDocument) -> tuple[str, str]:
    """Whether the largest model that fits an edge machine's memory is larger with LoRA."""
    largest: dict[str, dict[str, StudyLine | None]] = {}
    for name in EDGE_DEVICES:
        fits = {way: [line for line in document["devices"] if line["device"] == name
                      and line["way"] == way and line["fits"]]
                for way in ("lora", "full")}
        if any(line["device"] == name for line in document["devices"]):
            largest[name] = {way: max(found, key=lambda line: line["parameters"], default=None)
                             for way, found in fits.items()}
    if not largest:
        return "not shown", "The machines of the comparison were left out."
    sizes = {name: tuple(0 if line is None else line["parameters"] for line in pair.values())
             for name, pair in largest.items()}
    gained = [name for name, (lora, full) in sizes.items() if lora > full]
    answer = "yes" if len(gained) == len(sizes) else "partly" if gained else "no"
    said = "; ".join(f"{name}: {_named(pair['lora'])} with LoRA, {_named(pair['full'])} without"
                     for name, pair in largest.items())
    return answer, f"Largest size that fits, at any batch: {said}."


def _best(document: StudyDocument, name: str) -> StudyLine | None:
    """The line with the highest MFU of executed FLOPs on a machine."""
    found = [line for line in document["devices"] if line["device"] == name
             and line["mfu_actual"] is not None]
    return max(found, key=lambda line: line["mfu_actual"], default=None)


def _said(bound: str) -> str:
    return {"memory": "memory bandwidth", "arithmetic": "arithmetic",
            "operations": "starting operations"}[bound]


def _named(line: StudyLine | None) -> str:
    return "none" if line is None else str(line["model"])
