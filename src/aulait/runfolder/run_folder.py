"""The run folder: append a round, checkpoint, resume. Nothing here knows a method.

A checkpoint is one file, replaced atomically, so a kill at any moment leaves the previous or the
next one. It counts the lines of rounds.jsonl that belong to it; lines beyond are dropped on resume
and made again. The ledger is never cut (see ``privacy/ledger.py``).

A run folder is made for its owner alone (0700), and so are its files (0600): the checkpoint holds
what sites remember. A folder that is there already keeps its mode; checkpoint/ and personal/ are
closed to others whenever they are written.
"""

from __future__ import annotations

import json
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save

from aulait.core.errors import AulaitError, ConfigError, DataError, require
from aulait.core.files import (
    JsonObject,
    append_durably,
    json_document,
    json_line,
    private_folder,
    replace_file,
    writing,
)
from aulait.core.parsing import parsed_json, reason
from aulait.core.reading import read_json_object
from aulait.core.tensor_file import read_tensor_file
from aulait.core.types import Tensors

NEEDED_BYTES = 64 * 1024 * 1024
# of [engine]: keys with which a run may go on in other words, and names that all mean processes of
# one's own
MAY_CHANGE = ("deadline_s", "wait_s", "least_sites", "workers", "address")
OWN_PROCESSES = ('name = "inline"', 'name = "ray"')
LinesListener = Callable[[list[JsonObject]], None]


class RunFolder:
    """A run on disk; the layout is a public interface (docs/run-folder.md).

    Attributes:
        path: the folder.
        kept: told all lines of rounds.jsonl after each checkpoint: those that no resume drops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: LinesListener = lambda lines: None

    def begin(self, config: str, machine: Mapping[str, object], resume: bool,
              renewed: Callable[[str], str] = str) -> bool:
        """Make the folder, or enter it again.

        Args:
            config: the resolved settings as TOML.
            machine: facts about this machine.
            resume: go on with what is there.
            renewed: gives the settings that an earlier version wrote with the keys of today.

        Returns:
            Whether there is something to go on with.

        Raises:
            ConfigError: the folder holds a run and ``resume`` is false; or its settings differ.
            AulaitError: no space.
        """
        held = self.path / "config.toml"
        if held.exists() and not resume:
            raise ConfigError(
                f"run folder {self.path} already holds a run; add --resume to go on with it, or "
                "choose another --out")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path} is a file; expected a folder that can be made")
        with writing(self.path):
            if not self.path.exists():
                private_folder(self.path)
            self._space()
            if held.exists():
                before = renewed(held.read_text(encoding="utf-8"))
                differing = differing_settings(before, config)
                if differing:
                    raise ConfigError(
                        f"run folder {self.path} was started with other settings ({differing}); "
                        "resume with the same file, or choose another --out"
                    )
                return True
            self.write_json("machine.json", machine)
            # last: its presence says that the folder holds a run
            self.write_text("config.toml", config)
        return False

    def _space(self) -> None:
        free = shutil.disk_usage(self.path).free
        if free < NEEDED_BYTES:
            raise AulaitError(
                f"run folder {self.path} has no space left ({free // 2**20} MiB free); expected at "
                f"least {NEEDED_BYTES // 2**20} MiB; free some space or choose another --out"
            )

    def write_text(self, name: str, text: str) -> None:
        """Replace a file atomically."""
        self._replace(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Replace a JSON file atomically."""
        self._replace(name, json_document(value))

    def write_lines(self, name: str, lines: Sequence[Mapping[str, object]]) -> None:
        """Replace a JSON-lines file atomically."""
        self._replace(name, b"".join(map(json_line, lines)))

    def _replace(self, name: str, content: bytes) -> None:
        target = self.path / name
        with writing(self.path):
            if target.parent != self.path:
                private_folder(target.parent)
            replace_file(target, content)

    def append(self, line: Mapping[str, object]) -> None:
        """Add a line to rounds.jsonl, durable when this returns."""
        with writing(self.path):
            append_durably(self.path / "rounds.jsonl", json_line(line), undo=True)

    def lines(self) -> list[JsonObject]:
        """The whole lines of rounds.jsonl; a torn last line is left out.

        Raises:
            DataError: a line is no JSON object.
        """
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        return parsed_lines(path, path.read_bytes().split(b"\n")[:-1])

    def checkpoint(self, tensors: Tensors, progress: Mapping[str, object]) -> None:
        """Save the state of the run together with the number of lines in rounds.jsonl."""
        lines = self.lines()
        held = dict(progress) | {"lines": len(lines)}
        content = save(_apart(tensors), metadata={"progress": json.dumps(held)})
        self._replace("checkpoint/state.safetensors", content)
        self.kept(lines)

    def restore(self) -> tuple[Tensors, JsonObject] | None:
        """The last checkpoint, with rounds.jsonl cut to it; None when there is none.

        Raises:
            DataError: the checkpoint or a line of rounds.jsonl is damaged; no file was changed.
        """
        path = self.path / "checkpoint" / "state.safetensors"
        if not path.exists():
            if (self.path / "rounds.jsonl").exists():
                self.write_lines("rounds.jsonl", [])
            return None
        with reading_checkpoint(path):
            tensors, told = read_tensor_file(path)
            progress: JsonObject = parsed_json(told["progress"])
            kept = operator.index(progress["lines"])
        self.write_lines("rounds.jsonl", self.lines()[:kept])
        return tensors, progress

    def result(self) -> JsonObject | None:
        """result.json of a finished run, else None.

        Raises:
            DataError: it is damaged.
        """
        path = self.path / "result.json"
        return read_result(path) if path.exists() else None


