"""Every line by which a site turns a run down that asks for more than its ``SitePolicy`` allows.

The coordinator that sends terms is not trusted here. Every number must be there, be of its kind
and be inside the limit; what cannot be understood is refused. A refusal never raises and never
repeats more than a little of what came.

What a site cannot see is whether the server adds the noise it promises (``privacy.trust =
"server"``): that is trust, which ``limits.trust`` gives or not. Where records are protected the
site adds the noise itself, and ``spends`` tells what a told noise is worth; secure sums have a file
of their own (``sum_policy``).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from aulait.core.errors import AulaitError, PrivacyError, require
from aulait.core.files import JsonMapping
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.site_file import SiteFile, short_form
from aulait.engines.deployment.site.site_policy import SitePolicy as SitePolicy
from aulait.engines.deployment.site.terms_bounds import shown, terms_problems
from aulait.methods import METHODS
from aulait.methods.contract import AnyMethod, record_mechanism, step_mechanism
from aulait.methods.shared import line_search
from aulait.privacy.config import RELATIONS, PrivacyConfig
from aulait.privacy.plan import PrivacyPlan, ReleaseSchedule, plan_privacy
from aulait.privacy.record_level import (
    VOTES,
    RecordMechanism,
    precision_problems,
    unit_problems,
    worst_case,
)

SITE = "site"  # the one role in a site's own account
_TRAINS = ("local", "split")
_COUNTED_RELEASES = 20_000  # more of them take minutes and gigabytes to count with sampling
_COUNTED_NOISE = 0.3


def unknown_names(site: SiteFile, terms: RunTerms) -> list[str]:
    """Why terms cannot be meant for this site: another client's, or it asks for a base or an
    embedder not named here."""
    found = []
    if (client := getattr(terms, "client", None)) != site.site.name:
        found.append(
            f"client {short_form(client)} in the terms, this site is '{site.site.name}'; the "
            "coordinator has mixed up its roster")
    model = getattr(getattr(terms, "model", None), "name", None)
    if not isinstance(model, str) or model not in site.models:
        known = ", ".join(site.models) or "none"
        found.append(
            f"model {short_form(model)} asked for, this site has: {known}; set model.name to one, "
            "or ask for a line in [models]")
    embedder = getattr(terms, "embedder", None)
    if getattr(terms, "votes", None) is not False and (not isinstance(embedder, str)
            or embedder not in site.embedders):
        known = ", ".join(site.embedders) or "none"
        found.append(
            f"embedder {short_form(embedder)} asked for, this site has: {known}; set "
            "synthesis.embedder to one of them, or ask for a line in [embedders]")
    return found


def unit_refusals(site: SiteFile, terms: RunTerms) -> list[str]:
    """Why the run does not protect what this site's file names: all records of one value of
    ``data.unit_field``, chosen by a hash of each."""
    privacy, own = getattr(terms, "privacy", None), site.data.unit_field
    if not isinstance(privacy, PrivacyConfig) or privacy.off or privacy.unit != "record":
        return []
    found = []
    if own is not None and privacy.unit_field is None:
        found.append(
            "privacy.unit protects single records, this site protects all records of one value of "
            "a field together (data.unit_field); set privacy.unit_field")
    if (choice := getattr(terms, "choice", None)) not in ("auto", "hash"):
        found.append(
            f"data.choice is {short_form(choice)}, where one unit more would move others; set "
            "data.choice = 'auto'")
    return found


def refusals(limits: SitePolicy, terms: RunTerms, records: int | None = None) -> list[str]:
    """Why this site turns the run down, one line for every limit exceeded; empty when it takes
    part.

    Args:
        limits: of the site.
        terms: what the coordinator says the run is; nothing in it is believed to be well made.
        records: how many records of this site would be used; sharpens the count where records are
            sampled. Sensitive, and in no line.
    """
    found = _names(limits, terms) + _role(limits, terms) + terms_problems(limits, terms)
    try:
        found += _privacy(limits, terms, not found, records)
    # whatever goes wrong in counting a stranger's numbers, the answer is no
    except Exception as error:
        found.append(
            f"the privacy of the run cannot be counted ({type(error).__name__}); expected a valid "
            "promise; ask the coordinator")
    return found


def spends(terms: RunTerms, noise_multiplier: float, records: int | None = None) -> float:
    """Epsilon at this site of all releases of a run, each with this noise multiplier; an upper
    bound, inf where unknown.

    Sampling of clients is not believed, since only the server draws them. Sampling of records is
    the site's own, and counted when the number of records is known and the method samples them.

    Args:
        terms: the run; its counts must be valid (``refusals`` names none of them).
        noise_multiplier: noise over sensitivity, finite and > 0.
        records: of this site.

    Raises:
        PrivacyError: a number is outside its range.
    """
    return told_plan(terms, noise_multiplier, records).epsilon[SITE]


def told_plan(terms: RunTerms, noise_multiplier: float, records: int | None) -> PrivacyPlan:
    """What a run releases about this site, counted with the sampling of records where that is worth
    something; see ``spends``."""
    if terms.privacy.unit != "record":
        return site_plan(terms, noise_multiplier, None)
    whole, sampled = (site_plan(terms, noise_multiplier, asked)
                      for asked in _of_records(terms, noise_multiplier, records))
    return min(whole, sampled, key=lambda plan: plan.epsilon[SITE])


def site_plan(terms: RunTerms, noise_multiplier: float,
              asked: RecordMechanism | None) -> PrivacyPlan:
    """What a run releases about this site, each release with this noise multiplier.

    Args:
        terms: the run; its counts must be valid (``refusals`` names none of them).
        noise_multiplier: noise over sensitivity, finite and > 0.
        asked: with the unit "record", what a round asks of this site's records.

    Raises:
        PrivacyError: a number is outside its range.
    """
    told: PrivacyConfig = terms.privacy.model_copy(
        update={"epsilon": None, "noise_multiplier": noise_multiplier})
    schedules = []
    if terms.votes and terms.synthesis_rounds:
        schedules.append(ReleaseSchedule(
            stage="synthesis", rounds=terms.synthesis_rounds, role=SITE,
            mechanism=VOTES if told.unit == "record" else _mechanism(told)))
    if terms.placement in _TRAINS and terms.rounds:
        training = ReleaseSchedule(stage="train", rounds=terms.rounds, role=SITE,
                                   mechanism=_mechanism(told))
        if asked is not None:
            training = replace(training, mechanism=asked.mechanism,
                               sampling_rate=asked.rate, steps=asked.steps)
        schedules.append(training)
        if terms.placement == "local" and line_search.searches(_method(terms.algorithm)[1]):
            schedules.append(ReleaseSchedule(
                stage=line_search.TAG, rounds=terms.rounds, role=SITE,
                mechanism=_mechanism(told), bound=line_search.BOUND))
    return plan_privacy(told, schedules, roles=(SITE,))


def _mechanism(told: PrivacyConfig) -> str:
    """Name of what adds the noise to sums over clients."""
    return told.client_mechanism() if told.secure else told.mechanism


def _of_records(terms: RunTerms, noise_multiplier: float,
                records: int | None) -> tuple[RecordMechanism, RecordMechanism]:
    """What a round asks of this site's records, without and with what their sampling is worth."""
    method, config = _method(terms.algorithm)
    require("record" in method.TRAITS.units, PrivacyError,
            "privacy.unit = 'record' found with a method that does not offer it")
    mechanism = step_mechanism(method, config)
    whole = RecordMechanism(mechanism, terms.steps)
    countable = terms.rounds * terms.steps <= _COUNTED_RELEASES and (
        noise_multiplier >= _COUNTED_NOISE)
    if not records or not countable:
        return whole, whole
    clients = [(records, terms.steps, terms.batch)]
    return whole, worst_case(mechanism, clients, terms.privacy.max_rate)


