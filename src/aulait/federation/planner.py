"""Who does what: a machine's profile and one dial, the seconds a round may take, become a
placement.

Every way a client could take part is costed in closed form; what exceeds the machine's memory or
the dial is out. Among the ways that are left the one that reads most records in a round wins, at
the largest rank; at equal work the order is local, split (single activations leave the site), proxy
(the server trains in the client's stead). Where the model may be cut in several places, the cut
wins whose round ends soonest. Nothing here looks at data: a placement follows from machines and
public numbers, so it tells nothing about a client's texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from aulait.core.factors import Trainable
from aulait.core.types import Placement, Profile
from aulait.federation.config import ComputeConfig
from aulait.resources import cost_model
from aulait.resources.cost_model import Batch, Cost, ModelShape
from aulait.resources.links import round_trip_s

RanksByLargest = Callable[[int], Mapping[str, int]]


@dataclass(frozen=True)
class Demand:
    """The work a round asks for, before it is fitted to a machine; all of it public.

    Attributes:
        model_shape: of the base.
        dtype: precision of the frozen weights.
        trainable: factors that are trained.
        ranks: the largest rank -> layer -> rank.
        steps: optimiser steps of a full share.
        row: tokens of one padded record: (tokens, source tokens, scored positions).
        travels: rank -> (bytes up, bytes down) of the factors of a local client in a round.
        front: (rank, cut) -> (bytes up, bytes down) of the factors in front of the cut.
        vote: what a proxied client computes in a round of stage 1, and (bytes up, bytes down); None
            where nobody votes.
        cut: blocks at the client of a split placement; None where split is not possible,
            ``no_split`` says why.
        cuts: the places where it may be cut, of which the planner chooses, the first first; empty:
            at ``cut`` alone.
        wire_bytes: of one number of an activation.
        server: the machine that runs the server's halves.
        crowd: clients of a round that may be split, all of whose halves wait for one server.
        rows_at_once: sequences that the server takes in one pass, over all clients.
        no_split: why split is not possible.
        no_proxy: why proxy is not possible; empty if it is.
    """

    model_shape: ModelShape
    dtype: str
    trainable: Trainable
    ranks: RanksByLargest
    steps: int
    row: tuple[int, int, int]
    travels: Callable[[int], tuple[int, int]]
    front: Callable[[int, int], tuple[int, int]]
    vote: tuple[Cost, tuple[int, int]] | None
    cut: int | None
    wire_bytes: int
    server: Profile
    crowd: int = 1
    rows_at_once: int = 16
    no_split: str = ""
    no_proxy: str = ""
    cuts: tuple[int, ...] = ()

    def at(self, cut: int | None) -> Demand:
        """The same work with the model cut there; where None is given, as it is."""
        return self if cut in (None, self.cut) else replace(self, cut=cut)

    def ways(self, placement: Placement) -> tuple[Demand, ...]:
        """The same work at every place where the model of such a client may be cut."""
        if placement != "split" or not self.cuts:
            return (self,)
        return tuple(self.at(cut) for cut in self.cuts)

    def batch(self, rows: int) -> Batch:
        """A step of so many rows."""
        tokens, source, scored = self.row
        return Batch(rows, tokens, source, scored)


@dataclass(frozen=True)
class Assignment:
    """What one client does in a round, and what that takes on its machine.

    Attributes:
        placement: where its share of the training is done.
        rank: of its adapter.
        steps: optimiser steps in a round.
        batch: sequences in a step.
        why: one clause.
        compute_s: seconds of arithmetic, the server's half of a split step included.
        transfer_s: seconds on the link.
        server_s: the part of ``compute_s`` that the server computes.
        memory_bytes: at the client.
        up_bytes: in a round.
        down_bytes: in a round.
        flop: at the client in a round.
        energy_j: at the client in a round; None where the machine's power is not known.
        cut: blocks at the client of a split placement; None elsewhere.
    """

    placement: Placement
    rank: int
    steps: int
    batch: int
    why: str
    compute_s: float
    transfer_s: float
    server_s: float
    memory_bytes: float
    up_bytes: int
    down_bytes: int
    flop: float
    energy_j: float | None
    cut: int | None = None

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.compute_s + self.transfer_s


def local(demand: Demand, profile: Profile, rank: int, steps: int, batch: int) -> Assignment:
    """The whole model at the client."""
    step = cost_model.lora_step(demand.model_shape, demand.batch(batch), demand.ranks(rank),
                                trainable=demand.trainable, dtype=demand.dtype)
    up, down = demand.travels(rank)
    busy_s = steps * cost_model.seconds(step, profile, demand.dtype)
    return Assignment("local", rank, steps, batch, "", busy_s, round_trip_s(profile, down, up), 0.0,
                      step.memory_bytes, up, down,
                      steps * step.flop, cost_model.joules(busy_s, profile))


def split(demand: Demand, profile: Profile, rank: int, steps: int, batch: int) -> Assignment:
    """The front of the model at the client, the rest at the server; one exchange in every step."""
    assert demand.cut is not None
    step = cost_model.split_step(demand.model_shape, cost_model.Cut(demand.cut, demand.wire_bytes),
                                 demand.batch(batch), demand.ranks(rank),
                                 trainable=demand.trainable,
                                 dtype=demand.dtype)
    up, down = demand.front(rank, demand.cut)
    own_s = steps * cost_model.seconds(step.client, profile, demand.dtype)
    server_s = steps * backs_s(demand, rank, batch, demand.crowd)
    link_s = (
        steps * round_trip_s(profile, step.down_bytes, step.up_bytes) + round_trip_s(profile, down,
            up)
    )
    return Assignment("split", rank, steps, batch, "", own_s + server_s, link_s, server_s,
                      step.client.memory_bytes,
                      up + steps * step.up_bytes, down + steps * step.down_bytes,
                      steps * step.client.flop, cost_model.joules(own_s, profile), demand.cut)


def backs_s(demand: Demand, rank: int, batch: int, clients: int) -> float:
    """Seconds in which the server makes one step of the backs of so many clients, neighbours of a
    pass together."""
    assert demand.cut is not None
    together = max(1, min(clients, demand.rows_at_once // batch))
    step = cost_model.split_step(demand.model_shape, cost_model.Cut(demand.cut, demand.wire_bytes),
                                 demand.batch(together * batch), demand.ranks(rank),
                                 trainable=demand.trainable, dtype=demand.dtype)
    return (
        math.ceil(clients / together) * cost_model.seconds(step.server, demand.server, demand.dtype)
    )


def proxy(demand: Demand, profile: Profile, rank: int, steps: int, batch: int) -> Assignment:
    """Embedding and voting at the client; the round is one of stage 1."""
    work, (up, down) = demand.vote or (cost_model.voting(0, 0, 1), (0, 0))
    busy_s = cost_model.seconds(work, profile, "float32")
    return Assignment("proxy", rank, steps, batch, "", busy_s, round_trip_s(profile, down, up), 0.0,
                      work.memory_bytes, up, down,
                      work.flop, cost_model.joules(busy_s, profile))


WAYS = {"local": local, "split": split, "proxy": proxy}


def fits(found: Assignment, profile: Profile) -> bool:
    """Whether it fits the machine's memory."""
    return profile.memory_bytes is None or found.memory_bytes <= profile.memory_bytes


