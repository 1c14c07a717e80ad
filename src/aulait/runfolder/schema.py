"""The files of a run folder as types: what the run writes, and what readers may count on.

A writer builds a model and writes ``on_disk()``: the keys it was given, in the order of the fields,
and no others; a key that no field names (a method's own measurement) stays. A reader takes a file
from anywhere, also one of an earlier version or one that somebody has edited, with ``fitting``:
what does not fit its field is left out, as if it were missing.

Every field may be missing. None means what null means in the file: not known, or, for an epsilon,
without bound.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainValidator,
    StrictBool,
    ValidationError,
    ValidationInfo,
)

from aulait.core.files import LARGEST_NUMBER, JsonObject, JsonTree, plain_json

SCHEMA_VERSION: Final = 2
"""Of result.json and of the checkpoint; a folder without the number is older, and may lack keys of
today."""

CHAINED_SINCE: Final = 2
"""From this version on every run under privacy notes the head of its ledger in both."""

READING: Final = "reading"


def _as_number(value: object, info: ValidationInfo) -> float | None:
    """A number or null. What a run writes that is infinite or undefined becomes null; a reader
    refuses it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    if info.context == READING and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise ValueError("no number that a run could measure")
    return value if isinstance(value, int) or math.isfinite(value) else None


def _as_text(value: object, info: ValidationInfo) -> str | None:
    """A text or null; a reader refuses an empty one."""
    if value is None:
        return None
    if not isinstance(value, str) or (info.context == READING and not value.strip()):
        raise ValueError("no text")
    return value


def _as_name(value: object, info: ValidationInfo) -> str | float | None:
    """A text or a number: both have named a client or a parent."""
    return _as_text(value, info) if isinstance(value, str) else _as_number(value, info)


Number = Annotated[float | None, PlainValidator(_as_number)]
Words = Annotated[str | None, PlainValidator(_as_text)]
Named = Annotated[str | float | None, PlainValidator(_as_name)]


class FileModel(BaseModel):
    """A JSON object of a run folder."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @classmethod
    def fitting(cls, tree: dict[str, JsonTree]) -> Self:
        """What of a parsed object fits; the tree is changed by it."""
        while True:
            try:
                return cls.model_validate(tree, context=READING)
            except ValidationError as error:
                places = [_place_of(tree, fault["loc"]) for fault in error.errors()]
                for place in reversed(dict.fromkeys(places)):  # so that places in lists stay true
                    _leave_out(tree, place)

    def on_disk(self) -> JsonObject:
        """The keys that were given, as plain JSON values."""
        given = self.model_dump(exclude_unset=True)
        return {key: plain_json(value) for key, value in given.items()}

    def records(self, key: str) -> bool:
        """Whether the file has the key, be it with null."""
        return key in self.model_fields_set


def _place_of(tree: JsonTree, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of a location that leads to a value; the rest names an alternative of a type."""
    for depth, key in enumerate(location):
        if isinstance(tree, dict) and key in tree:
            tree = tree[str(key)]
        elif isinstance(tree, list) and isinstance(key, int):
            tree = tree[key]
        else:
            return location[:depth]
    return location


def _leave_out(tree: JsonTree, place: tuple[str | int, ...]) -> None:
    """Take the value at a place out of a tree."""
    for key in place[:-1]:
        if isinstance(tree, dict):
            tree = tree[str(key)]
        elif isinstance(tree, list):
            tree = tree[int(key)]
    if isinstance(tree, dict):
        del tree[str(place[-1])]
    elif isinstance(tree, list):
        del tree[int(place[-1])]


class Scores(FileModel):
    """What an evaluation measured: losses in nats per token, shares between 0 and 1; of the shared
    adapter, where clients have their own, and of clients that took no part, beside it."""

    loss: Number = None
    perplexity: Number = None
    token_accuracy: Number = None
    worst_client_loss: Number = None
    mean_client_loss: Number = None
    tokens: Number = None
    accuracy: Number = None
    rouge_l: Number = None
    rouge_1: Number = None
    rouge_2: Number = None
    bleu: Number = None
    exact_match: Number = None
    count: Number = None
    measured_on: object = None
    shared: Scores | None = None
    unseen: Scores | None = None

    def value(self, key: str) -> float | None:
        """A number by its key; None where there is none."""
        found = getattr(self, key, None)
        return found if isinstance(found, int | float) else None


