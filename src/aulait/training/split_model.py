"""A model cut after one of its blocks: one half belongs to a client, the other to the server.

The client's half of a causal model is its embedding and the blocks before the cut; the server's
half is the other blocks, the final norm and the head. Of a sequence-to-sequence model of T5's kind
the client has the whole encoder, the server the decoder. Both halves are run on one base in memory:
each block of the other half is replaced by one that does nothing.

Shape letters: B sequences · T tokens · D width · X scored positions · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aulait.core.errors import ModelError, require
from aulait.models.loading import Base
from aulait.models.prefix_cache import Skip, standing
from aulait.training.batches import IGNORE, Rows, scored

_UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)


def possible_cuts(base: Base) -> tuple[int, ...]:
    """After how many blocks the model may be cut; each half keeps at least one.

    Raises:
        ModelError: its blocks are not found.
    """
    if base.config.kind == "seq2seq":
        blocks = getattr(base.model.get_encoder(), "block", None)
        require(isinstance(blocks, nn.ModuleList), ModelError,
                f"{base.config.name} has an encoder that is not of T5's kind and cannot be cut; "
                "use 'local' or 'proxy'")
        assert blocks is not None
        return (len(blocks),)
    decoder, name = _decoder(base)
    return tuple(range(1, len(getattr(decoder, name))))


def check_cut(base: Base, after: int) -> None:
    """Whether the model may be cut here, and whether its halves, one after the other, say what the
    whole says.

    Raises:
        ModelError: not so; the message names the possible values.
    """
    values = possible_cuts(base)
    require(bool(values), ModelError,
            f"{base.config.name} has one block and cannot be cut; use 'local' or 'proxy'")
    kinds = (
        "the whole encoder is the client's" if base.config.kind == "seq2seq"
        else f"{values[-1] + 1} blocks, one at least on each side"
    )
    expected = str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
    require(after in values, ModelError,
            f"cut = {after} found, expected {expected} for {base.config.name} ({kinds})")
    require(_joins(base, after), ModelError,
            f"{base.config.name} cut after block {after} does not say what it says whole; use "
            "'local' or 'proxy' for such a model")


def in_client_half(layer: str, after: int) -> bool:
    """Whether a layer lies before the cut, by its name: numbered below ``after``, or in an encoder.

    Raises:
        ModelError: it lies in no block.
    """
    parts = layer.split(".")
    if "encoder" in parts or parts[0] == "decoder":
        return "encoder" in parts
    number = next((int(part) for part in parts if part.isdigit()), None)
    if number is None:
        raise ModelError(
            f"layer '{layer}' carries an adapter and lies in no block, so on no side of a cut; set "
            "adapter.targets")
    return number < after


def client_layers(layers: Iterable[str], after: int) -> tuple[str, ...]:
    """Those of the layers that lie before the cut, in the order given."""
    return tuple(layer for layer in layers if in_client_half(layer, after))


def hidden_width(base: Base) -> int:
    """D of the hidden states at the cut."""
    return int(base.model.config.hidden_size)


def client_forward(base: Base, after: int, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Hidden states (B, T, D) at the end of the client's half, with their graph.

    Args:
        base: the factors of the client's half are applied to it.
        after: blocks before the cut.
        ids_BT: right-padded tokens; of a sequence-to-sequence model those of the encoder.
        mask_BT: 1 where the encoder's tokens are real; None for a causal model.
    """
    if base.config.kind == "seq2seq":
        states: Tensor = base.model.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT)[0]
        return states
    decoder, name = _decoder(base)
    blocks, keeper = getattr(decoder, name), Skip(keeps=True)
    with standing(decoder,
            [*blocks[:after], keeper, *(Skip() for _ in range(len(blocks) - after - 1))], name):
        decoder(input_ids=ids_BT, use_cache=False)
    assert keeper.held is not None
    return keeper.held


def server_forward(
    base: Base, after: int, hidden_BTD: Tensor, labels_BT: Tensor, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The back's logits (X, V), target ids (X,) and row numbers (X,) of all positions that carry
    loss; see ``rows.scored``.

    Args:
        base: the factors of the server's half are applied to it.
        after: blocks before the cut.
        hidden_BTD: states at the cut.
        labels_BT: token ids, -100 where there is no loss; of a sequence-to-sequence model those of
            the decoder.
        mask_BT: 1 where the encoder's tokens are real; None for a causal model.
    """
    if base.config.kind == "seq2seq":
        return scored(base, Rows(labels_BT, labels_BT, labels_BT, mask_BT), encoded=hidden_BTD)
    ahead = torch.cat([labels_BT[:, 1:], labels_BT.new_full((len(labels_BT), 1), IGNORE)], dim=1)
    chosen = ahead != IGNORE
    decoder, name = _decoder(base)
    stood = [*(Skip() for _ in range(after - 1)), Skip(given=hidden_BTD)]
    # the tokens themselves stay with the client; only their number matters here
    nothing_BT = torch.zeros_like(labels_BT)
    with standing(decoder, [*stood, *getattr(decoder, name)[after:]], name):
        if base.split_head:
            out: Tensor = base.model.get_output_embeddings()(decoder(input_ids=nothing_BT,
                use_cache=False)[0][chosen])
        else:
            out = base.model(input_ids=nothing_BT, use_cache=False).logits[chosen]
    return out.float(), ahead[chosen], chosen.nonzero()[:, 0]


def _decoder(base: Base) -> tuple[Any, str]:
    """The module that holds the blocks, and what it calls them."""
    decoder = base.model.get_decoder() if hasattr(base.model, "get_decoder") else None
    for name in ("layers", "h"):
        if isinstance(getattr(decoder, name, None), nn.ModuleList):
            return decoder, name
    raise ModelError(
        f"the blocks of {base.config.name} are not found, so it cannot be cut; use 'local' or "
        "'proxy'")


@torch.no_grad()
def _joins(base: Base, after: int) -> bool:
    """Whether one half after the other gives the logits of the whole model, on four tokens."""
    ids = torch.arange(4, device=base.device)[None] + 3
    mask = torch.ones_like(ids) if base.config.kind == "seq2seq" else None
    try:
        parts = server_forward(base, after, client_forward(base, after, ids, mask), ids, mask)[0]
    except _UNFIT:
        return False
    if mask is not None:
        whole = base.model(input_ids=ids, attention_mask=mask, labels=ids,
                           use_cache=False).logits[0]
    else:
        whole = base.model(input_ids=ids, use_cache=False).logits[0, :-1]
    whole = whole.float()
    slack = min(100 * torch.finfo(base.model.dtype).eps, 0.05)
    return (
        parts.shape == whole.shape
        and bool((parts - whole).abs().max() <= slack * whole.abs().max().clamp(min=1.0))
    )
