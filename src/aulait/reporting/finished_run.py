"""What a dossier says of a finished run: from its folder, as it is on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from aulait.reporting import story
from aulait.reporting.dossier import DossierSubject, SentBytes
from aulait.reporting.folder import RunFiles, as_selected, read_run
from aulait.reporting.numbers import NOT_RECORDED
from aulait.reporting.promise import Curve
from aulait.reporting.values import sum_of, words


def finished_run(path: Path, curves: Mapping[str, Curve] | None = None) -> DossierSubject:
    """The subject of a run folder.

    Args:
        path: the folder.
        curves: role -> further pairs (epsilon, delta) that its releases keep; nothing of a run that
            was kept of several is told by them.

    Raises:
        DataError: the path is not a run folder.
    """
    run = as_selected(read_run(path))
    curves = curves if curves and run.selection is None else {}
    personal = story.is_personal(run) or (path / "personal").is_dir()
    return DossierSubject(run, False, personal, _sent(run), _hashes(run), curves)


def _sent(run: RunFiles) -> list[SentBytes]:
    """Bytes as the rounds counted them: of the clients that were planned, where who answered is
    secret."""
    found, stage = [], run.result.synthesis
    if stage is not None and stage.voters:
        found.append(SentBytes(
            "those who vote", "votes", stage.voters, stage.client_up_bytes_per_round,
            sum_of(line.up_bytes for line in run.synthesis),
            sum_of(line.down_bytes for line in run.synthesis)))
    trainers = sum_of(clients for role, clients in story.placements(run).items()
                      if role != "proxy")
    if trainers:
        up = sum_of(line.up_bytes for line in run.training)
        rounds = len(run.training)
        found.append(SentBytes(
            "those who train", "updates", trainers,
            None if up is None or not rounds else up / rounds / trainers, up,
            sum_of(line.down_bytes for line in run.training)))
    return found


def _hashes(run: RunFiles) -> list[tuple[str, str]]:
    path = run.path
    adapter = next(iter(sorted((path / "adapter").glob("adapter_model.*"))), None)
    return [
        ("config.toml (SHA-256)", _file(path / "config.toml")),
        ("head of the ledger (SHA-256)", _head(path / "ledger.jsonl")),
        ("adapter (SHA-256)", NOT_RECORDED if adapter is None else _file(adapter)),
        ("base model (fingerprint)", run.result.base_fingerprint or NOT_RECORDED),
        ("aulait (version of the run)",
         words(run.result.versions.get("aulait")) or NOT_RECORDED),
    ]


def _file(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else NOT_RECORDED


def _head(path: Path) -> str:
    """The hash of the last line of the ledger, which holds the hash of the line before it."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return hashlib.sha256(lines[-1]).hexdigest() if lines else "no release"
