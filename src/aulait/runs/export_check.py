"""Is the exported adapter what was measured? Asked at the end of every run, of the folder on disk.

PEFT reads the folder on the base that is loaded already (``models/read_back.py``). Its layers must
be those of the run, number by number; and some records must get the same logits three ways: from
the run's own layers, from PEFT's through transformers' own forward pass, and from the weights with
the update merged in.

Which records: with privacy off, held-out ones, as the run measured them. Under privacy nothing may
follow from a client's text outside the aggregator, so there public texts are scored, or a fixed
sentence; what is found is then a function of released values. Of clients' own adapters nothing is
told but the names of layers that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from aulait.core.errors import ModelError
from aulait.core.types import Adapter, Record
from aulait.models import read_back
from aulait.models.loading import Base, wearing
from aulait.models.prefix_cache import lengths_of
from aulait.runfolder import schema
from aulait.runs.prepared import PreparedRun
from aulait.training.batches import IGNORE, Encoder, Rows, collate, scored, scored_tokens

if TYPE_CHECKING:  # takes seconds to import
    from peft import PeftModel

RECORDS: Final = 4
FIXED: Final = (
    Record("The quick brown fox jumps over the lazy dog, 3 times a day.", prompt="What happens?"),
    Record("In 1854 a doctor drew a map; every dot was a death, and the dots stood round a pump."),
)
# Root mean square of the differences of logits that rounding explains, as a share of their spread.
_SLACK: Final = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 1e-1}
# What is allowed of an adapter so large that a change in the last places moves the logits.
_TIMES_ROUNDING: Final = 10
_NAMED: Final = 6  # layers told by name


@dataclass(frozen=True)
class ScoredRecords:
    """Records that every reading of an adapter is scored on.

    Attributes:
        rows: one record each.
        measured_on: which records these are.
    """

    rows: Sequence[Rows]
    measured_on: str

    @classmethod
    def of(cls, run: PreparedRun) -> ScoredRecords:
        """Those of a run; see the head of this file."""
        base, encode, corpus = run.models.base, run.models.learner.encode, run.federation.corpus
        held = (record for _, records in sorted(run.federation.holdout.items())
                for record in records[:1])
        public = (text if isinstance(text, Record) else Record(text) for text in corpus.public)
        for source, told in ((held if run.settings.privacy.off else iter(()), "held-out records"),
                             (public, "public texts"), (iter(FIXED), "a fixed text")):
            rows = _scorable(base, encode, islice(source, RECORDS))
            if rows:
                return cls(rows, told)
        return cls((), "nothing")


def _scorable(base: Base, encode: Encoder, records: islice[Record]) -> list[Rows]:
    rows = [collate(base, encode, [record]) for record in records]
    return [row for row in rows if scored_tokens(row)]


def check_exported(records: ScoredRecords, base: Base, adapter: Adapter,
                   folder: Path) -> schema.ExportedResult:
    """Read an exported folder back and hold it against what was measured.

    Args:
        records: what is scored.
        base: with its layers wrapped; it is left as it was found.
        adapter: what the run measured.
        folder: that it was exported to.

    Returns:
        The mean loss of the records, as the run measures it, as PEFT has it, and merged.

    Raises:
        ModelError: a layer was lost or holds other numbers, or the logits differ by more than
            rounding; the layers are named.
    """
    with torch.no_grad(), wearing(base, [adapter]):
        ours = [scored(base, row)[0] for row in records.rows]
    with read_back.read_by_peft(base, folder) as model:
        faults = read_back.layer_faults(model, adapter)
        if faults:
            raise ModelError(_message(folder, faults, len(adapter.factors)))
        theirs = [_logits(model, row) for row in records.rows]
        merged = None
        if not base.config.quant:
            with read_back.merged_on_read(model):
                merged = [_logits(model, row) for row in records.rows]
    for found, how in ((theirs, "PEFT"), (merged, "the merged model")):
        apart = 0.0 if found is None else _apart(ours, found)
        if apart > _SLACK[base.config.dtype] and apart > _TIMES_ROUNDING * _rounding(
                records, base, adapter, ours):
            raise ModelError(_message(folder, _differing(records, base, adapter, folder, how),
                                      len(adapter.factors)))
    losses = (None if found is None else _loss(found, records.rows)
              for found in (ours, theirs, merged))
    loss, peft_loss, merged_loss = losses
    return schema.ExportedResult(
        layers=len(adapter.factors), rows=len(records.rows), measured_on=records.measured_on,
        loss=loss, peft_loss=peft_loss, merged_loss=merged_loss)


def check_personal(base: Base, records: ScoredRecords,
                   exported: Mapping[Path, Adapter]) -> None:
    """Read clients' own adapters back: by PEFT the first of all that have the same layers and
    ranks, by its numbers every other.

    Raises:
        ModelError: as ``check_exported``.
    """
    seen = set()
    for folder, adapter in exported.items():
        form = tuple((name, len(a)) for name, (a, _) in sorted(adapter.factors.items()))
        if form not in seen:
            seen.add(form)
            check_exported(records, base, adapter, folder)
        elif faults := read_back.file_faults(folder, adapter):
            raise ModelError(_message(folder, faults, len(adapter.factors)))


@torch.no_grad()
def _logits(model: PeftModel, row: Rows) -> Tensor:
    """Logits (X, V) of a record by transformers' own forward pass, at the positions with loss."""
    if row.source is not None:
        out = model(input_ids=row.source, attention_mask=row.mask, labels=row.labels,
                    use_cache=False).logits
        return out[row.labels != IGNORE].float()  # type: ignore[no-any-return]
    out = model(input_ids=row.ids, use_cache=False).logits
    return out[:, :-1][row.labels[:, 1:] != IGNORE].float()  # type: ignore[no-any-return]


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Root mean square of the differences as a share of the spread, of the record where that is
    largest; infinite where a number is not finite on one side alone."""
    shares = [float((left - right).square().mean().sqrt()) / max(float(left.std()), 1e-3)
              for left, right in zip(ours, theirs, strict=True)
              if bool(left.isfinite().all() | right.isfinite().all())]
    return max((math.inf if math.isnan(share) else share for share in shares), default=0.0)


@torch.no_grad()
def _rounding(records: ScoredRecords, base: Base, adapter: Adapter,
              ours: Sequence[Tensor]) -> float:
    """How far apart the run's own logits are from themselves when its layers round otherwise."""
    with wearing(base, [adapter]), read_back.rounded_otherwise(base, adapter.factors):
        return _apart(ours, [scored(base, row)[0] for row in records.rows])