class EpsilonByRole(FileModel):
    """Epsilon of the clients of each role; null where it is infinite or nobody has the role."""

    proxy: Number = None
    local: Number = None
    split: Number = None
    max: Number = None

    def value(self, role: str) -> float | None:
        """The epsilon of a role; None where it has none or no bound."""
        found: float | None = getattr(self, role, None)
        return found


class LedgerResult(FileModel):
    """The head of the ledger when the run ended, and what the privacy plan had it hold.

    ``releases`` is stage -> number of rounds with a release, where the stage releases anything.
    """

    run: Words = None
    lines: Number = None
    hash: Words = None
    releases: dict[str, object] = {}


class NoiseResult(FileModel):
    """Noise beside signal of the training stage, as it was known before the run.

    Attributes:
        trained_numbers: d, under noise.
        clients: n, by which the noise of a sum is divided.
        ratio: sqrt(d) / (mu n).
        affordable_numbers: d at the ratio that was aimed at.
        in_words: all of it, for people.
    """

    trained_numbers: Number = None
    clients: Number = None
    ratio: Number = None
    affordable_numbers: Number = None
    in_words: Words = None


class PrivacyResult(FileModel):
    """What was promised and spent."""

    off: StrictBool | None = None
    unit: Words = None
    relation: Words = None
    delta: Number = None
    private: StrictBool | None = None
    exact_votes: StrictBool | None = None
    noise_seeded: StrictBool | None = None
    stopped_early: str | bool | None = None
    epsilon: EpsilonByRole = EpsilonByRole()
    ledger: LedgerResult | None = None
    trust: Words = None
    noise: NoiseResult | None = None


class SelectionFile(FileModel):
    """selection.json: of which private selection a run is the one that was kept, and what that cost
    in all. ``epsilon`` is of the whole selection; the run's own ledger holds less."""

    arm: Words = None
    loss: Number = None
    epsilon: Number = None
    delta: Number = None
    arms: Number = None
    runs_on_average: Number = None
    assumed: Words = None


def is_chained(*versions: object) -> bool:
    """Whether a run must have noted the head of its ledger, by what its files say of their version;
    one of them is enough."""
    return any(isinstance(v, int | float) and v >= CHAINED_SINCE for v in versions)


class TrafficResult(FileModel):
    """Bytes of the whole run, all clients together."""

    up_bytes: Number = None
    down_bytes: Number = None


class TimeResult(FileModel):
    """Seconds of the whole run and of its parts."""

    wall_s: Number = None
    synthesis_s: Number = None
    train_s: Number = None
    evaluate_s: Number = None


class TierClock(FileModel):
    """Virtual time of a tier, summed over its clients: rounds by their outcome, seconds, joules."""

    answered: Number = None
    late: Number = None
    lost: Number = None
    away: Number = None
    busy_s: Number = None
    idle_s: Number = None
    energy_j: Number = None
    link_j: Number = None


class VirtualClock(FileModel):
    """Virtual time of a round (``round_s``; ``total_s`` since the start) or of the whole run.
    ``staleness`` and ``stalest``: rounds that had ended since clients began whose updates filled
    the buffer, mean and most."""

    round_s: Number = None
    server_s: Number = None
    answered: Number = None
    late: Number = None
    lost: Number = None
    away: Number = None
    staleness: Number = None
    stalest: Number = None
    total_s: Number = None
    energy_j: Number = None
    idle_share: Number = None
    tiers: dict[str, TierClock] = {}


class TierResult(FileModel):
    """A tier as the run resolved it."""

    name: Words = None
    placement: Words = None
    clients: Number = None
    rank: Number = None
    cut: Number = None
    steps: Number = None
    batch: Number = None
    machine: Words = None
    reason: Words = None
    attention_rank: Number = None


class SyntheticSet(FileModel):
    """What the final set is.

    Shares and means are of the texts as they are dealt, repeated ones counted each time.
    ``verbatim_public`` is the share that stands word for word among the public texts.
    Distances are means over held-out private records of the cosine distance to the nearest text
    of the set, and to the nearest of as many random public texts: a simulation measures them, and
    they are **not private**.
    """

    origins: dict[str, Number] = {}
    distinct: Number = None
    verbatim_public: Number = None
    words_mean: Number = None
    words_shortest: Number = None
    words_longest: Number = None
    distance: Number = None
    distance_of_random_public: Number = None
    private: StrictBool | None = None


