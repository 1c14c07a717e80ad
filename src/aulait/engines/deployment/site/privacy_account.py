"""A site's own account where it adds the noise itself (``privacy.unit = "record"``): it believes no
request about its guarantee.

Before it answers it computes from the request, its own number of records and its own steps what the
answer spends, and refuses what would go beyond the promise of the terms (an epsilon, or a noise
multiplier for so many rounds) or its own limit. The line is on its disk before the answer leaves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aulait.core.errors import PrivacyError, require
from aulait.core.files import append_durably, sync_folder, writing
from aulait.core.types import Site
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.policy import SITE, site_plan
from aulait.methods.contract import RecordMethod
from aulait.privacy.accounting import Accountant, Event

CLIPS = (1e-6, 1e6)  # outside of them single precision rounds the noise or the gradients away


class SiteAccount:
    """What this site's records have spent in one run.

    Args:
        folder: of the run at the site.
        terms: with the promise.
        most_epsilon: the site's own limit.

    Raises:
        PrivacyError: the file of the account is damaged.
    """

    def __init__(self, folder: Path, terms: RunTerms, most_epsilon: float) -> None:
        self._path = folder / "account.jsonl"
        told = terms.privacy
        assert told.delta is not None
        promised = math.inf if told.epsilon is None else told.epsilon
        self._limit = min(most_epsilon, promised)
        self._accountant = Accountant(told.delta, {SITE: self._limit})
        for event in _read(self._path):
            self._accountant.add(SITE, event)

    @property
    def spent(self) -> float:
        """Epsilon so far."""
        return self._accountant.spent(SITE)

    def charge(self, settings: Mapping[str, Any], site: Site, terms: RunTerms) -> None:
        """Check one request and write it down.

        Args:
            settings: of the request: "sigma", "clip", "protected", "most_rate", "most_steps".
            site: with its records and plan.
            terms: name the method, which says what a round asks of a record.

        Raises:
            PrivacyError: the request asks for an answer that the promise does not cover; nothing
                was charged.
        """
        sigma, clip = settings.get("sigma"), settings.get("clip")
        valid = settings.get("protected") is True and "noise_seed" not in settings and all(
            isinstance(value, int | float) and value is not True and 0 < value < math.inf
            for value in (sigma, clip))
        require(valid, PrivacyError,
                "a request without noise of this site's own found, the terms promise it; refused")
        assert isinstance(sigma, int | float)
        assert isinstance(clip, int | float)
        text = (
            f"a request with clip = {clip:g} found, expected {CLIPS[0]:g} to {CLIPS[1]:g}; refused"
        )
        require(CLIPS[0] <= clip <= CLIPS[1], PrivacyError, text)
        config = terms.method_config
        same = (
            settings.get("mode") == config.mode and settings.get("most_rate",
                math.inf) <= config.max_rate
        )
        require(same, PrivacyError,
            "a request of another mode or a larger sampling rate than the terms' found; refused")
        method = terms.method
        require(isinstance(method, RecordMethod), PrivacyError,
                "a request with noise of this site's own found, expected of a method that protects "
                "records only; refused")
        assert isinstance(method, RecordMethod)
        own = method.record_mechanism(config, [site])
        relation = terms.privacy.relation
        if relation is None:
            raise PrivacyError("terms without privacy.relation found; refused")
        multiplier = sigma / own.sensitivity(float(clip), relation)
        event, limit = own.event(multiplier), self._limit
        if (
            (promised := terms.privacy.noise_multiplier) is not None
            and terms.privacy.epsilon is None
        ):
            require(multiplier >= promised * (1 - 1e-6), PrivacyError,
                    f"a request with noise multiplier {multiplier:.4f} found, the terms promise "
                    f"{promised:.4f}; refused")
            limit = min(limit, site_plan(terms, promised, own).epsilon[SITE])
        spends = self._accountant.would_spend(SITE, event)
        require(spends <= limit * (1 + 1e-6), PrivacyError,
                f"the request would bring this site's records to epsilon {spends:.3f}, allowed are "
                f"{limit:.3f}; refused")
        self._append(event)
        self._accountant.add(SITE, event)

    def _append(self, event: Event) -> None:
        line = (
            json.dumps({"noise_multiplier": event.noise_multiplier, "rate": event.sampling_rate,
                        "steps": event.steps}) + "\n"
        )
        with writing(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = not self._path.exists()
            append_durably(self._path, line.encode(), mode=0o600, undo=True)
            if new:
                sync_folder(self._path.parent)


def _read(path: Path) -> list[Event]:
    """The events on disk. A last line without its end was never answered and is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        os.truncate(path, len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        return [Event(line["noise_multiplier"], line["rate"], line["steps"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"the account {path} is damaged, expected one JSON object a line; restore it, this run "
            "cannot go on "
                           "without") from error
