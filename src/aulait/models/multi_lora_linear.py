"""A frozen linear layer that carries the low-rank updates of many sites, one group of rows each."""

from __future__ import annotations

from torch import Tensor, nn

from aulait.models.adapter_dropout import AdapterDropout
from aulait.models.grouped_update import adapted, is_plain
from aulait.models.packing import packed_now


class SharedLinear(nn.Module):
    """A frozen linear layer plus the LoRA updates of K sites, one group of rows each.

    Input (K·B, ..., N), rows of a site adjacent; output (K·B, ..., M). ``worn`` is None (the bare
    base) or (A_KRN, B_KMR, scale_K); K = 1 serves any number of rows. ``dropout`` leaves out part
    of what the adapters read; None for none.

    Under ``basis`` = (V_PN, U_MP) the factors are coordinates in that basis, A_KRP and B_KPR, and
    the update of site k is U (scale_k · B_k A_k) V: both sides of the basis are read once for all
    sites.

    Args:
        inner: the frozen layer.
        number: of the layer (``layer_number``), by which dropout tells it from others.
    """

    def __init__(self, inner: nn.Module, number: int = 0) -> None:
        super().__init__()
        self.inner = inner
        self.worn: tuple[Tensor, Tensor, Tensor] | None = None
        self.basis: tuple[Tensor, Tensor] | None = None
        self.dropout: AdapterDropout | None = None
        self._number = number

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """What a block reads of a linear layer beside its weights: sides, a quantiser's state."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            found: Tensor | nn.Module = getattr(self.inner, name)
            return found

    @property
    def weight(self) -> Tensor:
        """The frozen weights; T5 looks at their type before it calls the layer."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, for blocks that read it."""
        return self.inner.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """The frozen layer's output plus scale_k · B_k A_k x for the rows of site k."""
        if self.worn is None:
            bare: Tensor = self.inner(x)
            return bare
        a_KRN, b_KMR, scale_K = (own.to(x.device) for own in self.worn)
        rows = packed_now()
        sizes = None if rows is None else rows.of_sites(len(a_KRN))
        if self.dropout is None and self.basis is None and is_plain(self.inner):
            return adapted(x, self.inner, (a_KRN, b_KMR, scale_K), sizes)
        y: Tensor = self.inner(x)
        if self.dropout is not None:
            lengths = None if rows is None else rows.lengths
            x = self.dropout.applied(x, self._number, lengths)
        if self.basis is not None:
            x = x.to(a_KRN.dtype) @ self.basis[0].T.to(x.device)
        update = adapted(x, None, (a_KRN, b_KMR, scale_K), sizes)
        if self.basis is not None:
            update = update @ self.basis[1].T.to(x.device)
        return y + update.view(y.shape).to(y.dtype)