class SynthesisResult(FileModel):
    """Synthesis in numbers, and what it asks of one client; ``taught`` where the generator wrote
    with an adapter that had been released."""

    rounds: Number = None
    candidates: Number = None
    texts: Number = None
    voters: Number = None
    selection: Words = None
    source: Words = None
    generator: Words = None
    kind: Words = None
    vote_sensitivity: Number = None
    records_per_client: Number = None
    client_down_bytes_per_round: Number = None
    client_up_bytes_per_round: Number = None
    down_formula: Words = None
    up_formula: Words = None
    client_s_mean: Number = None
    taught: StrictBool | None = None
    set: SyntheticSet | None = None


class ExportedResult(FileModel):
    """What reading the exported adapter back found; losses in nats a token, of the rows that
    ``measured_on`` names, which under privacy are never a client's."""

    layers: Number = None
    rows: Number = None
    measured_on: Words = None
    loss: Number = None
    peft_loss: Number = None
    merged_loss: Number = None


class ResultFile(FileModel):
    """result.json."""

    schema_version: Number = None
    name: Words = None
    arm: Words = None
    algorithm: Words = None
    engine: Words = None
    seed: Number = None
    clients: Number = None
    rounds: Number = None
    kept_round: Number = None
    base_eval: Scores = Scores()
    eval: Scores = Scores()
    privacy: PrivacyResult = PrivacyResult()
    traffic: TrafficResult = TrafficResult()
    time: TimeResult = TimeResult()
    clock: VirtualClock | None = None
    versions: dict[str, object] = {}
    base_fingerprint: Words = None
    exported: ExportedResult | None = None
    tasks: dict[str, object] = {}
    tiers: tuple[TierResult, ...] = ()
    synthesis: SynthesisResult | None = None
    data: dict[str, object] = {}


class SyntheticLine(FileModel):
    """A line of synthetic.jsonl, or a text that won votes."""

    text: Words = None
    round: Number = None
    parent: Named = None
    votes: Number = None
    prompt: Words = None
    client: Named = None
    origin: Words = None
    topic: Words = None
    texts: Number = None


class RoundLine(FileModel):
    """A line of rounds.jsonl; seconds are null where measuring them would tell of the data."""

    stage: Words = None
    round: Number = None
    wall_s: Number = None
    up_bytes: Number = None
    down_bytes: Number = None
    noise_std: Number = None
    refused: Number = None
    epsilon: EpsilonByRole = EpsilonByRole()
    clock: VirtualClock | None = None
    reused: StrictBool | None = None


class SynthesisRound(RoundLine):
    """A round of stage 1: the released votes and the texts that won."""

    client_s: Number = None
    candidates: Number = None
    kept: Number = None
    histogram: tuple[Number, ...] = ()
    winners: tuple[SyntheticLine, ...] = ()
    samples: tuple[str, ...] = ()


class TrainRound(RoundLine):
    """A round of stage 2; ``eval`` where it was measured."""

    local_clients: Number = None
    proxies: Number = None
    refused_clients: tuple[str, ...] = ()
    clip_bound: Number = None
    signal_to_noise: Number = None
    update_norm: Number = None
    train_loss: Number = None
    eval: Scores = Scores()


class SamplingEntry(FileModel):
    """How the unit of a release was sampled."""

    kind: Words = None
    rate: Number = None
    turn: Number = None
    cohorts: Number = None
    most: Number = None


class LedgerEntry(FileModel):
    """A line of ledger.jsonl for readers, who take what fits; a run writes and checks it as
    ``privacy.ledger_line.LedgerLine``."""

    release: Number = None
    stage: Words = None
    round: Number = None
    role: Words = None
    mechanism: Words = None
    sensitivity: Number = None
    sigma: Number = None
    noise_multiplier: Number = None
    planned: Number = None
    sampling: SamplingEntry = SamplingEntry()
    epsilon: EpsilonByRole = EpsilonByRole()
    delta: Number = None
    relation: Words = None
    unit: Words = None
    time: Words = None
    private: StrictBool | None = None
    steps: Number = None
    previous: Words = None

    @property
    def steps_taken(self) -> float | None:
        """Noised mechanisms in the release: 1 in a line from before they were counted."""
        return self.steps if self.records("steps") else 1


class MachineFile(FileModel):
    """machine.json: the machine that ran, for a reader of the numbers."""

    system: Words = None
    machine: Words = None
    python: Words = None
    processors: Number = None
    threads: Number = None
    memory_bytes: Number = None
    gpu: Words = None
