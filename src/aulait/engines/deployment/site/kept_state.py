"""What a site keeps of a run on its own disk, so that it may die at any moment: terms, memory
before and after rounds, last answer.

The coordinator may come back from its last checkpoint and ask for a round again. Then the site must
stand where it stood before that round, whatever the method remembers; so the memory before the last
two rounds is kept beside the present one. A request that was answered gets the same bytes again.
One file, replaced atomically, decides; the answer's own file is written before it. All of it is
sensitive: mode 0600 in a folder of mode 0700.
"""

from __future__ import annotations

import contextlib
import copy
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

from aulait.core.errors import WireError, require
from aulait.core.files import JsonObject, private_folder, replace_file, writing
from aulait.core.parsing import parsed_json, reason
from aulait.core.tensor_file import read_tensor_file
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.engines.deployment.protocol.heads import RunHead, Stamp
from aulait.engines.deployment.protocol.messages import digest_of
from aulait.engines.deployment.protocol.run_terms import RunTerms, read_terms
from aulait.runs import client_state as memory

RoundKey = tuple[int, int]  # place of its stage in the run, round
_NOW = "now"


@dataclass
class KeptState:
    """A run at a site.

    Attributes:
        folder: of the run.
        memory: what the site remembers now.
        before: round -> what it remembered before that round, of the last two rounds.
        epoch: of the last message.
        number: of the last message answered.
        key: of the last round.
        asked: digest of the last message answered.
    """

    folder: Path
    memory: JsonObject = field(default_factory=dict)
    before: dict[RoundKey, JsonObject] = field(default_factory=dict)
    epoch: int = 0
    number: int = 0
    key: RoundKey = (0, 0)
    asked: str = ""

    def admit(self, stamp: Stamp, key: RoundKey | None, asked: str) -> Packet | None:
        """Make ready for a message; the answer it had, where this very message was answered
        already.

        Args:
            stamp: of the message.
            key: its round; None where it belongs to none.
            asked: digest of the message.

        Raises:
            WireError: it is past, or of a round that is forgotten.
        """
        same = (stamp.epoch, stamp.number, asked) == (self.epoch, self.number, self.asked)
        if same and (found := self._answer(stamp)) is not None:
            return found
        past = (
            stamp.epoch < self.epoch or (stamp.epoch == self.epoch and stamp.number <= self.number)
        )
        require(not past, WireError,
            f"message {stamp.epoch}.{stamp.number} is past, this site is at "
            f"{self.epoch}.{self.number}")
        if key is None:
            return None
        again = stamp.epoch > self.epoch and key <= self.key
        if again:
            require(key in self.before, WireError,
                f"round {key[1]} of stage {key[0] + 1} is asked for again and the site remembers "
                f"from round {min(self.before, default=self.key)[1]} on; resume from a newer "
                "checkpoint, or begin a new run")
            self.memory = copy.copy(self.before[key])
            self.before = {own: held for own, held in self.before.items() if own <= key}
        elif key > self.key:
            self.before[key] = copy.copy(self.memory)
            self.before = dict(sorted(self.before.items())[-2:])
        else:
            require(key == self.key, WireError,
                f"round {key[1]} of stage {key[0] + 1} is past, this site is at round "
                f"{self.key[1]} of stage {self.key[0] + 1}")
        self.key = key
        return None

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """A message that is refused or fails inside leaves no trace: a refused round is not a round
        that was reached."""
        held = copy.copy(self.memory), dict(
            self.before), self.key, self.epoch, self.number, self.asked
        try:
            yield
        except BaseException:
            self.memory, self.before, self.key, self.epoch, self.number, self.asked = held
            raise

    def done(self, stamp: Stamp, asked: str, answer: Packet) -> None:
        """Make an answer durable before it is sent.

        Args:
            stamp: of the message.
            asked: its digest.
            answer: to it.

        Raises:
            AulaitError: the disk is full or cannot be written.
        """
        self.epoch, self.number, self.asked = stamp.epoch, stamp.number, asked
        old = sorted(self.folder.glob("answer-*"))
        _write(self._named(stamp), packet_bytes(answer))
        _write(self.folder / "kept.safetensors", self._content())
        for path in old:
            if path != self._named(stamp):
                path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        """What is remembered, as one file."""
        held = {_NOW: self.memory} | {f"{stage}.{round}": own
                                      for (stage, round), own in self.before.items()}
        stored, plain = memory.packed(held)
        told = {"memory": plain, "rounds": [list(key) for key in self.before], "epoch": self.epoch,
                "number": self.number, "key": list(self.key), "asked": self.asked}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
        content: bytes = save({"none": torch.zeros(1)} | tensors,
                              metadata={"kept": json.dumps(told)})
        return content

    def _named(self, stamp: Stamp) -> Path:
        return self.folder / f"answer-{stamp.epoch}-{stamp.number}.bin"

    def _answer(self, stamp: Stamp) -> Packet | None:
        path = self._named(stamp)
        return packet_from(path.read_bytes(), 2**62) if path.exists() else None