def read_result(path: Path) -> JsonObject:
    """What a result.json holds.

    Raises:
        DataError: it is damaged.
    """
    return read_json_object(path, DataError, "what a run writes; restore it from a copy")


def parsed_lines(path: Path, raw: Sequence[bytes]) -> list[JsonObject]:
    """Lines of a file of a run, each a JSON object.

    Raises:
        DataError: one is none.
    """
    found = []
    for number, line in enumerate(raw, 1):
        try:
            value = parsed_json(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is no JSON ({reason(error)}), expected a line "
                            "that the run wrote; restore the run folder from a copy") from error
        require(isinstance(value, dict), DataError,
                f"{path} line {number} is no JSON object, expected a line that the run wrote; "
                "restore the run folder from a copy")
        found.append(value)
    return found


@contextmanager
def reading_checkpoint(path: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint raises into one line: a run never begins anew in its place."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} is no checkpoint of a run ({type(error).__name__}: {reason(error)}), expected "
            "what this version wrote; restore the run folder from a copy, or begin a new run in "
            "another --out") from error


def _apart(tensors: Tensors) -> Tensors:
    """The tensors in memory of their own: the format refuses two that share some."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        shared = whole.untyped_storage().data_ptr() in taken
        taken.add(whole.untyped_storage().data_ptr())
        apart[name] = (
            whole.clone() if shared or whole.untyped_storage().nbytes() != whole.nbytes else whole
        )
    return apart


def differing_settings(before: str, after: str) -> str:
    """The first few lines that differ, or an empty string. How long sites are waited for, who is
    told, and which processes of one's own train, whose results agree to rounding, may change."""
    old, new = _lasting(before), _lasting(after)
    if old == new:
        return ""
    pairs = zip(old + [""] * len(new), new + [""] * len(old), strict=False)
    differing = [f"{a or 'nothing'} -> {b or 'nothing'}" for a, b in pairs if a != b]
    return "; ".join(differing[:3])


def _lasting(config: str) -> list[str]:
    """Lines of a configuration without those that a run may go on with in other words."""
    found, table = [], ""
    for line in config.splitlines():
        table = line if line.startswith("[") else table
        if table != "[track]" and not (table == "[engine]" and (
                line.partition(" =")[0] in MAY_CHANGE or line in OWN_PROCESSES)):
            found.append(line)
    return found
