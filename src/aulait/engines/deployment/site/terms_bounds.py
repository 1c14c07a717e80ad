"""Between which bounds every quantity of a run's terms, and of a request, must lie: one table.

A quantity that has no line here is refused by the test that holds this table against the fields of
``RunTerms``; what has only a few words as values is bounded by its type. Nothing of the terms is
believed to be well made: a value of another kind is outside of its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aulait.core.files import JsonMapping
from aulait.engines.deployment.site.site_policy import SitePolicy

LARGEST: Final = 1e6  # of a number of the method's for which nothing narrower is written
LARGEST_SETTING: Final = 1e12  # of an unnamed number of a request that is no whole one
_LONGEST_TEXT, _MOST_ITEMS, _SEED = 300, 10_000, 2**64 - 1


@dataclass(frozen=True)
class Bound:
    """The range of a number.

    Attributes:
        least: smallest allowed.
        most: largest allowed: a number, or the key of ``[limits]`` that says it.
        setting: what the coordinator has to change.
        whole: whole numbers only.
        words: what may stand there instead of a number; None is one of them where it may be
            missing.
        many: it is a table, and every number in it has this range.
    """

    least: float
    most: float | str
    setting: str
    whole: bool = True
    words: tuple[str | None, ...] = ()
    many: bool = False


@dataclass(frozen=True)
class WordBound:
    """Printable text of at most so many letters; of a list or a table, every text in it.

    Attributes:
        most: letters.
    """

    most: int = _LONGEST_TEXT


@dataclass(frozen=True)
class Elsewhere:
    """A value that has a check of its own.

    Attributes:
        where: the function, or the type, that checks it.
    """

    where: str


Rule = Bound | WordBound | Elsewhere

BOUNDS: Final[Mapping[str, Rule]] = {
    "version": Elsewhere("RunTerms"),
    "package": WordBound(),
    "run": Elsewhere("policy._names"),
    "name": Elsewhere("policy._names"),
    "client": Elsewhere("policy.unknown_names"),
    "tier": WordBound(),
    "rank": Bound(1, "rank", "the tier's rank"),
    "steps": Bound(1, "steps", "the tier's steps"),
    "batch": Bound(1, "batch", "the tier's batch"),
    "ranks": Bound(0, "rank", "the tier's ranks", words=(None,), many=True),
    "rounds": Bound(0, "rounds", "train.rounds"),
    "synthesis_rounds": Bound(0, "rounds", "synthesis.rounds"),
    "stages": Elsewhere("kept_state.round_key"),
    "seed": Bound(0, _SEED, "run.seed"),
    "model.name": Elsewhere("policy.unknown_names"),
    "model.context": Bound(8, "context", "model.context"),
    "model.device": WordBound(),
    "model.device_map": WordBound(),
    "adapter.rank": Bound(1, "rank", "adapter.rank"),
    "adapter.alpha": Bound(0, LARGEST, "adapter.alpha", whole=False),
    "adapter.dropout": Bound(0, 1, "adapter.dropout", whole=False),
    "adapter.targets": WordBound(),
    "adapter.layers": Bound(0, _MOST_ITEMS, "adapter.layers", words=("all",)),
    "adapter.auto": WordBound(),
    "train.rounds": Bound(0, LARGEST, "train.rounds"),  # ``rounds`` is what counts
    "train.steps": Bound(1, LARGEST, "train.steps"),  # ``steps`` is what counts
    "train.batch": Bound(1, LARGEST, "train.batch"),  # ``batch`` is what counts
    "train.lr": Bound(0, "lr", "train.lr", whole=False),
    "train.weight_decay": Bound(0, LARGEST, "train.weight_decay", whole=False),
    "train.max_grad_norm": Bound(0, LARGEST, "train.max_grad_norm", whole=False),
    "train.rows_at_once": Bound(1, "rows", "train.rows_at_once"),
    "evaluate.task_records": Bound(1, LARGEST, "evaluate.task_records", words=(None,)),
    "evaluate.max_new_tokens": Bound(1, "context", "evaluate.max_new_tokens"),
    "evaluate.every": Bound(1, LARGEST, "evaluate.every"),
    "evaluate.records_per_client": Bound(1, LARGEST, "evaluate.records_per_client"),
    "evaluate.rows": Bound(1, "rows", "evaluate.rows"),
    "evaluate.clients": Bound(1, LARGEST, "evaluate.clients", words=(None,)),
    "privacy.epsilon": Elsewhere("policy._privacy"),
    "privacy.noise_multiplier": Elsewhere("policy._privacy"),
    "privacy.delta": Elsewhere("policy._privacy"),
    "privacy.unit_field": WordBound(),
    "privacy.records_per_unit": Bound(1, LARGEST, "privacy.records_per_unit"),
    "privacy.max_rate": Bound(0, 1, "privacy.max_rate", whole=False),
    "privacy.mechanism": WordBound(),
    "privacy.dropouts": Bound(0, 1, "privacy.dropouts", whole=False),
    "privacy.colluders": Bound(0, LARGEST, "privacy.colluders"),
    "privacy.clip": Bound(1e-6, "clip", "privacy.clip", whole=False,
                          words=("proxies", "adaptive")),
    "privacy.clip_scale": Bound(1e-6, 1e6, "privacy.clip_scale", whole=False),
    "privacy.clip_start": Bound(1e-6, 1e6, "privacy.clip_start", whole=False),
    "privacy.clip_quantile": Bound(0, 1, "privacy.clip_quantile", whole=False),
    "privacy.clip_rate": Bound(0, 1e6, "privacy.clip_rate", whole=False),
    "privacy.count_fraction": Bound(0, 1, "privacy.count_fraction", whole=False),
    "privacy.subspace": Bound(0, LARGEST, "privacy.subspace"),
    "privacy.vote_fraction": Bound(0, 1, "privacy.vote_fraction", whole=False),
    "privacy.target_ratio": Bound(0, LARGEST, "privacy.target_ratio", whole=False),
    "privacy.search_fraction": Bound(0, 1, "privacy.search_fraction", whole=False),
    "privacy.noise_seed": Bound(0, _SEED, "privacy.noise_seed", words=(None,)),
    "algorithm": Elsewhere("_algorithm_problems"),
    "records_per_client": Bound(1, "records", "data.records_per_client"),
    "holdout": Bound(0, 0.9, "data.holdout", whole=False),
    "share": Bound(0, 1, "data.share", whole=False),
    "embedder": Elsewhere("policy.unknown_names"),
    "max_tokens": Bound(1, "context", "synthesis.max_tokens"),
    "candidates": Bound(0, "candidates", "synthesis.candidates"),
    "neighbours": Bound(0, "neighbours", "synthesis.neighbours"),
    "cut": Bound(1, _MOST_ITEMS, "compute.cut"),
    "fingerprint": WordBound(),
    "sums": Elsewhere("sum_policy.sum_problems"),
}

# Numbers of a method that are work at the site, by their names in any method's settings.
ALGORITHM: Final[Mapping[str, Bound]] = {
    "personal_steps": Bound(1, "steps", "algorithm.personal_steps", words=(None,)),
    "shots": Bound(1, "records", "algorithm.shots"),
    "fusion_tries": Bound(1, "steps", "algorithm.fusion_tries"),
    "rank_min": Bound(1, "rank", "algorithm.rank_min", words=(None,)),
    "server_lr": Bound(0, "lr", "algorithm.server_lr", whole=False),
}

# Numbers of a request, by their names, also within a table in it.
SETTINGS: Final[Mapping[str, Bound]] = {
    "steps": Bound(0, "steps", "steps"),
    "batch": Bound(0, "batch", "batch"),
    "rank": Bound(0, "rank", "rank"),
    "lr": Bound(0, "lr", "lr", whole=False),
    "neighbours": Bound(1, "neighbours", "neighbours"),
    "clip": Bound(0, 1e6, "clip", whole=False, words=(None,)),
    "sigma": Bound(0, LARGEST_SETTING, "sigma", whole=False, words=(None,)),
    "most_rate": Bound(0, 1, "most_rate", whole=False, words=(None,)),
    "most_steps": Bound(0, "steps", "most_steps", words=(None,)),
}


def terms_problems(limits: SitePolicy, terms: object) -> list[str]:
    """A line for every quantity of the terms that is outside of its bounds."""
    found = []
    for path, rule in BOUNDS.items():
        value = _at(terms, path)
        if isinstance(rule, Bound):
            found += _outside(limits, path, value, rule)
        elif isinstance(rule, WordBound):
            found += _no_text(path, value, rule)
    return found + _algorithm_problems(limits, _at(terms, "algorithm"))


def setting_problem(limits: SitePolicy, settings: JsonMapping) -> str | None:
    """Why the numbers of a request are outside of their bounds; None where they are inside."""
    for name, value in _leaves(settings):
        if (bound := SETTINGS.get(name)) is not None:
            if value is not None and (lines := _outside(limits, name, value, bound)):
                return f"a request with {lines[0]}"
        elif isinstance(value, float) and not abs(value) <= LARGEST_SETTING:
            return f"a request with {shown(name)} = {shown(value)}, no number of any setting"
    return None


def _algorithm_problems(limits: SitePolicy, told: Any) -> list[str]:
    """The method's own settings: by name, or else no number beyond what any setting needs."""
    found = []
    for name, value in _leaves(told if isinstance(told, dict) else {}):
        path = f"algorithm.{shown(name)[1:-1]}"
        if name in ALGORITHM:
            found += _outside(limits, path, value, ALGORITHM[name])
        elif isinstance(value, str):
            found += _no_text(path, value, WordBound())
        elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            found.append(f"{path} is {shown(value)}, expected at most {LARGEST:g}; lower it")
    return found


