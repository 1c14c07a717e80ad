"""What a client does to its vector before it is masked: clip, round onto the grid, add its part of
the noise; and what the coordinator makes of the sum.

The grid is the aggregator's (``aulait.privacy.noise_grid``): steps that the noise's standard
deviation alone fixes. In units of a step a vector is whole numbers, the noise is whole numbers, and
sums are exact in the ring Z_{2^b}. b is chosen so that the sum over all clients with all their
noise stays in [-2^(b-1), 2^(b-1)): a coordinate of the sum is at most n C, and n discrete Gaussians
leave 16 of their standard deviations with a probability below 2 e^-128. Were it to wrap around all
the same, the released number would be wrong and as private as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aulait.core.errors import PrivacyError, require
from aulait.core.types import Tensors
from aulait.privacy.clipping import clip_vector
from aulait.privacy.noise import toward_zero
from aulait.privacy.noise_grid import grid
from aulait.privacy.noise_source import RandomWords
from aulait.privacy.secure.discrete_gaussian import (
    concentrated_multiplier,
    discrete_gaussian,
)
from aulait.privacy.secure.masks import Ring, centred

_DEVIATIONS: Final = 16.0


@dataclass(frozen=True)
class Encoding:
    """How vectors of a round are encoded; all of it public, and the same for every client.

    Attributes:
        bound: C, the L2 bound of a client's vector.
        step: of the grid.
        noise_steps: standard deviation parameter of a client's discrete Gaussian, in steps.
        width: bytes of a number of the ring.
    """

    bound: float
    step: float
    noise_steps: float
    width: int

    @classmethod
    def fitting(cls, bound: float, sigma: float, honest: int, clients: int) -> Self:
        """The encoding with which the noise of ``honest`` clients is at least sigma.

        Args:
            bound: C.
            sigma: standard deviation of the sum's noise, > 0.
            honest: the fewest clients whose noise counts, at least 1.
            clients: the most that are summed.

        Raises:
            PrivacyError: the noise is so small that sums leave 64 bits.
        """
        step = grid(sigma)
        require(step > 0, PrivacyError,
                "no noise found, expected some under privacy.trust = 'secure'; set "
                "privacy.noise_multiplier")
        # a little more, so that what is computed here in float64 is not less
        steps = sigma / step / math.sqrt(honest) * (1.0 + 2.0**-40)
        largest = clients * bound / step + _DEVIATIONS * math.sqrt(clients) * steps
        width = math.ceil((math.log2(largest) + 1.0 + 2.0**-10) / 8)
        require(width <= 8, PrivacyError,
                f"sums of up to 2^{math.log2(largest):.0f} steps of the noise's grid found, "
                "expected less than 2^63; raise the noise multiplier")
        return cls(bound, step, steps, width)

    def encoded(self, vector: Tensor) -> NDArray[np.int64]:
        """A client's vector, shortened to the bound and rounded toward zero, in steps."""
        exact = vector.detach().to("cpu", torch.float64).reshape(-1)
        rounded = toward_zero(clip_vector(exact, self.bound), self.step) / self.step
        return rounded.to(torch.int64).numpy()

    def noised(self, vector: Tensor, words: RandomWords) -> Ring:
        """What a client masks: its encoded vector with its own noise."""
        whole = self.encoded(vector)
        return (whole + discrete_gaussian(len(whole), self.noise_steps, words)).view(np.uint64)

    def decoded(self, total: Ring) -> Tensor:
        """The sum of a round, float64."""
        return torch.from_numpy(centred(total, self.width).astype(np.float64)) * self.step

    def multiplier(self, sensitivity: float, honest: int, numbers: int) -> float:
        """The noise multiplier that the divergence of the sum proves, where the noise of so many
        clients counts; of a sum of so many coordinates that one unit moves by at most
        ``sensitivity``."""
        total = math.sqrt(honest) * self.noise_steps * self.step / sensitivity
        return concentrated_multiplier(total, honest, self.noise_steps, numbers)

    def noise_std(self, clients: int) -> float:
        """Standard deviation of the noise in the sum over so many clients."""
        return math.sqrt(clients) * self.noise_steps * self.step


def vector_of(summand: Tensors) -> Tensor:
    """What a client adds, as one vector in the order of names; zeros where a number is not finite,
    so that the client takes part with its noise alone: its absence would tell why.

    Args:
        summand: name -> tensor of floating numbers.

    Returns:
        float64, CPU.
    """
    parts = [summand[name].detach().to("cpu", torch.float64).reshape(-1)
             for name in sorted(summand)]
    vector = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return vector if bool(torch.isfinite(vector).all()) else torch.zeros_like(vector)