def _names(limits: SitePolicy, terms: RunTerms) -> list[str]:
    """The run's number becomes a folder's name and its name is written to logs: both must be
    harmless."""
    found = []
    run, name, method = _get(terms, "run"), _get(terms, "name"), _method_name(terms)
    if not isinstance(run, str) or re.fullmatch(r"[0-9a-f]{32}", run) is None:
        found.append(
            f"run is {shown(run)}, expected 32 hexadecimal digits; the coordinator is another "
            "version or not honest")
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        found.append(
            f"name of the run is {shown(name)}, expected at most 200 printable letters; rename "
            "the run")
    if method is None:
        found.append(
            f"algorithm is {shown(_get(terms, 'algorithm'))}, expected a table with a name; "
            "correct the experiment")
    elif limits.methods and method not in limits.methods:
        allowed = ", ".join(limits.methods)
        found.append(
            f"method {shown(method)} asked for, this site allows: {allowed}; use one of them, or "
            "ask for limits.methods")
    return found


def _role(limits: SitePolicy, terms: RunTerms) -> list[str]:
    """The work must be a role that the site said it takes; a vote is the work of a proxy, whoever
    casts it."""
    found, allowed = [], ", ".join(limits.roles) or "none"
    placement, votes = _get(terms, "placement"), _get(terms, "votes")
    if not isinstance(placement, str) or placement not in ("local", "split", "proxy"):
        found.append(
            f"placement is {shown(placement)}, expected local, split or proxy; correct the "
            "experiment")
    elif placement not in limits.roles:
        found.append(
            f"role '{placement}' asked for, this site allows: {allowed}; place it otherwise, or "
            "ask for limits.roles")
    if placement == "split" and limits.privacy:
        found.append(
            "role 'split' asked for, which sends activations of single records, and this site "
            "demands privacy; place it otherwise")
    if votes is not True and votes is not False:
        found.append(
            f"votes is {shown(votes)}, expected true or false; the coordinator is another version")
    elif placement == "proxy" and not votes:
        found.append(
            "role 'proxy' asked for without votes, which is no work for this site; leave the site "
            "out of the run")
    elif votes and placement != "proxy" and "proxy" not in limits.roles:
        found.append(
            f"votes asked for, which is role 'proxy', and this site allows: {allowed}; set "
            "synthesis.voters = 'proxy', or ask for limits.roles")
    return found


