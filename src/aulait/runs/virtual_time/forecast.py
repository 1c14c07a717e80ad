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
from aulait.runs.placement import padded, widths
from aulait.runs.prepared import Federation, PreparedRun
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.training.trainer import AT_ONCE, LocalTraining, draws

SAMPLED = 256  # public texts whose lengths stand for those of all


def forecast(run: PreparedRun, machine: Profile) -> dict[str, float]:
    """Seconds of stage 1, of training and of measuring losses (task metrics are left out), and the
    peak memory of the process.

    It reads the lengths of the clients' own texts, also under privacy: a number for whoever holds
    all data of a simulation, not to be released. Batches are those of the first round. Texts of
    proxies, which do not exist yet, are taken to be as long as public ones.

    Args:
        run: what will run.
        machine: this machine, measured.

    Returns:
        synthesis_s, train_s, evaluate_s, peak_bytes.
    """
    settings, dtype = run.settings, run.settings.model.dtype
    steps, measured = list(training_steps(run)), list(_measuring(run))
    rounds, every = settings.train.rounds, settings.evaluate.every
    # the bare base, measured before, is not among result.json's seconds
    measurements = len({*range(every, rounds + 1, every), rounds} - {0})
    round_s = sum(times * cost_model.seconds(step, machine, dtype) for step, times in steps)
    measurement_s = sum(cost_model.seconds(one, machine, dtype) for one in measured)
    largest = max((one.memory_bytes for one in (*(step for step, _ in steps), *measured)),
                  default=0.0)
    weights = run.federation.server_tier.demand.model_shape.weight_bytes
    embedder = cost_model.embedding(*EMBEDDER, 32, settings.synthesis.max_tokens).memory_bytes
    peak_bytes = (peak_of_process() or 0) + max(0.0, largest - weights)
    return {"synthesis_s": _synthesis_s(run, machine), "train_s": rounds * round_s,
            "evaluate_s": measurements * measurement_s,
            "peak_bytes": peak_bytes + (embedder if run.federation.breeds else 0.0)}


