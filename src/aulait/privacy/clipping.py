"""The length of an update, its shortening to a bound, and the sum of shortened ones: this fixes the
sensitivity of a sum over clients.

Under privacy a summand is also rounded toward zero onto the public grid of the noise
(``aulait.privacy.noise``). That never makes it longer, and sums of multiples of the grid are exact
in float64, so one unit moves the sum by at most the bound, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import ClientUpdate, Info, ReleasedSum, Tensors
from aulait.privacy.noise import toward_zero
from aulait.privacy.noise_grid import MOST_SUMMANDS

# Far above the rounding error of a float64 norm: a factor, or a bound that must hold exactly, is
# made smaller by this much.
MARGIN = 1e-9
TOGETHER = 1 << 20  # numbers that one operation looks at
_JOINED = (torch.float32, torch.float64)  # narrower types do not all join


def norm(update: Tensors) -> float:
    """L2 norm of all tensors of an update together, computed in float64.

    The entries are divided by the largest one first, so that squares can neither overflow nor
    vanish.

    Returns:
        The norm, at least 0; inf or nan when an entry is infinite or not a number.
    """
    values = [update[name].detach().to("cpu", torch.float64) for name in sorted(update)]
    largest = max((_largest(value) for value in values), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(sum(float(((value / largest) ** 2).sum()) for value in values))


def length(tensors: Iterable[Tensor]) -> float:
    """L2 norm of tensors together, as ``norm`` to rounding and in few operations.

    Returns:
        The norm; inf or nan when an entry is infinite or not a number, and inf where squares
        overflow.
    """
    square, group, held = 0.0, list[Tensor](), 0
    for value in tensors:
        kept = value.dtype if value.dtype in _JOINED else torch.float64
        group.append(value.detach().to("cpu", kept).reshape(-1))
        held += value.numel()
        if held >= TOGETHER:
            square += _square(group)
            group, held = [], 0
    return math.sqrt(square + _square(group))


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no entry is infinite or not a number."""
    return math.isfinite(length(tensors)) or all(
        bool(torch.isfinite(value.detach().double()).all()) for value in tensors)


def _square(group: Sequence[Tensor]) -> float:
    """The sum of the squares of flat tensors."""
    return float(torch.cat(list(group)).double().square().sum()) if group else 0.0


def clip(update: Tensors, bound: float) -> Tensors:
    """The update, multiplied by min(1, bound / norm).

    ``norm`` of the result is at most ``bound``, also after rounding: entries are rounded toward
    zero, never away.

    Args:
        update: name -> tensor of floating numbers.
        bound: the largest allowed L2 norm, at least 0; inf returns the update as it is.

    Returns:
        Name -> tensor in the order of sorted names. An update within the bound keeps its tensors; a
        shortened one is float64 where it was float64 and float32 elsewhere.

    Raises:
        PrivacyError: the bound is negative or not a number, or an entry is infinite or not a
            number.
    """
    require(bound >= 0, PrivacyError,
            f"clip bound is {bound}, expected a number >= 0; set privacy.clip")
    if bound == math.inf:
        return {name: update[name] for name in sorted(update)}
    length = norm(update)
    require(
        all(math.isfinite(_largest(value)) for value in update.values()),
        PrivacyError,
        "an update holds NaN or infinity, which no factor can bound; reject it before clipping",
    )
    if length <= bound:
        return {name: update[name] for name in sorted(update)}
    factor = bound / length * (1.0 - MARGIN)
    return {name: _scaled(update[name], factor) for name in sorted(update)}


def clip_vector(values: Tensor, bound: float) -> Tensor:
    """A float64 vector, shortened to a norm that is at most the bound in exact arithmetic.

    The margin below the bound covers the rounding of the computed norm even if every addition of
    it rounded the same way.

    Args:
        values: finite.
        bound: > 0; inf shortens nothing.
    """
    largest = _largest(values)
    if largest == 0.0 or bound == math.inf:
        return values
    length = largest * float((values / largest).norm())
    allowed = bound * (1.0 - MARGIN - values.numel() * 2.0**-52)
    return values if length <= allowed else values * (allowed / length)