def _privacy(limits: SitePolicy, terms: RunTerms, valid: bool, records: int | None) -> list[str]:
    privacy = _get(terms, "privacy")
    if not isinstance(privacy, PrivacyConfig):
        return ["the run says nothing about privacy, expected its table [privacy]; the coordinator "
                "is another version"]
    if privacy.off is not False:
        text = (
            "privacy.off is true and this site demands privacy; set privacy.epsilon and the rest, "
            "or ask for limits.privacy = false"
        )
        if limits.privacy or privacy.off is not True:
            return [text]
        return trust_problems(limits, terms)
    found = [f"{line} (the coordinator's experiment)" for line in privacy.problems(2)]
    found += trust_problems(limits, terms)
    if privacy.unit not in limits.units:
        found.append(
            f"privacy.unit is '{privacy.unit}', this site allows: "
            f"{', '.join(limits.units) or 'none'}; ask for limits.units")
    if privacy.delta is None or not 0 < privacy.delta <= limits.delta:
        found.append(
            f"privacy.delta is {shown(privacy.delta)}, this site allows at most {limits.delta:g}; "
            "lower it")
    if limits.privacy and privacy.noise_seed is not None:
        found.append(
            "privacy.noise_seed is set: noise that can be computed again hides nothing; remove it")
    if limits.privacy and _get(terms, "votes") is not False and _get(terms,
            "exact_votes") is not False:
        found.append(
            "votes of the run are exact, or not said to carry noise; set synthesis.votes = "
            "'private'")
    if privacy.relation not in RELATIONS.get(privacy.unit, ()) and not any(
            "relation" in line for line in found):
        found.append(
            f"privacy.relation is {shown(privacy.relation)}, expected one of its unit; write it")
    if privacy.epsilon is not None and not 0 < privacy.epsilon <= limits.epsilon:
        found.append(
            f"privacy.epsilon is {shown(privacy.epsilon)}, this site allows at most "
            f"{limits.epsilon:g}; lower it")
    found += _of_method(terms, privacy)
    if privacy.epsilon is None and valid and not found:
        # one of the two is there, or ``found`` has a line
        assert privacy.noise_multiplier is not None
        spent = spends(terms, privacy.noise_multiplier, records)
        if not spent <= limits.epsilon:
            told = f"{spent:.3g}" if math.isfinite(spent) else "no bound"
            found.append(
                f"privacy.noise_multiplier is {privacy.noise_multiplier:g}, which amounts to "
                f"epsilon {told} over the run, this site allows at most {limits.epsilon:g}; raise "
                "it, or plan fewer rounds")
    return found


