"""The mixed round of methods whose server must read single updates: no sum is enough, so
client-level privacy is refused. Where the unit is the record an update carries its own noise: the
round is charged before anybody is asked, and single updates may be read.

Updates come one at a time with their unnormalised weights, local clients first: w for a local
client (w · n_k with weights = "size"), c_j for a proxy that stands for c_j clients (times the mean
n_k with "size"). A method adds them to running sums and divides by ``total`` at the end, so that
the server's memory does not grow with the number of clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import FactorName
from aulait.core.types import ClientUpdate, Info, Tensors, TrainRequest
from aulait.methods.contract import Server
from aulait.methods.shared.mixture import MixtureConfig
from aulait.methods.shared.traffic import TrafficCount
from aulait.methods.shared.weighted_mean import clip_bound
from aulait.privacy.aggregator import Release, WantedUpdates
from aulait.privacy.update_checks import ExpectedShapes


@dataclass(frozen=True)
class SingleReading:
    """How a method reads single updates.

    Attributes:
        method: its name, for the aggregator's message under privacy.
        instead: the nearest method that works under privacy.
        expected_shapes: site -> names and shapes of its update.
        alternate_shapes: site -> other shapes that its update may have; None for none.
    """

    method: str
    instead: str
    expected_shapes: ExpectedShapes
    alternate_shapes: ExpectedShapes | None = None


class SingleUpdates:
    """Weighted updates of a cohort, and afterwards the round's metrics.

    Args:
        config: weights of local against proxied clients, and by size.
        cohort: who takes part.
        server: gets the updates; its aggregator refuses under privacy, and refuses bad updates
            one by one.
        sent: the requests of all sites of the cohort.
        reading: what the updates must look like.

    Attributes:
        total: sum of the weights so far.
        clients: names of the clients counted so far, proxies among them.
        refused: (client, reason) of the others.
    """

    def __init__(self, config: MixtureConfig, cohort: Cohort, server: Server,
                 sent: Sequence[TrainRequest], reading: SingleReading) -> None:
        self.total = 0.0
        self.clients: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self._config, self._cohort, self._server = config, cohort, server
        self._reading = reading
        self._traffic = TrafficCount(sent, cohort, reading.expected_shapes)
        self._diagnostics: dict[str, list[float]] = {}
        self._for_proxies = [request for request in sent if request.client in cohort.proxies]
        self._counted_proxies = 0
        self._local = self._collected()

    def __iter__(self) -> Iterator[tuple[float, ClientUpdate]]:
        sizes = []
        for update in self._local:
            size = update.weight if self._config.weights == "size" else 1.0
            sizes.append(size)
            for name, value in update.info.items():
                if not name.startswith("wire_"):  # those are counted as traffic
                    self._diagnostics.setdefault(name, []).append(float(value))
            yield self._counted(self._config.weight * size, update)
        mean = sum(sizes) / len(sizes) if sizes else 1.0
        from_proxies = self._server.ask(self._for_proxies) if self._for_proxies else ()
        admitted, _ = self._server.aggregator.admit(
            from_proxies, {}, self._reading.expected_shapes, self._reading.alternate_shapes)
        for update in admitted:
            self._counted_proxies += 1
            yield self._counted(self._cohort.proxies[update.client] * mean, update)

    def _collected(self) -> Iterator[ClientUpdate]:
        """Valid updates of the local clients; with the unit "record" the round is charged first."""
        aggregator, cohort, reading = self._server.aggregator, self._cohort, self._reading
        release = None
        if aggregator.config.protects_records:
            if not (cohort.local or cohort.planned):
                return iter(())
            release = Release.of_cohort(cohort, stage="train", template={},
                                        bound=clip_bound(aggregator.config, ()))
        return aggregator.collect(
            self._answers(), reading.method, reading.instead,
            WantedUpdates(reading.expected_shapes, reading.alternate_shapes), self.refused, release)

    def _answers(self) -> Iterator[ClientUpdate]:
        """Nobody is asked before the aggregator has agreed."""
        if self._traffic.local:
            yield from self._traffic.counted(self._server.ask(self._traffic.local))

    def _counted(self, weight: float, update: ClientUpdate) -> tuple[float, ClientUpdate]:
        self.total += weight
        self.clients.append(update.client)
        return weight, update

    def metrics(self, update_norm: float, **more: float) -> Info:
        """The round's metrics, once all updates are through; ``more`` are the method's own."""
        means = {name: sum(values) / len(values)
                 for name, values in sorted(self._diagnostics.items())}
        refused = [f"{client}: {reason}" for client, reason in sorted(self.refused)]
        return {"clip_bound": None, "proxies": self._counted_proxies, "noise_std": 0.0,
                "signal_to_noise": None, "refused": len(refused), "refused_clients": refused,
                **means, **self._traffic.metrics(), "update_norm": update_norm, **more}


class FactorMean:
    """The weighted mean of nested factors, every column over those who own it; float64 sums, one
    update at a time.

    Args:
        template: names and shapes at the largest rank; also the values of columns that nobody owns.
    """

    def __init__(self, template: Tensors) -> None:
        self._template = template
        self._sums = {name: torch.zeros(value.shape, dtype=torch.float64)
                      for name, value in template.items()}
        self._weights = {name: lora.nobody(FactorName.parse(name).factor, value)
                         for name, value in template.items()}

    def add(self, weight: float, factors: Tensors) -> None:
        """Add the leading columns of one update."""
        for name, value in factors.items():
            rows, columns = value.shape
            self._sums[name][:rows, :columns] += weight * value.double()
            factor = FactorName.parse(name).factor
            rank = value.shape[factor.rank_axes[0]]
            lora.leading_part(factor, self._weights[name], rank).add_(weight)

    def mean(self) -> Tensors:
        """The mean, float32."""
        found = {}
        for name, total in self._sums.items():
            count = self._weights[name]
            found[name] = torch.where(count > 0, total / count.clamp(min=1e-300),
                                      self._template[name].double()).float()
        return found