def rough_seconds(run: PreparedRun, machine: Profile) -> float:
    """Seconds of a whole simulation on a machine, roughly, from what is public of it: every record
    as long as the plan takes records to be, no text of a client looked at.

    Args:
        run: what will run.
        machine: this machine, measured.
    """
    settings, federation = run.settings, run.federation
    dtype, rounds = settings.model.dtype, settings.train.rounds
    share = settings.federation.share
    asked: dict[str, float] = {}
    for site in federation.training_sites:
        asked[site.plan.tier] = asked.get(site.plan.tier, 0.0) + share
    work = [(federation.tiers[tier], count) for tier, count in asked.items()]
    costs = RoundCosts.of(run)
    if costs.proxy_count:
        work.append((federation.server_tier, float(costs.proxy_count)))
    ranks = dict.fromkeys(run.context.shapes, run.context.rank)
    round_s = 0.0
    for own, count in work:
        plan, demand = own.plan, own.demand
        together = min(count, max(1, settings.train.rows_at_once // plan.batch))
        step = _step(federation, demand.batch(math.ceil(together * plan.batch)), ranks)
        round_s += count / together * plan.steps * cost_model.seconds(step, machine, dtype)
    measured = settings.evaluate
    clients = min(len(federation.holdout), measured.clients or len(federation.holdout))
    passes = clients * measured.records_per_client / measured.rows
    demand = federation.server_tier.demand
    one = cost_model.evaluation(demand.model_shape, demand.batch(measured.rows), ranks,
                                demand.dtype)
    times = len({*range(measured.every, rounds + 1, measured.every), rounds, 0})
    return (_synthesis_s(run, machine) + rounds * round_s
            + times * passes * cost_model.seconds(one, machine, dtype))


def training_steps(run: PreparedRun) -> Iterator[tuple[Cost, float]]:
    """(cost, how often in a round) of the steps over the base in a round, as the trainer groups
    them."""
    trainers = run.federation.training_sites
    trainers = trainers[:: max(1, round(1 / run.settings.federation.share))]
    for first in range(0, len(trainers), AT_ONCE):
        yield from _passes(run, trainers[first : first + AT_ONCE])
    costs = RoundCosts.of(run)
    if not costs.proxy_count:
        return
    count, plan = costs.proxy_count, costs.proxy_plan
    per_pass = max(1, run.settings.train.rows_at_once // plan.batch)
    public = [Record(text) if isinstance(text, str) else text
              for text in run.federation.corpus.public[: 32 * plan.batch]]
    rows = [step for k in range(8)
            for step in widths(run.settings, run.models.learner.encode, public, plan, k)]
    tokens, source, scored = (math.ceil(statistics.fmean(column))
                              for column in zip(*rows, strict=True))
    ranks = dict.fromkeys(run.context.shapes, run.context.rank)
    for sites in {min(per_pass, count), count % per_pass} - {0}:
        often = count // per_pass if sites == min(per_pass, count) and count >= per_pass else 1
        batch = Batch(sites * plan.batch, tokens, source, scored)
        yield _step(run.federation, batch, ranks), float(often * plan.steps)


def _passes(run: PreparedRun, sites: Sequence[Site]) -> Iterator[tuple[Cost, float]]:
    """(cost, 1) of every step of the passes that some sites make together."""
    learner, context = run.models.learner, run.context
    encode, trainable = learner.encode, run.settings.method.TRAITS.trains
    works = [LocalTraining(Adapter({}, 1.0), site.train, trainable, site.plan.steps,
                           site.plan.batch, 0.0,
                  context.seeds.integer("batches", 1, site.name))
             for site in sites]
    for members in learner.passes(works):
        drawn = [[[encode(works[k].records[i]) for i in step]
                  for step in draws(works[k], [len(encode(r)[0]) for r in works[k].records])]
                 for k in members]
        own = [context.rank_of(sites[k].name) for k in members]
        ranks = {layer: max(rank(layer) for rank in own) for layer in context.shapes}
        for step in zip(*drawn, strict=True):
            rows = [coded for own_rows in step for coded in own_rows]
            tokens, source, scored = padded(rows, run.settings.model.kind)
            batch = Batch(len(rows), tokens, source, round(scored))
            yield _step(run.federation, batch, ranks), 1.0


def _step(federation: Federation, batch: Batch, ranks: Mapping[str, int]) -> Cost:
    demand = federation.server_tier.demand
    return cost_model.lora_step(demand.model_shape, batch, ranks, trainable=demand.trainable,
                                dtype=demand.dtype)


def _measuring(run: PreparedRun) -> Iterator[Cost]:
    """Costs of the forward passes of one measurement."""
    config, holdout = run.settings.evaluate, run.federation.holdout
    encode, demand = run.models.learner.encode, run.federation.server_tier.demand
    names = sorted(name for name in holdout if holdout[name])[: config.clients]
    coded = sorted((encode(record) for name in names
                    for record in holdout[name][: config.records_per_client]),
                   key=lambda pair: len(pair[0]))
    ranks = dict.fromkeys(run.context.shapes, run.context.rank)
    for first in range(0, len(coded), config.rows):
        some = coded[first : first + config.rows]
        tokens, source, scored = padded(some, run.settings.model.kind)
        batch = Batch(len(some), tokens, source, round(scored))
        yield cost_model.evaluation(demand.model_shape, batch, ranks, demand.dtype)


def _synthesis_s(run: PreparedRun, machine: Profile) -> float:
    """Embedding of records, votes, and the server's rounds."""
    if not run.federation.breeds:
        return 0.0
    tokens, capped = _public_tokens(run), run.settings.data.records_per_client
    read = cost_model.embedding(*EMBEDDER, len(run.federation.voters) * capped, tokens)
    costs, votings = RoundCosts.of(run), run.settings.votings
    rounds = [work for number in range(1, votings + 1) for work in costs.breeding(number, tokens)]
    return sum(cost_model.seconds(work, machine, dtype)
               for work, dtype in ((read, "float32"), *rounds))


def _public_tokens(run: PreparedRun) -> int:
    """Tokens that the embedder reads of a public text, on average over some of them: clients' own
    texts are taken to be as long."""
    most, public = run.settings.synthesis.max_tokens, run.federation.corpus.public
    some = public[:: max(1, len(public) // SAMPLED)]
    records = (Record(text) if isinstance(text, str) else text for text in some)
    read = [min(most, len(run.models.learner.encode(record)[0])) for record in records]
    return math.ceil(statistics.fmean(read)) if read else most