def choose_placement(
    demand: Demand, profile: Profile, dial: ComputeConfig, ranks: Sequence[int], batch: int
) -> Assignment | str:
    """The best way for a machine to take part, or why there is none.

    Args:
        demand: the work of a full share.
        profile: the machine.
        dial: seconds a round may take, and the least number of steps.
        ranks: ranks that may be given, the largest first.
        batch: sequences in a step of a full share; halved where memory is short.

    Returns:
        An assignment; or one clause that says what each placement would need, and the nearest
        settings that work.
    """
    best: dict[str, Assignment] = {}
    placements: tuple[Placement, ...] = ("local", "split")
    for placement in placements:
        if not _hindered(placement, demand, dial):
            for found in _possible(placement, demand, profile, dial, ranks, batch):
                if placement not in best or _worth(found) > _worth(best[placement]):
                    best[placement] = found
    if best:
        chosen = max(best.values(), key=_worth)
        full = local(demand, profile, ranks[0], demand.steps, batch)
        return replace(chosen, why=_why(chosen, best.get("local"), full,
                                        _short_of(demand, profile, dial, ranks),
                                        _takes(full, profile, dial)))
    found = proxy(demand, profile, ranks[0], demand.steps, batch)
    if not _hindered("proxy", demand, dial) and fits(found, profile) and _in_time(found, dial):
        return replace(found, why=_short_of(demand, profile, dial, ranks))
    return _nearest(demand, profile, dial, ranks)


def _hindered(placement: str, demand: Demand, dial: ComputeConfig) -> str:
    """Why a placement may not be chosen, whatever the machine; empty if it may."""
    if placement not in dial.allowed:
        return "not in compute.allowed"
    return {"split": demand.no_split, "proxy": demand.no_proxy}.get(placement, "")


def at_best_cut(placement: Placement, demand: Demand, profile: Profile, rank: int, steps: int,
                batch: int) -> Assignment:
    """A share as it is asked for, its model cut where it fits the machine and the round ends
    soonest; where it fits nowhere, where it takes least memory."""
    found = [WAYS[placement](own, profile, rank, steps, batch) for own in demand.ways(placement)]
    fitting = [share for share in found if fits(share, profile)]
    if fitting:
        return min(fitting, key=lambda share: share.round_s)
    return min(found, key=lambda share: share.memory_bytes)


