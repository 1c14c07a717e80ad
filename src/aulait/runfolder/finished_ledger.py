"""Whether the ledger of a finished run is the one that the run wrote. Changes no file.

What is compared: the chain of its lines, ``ledger.head``, the head in result.json and in the
checkpoint, and the rounds of rounds.jsonl with the lines that the privacy plan had for them. A
folder that is shared without ``checkpoint/`` is compared without it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from aulait.core.errors import PrivacyError, require
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.parsing import parsed_json
from aulait.core.tensor_file import read_tensor_head
from aulait.privacy.ledger import Ledger, LedgerHead
from aulait.runfolder.schema import is_chained

RESTORE = "restore the run folder from a copy and ask who changed it"


def check_finished(run: Path, result: JsonMapping) -> Ledger:
    """The ledger of a finished run, once everything beside it fits.

    Args:
        run: the run folder.
        result: what its result.json holds.

    Returns:
        The ledger. ``ledger.chained`` is false of a folder of an earlier version, of which only the
        single lines were checked.

    Raises:
        PrivacyError: the ledger was cut, deleted, edited, reordered, or is another run's; or the
            rounds done are not those that it has lines for.
    """
    ledger, privacy = Ledger(run / "ledger.jsonl", repair=False), result.get("privacy") or {}
    noted, saved = privacy.get("ledger"), _checkpoint(run)
    if noted is None:
        known = saved.get("ledger") is not None or (run / "ledger.head").exists()
        linked = any(line.previous for line in ledger.lines)
        today = is_chained(result.get("schema_version"), saved.get("schema_version"))
        require(bool(privacy.get("off")) or not (known or linked or today), PrivacyError,
                f"result.json of {run} names no head of the ledger, which is chained; {RESTORE}")
        return ledger
    releases = dict(noted.get("releases") or {})
    head = LedgerHead.read({key: value for key, value in noted.items() if key != "releases"},
                           f"result.json of {run}")
    ledger.hold_against(head, f"the head in result.json of {run}")
    require(len(ledger.lines) == head.lines, PrivacyError,
            f"the ledger of {run} has {len(ledger.lines)} lines, expected {head.lines} as "
            f"result.json says; {RESTORE}")
    if saved.get("ledger") is not None:
        ledger.hold_against(LedgerHead.read(saved["ledger"], f"the checkpoint of {run}"),
                            f"the checkpoint of {run}")
    _check_rounds(run, result, saved, releases, ledger)
    return ledger


def _check_rounds(run: Path, result: JsonMapping, saved: JsonMapping, releases: JsonMapping,
                  ledger: Ledger) -> None:
    """Every round done has its line, and every file has the same rounds."""
    path = run / "rounds.jsonl"
    try:
        rows = [parsed_json(raw) for raw in path.read_bytes().splitlines()] if path.exists() else []
        done = Counter((str(row["stage"]), int(row["round"])) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"{path} is malformed ({error!r}); {RESTORE}") from error
    counts = Counter(stage for stage, _ in done)
    gaps = [f"{stage} round {round}" for stage, count in counts.items()
            for round in range(1, count + 1) if done[stage, round] != 1]
    require(not gaps, PrivacyError,
            f"{path} lacks {', '.join(gaps[:3])} or has it twice, expected every round once; "
            f"{RESTORE}")
    require(counts["train"] == result.get("rounds"), PrivacyError,
            f"{path} has {counts['train']} rounds of training, expected {result.get('rounds')} as "
            f"result.json says; {RESTORE}")
    require(saved.get("lines", len(rows)) == len(rows), PrivacyError,
            f"{path} has {len(rows)} rounds, expected {saved.get('lines')} as the checkpoint says; "
            f"{RESTORE}")
    released = {(line.stage, line.round) for line in ledger.lines}
    silent = [f"{stage} round {round}" for stage, round in done
              if stage in releases and (stage, round) not in released]
    require(not silent, PrivacyError,
            f"{', '.join(silent[:3])} of {run} has no line in the ledger, expected one for every "
            f"round done; {RESTORE}")
    unplanned = sorted({line.stage for line in ledger.lines} - releases.keys())
    require(not unplanned, PrivacyError,
            f"the ledger of {run} has lines of stage {', '.join(unplanned)}, expected none by the "
            f"privacy plan in result.json; {RESTORE}")


def _checkpoint(run: Path) -> JsonObject:
    """What the checkpoint says of the run; empty where there is none."""
    path = run / "checkpoint" / "state.safetensors"
    if not path.exists():
        return {}
    try:
        found: JsonObject = parsed_json(read_tensor_head(path)["progress"])
    except (ValueError, KeyError) as error:
        raise PrivacyError(f"{path} is no checkpoint of a run ({error}); {RESTORE}") from error
    require(isinstance(found, dict), PrivacyError,
            f"{path} is no checkpoint of a run; {RESTORE}")
    return found