def round_key(head: RunHead, terms: RunTerms) -> RoundKey:
    """Stage and round of a message, as they order the site's memory. A round that the terms do not
    have comes after all that they have; it is refused where the request is looked at."""
    place = next((place for place, (stage, last) in enumerate(terms.stages)
                  if stage == head.stage and head.round <= last), len(terms.stages))
    return place, head.round


def read_kept_state(state: Path, run: str) -> KeptState:
    """What is kept of a run; nothing on the first day.

    Raises:
        WireError: the file is damaged.
    """
    folder = state / "runs" / run
    kept, path = KeptState(folder), folder / "kept.safetensors"
    if not path.exists():
        return kept
    try:
        tensors, head = read_tensor_file(path)
        told = parsed_json(head["kept"])
        held = memory.unpacked(tensors, told["memory"])
        kept.memory = held.get(_NOW, {})
        kept.before = {_round_of(key): held.get("{}.{}".format(*key), {}) for key in told["rounds"]}
        kept.epoch, kept.number = operator.index(told["epoch"]), operator.index(told["number"])
        kept.key, kept.asked = _round_of(told["key"]), str(told["asked"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WireError(f"{path} is damaged ({type(error).__name__}: {reason(error)}), expected "
                        "what this site kept; restore it from a copy, or remove that file to take "
                        "part without its memory") from error
    return kept


def _round_of(key: Sequence[int]) -> RoundKey:
    stage, number = key
    return operator.index(stage), operator.index(number)


def write_terms(folder: Path, terms: RunTerms) -> None:
    """Keep the terms of a run."""
    _write(folder / "terms.json", terms.model_dump_json().encode())


def read_kept_terms(state: Path, run: str) -> RunTerms | None:
    """The terms that were kept of a run; None if there are none that this version reads."""
    with contextlib.suppress(FileNotFoundError, WireError):
        return read_terms((state / "runs" / run / "terms.json").read_bytes())
    return None


def keep_tensors(folder: Path, body: bytes) -> None:
    """Keep public tensors of a run, of which those of the last two messages are held."""
    _write(folder / f"public-{digest_of(body)}.bin", body)
    held = sorted(folder.glob("public-*.bin"), key=lambda path: path.stat().st_mtime_ns)
    for path in held[:-2]:
        path.unlink(missing_ok=True)


def kept_tensors(folder: Path, digest: str) -> bytes | None:
    """The bytes of kept tensors by their digest; None where they are not held."""
    path = folder / f"public-{digest}.bin"
    if not (digest.isalnum() and path.exists()):
        return None
    body = path.read_bytes()
    return body if digest_of(body) == digest else None


def _write(path: Path, content: bytes) -> None:
    """Replace a file, durable when this returns."""
    with writing(path.parent):
        private_folder(path.parent)
        replace_file(path, content)
