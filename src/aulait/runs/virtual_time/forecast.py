"""How long a simulation will take on this machine, and how much memory, before it runs: the passes
it will make, costed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from aulait.core.types import Adapter, Profile, Record, Site
from aulait.resources import cost_model
from aulait.resources.capacity import EMBEDDER
from aulait.resources.cost_model import Batch, Cost
from aulait.resources.meters import peak_of_process
from aulait.runs.placement import any_demand, padded, widths
from aulait.runs.setup import House
from aulait.runs.virtual_time.round_time import breeding, proxy_count, proxy_plan
from aulait.training.trainer import AT_ONCE, LocalTraining, draws


def forecast(house: House, machine: Profile) -> dict[str, float]:
    """Seconds of stage 1, of training and of measuring losses (task metrics are left out), and the
    peak memory of the process.

    It reads the lengths of the clients' own texts, also under privacy: a number for whoever holds
    all data of a simulation, not to be released. Batches are those of the first round. Texts of
    proxies, which do not exist yet, are taken to be as long as public ones.

    Args:
        house: what will run.
        machine: this machine, measured.

    Returns:
        synthesis_s, train_s, evaluate_s, peak_bytes.
    """
    steps = list(_training(house))
    train_s = (
        house.settings.train.rounds * sum(times * cost_model.seconds(step, machine,
            house.settings.model.dtype) for step, times in steps)
    )
    measured = list(_measuring(house))
    rounds, every = house.settings.train.rounds, house.settings.evaluate.every
    # the bare base, measured before, is not among result.json's seconds
    times = len({*range(every, rounds + 1, every), rounds} - {0})
    evaluate_s = (
        times * sum(cost_model.seconds(one, machine, house.settings.model.dtype)
                    for one in measured)
    )
    largest = max((one.memory_bytes for one, _ in steps), default=0.0)
    largest = max([largest, *(one.memory_bytes for one in measured)])
    weights = any_demand(house).model_shape.weight_bytes
    embedder = cost_model.embedding(*EMBEDDER, 32, house.settings.synthesis.max_tokens).memory_bytes
    return {"synthesis_s": _synthesis_s(house, machine), "train_s": train_s,
            "evaluate_s": evaluate_s,
            "peak_bytes": (peak_of_process() or 0) + max(0.0, largest - weights) + (embedder
                if house.voting else 0.0)}


def _training(house: House) -> Iterator[tuple[Cost, float]]:
    """(cost, how often in a round) of the steps over the base in a round, as the trainer groups
    them."""
    federation, trainers = house.settings.federation, house.trainers
    if federation.sampling != "all":
        trainers = trainers[:: max(1, round(1 / federation.rate))]
    for first in range(0, len(trainers), AT_ONCE):
        yield from _passes(house, [house.sites[name] for name in trainers[first : first + AT_ONCE]])
    count = proxy_count(house)
    if count:
        plan = proxy_plan(house)
        per_pass = max(1, house.settings.train.rows_at_once // plan.batch)
        public = [[Record(text) if isinstance(text, str) else text
                   for text in house.corpus.public[: 32 * plan.batch]]]
        rows = [step for k in range(8) for step in widths(house.settings, house.learner.encode,
            public[0], plan, k)]
        tokens, source, scored = (math.ceil(statistics.fmean(column))
                                  for column in zip(*rows, strict=True))
        for sites in {min(per_pass, count), count % per_pass} - {0}:
            often = count // per_pass if sites == min(per_pass, count) and count >= per_pass else 1
            ranks = dict.fromkeys(house.shapes, house.context.rank)
            yield _step(house, Batch(sites * plan.batch, tokens, source, scored),
                        ranks), float(often * plan.steps)


def _passes(house: House, sites: Sequence[Site]) -> Iterator[tuple[Cost, float]]:
    encode, kind = house.learner.encode, house.settings.model.kind
    trainable = house.settings.method.TRAITS.trains
    works = [LocalTraining(Adapter({}, 1.0), site.train, trainable, site.plan.steps, site.plan.batch, 0.0,
                  house.seeds.integer("batches", 1, site.name))
             for site in sites]
    for members in house.learner.passes(works):
        drawn = [[[encode(works[k].records[i]) for i in step]
                  for step in draws(works[k], [len(encode(r)[0]) for r in works[k].records])]
                 for k in members]
        own = [house.context.rank_of(sites[k].name) for k in members]
        ranks = {layer: max(rank(layer) for rank in own) for layer in house.shapes}
        for step in zip(*drawn, strict=True):
            rows = [coded for own in step for coded in own]
            tokens, source, scored = padded(rows, kind)
            yield _step(house, Batch(len(rows), tokens, source, round(scored)), ranks), 1.0


def _step(house: House, batch: Batch, ranks: Mapping[str, int]) -> Cost:
    demand = any_demand(house)
    return cost_model.lora_step(demand.model_shape, batch, ranks, trainable=demand.trainable,
                                dtype=demand.dtype)


def _measuring(house: House) -> Iterator[Cost]:
    """Costs of the forward passes of one measurement."""
    settings, demand = house.settings, any_demand(house)
    kept = settings.evaluate.records_per_client
    names = sorted(name for name in house.holdout
                   if house.holdout[name])[: settings.evaluate.clients]
    coded = sorted((house.learner.encode(r) for name in names for r in house.holdout[name][:kept]),
                   key=lambda pair: len(pair[0]))
    for first in range(0, len(coded), settings.evaluate.rows):
        some = coded[first : first + settings.evaluate.rows]
        tokens, source, scored = padded(some, settings.model.kind)
        batch = Batch(len(some), tokens, source, round(scored))
        yield cost_model.evaluation(demand.model_shape, batch,
                                    dict.fromkeys(house.shapes, house.context.rank), demand.dtype)


def _synthesis_s(house: House, machine: Profile) -> float:
    """Embedding of records, votes, and the server's rounds."""
    if not house.voting:
        return 0.0
    config, capped = house.settings.synthesis, house.settings.data.records_per_client
    read = cost_model.embedding(*EMBEDDER, len(house.voters) * capped, config.max_tokens)
    rounds = [work for round in range(1, config.rounds + 1) for work in breeding(house, round)]
    return sum(cost_model.seconds(work, machine, dtype) for work,
               dtype in ((read, "float32"), *rounds))
