"""What the ledger of a run folder allows to say of it beyond one epsilon."""

from __future__ import annotations

from pathlib import Path

from aulait.core.errors import AulaitError
from aulait.privacy.curve import curves_of
from aulait.privacy.ledger import Ledger


def ledger_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Role -> pairs (epsilon, delta) by the ledger of a run folder; empty where it cannot be read:
    the page then says so, and stands on what result.json tells."""
    path = run / "ledger.jsonl"
    try:
        return curves_of(Ledger(path, repair=False)) if path.is_file() else {}
    except AulaitError:
        return {}