def trust_problems(limits: SitePolicy, terms: RunTerms) -> list[str]:
    """Why this site does not trust whom the run trusts with its updates."""
    privacy = terms.privacy
    if privacy.secure != (getattr(terms, "sums", None) is not None):
        return ["the terms say privacy.trust = 'secure' and nothing of secure sums, or the other "
                "way round; the coordinator is another version or not honest"]
    if privacy.noised_at_sites or privacy.trust in limits.trust:
        return []
    return [f"privacy.trust is '{privacy.trust}', this site allows: "
            f"{', '.join(limits.trust) or 'none'}; set privacy.trust to it, or ask for "
            "limits.trust"]


def share_problem(limits: SitePolicy, terms: RunTerms, units: int) -> str | None:
    """Why the delta of a run is too large for so many units of this site; None where it is not.

    Looked at with the unit "record" alone, where the coordinator is told the number anyway.

    Args:
        limits: of the site.
        terms: of a run, valid but for this.
        units: records, or values of ``privacy.unit_field``, that the run would use here.
    """
    delta = terms.privacy.delta
    if terms.privacy.off or terms.privacy.unit != "record" or delta is None:
        return None
    if delta * units <= limits.delta_share * (1 + 1e-9):
        return None
    return (f"privacy.delta is {delta:g}, this site allows at most {limits.delta_share:g} divided "
            "by the number of units that it trains on; lower it, or ask for limits.delta_share")


def _of_method(terms: RunTerms, privacy: PrivacyConfig) -> list[str]:
    """A method that cannot keep the promise is refused here too, not only by an honest server."""
    name = _method_name(terms)
    if name is None:
        return []  # named already
    try:
        method, config = _method(terms.algorithm)
        traits = method.TRAITS
        if privacy.unit == traits.unit == "client" and not traits.private:
            return [f"method {shown(name)} is {traits.privacy}; use '{traits.instead}'"]
        mechanism = step_mechanism(method, config)
        found = unit_problems(privacy, name, traits.units, mechanism)
        if privacy.unit == "record" and not found:
            # raises for the controls that add no noise
            record_mechanism(method, config, privacy, ())
            model = _get(terms, "model")
            found += precision_problems(_get(model, "dtype"), _get(model, "quant"))
        return found
    except AulaitError as error:
        return [str(error)]
    except ValueError:
        return [f"settings of method {shown(name)} are not valid; correct [algorithm] of the "
                "experiment"]


def _method(algorithm: JsonMapping) -> tuple[AnyMethod, BaseModel]:
    """The module of a method and its settings."""
    method: AnyMethod = METHODS.find(algorithm["name"])
    return method, method.Config(**{key: value for key, value in algorithm.items()
        if key != "name"})


def _method_name(terms: RunTerms) -> str | None:
    algorithm = _get(terms, "algorithm")
    name = algorithm.get("name") if isinstance(algorithm, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 64 else None


def _get(terms: object, key: str) -> Any:
    return getattr(terms, key, None)
