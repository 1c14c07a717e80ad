"""What travels between the halves of a cut model: states and gradients whole, in half precision, or
in bytes with a scale a token.

A coded tensor is a few tensors by name: "data" always; "unit" for "float16" and "int8", a power of
two that brings the largest value near the top of half precision, so that large states do not
overflow and small gradients do not vanish; "scale" for "int8", in half precision and units, one for
every token. Nothing else travels.

Errors, with m the largest absolute value of the whole tensor and m_t that of the token:
"float32" none · "float16" at most max(|x| / 2^11, m / 2^38) · "int8" at most m_t / 253 + m / 2^37.

Source of a scale per token: Dettmers et al., "LLM.int8()", NeurIPS 2022, section 2 (there for the
input of a product).
Shape letters: B sequences · T tokens · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aulait.core.errors import WireError, require
from aulait.core.types import Tensors

Wire = Literal["float32", "float16", "int8"]
WIRES: tuple[Wire, ...] = ("float32", "float16", "int8")
_TOP = 14  # scaled values lie below 2^15, half of what half precision holds


@dataclass(frozen=True)
class Activations:
    """What a client sends in a step. Sensitive.

    Attributes:
        hidden: coded states at the cut (B, T, D).
        labels: token ids (B, T) of int32, -100 where there is no loss; of a decoder with its own
            width.
        lengths: real tokens of every row (B,) of int32, where the client has an encoder; else None.
    """

    hidden: Tensors
    labels: Tensor
    lengths: Tensor | None = None

    def tensors(self) -> Tensors:
        """By name, as they travel."""
        return self.hidden | {"labels": self.labels} | ({} if self.lengths is None
            else {"lengths": self.lengths})

    @classmethod
    def of(cls, tensors: Tensors) -> Activations:
        """From what travelled."""
        apart = ("labels", "lengths")
        return cls({n: t for n, t in tensors.items() if n not in apart}, tensors["labels"],
                   tensors.get("lengths"))


@dataclass(frozen=True)
class Gradients:
    """What the server returns in a step.

    Attributes:
        hidden: coded gradient of the client's loss at its states (B, T, D); empty where the
            client's half trains nothing.
        square: squared norm of the back's gradient, (1,).
    """

    hidden: Tensors
    square: Tensor


def encode(x_BTD: Tensor, wire: Wire) -> Tensors:
    """The tensor as it travels. Values that are not finite come out as NaN."""
    x_BTD = x_BTD.detach().float()
    if wire == "float32":
        return {"data": x_BTD.contiguous()}
    if wire == "float16":
        unit = _unit(x_BTD)
        return {"data": (x_BTD / unit).half(), "unit": unit}
    largest_BT = x_BTD.abs().amax(-1, keepdim=True) / 127
    unit = _unit(largest_BT)
    scale_BT = (largest_BT / unit).half()
    step_BT = scale_BT.float() * unit
    data = torch.where(step_BT > 0, x_BTD / step_BT, 0.0).round().clamp(-127, 127)
    return {"data": data.to(torch.int8), "scale": scale_BT.squeeze(-1), "unit": unit}


def decode(coded: Tensors) -> Tensor:
    """The tensor (B, T, D) in float32, wire and shapes as the parts say.

    Raises:
        WireError: the parts do not belong together.
    """
    data, unit, scale = coded.get("data"), coded.get("unit"), coded.get("scale")
    if data is not None and data.dtype == torch.float32 and coded.keys() == {"data"}:
        return data
    if data is not None and unit is not None and unit.shape == (1,) and unit.dtype == torch.float32:
        if data.dtype == torch.float16 and coded.keys() == {"data", "unit"}:
            return data.float() * unit
        if data.dtype == torch.int8 and scale is not None and scale.shape == data.shape[
            :-1] and len(coded) == 3:
            return data.float() * (scale.float() * unit).unsqueeze(-1)
    found = {name: (str(part.dtype), tuple(part.shape)) for name, part in coded.items()}
    raise WireError(
        f"coded hidden states have the parts {found}; expected 'data', with 'unit' in float16 and "
        "'unit' and 'scale' in int8")


def coded_bytes(rows: int, tokens: int, width: int, wire: Wire) -> int:
    """Bytes of a coded tensor of shape (rows, tokens, width).

    Raises:
        WireError: no such wire.
    """
    require(wire in WIRES, WireError, f"wire = '{wire}' found, expected one of {', '.join(WIRES)}")
    cells = rows * tokens * width
    return {"float32": 4 * cells, "float16": 2 * cells + 4,
            "int8": cells + 2 * rows * tokens + 4}[wire]


def _unit(x: Tensor) -> Tensor:
    """The power of two (1,) by which the largest value is divided."""
    largest = x.abs().amax().reshape(1)
    power = (largest.clamp(min=2.0**-110).log2().floor() - _TOP).clamp(max=110)
    return torch.where(torch.isfinite(largest), power.exp2(), 1.0)