def _outside(limits: SitePolicy, path: str, value: object, bound: Bound) -> list[str]:
    """At most one line: the first number that is not within its bound."""
    most = getattr(limits, bound.most) if isinstance(bound.most, str) else bound.most
    some = list(value.values()) if bound.many and isinstance(value, dict) else [value]
    if len(some) > _MOST_ITEMS:
        return [f"{path} has {len(some)} values, expected at most {_MOST_ITEMS}; correct "
                f"{bound.setting}"]
    for own in some:
        number = _number(own, bound.whole)
        if number is None and (own is None or isinstance(own, str)) and own in bound.words:
            continue
        if number is None or not number >= bound.least:
            kind = "a whole number" if bound.whole else "a number"
            return [f"{path} is {shown(own)}, expected {kind} from {bound.least:g} to {most:,}; "
                    f"correct {bound.setting}"]
        if not number <= most:
            ask = f", or ask for limits.{bound.most}" if isinstance(bound.most, str) else ""
            return [f"{path} is {shown(own)}, this site allows at most {most:,}; lower "
                    f"{bound.setting}{ask}"]
    return []


def _number(value: object, whole: bool) -> int | float | None:
    """The value, where it is a number of its kind; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return None
    return value


def _no_text(path: str, value: object, rule: WordBound) -> list[str]:
    some = list(value) if isinstance(value, list | tuple) else [value]
    fine = len(some) <= _MOST_ITEMS and all(
        own is None or (isinstance(own, str) and len(own) <= rule.most and own.isprintable())
        for own in some)
    return [] if fine else [f"{path} is {shown(value)}, expected at most {rule.most} printable "
                            "letters; correct it"]


def _leaves(told: JsonMapping, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values in a table and in the tables in it; lists value by value."""
    for name, value in told.items():
        if isinstance(value, dict) and depth < 4:
            yield from _leaves(value, depth + 1)
        elif isinstance(value, list | tuple):
            yield from ((str(name), own) for own in value)
        else:
            yield str(name), value


def _at(terms: object, path: str) -> object:
    for key in path.split("."):
        terms = getattr(terms, key, None)
    return terms


def shown(value: object) -> str:
    """A little of a stranger's value, on one line."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of many thousand digits, a deep list
        return f"something of type {type(value).__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "nothing" if value is None else text if len(text) <= 60 else f"{text[:57]}..."
