"""``aulait bench secagg``: what secure aggregation takes of a client here beside plain sums.

Every party of a round is played in this process, message by message. Seconds of a client are those
of the processor for all its steps, each signature verified anew; a few clients are measured, and
the median is told. A tenth of the clients drop out: half of these before they send their vectors,
half afterwards. Plain is the same clip and grid without masks and noise, at the server.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

import torch

from aulait.core.files import JsonObject
from aulait.core.types import ClientUpdate
from aulait.privacy.clipping import ClippedSum
from aulait.privacy.noise import SystemNoise
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.keys import Identity, signed_by
from aulait.privacy.secure.local_round import LocalRound
from aulait.privacy.secure.party import Party
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.terms import SecureTerms

Found = TypeVar("Found")
Given = ParamSpec("Given")
DROPOUTS: Final = 0.1
BOUND, SIGMA = 1.0, 2.0
MEASURED: Final = 5  # clients whose seconds are taken


@dataclass(frozen=True)
class SecureSizes:
    """What is measured.

    Attributes:
        clients: of each round, smallest first.
        numbers: coordinates of a vector: votes on 256 candidates, cores, factors of FFA.
    """

    clients: tuple[int, ...]
    numbers: tuple[int, ...]


FULL = SecureSizes((10, 25, 50, 100, 200, 400), (256, 672, 24_576))
QUICK = SecureSizes((10, 20, 40), (256,))


def measure(sizes: SecureSizes, note: Callable[[str], None]) -> JsonObject:
    """Seconds and bytes of a client by the number of clients and of numbers.

    Args:
        sizes: what is measured.
        note: told of each round.
    """
    cases = []
    for numbers in sizes.numbers:
        for clients in sizes.clients:
            note(f"{clients} clients, {numbers} numbers")
            cases.append(_case(clients, numbers))
    return {"dropouts": DROPOUTS, "threads": torch.get_num_threads(), "cases": cases}


class _Stopwatch:
    """Seconds of the processor, by whom."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)

    def of(self, who: str, work: Callable[Given, Found], *given: Given.args,
           **named: Given.kwargs) -> Found:
        """The result of some work; nobody knows signatures that another one has verified."""
        signed_by.cache_clear()
        started = time.process_time()
        result = work(*given, **named)
        self.spent_s[who] += time.process_time() - started
        return result


def _case(clients: int, numbers: int) -> JsonObject:
    """One round: seconds by client and at the server, bytes by client, and what is plain."""
    names = [f"c{k:04d}" for k in range(clients)]
    quorum = Quorum.of(clients, DROPOUTS, 0)
    encoding = Encoding.fitting(BOUND, SIGMA, quorum.honest, clients)
    vectors = {name: torch.randn(numbers, generator=torch.Generator().manual_seed(k))
               for k, name in enumerate(names)}
    gone = names[:clients - quorum.least]
    silent, late = {*gone[::2]}, {*gone[1::2]}
    watch, survivors, error = _played(names, quorum, encoding, vectors, (silent, late))
    measured = [watch.spent_s[name] for name in names if name not in silent | late][:MEASURED]
    whole = time.perf_counter()
    traffic = _traffic(names, quorum, encoding, vectors, silent)
    whole = time.perf_counter() - whole
    there = [name for name in names if name not in silent | late]
    first = there[0]
    return {
        "clients": clients, "numbers": numbers, "survivors": survivors,
        "neighbours": traffic.terms.degree.degree, "threshold": traffic.terms.degree.threshold,
        "number_bytes": encoding.width, "client_s": statistics.median(measured),
        "server_s": watch.spent_s[_SERVER],
        "plain_server_s": _plain_s(vectors, encoding, silent),
        "up_bytes": traffic.traffic.up[first], "down_bytes": traffic.traffic.down[first],
        "plain_up_bytes": 4 * numbers, "plain_down_bytes": 0, "all_parties_s": whole,
        "error_steps": error}


_SERVER: Final = ""


def _played(names: list[str], quorum: Quorum, encoding: Encoding,
            vectors: dict[str, torch.Tensor], away: tuple[set[str], set[str]]
            ) -> tuple[_Stopwatch, int, float]:
    """A round with a stopwatch at every party; who survived, and how far the sum is from the plain
    one of what clients sent, in steps of the grid."""
    watch, (silent, late) = _Stopwatch(), away
    identities = {name: Identity.new() for name in names}
    terms = SecureTerms.drawn({name: own.public.hex() for name, own in identities.items()}, quorum,
                              len(vectors[names[0]]), encoding)
    parties = {name: watch.of(name, Party, name, identities[name], terms) for name in names}
    server, noise, sent = SecureSum(terms), SystemNoise(), torch.zeros(terms.numbers).double()
    for name, party in parties.items():
        keys = watch.of(name, party.advertise)
        watch.of(_SERVER, server.receive_keys, name, keys)
    for name, peers in watch.of(_SERVER, server.keys_for).items():
        sealed = watch.of(name, parties[name].share, peers)
        watch.of(_SERVER, server.receive_shares, name, sealed)
    for name, shares in watch.of(_SERVER, server.shares_for).items():
        if name in silent:
            continue
        noised = watch.of(name, encoding.noised, vectors[name], noise.client_words(name))
        sent += encoding.decoded(noised)
        masked = watch.of(name, parties[name].mask, shares, noised)
        watch.of(_SERVER, server.receive_vector, name, masked)
    survivors = watch.of(_SERVER, server.survivors)
    for name in survivors:
        if name not in late:
            signature = watch.of(name, parties[name].agree, survivors)
            watch.of(_SERVER, server.receive_signature, name, signature)
    signatures = watch.of(_SERVER, server.signatures)
    for name in signatures:
        revealed = watch.of(name, parties[name].reveal, signatures)
        watch.of(_SERVER, server.receive_secrets, name, revealed)
    total, count = watch.of(_SERVER, server.total)
    return watch, count, float((encoding.decoded(total) - sent).abs().max()) / encoding.step


def _traffic(names: list[str], quorum: Quorum, encoding: Encoding,
             vectors: dict[str, torch.Tensor], silent: set[str]) -> LocalRound:
    """A round as a simulation makes it, which counts bytes."""
    here = LocalRound(names, quorum, len(vectors[names[0]]), encoding, SystemNoise().client_words)
    for name in names:
        if name not in silent:
            here.add(name, vectors[name])
    here.close()
    here.total()
    return here


def _plain_s(vectors: dict[str, torch.Tensor], encoding: Encoding, silent: set[str]) -> float:
    """Seconds in which the server clips, rounds and adds the same vectors."""
    total = ClippedSum.zero({"x": next(iter(vectors.values()))}, encoding.step)
    started = time.process_time()
    for name, vector in vectors.items():
        if name not in silent:
            update = ClientUpdate(name, {"x": vector})
            total.add(update, update.tensors, encoding.bound, 1.0)
    return time.process_time() - started