@dataclass
class ClippedSum:
    """A running sum over clients in float64, with who is in it.

    Attributes:
        total: the sum, by name; sensitive.
        step: of the grid on which the sum must lie, because its noise does; 0 is no grid.
        weights: client -> its weight in the sum.
        info: diagnostic -> its values over the updates that have it.
        rejected: (client, reason) of updates that were not counted.
    """

    total: Tensors
    step: float = 0.0
    weights: dict[str, float] = field(default_factory=dict)
    info: dict[str, list[float]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def zero(cls, template: Tensors, step: float = 0.0) -> ClippedSum:
        """The sum over nobody, with the names and shapes of ``template``."""
        return cls({name: torch.zeros(template[name].shape, dtype=torch.float64)
                    for name in sorted(template)}, step)

    def add(self, update: ClientUpdate, summand: Tensors, bound: float, weight: float,
            discount: float = 1.0) -> None:
        """Clip one client's summand to the bound, round it onto the grid and add it; one that
        overflowed on the way is rejected, not raised.

        Args:
            update: the client's.
            summand: what it adds.
            bound: of that.
            weight: its weight in the sum, by which it is told who counted.
            discount: in (0, 1], by which it is shortened once it is clipped.

        Raises:
            PrivacyError: the discount would lengthen it; or there is a grid, and a weight or the
                number of summands is not what an exact sum allows.
        """
        require(0.0 < discount <= 1.0, PrivacyError,
                f"discount {discount} of an update found, expected a number in (0, 1]; report this "
                "as a defect")
        if not all_finite(list(summand.values())):
            self.rejected.append((update.client, "what it adds is not finite"))
            return
        if self.step:
            self._add_on_grid(summand, bound, weight, discount)
        else:
            clipped, factor = clip(summand, bound), weight * discount
            require(bound == math.inf or norm(clipped) <= bound, PrivacyError,
                    "a clipped update exceeds its bound; report this as a defect")
            for name, total in self.total.items():
                summed = clipped[name].detach().to("cpu")
                total += summed if factor == 1.0 else summed.double() * factor
        self.weights[update.client] = weight
        for name, value in update.info.items():
            self.info.setdefault(name, []).append(float(value))

    def _add_on_grid(self, summand: Tensors, bound: float, weight: float,
                     discount: float) -> None:
        """What is added is a multiple of the grid with an L2 norm of at most the bound."""
        require(weight == 1.0 and len(self.weights) < MOST_SUMMANDS, PrivacyError,
                f"summand {len(self.weights) + 1} of weight {weight} found in a sum that gets "
                f"noise, expected at most {MOST_SUMMANDS} of weight 1; report this as a defect")
        values = torch.cat([summand[name].detach().to("cpu", torch.float64).reshape(-1)
                            for name in self.total] or [torch.zeros(0, dtype=torch.float64)])
        clipped = clip_vector(values, bound)
        rounded = toward_zero(clipped if discount == 1.0 else clipped * discount, self.step)
        sizes = [total.numel() for total in self.total.values()]
        for total, part in zip(self.total.values(), torch.split(rounded, sizes), strict=True):
            total += part.view(total.shape)

    def weighted(self, private: bool) -> ReleasedSum:
        """The sum in units of the mean weight, over the number counted (at least 1), without noise.

        Args:
            private: leave out the diagnostics, which carry no noise.
        """
        mean = (sum(self.weights.values()) / len(self.weights) if self.weights else 0.0) or 1.0
        counted = {client: weight / mean for client, weight in self.weights.items()}
        total = {name: (value / mean).to(torch.float32) for name, value in self.total.items()}
        return ReleasedSum(total, max(1, len(counted)), 0.0, {} if private else self._mean_info(),
                           tuple(sorted(self.rejected)), counted)

    def _mean_info(self) -> Info:
        """Mean of every diagnostic over the updates that have it; bytes on the wire are counted
        elsewhere."""
        return {name: sum(values) / len(values) for name, values in sorted(self.info.items())
                if not name.startswith("wire_")}


def _largest(value: Tensor) -> float:
    """Largest absolute entry; 0 for a tensor without entries; nan when an entry is."""
    return float(value.detach().to(torch.float64).abs().max()) if value.numel() else 0.0


def _scaled(value: Tensor, factor: float) -> Tensor:
    """``factor`` times the tensor, each entry rounded toward zero into the result's type."""
    exact = value.detach().to(torch.float64) * factor
    if value.dtype == torch.float64:
        return exact
    rounded = exact.to(torch.float32)
    too_long = rounded.to(torch.float64).abs() > exact.abs()
    return torch.where(too_long, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
