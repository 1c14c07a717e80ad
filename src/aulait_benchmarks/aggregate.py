"""``aulait bench aggregate``: what FlexLoRA's merge costs here beside the dense way, in seconds and
in bytes.

The dense way adds every product to a matrix in float32 and takes ``torch.linalg.svd`` of it, as
FlexLoRA's own code does. Both see the same factors in the same process and end with the factors of
every distinct rank. Memory is the peak of a fresh process whose clients come one by one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.linalg import eigvalsh
from torch import Tensor

from aulait.models.low_rank import ProductSum
from aulait.resources.meters import peak_of_process

Pairs = dict[int, tuple[Tensor, Tensor]]
CLEAR = 1e-4  # of the largest: singular values above this are compared


@dataclass(frozen=True)
class Case:
    """One layer of shape (m, n) and the ranks of its clients."""

    m: int
    n: int
    ranks: tuple[int, ...]

    @property
    def distinct(self) -> list[int]:
        """Ranks to which the sum is truncated, the largest first."""
        return sorted(set(self.ranks), reverse=True)

    @property
    def name(self) -> str:
        """Shape, clients and ranks in words."""
        low, high = min(self.ranks), max(self.ranks)
        return (
            f"{self.m}x{self.n}, {len(self.ranks)} clients of rank "
            f"{low if low == high else f'{low} to {high}'}"
        )


@dataclass(frozen=True)
class Sizes:
    """What is measured: cases in time, and the layer, ranks and numbers of clients of the memory
    comparison."""

    cases: tuple[Case, ...]
    layer: tuple[int, int]
    ranks: tuple[int, ...]
    few: int
    many: int


MIXED = (8, 16, 30, 64, 128, 200)
FULL = Sizes(
    cases=(
        Case(4096, 4096, (16,) * 10),
        Case(5504, 2048, (16,) * 10),
        Case(5504, 2048, tuple(MIXED[k % len(MIXED)] for k in range(80))),
    ),
    layer=(5504, 2048),
    ranks=(16, 200),
    few=10,
    many=1000,
)
QUICK = Sizes(
    cases=(Case(640, 640, (4,) * 10), Case(900, 600, tuple((2, 8, 40)[k % 3] for k in range(24)))),
    layer=(900, 600),
    ranks=(4, 48),
    few=10,
    many=100,
)


def aggregate(sizes: Sizes = FULL, repetitions: int = 5) -> dict[str, Any]:
    """Times and peaks of the streamed merge beside the dense way.

    Args:
        sizes: what is measured; ``QUICK`` takes seconds, ``FULL`` minutes.
        repetitions: how often the merge takes its turn, at least 3; medians are told. The dense way
            runs once: it is the slow one.

    Returns:
        cases: of each its name, m, n, clients, rank_sum, merge_s (of which add_s, truncate_s),
            dense_s (of which dense_svd_s),
        ratio_to_dense (dense over merge, larger is better), largest relative errors of the kept
        singular values above 1e-4 of the largest, against the dense way (float32) and against a
        float64 eigenvalue decomposition of a float64 sum.
        memory: of each rank the peak_bytes, above_start_bytes and merge_s with few and with many
            clients, and their ratios.
        threads.
    """
    memory = [_memory(sizes, rank) for rank in sizes.ranks]
    cases = [_compared(case, max(3, repetitions)) for case in sizes.cases]
    return {
        "cases": cases,
        "memory": memory,
        "smallest_ratio_to_dense": min(case["ratio_to_dense"] for case in cases),
        "largest_relative_error": max(case["error_to_float64"] for case in cases),
        "largest_memory_ratio": max(each["peak_ratio"] for each in memory),
        "repetitions": max(3, repetitions),
        "threads": torch.get_num_threads(),
    }


def clients(m: int, n: int, ranks: Sequence[int]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Weight, A and B of one client after the other, drawn from its number; nothing is kept."""
    for number, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(number)
        a = torch.randn(rank, n, generator=generator) / n**0.5
        b = torch.randn(m, rank, generator=generator)
        yield 16 / rank / len(ranks), a, b


def merged(case: Case, terms: Sequence[tuple[float, Tensor, Tensor]]) -> tuple[Pairs, float]:
    """The merge of one layer: factors of every distinct rank, and the seconds that the adding alone
    took."""
    started = time.perf_counter()
    total = ProductSum((case.m, case.n), planned_rank=sum(case.ranks))
    for weight, a, b in terms:
        total.add(weight, a, b)
    added_s = time.perf_counter() - started
    return {rank: total.truncated(rank) for rank in case.distinct}, added_s