def _possible(
    placement: Placement, demand: Demand, profile: Profile, dial: ComputeConfig,
    ranks: Sequence[int], batch: int
) -> Iterator[Assignment]:
    """Ways that fit memory and dial: for every rank, batch and cut the most steps."""
    for rank, rows, own in product(ranks, halvings(batch), demand.ways(placement)):
        if not fits(WAYS[placement](own, profile, rank, 1, rows), profile):
            continue
        steps = (
            own.steps if dial.round_s is None else _most_steps(placement, own, profile,
                dial.round_s, rank, rows)
        )
        if steps >= min(dial.least_steps, own.steps):
            yield WAYS[placement](own, profile, rank, steps, rows)


def _most_steps(placement: str, demand: Demand, profile: Profile, round_s: float, rank: int,
                rows: int) -> int:
    """Steps that end within the dial; time is linear in steps."""
    one, two = (WAYS[placement](demand, profile, rank, n, rows).round_s for n in (1, 2))
    return (
        min(demand.steps, 1 + math.floor((round_s - one) / max(two - one, 1e-12))) if one <= round_s
        else 0
    )


def halvings(value: int) -> tuple[int, ...]:
    """The value and its halves down to 1."""
    return tuple(value >> i for i in range(value.bit_length()))


def _worth(found: Assignment) -> tuple[float, ...]:
    """Records read in a round, then rank; local before split, and of cuts the soonest done."""
    return (found.steps * found.batch, found.rank, found.placement == "local", found.batch,
            -found.round_s)


def _in_time(found: Assignment, dial: ComputeConfig) -> bool:
    return dial.round_s is None or found.round_s <= dial.round_s


def _why(best: Assignment, whole: Assignment | None, full: Assignment, short: str,
         takes: str) -> str:
    """What was given, and what stood against more.

    Args:
        best: what was given.
        whole: the best local share, if there is one.
        full: the local share that was asked for.
        short: why the smallest local share does not fit.
        takes: what of the machine the full share is too much for.
    """
    if best.placement == "split" and whole is not None:
        read, could = best.steps * best.batch, whole.steps * whole.batch
        reason = (
            f"the front {best.cut} blocks here read {read} records a round, the whole model {could}"
        )
        reason += f" at rank {whole.rank}" if read == could else ""
    elif best.placement == "split":
        reason = f"the front {best.cut} blocks fit, the whole model does not ({short})"
    elif (best.rank, best.steps, best.batch) == (full.rank, full.steps, full.batch):
        return "fits whole"
    else:
        reason = f"the whole share takes {takes}"
    less = [f"{name} {now} of {wanted}" for name, now, wanted in
            (("rank", best.rank, full.rank), ("steps", best.steps, full.steps),
             ("batch", best.batch, full.batch)) if now != wanted]
    return f"{reason}; {', '.join(less)}" if less else reason


def _takes(found: Assignment, profile: Profile, dial: ComputeConfig) -> str:
    """What of a machine is not enough."""
    parts = []
    if not fits(found, profile):
        parts.append(f"{size_text(found.memory_bytes)} of {size_text(profile.memory_bytes or 0)}")
    if not _in_time(found, dial):
        parts.append(f"{found.round_s:,.3g} s of {dial.round_s:g} s")
    return " and ".join(parts) or "less than it has"


def _short_of(demand: Demand, profile: Profile, dial: ComputeConfig, ranks: Sequence[int]) -> str:
    """Why the smallest local share does not fit, or may not be."""
    if hindered := _hindered("local", demand, dial):
        return f"local: {hindered}"
    return (
        "local takes " + _takes(local(demand, profile, ranks[-1],
            min(dial.least_steps, demand.steps), 1), profile, dial)
    )


def _nearest(demand: Demand, profile: Profile, dial: ComputeConfig, ranks: Sequence[int]) -> str:
    """What each placement would need at least, and the smallest dial under which one of them
    works."""
    least = min(dial.least_steps, demand.steps)
    needs, dials = [], []
    for placement in WAYS:
        if hindered := _hindered(placement, demand, dial):
            needs.append(f"{placement}: {hindered}")
            continue
        found = WAYS[placement](demand, profile, ranks[-1], least, 1)
        needs.append(
            f"{placement} takes {size_text(found.memory_bytes)} and {found.round_s:,.3g} s")
        if fits(found, profile):
            dials.append(found.round_s)
    limit = (
        f"{size_text(profile.memory_bytes)} of memory" if profile.memory_bytes
        else "memory not known"
    )
    dial_text = f", compute.round_s = {dial.round_s:g}" if dial.round_s else ""
    nearest = (f"nearest: compute.round_s = {_up(min(dials)):g}" if dials
               else "nearest: a smaller model.context or model, or a machine with more memory")
    return (
        f"machine '{profile.name}' ({limit}{dial_text}) can carry nothing: {'; '.join(needs)}; "
        f"{nearest}"
    )


def _up(value: float) -> float:
    """The next number of two significant digits that is no smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.6g}")


def size_text(size_bytes: float) -> str:
    """Bytes for people."""
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"
