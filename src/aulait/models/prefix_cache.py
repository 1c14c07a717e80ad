"""What the leading bare blocks of a decoder say of a token sequence, computed once and remembered.

Where only the last blocks carry an adapter, the hidden states that enter the first of them are a
constant of the tokens. They are kept for all runs of a process, whatever layers each of them
adapts: how many blocks are bare is seen anew in every pass. On a CPU every sequence is read for
itself, so that what is remembered depends on nothing that was read before or
beside it, and a run that is stopped and resumed sees what it would have seen.

Shape letters: B sequences · T tokens · W tokens up to the last that matters · D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aulait.models.multi_lora_linear import SharedLinear
from aulait.models.packing import PackedRows

MOST_BYTES = 2 << 30
_GROWING = ("dynamic", "longrope")  # rotary angles that change with the length of a pass
_UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)


class Skip(nn.Module):
    """Stands where a block was: passes the hidden states on, or those it was given instead, and
    keeps what came in."""

    def __init__(self, keeps: bool = False, given: Tensor | None = None) -> None:
        super().__init__()
        self.keeps = keeps
        self.held: Tensor | None = None
        self.given = given

    def forward(self, hidden_BTD: Tensor, *_: Any, **__: Any) -> Tensor:
        """The hidden states that leave."""
        if self.keeps:
            self.held = hidden_BTD
        return hidden_BTD if self.given is None else self.given


class Prefix:
    """Hidden states of a decoder, with those that enter its first adapted block remembered.

    Attributes:
        most_bytes: of remembered states; what was used longest ago is forgotten first. 0: remember
            nothing.
        held_bytes: of remembered states now.
        together: whether sequences not seen before are read in one pass: faster on an accelerator,
            and then the last bits of what is remembered depend on the company a sequence was first
            seen in.
        computed: sequences that went through leading blocks so far.
    """

    def __init__(self, decoder: Any, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self.computed = 0
        self._decoder = decoder
        self._device = next(decoder.parameters()).device
        self.together = self._device.type != "cpu"
        self._layers: nn.ModuleList = decoder.layers
        self._slots = [_slots(block) for block in self._layers]
        within = {slot for slots in self._slots for slot in slots}
        self._outside = [slot for slot in _slots(decoder) if slot not in within]
        self._weights = {slot: _identity(slot) for slot in (*within, *self._outside)}
        self._fits: dict[int, bool] = {}
        self._known: OrderedDict[tuple[int, tuple[int, ...]], Tensor] = OrderedDict()

    def hidden(self, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
        """Last hidden states (B, W, D) of right-padded sequences, exact up to the last chosen
        position of each; W <= T."""
        depth = self._fitting_depth()
        return self._resume(depth, ids_BT, chosen_BT) if depth else self._whole(ids_BT)

    def packed(self, rows: PackedRows) -> Tensor:
        """Last hidden states (1, S, D) of sequences behind one another."""
        depth = self._fitting_depth()
        if not depth:
            return rows.states(self._decoder)
        sequences = [tuple(ids.tolist()) for ids in torch.split(rows.ids[0], list(rows.lengths))]
        with self._after(depth, torch.cat(self._recall(depth, sequences))[None]):
            return rows.states(self._decoder)

    def _fitting_depth(self) -> int:
        """Leading bare blocks whose states are remembered; 0 for none."""
        depth = self.depth() if self.most_bytes else 0
        if depth and depth not in self._fits:
            self._fits[depth] = self._check(depth)
        return depth if depth and self._fits[depth] else 0

    def depth(self) -> int:
        """Number of leading blocks that are as they were loaded; 0 as well where nothing is
        adapted, which no run repeats."""
        if not all(map(self._bare, self._outside)):
            return 0
        adapted = (i for i, slots in enumerate(self._slots) if not all(map(self._bare, slots)))
        return next(adapted, 0)

    def _bare(self, slot: SharedLinear) -> bool:
        """Whether a layer wears no adapter and its weights hold no update."""
        return slot.worn is None and _identity(slot) == self._weights[slot]

    def _whole(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD: Tensor = self._decoder(input_ids=ids_BT, use_cache=False)[0]
        return hidden_BTD

    @torch.no_grad()
    def _check(self, depth: int) -> bool:
        """Whether the pass in two parts says what the pass in one says; on made-up tokens, so that
        no client's text decides how those of others are read."""
        copies = next((slot.worn[0].shape[0] for slots in self._slots for slot in slots
                       if slot.worn is not None), 1)  # of adapters, each with as many rows
        vocabulary = self._decoder.get_input_embeddings().num_embeddings
        ids_BT = (torch.arange(16, device=self._device) % vocabulary).view(2, 8).repeat(copies, 1)
        lengths_B = torch.tensor([5, 8], device=self._device).repeat(copies)
        matters_BT = torch.arange(8, device=self._device) < lengths_B[:, None]
        computed = self.computed
        try:
            found = self._resume(depth, ids_BT, matters_BT)
            whole = self._whole(ids_BT)
        except _UNFIT:
            return False
        finally:
            self._forget([(depth, tuple(ids[:length])) for ids, length in zip(
                ids_BT.tolist(), lengths_B.tolist(), strict=True)])
            self.computed = computed
        if found.shape != whole.shape:
            return False
        left, right = found[matters_BT].float(), whole[matters_BT].float()
        slack = min(100 * torch.finfo(whole.dtype).eps, 0.05)  # 1e-5 in float32
        return bool((left - right).abs().max() <= slack * right.abs().max().clamp(min=1.0))

    def _forget(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Drop remembered states."""
        for key in keys:
            if (state := self._known.pop(key, None)) is not None:
                self.held_bytes -= state.nbytes

    def _resume(self, depth: int, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
        """The pass from block ``depth`` on. Nothing that matters sees a token after the last chosen
        one of its sequence."""
        lengths = lengths_of(chosen_BT).tolist()
        rows = [tuple(ids[:length]) for ids, length in zip(ids_BT.tolist(), lengths, strict=True)]
        given_BWD = nn.utils.rnn.pad_sequence(self._recall(depth, rows), batch_first=True)
        with self._after(depth, given_BWD):
            return self._whole(ids_BT[:, : given_BWD.shape[1]])

    def _after(self, depth: int, given: Tensor) -> AbstractContextManager[None]:
        """The decoder with states in the place of its first ``depth`` blocks."""
        skips = (Skip() for _ in range(depth - 1))
        return standing(self._decoder, [Skip(given=given), *skips, *self._layers[depth:]])

    def _recall(self, depth: int, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """States (length, D) that enter block ``depth``, of every sequence."""
        states = {row: self._known[depth, row] for row in rows if (depth, row) in self._known}
        missing = [row for row in dict.fromkeys(rows) if row not in states]
        size = max(1, len(missing)) if self.together else 1
        for i in range(0, len(missing), size):
            states.update(self._compute(depth, missing[i : i + size]))
        self.computed += len(missing)
        self.held_bytes += sum(states[row].nbytes for row in missing)
        for row, state in states.items():
            self._known[depth, row] = state
            self._known.move_to_end((depth, row))
        while self.held_bytes > self.most_bytes:
            self._forget([next(iter(self._known))])
        return [states[row] for row in rows]

    def _compute(self, depth: int, rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...],
            Tensor]:
        """One pass through the first ``depth`` blocks; the states (length, D) of every sequence."""
        keeper, width = Skip(keeps=True), max(map(len, rows))
        ids_BW = torch.tensor([row + (row[-1],) * (width - len(row)) for row in rows],
                              device=self._device)
        rest = len(self._layers) - depth - 1
        with (
            torch.inference_mode(False), torch.no_grad(),
            standing(self._decoder,
                     [*self._layers[:depth], keeper, *(Skip() for _ in range(rest))]),
        ):
            self._whole(ids_BW)
        assert keeper.held is not None
        return {row: keeper.held[i, : len(row)].clone() for i, row in enumerate(rows)}


@contextmanager
def standing(decoder: Any, blocks: Sequence[nn.Module], name: str = "layers") -> Iterator[None]:
    """Let other blocks stand in a decoder, each in its place, since a decoder may mask by number;
    then its own again."""
    own = getattr(decoder, name)
    setattr(decoder, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        setattr(decoder, name, own)


def prefix_of(decoder: Any) -> Prefix | None:
    """The memory of a decoder; None where its blocks are not found, or where states depend on more
    than the tokens before them.

    On an accelerator at most an eighth of what is free now is used.
    """
    rotary = getattr(getattr(decoder, "rotary_emb", None), "rope_type", "default")
    growing = any(kind in _GROWING for kind in (rotary.values() if isinstance(rotary, dict)
        else [rotary]))
    if growing or not isinstance(getattr(decoder, "layers", None),
            nn.ModuleList) or len(decoder.layers) < 2:
        return None
    device = next(decoder.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 * MOST_BYTES
    return Prefix(decoder, min(MOST_BYTES, free // 8))


def _slots(module: nn.Module) -> list[SharedLinear]:
    return [slot for slot in module.modules() if isinstance(slot, SharedLinear)]


def _identity(slot: SharedLinear) -> tuple[int, int]:
    """Changes when the weights are exchanged or written to."""
    return slot.weight.data_ptr(), slot.weight._version


def lengths_of(chosen_BT: Tensor) -> Tensor:
    """Tokens up to the last chosen one of every sequence (B,), at least 1."""
    place_T = torch.arange(1, chosen_BT.shape[1] + 1, device=chosen_BT.device)
    return (chosen_BT * place_T).amax(dim=1).clamp(min=1)