def densely(case: Case, terms: Sequence[tuple[float, Tensor, Tensor]]) -> tuple[Pairs, float]:
    """The dense way: the same factors, and the seconds of the decomposition alone."""
    total = torch.zeros(case.m, case.n)
    for weight, a, b in terms:
        total.addmm_(b, a, alpha=weight)
    started = time.perf_counter()
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    spent_s = time.perf_counter() - started
    return {rank: (v[:rank].clone(), u[:, :rank] * s[:rank]) for rank in case.distinct}, spent_s


def peak(m: int, n: int, rank: int, many: int) -> dict[str, float]:
    """Of this process: its peak before the merge of lazily drawn clients and after it, and the
    seconds between."""
    start_bytes, started = (peak_of_process() or 0), time.perf_counter()
    total = ProductSum((m, n), planned_rank=many * rank)
    for weight, a, b in clients(m, n, (rank,) * many):
        total.add(weight, a, b)
    total.truncated(rank)
    spent_s = time.perf_counter() - started
    peak_bytes = peak_of_process() or 0
    return {"start_bytes": start_bytes, "peak_bytes": peak_bytes,
            "above_start_bytes": peak_bytes - start_bytes, "merge_s": spent_s}


def _compared(case: Case, repetitions: int) -> dict[str, Any]:
    """One case both ways."""
    terms = list(clients(case.m, case.n, case.ranks))
    (pairs, _), _ = _timed(merged, case, terms)  # warm
    turns = [_timed(merged, case, terms) for _ in range(repetitions)]
    (dense_pairs, svd_s), dense_s = _timed(densely, case, terms)
    merge_s = statistics.median(spent_s for _, spent_s in turns)
    add_s = statistics.median(added_s for (_, added_s), _ in turns)
    found, dense = (_values(each[case.distinct[0]]) for each in (pairs, dense_pairs))
    return {
        "name": case.name,
        "m": case.m,
        "n": case.n,
        "clients": len(case.ranks),
        "rank_sum": sum(case.ranks),
        "merge_s": merge_s,
        "add_s": add_s,
        "truncate_s": merge_s - add_s,
        "dense_s": dense_s,
        "dense_svd_s": svd_s,
        "ratio_to_dense": dense_s / merge_s,
        "error_to_dense": _error(found, dense),
        "error_to_float64": _error(found, _reference(terms, len(found))),
    }


def _timed(way: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = way(*inputs)
    return result, time.perf_counter() - started


def _values(pair: tuple[Tensor, Tensor]) -> Tensor:
    """Singular values of a truncation: norms of B's columns, for A's rows are orthonormal."""
    values: Tensor = torch.linalg.vector_norm(pair[1].double(), dim=0)
    return values


def _reference(terms: Sequence[tuple[float, Tensor, Tensor]], kept: int) -> Tensor:
    """Singular values of the float64 sum by another road: all eigenvalues of its smaller Gram
    matrix."""
    total = sum(weight * (b.double() @ a.double()) for weight, a, b in terms)
    assert isinstance(total, Tensor)
    gram = total.T @ total if total.shape[0] >= total.shape[1] else total @ total.T
    values: Tensor = torch.from_numpy(eigvalsh(gram.numpy())[::-1][:kept].copy())
    return values.clamp(min=0).sqrt()


def _error(found: Tensor, expected: Tensor) -> float:
    clear = expected > CLEAR * expected[0]
    return float(((found - expected).abs() / expected)[clear].max())


def _memory(sizes: Sizes, rank: int) -> dict[str, Any]:
    """Peaks of two fresh processes, one with few clients and one with many."""
    few, many = (_fresh(*sizes.layer, rank, number) for number in (sizes.few, sizes.many))
    return {
        "rank": rank,
        "m": sizes.layer[0],
        "n": sizes.layer[1],
        "few": {"clients": sizes.few, **few},
        "many": {"clients": sizes.many, **many},
        "peak_ratio": many["peak_bytes"] / few["peak_bytes"],
        "above_start_ratio": many["above_start_bytes"] / max(1.0, few["above_start_bytes"]),
    }


def _fresh(m: int, n: int, rank: int, many: int) -> dict[str, float]:
    """``peak`` in a process of its own."""
    code = (
        f"import json; from aulait_benchmarks.aggregate import peak; print(json.dumps(peak({m}, "
        f"{n}, {rank}, {many})))"
    )
    place = str(Path(__file__).resolve().parents[1])
    script = f"import sys; sys.path.insert(0, {place!r}); {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
