"""The mixed round of methods whose server must read single updates: no sum is enough, so
client-level privacy is refused.

Replies come one at a time with their unnormalised weights, local clients first: w for a local
client (w · n_k with
weights = "size"), c_j for a proxy that stands for c_j clients (times the mean n_k with "size"). A
method adds them to running sums and divides by ``total`` at the end, so that the server's memory
does not grow with the number of clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aulait.core.cohort import Cohort
from aulait.core.factors import FactorName
from aulait.core.types import ClientUpdate, Info, Tensors, TrainRequest
from aulait.methods.contract import Server
from aulait.methods.shared.traffic import Meter
from aulait.methods.shared.weighted_mean import MixtureConfig
from aulait.privacy.update_checks import ExpectedShapes


class Singles:
    """Weighted updates of a cohort, and afterwards what can be told about them.

    Args:
        config: weights of local against proxied clients, and by size.
        cohort: who takes part.
        server: gets the updates; its aggregator refuses under privacy, and refuses bad updates
            one by one.
        sent: the requests of all sites of the cohort.
        forms: site -> names and shapes of its share.
        method: name of the method, for the aggregator's message.
        instead: the nearest method that works under privacy.
        pruned: site -> a second form that its share may have.

    Attributes:
        total: sum of the weights so far.
        clients: names of the clients counted so far, proxies among them.
        refused: (client, reason) of the others.
    """

    def __init__(
        self, config: MixtureConfig, cohort: Cohort, server: Server,
        sent: Sequence[TrainRequest],
        expected_shapes: ExpectedShapes, method: str, instead: str,
        pruned: ExpectedShapes | None = None,
    ) -> None:
        self.total = 0.0
        self.clients: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self._config, self._cohort, self._ask = config, cohort, server.ask
        self._meter = Meter(sent, cohort)
        self._diagnostics: dict[str, list[float]] = {}
        self._proxies = [request for request in sent if request.client in cohort.proxies]
        self._counted_proxies = 0
        self._local = server.aggregator.collect(self._answers(), method, instead, expected_shapes,
            self.refused, pruned)
        self._door, self._forms, self._pruned = server.aggregator, expected_shapes, pruned

    def __iter__(self) -> Iterator[tuple[float, ClientUpdate]]:
        sizes = []
        for update in self._local:
            size = update.weight if self._config.weights == "size" else 1.0
            sizes.append(size)
            for name, value in update.info.items():
                if name.startswith("wire_"):  # counted by the meter
                    continue
                self._diagnostics.setdefault(name, []).append(float(value))
            yield self._counted(self._config.local_weight * size, update)
        mean = sum(sizes) / len(sizes) if sizes else 1.0
        from_proxies = self._ask(self._proxies) if self._proxies else ()
        for update in self._door.admit(from_proxies, {}, self._forms, self._pruned)[0]:
            self._counted_proxies += 1
            yield self._counted(self._cohort.proxies[update.client] * mean, update)

    def _answers(self) -> Iterator[ClientUpdate]:
        """Nobody is asked before the aggregator has agreed."""
        if self._meter.local:
            yield from self._meter.up(self._ask(self._meter.local))

    def _counted(self, weight: float, update: ClientUpdate) -> tuple[float, ClientUpdate]:
        self.total += weight
        self.clients.append(update.client)
        return weight, update

    def told(self, **more: Any) -> Info:
        """What can be told about the round, once all updates are through."""
        means = {name: sum(values) / len(values) for name,
                 values in sorted(self._diagnostics.items())}
        return {"clip_bound": None, "proxies": self._counted_proxies, "noise_std": 0.0,
                "signal_to_noise": None,
                "refused": len(self.refused), "refused_clients": [f"{client}: {reason}" for client,
                    reason in sorted(self.refused)],
                **means, **self._meter.told(), **more}


class FactorMean:
    """The weighted mean of nested factors, every column over those who own it; float64 sums, one
    update at a time.

    Args:
        like: names and shapes at the largest rank; also the values of columns that nobody owns.
    """

    def __init__(self, template: Tensors) -> None:
        self._like = template
        self._sums = {name: torch.zeros(t.shape, dtype=torch.float64) for name,
                      t in template.items()}
        self._weights = {name: torch.zeros(t.shape[_rank_axis(name)], dtype=torch.float64) for name,
                         t in template.items()}

    def add(self, weight: float, factors: Tensors) -> None:
        """Add the leading columns of one update."""
        for name, value in factors.items():
            rows, columns = value.shape
            self._sums[name][:rows, :columns] += weight * value.double()
            self._weights[name][: value.shape[_rank_axis(name)]] += weight

    def mean(self) -> Tensors:
        """The mean, float32."""
        found = {}
        for name, total in self._sums.items():
            count_R = self._weights[name]
            count = count_R.unsqueeze(1 - _rank_axis(name))
            found[name] = torch.where(count > 0, total / count.clamp(min=1e-300),
                                      self._like[name].double()).float()
        return found


def _rank_axis(name: str) -> int:
    return FactorName.parse(name).factor.rank_axis
