"""The promise: the table ``[privacy]`` of an experiment file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from aulait.core.errors import PrivacyError
from aulait.privacy.adaptive_clip import AdaptiveClip
from aulait.privacy.mechanisms import BANDED_NOISE, DISTRIBUTED, Relation, find_mechanism

RELATIONS: Mapping[str, tuple[Relation, ...]] = {
    "client": ("add-remove", "zero-out", "replace"), "record": ("zero-out", "replace")}


class PrivacyConfig(BaseModel):
    """The table ``[privacy]`` of an experiment file. There is no silent default for what is
    promised.

    Attributes:
        off: no privacy at all; must be said aloud.
        epsilon: target of every client over the whole run, above 0; exactly one of this and
            ``noise_multiplier``.
        noise_multiplier: sigma divided by the sensitivity, of every release; above 0.
        delta: probability with which epsilon may fail, between 0 and 1; far below one over the
            number of protected units.
        relation: neighbouring federations differ by adding or removing one client ("add-remove"),
            by a unit in whose place stands one that adds nothing ("zero-out", where it is public
            who takes part, as for the unit "record"), or by another in its place ("replace").
        unit: what is protected: a "client" with all its records, or one "record"; the method must
            offer it.
        unit_field: with the unit "record", the field of a row whose value names the unit, as
            "patient": all records of one value at one client are one unit. None: every record is
            one.
        records_per_unit: with ``unit_field``, the records of a unit for whose votes room is kept:
            its votes are clipped to the root of this times synthesis.neighbours; at least 1.
        max_rate: with the unit "record", the most often a unit may be in a batch, in (0, 1]: the
            rate of a client is min(batch / units, max_rate). One small client would otherwise set
            the noise of all, since a role pays for its worst client.
        mechanism: what adds the noise to a sum over clients: "gaussian"; "banded", noise of which
            later rounds take away a part, for cohorts that take turns (federation.sampling =
            "turns"; votes get independent noise); or the name of a third party's
            (``aulait.privacy.mechanisms``). With the unit "record" the method says it.
        trust: who adds the noise: the "server", which sees single updates, or under secure
            aggregation ("secure") the clients, each its part, so that the server sees their noised
            sum alone; in a deployment with the unit "client". The relation is then "zero-out" or,
            for the unit "client", "replace", for the server sees who takes part. With the unit
            "record" a round is one step, on the sum of all sites' clipped gradients.
        dropouts: with trust "secure", the largest share of a round's clients that may drop out, in
            [0, 0.5); where more do, the round is refused. The noise is enough for those who then
            stay.
        colluders: with trust "secure", how many clients may work with the server, at least 0:
            their noise is not counted.
        clip: L2 bound of one client's update: a number; the median norm of the proxies' updates,
            which are public ("proxies"); or one that follows a private quantile of the clients' own
            norms ("adaptive"). With the unit "record": of one record's gradient (the method says of
            what), always a number.
        clip_scale: multiplies the bound, above 0; not an adaptive one.
        clip_start: with clip "adaptive", the bound of the first round.
        clip_quantile: with clip "adaptive", the share of clients whose updates shall be within the
            bound, in (0, 1).
        clip_rate: with clip "adaptive", how fast the bound moves: by a factor of e to this at most
            in a round.
        count_fraction: with clip "adaptive", share of the budget (of mu^2) of each release of
            training for the count of clients within the bound.
        shrink: shrink released sums by their known signal-to-noise ratio, as a whole or tensor by
            tensor.
        subspace: dimensions of the public subspace of released updates, at least 0; 0 for none.
        subspace_mode: keep only the part inside the subspace, or shrink inside and outside
            separately.
        vote_fraction: share of the budget (of mu^2) for votes at a client that votes and
            trains, between 0 and 1.
        search_fraction: share of the budget (of mu^2) for the line searches of a client that
            trains, of what its votes leave, between 0 and 1; where algorithm.server is "search".
        noise_seed: makes the noise reproducible; the run is then not private and says so.
        delta_acknowledged: allows delta >= 1 / clients.
        target_ratio: noise over signal of the whole run (``noise_ratio``) at which ``adapter.rank =
            "auto"`` and ``adapter.layers = "auto"`` aim; above 0.
        noise_acknowledged: allows a run whose noise is more than five times its signal, so that it
            cannot learn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    off: bool = False
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    relation: Relation | None = None
    unit: Literal["client", "record"] = "client"
    unit_field: str | None = None
    records_per_unit: int = 8
    max_rate: float = 1.0
    mechanism: str = "gaussian"
    trust: Literal["server", "secure"] = "server"
    dropouts: float = 0.2
    colluders: int = 0
    clip: float | Literal["proxies", "adaptive"] = "proxies"
    clip_scale: float = 1.0
    clip_start: float = 0.1
    clip_quantile: float = 0.5
    clip_rate: float = 0.2
    count_fraction: float = 0.05
    shrink: Literal["none", "whole", "blocks"] = "none"
    subspace: int = 0
    subspace_mode: Literal["project", "wiener"] = "project"
    vote_fraction: float = 0.5
    search_fraction: float = 0.2
    noise_seed: int | None = None
    delta_acknowledged: bool = False
    target_ratio: float = 0.5
    noise_acknowledged: bool = False

    @property
    def protects_records(self) -> bool:
        """Whether the unit is the record (or a field) and privacy is on: sites clip its part, and
        add the noise or their part of it."""
        return not self.off and self.unit == "record"

    @property
    def noised_at_sites(self) -> bool:
        """Whether every site adds all of the noise itself, so that what it sends is public."""
        return self.protects_records and not self.secure

    @property
    def secure(self) -> bool:
        """Whether the clients add the noise and the server sees their sum alone."""
        return not self.off and self.trust == "secure"

    @property
    def correlated(self) -> bool:
        """Whether the noise of a round of training takes away noise of earlier ones."""
        return not self.off and self.mechanism == BANDED_NOISE

    @property
    def adaptive(self) -> AdaptiveClip | None:
        """How the bound of updates moves; None where it does not follow their norms."""
        if self.off or self.clip != "adaptive":
            return None
        return AdaptiveClip(self.clip_start, self.clip_quantile, self.clip_rate,
                            self.count_fraction)

    @property
    def known_clip(self) -> float | None:
        """The bound of updates, or gradients; None where it is not known before the run."""
        return None if isinstance(self.clip, str) else float(self.clip) * self.clip_scale

    def client_mechanism(self, cohorts: int = 1) -> str:
        """Name of what adds the noise to a sum over clients; ``cohorts`` take turns, with 1
        everybody takes part."""
        if self.secure:
            return DISTRIBUTED
        if self.mechanism != BANDED_NOISE:
            return self.mechanism
        return f"{BANDED_NOISE}:{cohorts}" if cohorts > 1 else "gaussian"

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The neighbouring relations that can be promised."""
        if self.secure and self.unit == "record":
            return ("zero-out",)
        if (self.secure or self.correlated) and self.unit == "client":
            return ("zero-out", "replace")
        return RELATIONS[self.unit]

    @property
    def unit_records(self) -> int:
        """Records of a unit for which there is room in its votes."""
        return 1 if self.unit_field is None else self.records_per_unit

    def problems(self, clients: int) -> list[str]:
        """One line for everything that is wrong with these settings in a federation of so many
        clients (or records)."""
        on, delta = not self.off, self.delta
        given = [name for name in ("epsilon", "noise_multiplier")
                 if getattr(self, name) is not None]
        found = []
        if self.off and given:
            found.append(
                f"privacy.off = true together with {' and '.join(given)}; remove one of them")
        if on and len(given) != 1:
            text = (
                f"privacy has {' and '.join(given) or 'neither epsilon nor noise_multiplier'}, "
                "expected exactly one of"
            )
            found.append(f"{text} epsilon and noise_multiplier; set one, or privacy.off = true")
        if on and delta is None:
            found.append(
                "privacy.delta is missing, expected a number far below 1/clients; write it, as "
                "delta = 1e-5")
        if on and self.relation is None:
            found.append(
                f"privacy.relation is missing, expected {_expected(self.relations)}; write it")
        if on and self.relation is not None and self.relation not in self.relations:
            found.append(self._wrong_relation())
        if delta is not None and not 0 < delta < 1:
            found.append(f"privacy.delta is {delta}, expected a number between 0 and 1; correct it")
        elif on and delta is not None and delta * clients >= 1 and not self.delta_acknowledged:
            text = (
                f"privacy.delta is {delta}, expected less than 1/{clients} (one over the "
                f"{self.unit}s)"
            )
            found.append(f"{text}; lower it, or set privacy.delta_acknowledged = true")
        if on:
            found += self._mechanism_problems()
        if self.unit_field is not None and self.unit != "record":
            found.append(
                f"privacy.unit_field is '{self.unit_field}' with privacy.unit = '{self.unit}', "
                "expected 'record'; set privacy.unit = 'record', or remove it")
        if self.records_per_unit < 1:
            found.append(
                f"privacy.records_per_unit is {self.records_per_unit}, expected at least 1; "
                "correct it")
        if not 0 < self.max_rate <= 1:
            found.append(
                f"privacy.max_rate is {self.max_rate}, expected a number in (0, 1]; correct it")
        if self.trust == "secure":
            found += self.secure_problems()
        for name in ("epsilon", "noise_multiplier", "clip", "clip_scale", "clip_start",
                     "clip_rate"):
            value = getattr(self, name)
            if value not in (None, "proxies", "adaptive") and not 0 < value < math.inf:
                found.append(
                    f"privacy.{name} is {value}, expected a finite number > 0; for no privacy: off "
                    "= true")
        if self.subspace < 0:
            found.append(
                f"privacy.subspace is {self.subspace}, expected a number of dimensions; 0 is none")
        if not 0 < self.target_ratio < math.inf:
            found.append(
                f"privacy.target_ratio is {self.target_ratio}, expected a finite number > 0; "
                "correct it")
        if self.clip == "adaptive":
            found += self._adaptive_problems()
        for name in ("vote_fraction", "search_fraction", "count_fraction", "clip_quantile"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"privacy.{name} is {getattr(self, name)}, expected between 0 and 1; "
                             "correct it")
        return found

    def _wrong_relation(self) -> str:
        """Why the relation cannot be promised."""
        where, why = f"privacy.unit = '{self.unit}'", ""
        if self.unit == "record":
            why = ": the numbers of records are public, so a null record stands in its place"
        elif self.secure:
            where = "privacy.trust = 'secure'"
            why = ": the server sees who takes part, so a client that adds nothing stands in its " \
                  "place"
        elif self.correlated:
            where = "privacy.mechanism = 'banded'"
            why = ": who is in which cohort is public, so a client that adds nothing stands in " \
                  "its place"
        return (f"privacy.relation = '{self.relation}' found with {where}, expected "
                f"{_expected(self.relations)}{why}; write relation = \"{self.relations[0]}\"")

    def secure_problems(self) -> list[str]:
        """What secure aggregation cannot do."""
        found = []
        if self.off:
            found.append("privacy.trust = 'secure' found with privacy.off = true, expected noise "
                         "that the clients add; remove one of them")
        if self.mechanism != "gaussian":
            found.append(f"privacy.trust = 'secure' found with privacy.mechanism = "
                         f"'{self.mechanism}', whose noise the server adds; remove one of them")
        if not 0.0 <= self.dropouts < 0.5:
            found.append(f"privacy.dropouts is {self.dropouts}, expected a share in [0, 0.5); "
                         "correct it")
        if self.colluders < 0:
            found.append(f"privacy.colluders is {self.colluders}, expected a number of clients, at "
                         "least 0; correct it")
        return found

    def _mechanism_problems(self) -> list[str]:
        """Whether the mechanism is known, and one for sums over clients."""
        try:
            find_mechanism(self.mechanism, "client")
        except PrivacyError as error:
            return [f"privacy.mechanism: {error}"]
        if self.mechanism == DISTRIBUTED:
            return [f"privacy.mechanism = '{DISTRIBUTED}' found, expected privacy.trust = "
                    "\"secure\", which uses it; remove it and set that"]
        if ":" in self.mechanism:
            return [f"privacy.mechanism = '{self.mechanism}' found, expected a name; the number of "
                    "cohorts is federation.cohorts"]
        if self.mechanism == BANDED_NOISE and self.unit == "client":
            return self._banded_problems()
        if self.unit == "record" and self.mechanism != "gaussian":
            return [f"privacy.mechanism = '{self.mechanism}' found with privacy.unit = 'record', "
                    "where the method says what its sites do; remove it"]
        return []

    def _adaptive_problems(self) -> list[str]:
        """What a bound that follows the norms cannot be had with, beside the unit "record", which
        ``aulait.privacy.record_level`` refuses."""
        found = []
        if self.off:
            found.append("privacy.clip = 'adaptive' found with privacy.off = true, where updates "
                         "are not clipped to it; remove one of them")
        if self.clip_scale != 1.0:
            found.append(f"privacy.clip_scale is {self.clip_scale} with privacy.clip = 'adaptive', "
                         "expected 1; say where the bound begins with privacy.clip_start")
        return found

    def _banded_problems(self) -> list[str]:
        """What correlated noise cannot do."""
        found = []
        if isinstance(self.clip, str):
            found.append(f"privacy.clip = '{self.clip}' found with privacy.mechanism = 'banded', "
                         "whose noise must have one size in all rounds; set privacy.clip to a "
                         "number")
        if self.shrink != "none" or (self.subspace and self.subspace_mode == "wiener"):
            found.append("privacy.shrink or a Wiener subspace found with privacy.mechanism = "
                         "'banded', whose rounds would no longer take away one another's noise; "
                         "remove it")
        return found


def _expected(relations: Sequence[Relation]) -> str:
    """Relations as a message names them."""
    return " or ".join(f'"{name}"' for name in relations)