def _loss(found: Sequence[Tensor], rows: Sequence[Rows]) -> float | None:
    """Mean nats a token."""
    targets = [row.labels[row.labels != IGNORE] if row.source is not None
               else row.labels[:, 1:][row.labels[:, 1:] != IGNORE] for row in rows]
    if not targets:
        return None
    return float(nn.functional.cross_entropy(torch.cat(list(found)), torch.cat(targets)))


@torch.no_grad()
def _differing(records: ScoredRecords, base: Base, adapter: Adapter, folder: Path,
               how: str) -> dict[str, str]:
    """Adapted layers whose outputs differ between the run's pass and another -> how."""
    names, row = list(adapter.factors), records.rows[0]
    with wearing(base, [adapter]), read_back.outputs_kept(base.model, names) as ours:
        scored(base, row)
    with read_back.read_by_peft(base, folder) as model:
        inner: nn.Module = model.base_model.model
        if how == "PEFT":
            with read_back.outputs_kept(inner, names) as theirs:
                _read(model, base, row)
        else:
            with read_back.merged_on_read(model), read_back.outputs_kept(inner, names) as theirs:
                _read(model, base, row)
    faults = {}
    for name in names:
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            faults[name] = "its block reads the weights instead of calling the layer"
        elif left.shape != right.shape or _apart([left], [right]) > _SLACK[base.config.dtype]:
            faults[name] = f"{how} computes something else"
    return faults or {"the output": f"{how} computes something else after the last layer"}


def _read(model: PeftModel, base: Base, row: Rows) -> None:
    """Let a model read a record as far as the run's own pass does: where the head is called for
    itself, nothing after the last position with loss."""
    if row.source is not None or not base.split_head:
        _logits(model, row)
        return
    model(input_ids=row.ids[:, : int(lengths_of(row.labels[:, 1:] != IGNORE).max())],
          use_cache=False)


def _message(folder: Path, faults: Mapping[str, str], layers: int) -> str:
    some = "; ".join(f"{name}: {why}" for name, why in islice(faults.items(), _NAMED))
    more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return (f"the adapter in {folder} is not what was measured: {len(faults)} of {layers} layers "
            f"differ when it is read back ({some}{more}); expected the same logits; choose other "
            "adapter.targets and run again")
