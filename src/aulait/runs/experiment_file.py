"""One frozen tree of settings: read TOML, override, check everything, write it back.

Each table's model lives in the file it configures; this file joins them. All problems are listed at
once, before work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.core.files import JsonMapping, JsonObject
from aulait.core.parsing import BeyondLimitsError, parsed_toml
from aulait.core.places import is_file, is_there, user_path
from aulait.core.web_address import masked
from aulait.data import client_data as data
from aulait.data import unit_rule
from aulait.data.client_data import DataConfig
from aulait.data.config import AT_SITES
from aulait.data.unit_rule import UnitRule
from aulait.evaluation.config import RunEvaluateConfig
from aulait.federation import tiers
from aulait.federation.config import ComputeConfig
from aulait.federation.presets import expanded
from aulait.federation.tiers import FederationConfig
from aulait.methods.contract import AnyMethod, find_method, server_site, step_mechanism
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.models.named import name_problems
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.record_level import DP_SGD, PRECISION, precision_problems
from aulait.runs.stage_order import (
    MOST,
    USUAL,
    StageName,
    StageSpan,
    VoteCounts,
    order_problems,
    stage_spans,
)
from aulait.runs.two_stages import with_usual_stages
from aulait.synthesis.config import SynthesisConfig
from aulait.tracking import boards
from aulait.tracking.boards import TrackConfig
from aulait.training.activation_codec import Wire
from aulait.training.trainer import TrainConfig

_NO_DORA = ("DoRA is not offered, because its update is not linear in its factors and no merge "
            "here would say what the clients hold; remove it")
# keys that a user of PEFT may try -> what to write
PEFT_NAMES = {
    "adapter.r": "write adapter.rank",
    "adapter.lora_alpha": "write adapter.alpha",
    "adapter.lora_dropout": "write adapter.dropout",
    "adapter.target_modules": "write adapter.targets",
    "adapter.use_rslora": "write adapter.scaling = 'rslora'",
    "adapter.dora": _NO_DORA,
    "adapter.use_dora": _NO_DORA,
}
MIXED = "mixed"  # public texts where they are retrieved and none are named
DEPLOYED = ("flower",)  # engines whose clients are on other machines


class RunConfig(BaseModel):
    """``[run]``.

    Attributes:
        name: name of the run, in its folder and its report.
        seed: where every random choice begins, but privacy noise.
        arm: label under which runs of several seeds are grouped; None takes the name.
        purpose: what the model is for, and for whom, in words for the person who approves the run
            (``aulait dossier``).
        stages: order of the stages: "synthesis" and "training" by turns. In a stage of synthesis
            after a training the generator writes with what has been trained, and a later one goes
            on from the texts that won before, with ``synthesis.rounds`` more votes; a later
            training goes on from the same adapter. ``train.rounds`` is dealt evenly to the stages
            of training. One privacy budget covers all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "cafe"
    seed: int = Field(0, ge=0)
    arm: str | None = None
    purpose: str | None = Field(None, max_length=2000)
    stages: tuple[StageName, ...] = Field(USUAL, min_length=1, max_length=MOST)


class EngineConfig(BaseModel):
    """``[engine]``.

    Attributes:
        name: "inline" runs all sites on this machine; "ray" trains them on a Ray cluster (extra
            ``ray``); "flower" asks sites on other machines (``aulait serve``).
        workers: processes that train the sites of a cohort side by side, each with a base of its
            own; with "inline" and "flower" this process is one of them, with several GPUs each has
            one. The adapter is the same to rounding.
        address: of the Ray cluster, as ``ray.init`` takes it; None starts Ray on this machine.
        threads: processor threads of the arithmetic, of each worker; None leaves the choice to
            torch and deals its threads to the workers, one to each on Ray. It is part of the seed:
            sums in another order differ in the last bit.
        deadline_s: real seconds that a deployed round waits for updates; it goes on with those who
            answered.
        wait_s: seconds that a deployment waits at its start for all enrolled sites.
        least_sites: sites without which a deployment does not begin.
        wire: how factors travel between machines: "float32", or narrower with the errors of
            ``encoding``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["inline", "ray", "flower"] = "inline"
    workers: int = Field(1, ge=1, le=1024)
    address: str | None = None
    threads: int | None = Field(None, ge=1)
    deadline_s: float = Field(3600.0, gt=0, allow_inf_nan=False)
    wait_s: float = Field(600.0, ge=0, allow_inf_nan=False)
    least_sites: int = Field(1, ge=1)
    wire: Wire = "float32"

    @property
    def deployed(self) -> bool:
        """Whether the clients are on other machines, with their records."""
        return self.name in DEPLOYED

    @property
    def spreads(self) -> bool:
        """Whether other processes than the run's own train sites."""
        return self.workers > 1 or self.name == "ray"


class Settings(BaseModel):
    """One experiment; each field is a table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    federation: FederationConfig = FederationConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    algorithm: JsonObject = {"name": "ffa"}
    train: TrainConfig = TrainConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluate: RunEvaluateConfig = RunEvaluateConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    engine: EngineConfig = EngineConfig()
    track: TrackConfig = TrackConfig()

    @property
    def method(self) -> AnyMethod:
        """The module of the chosen method.

        Raises:
            ConfigError: there is none of that name, or what stands there is none.
        """
        name = self.algorithm["name"]
        require(isinstance(name, str), ConfigError,
                f"{name!r} found, expected the name of a method as text; aulait list shows them")
        return find_method(name)

    @property
    def method_config(self) -> BaseModel:
        """The method's own settings; what it shares by name with ``[compute]`` (cut, wire) it takes
        from there."""
        known = self.method.Config.model_fields
        shared = {key: getattr(self.compute, key) for key in ("cut", "wire") if key in known}
        own = {key: v for key, v in self.algorithm.items() if key not in ("name", *shared)}
        config: BaseModel = self.method.Config(**shared, **own)
        return config

    @property
    def stage_spans(self) -> tuple[StageSpan, ...]:
        """The stages in their order, with their rounds."""
        return stage_spans(self.run.stages,
                           VoteCounts(self.synthesis.votings, self.synthesis.later_votings),
                           self.train.rounds)

    @property
    def votings(self) -> int:
        """Votes of all stages of synthesis, each of them one release."""
        return max((s.last for s in self.stage_spans if s.name == "synthesis"), default=0)

    @property
    def taught(self) -> bool:
        """Whether the generator writes with a released adapter in some stage of the run."""
        order = self.run.stages
        later = order[order.index("training") + 1 :] if "training" in order else ()
        return self.synthesis.can_be_taught and "synthesis" in later

    @property
    def unit_rule(self) -> UnitRule:
        """By what it is decided which records a client uses."""
        return UnitRule.of(self.data, self.privacy)

    @property
    def arm(self) -> str:
        """Label that groups seeds."""
        return self.run.arm or self.run.name


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings of an experiment file with overrides such as ``train.rounds=3``.

    Raises:
        ConfigError: all problems of the file, one a line.
    """
    if not is_file(path):
        raise ConfigError(
            f"experiment file {path} not found; expected a TOML file, for example "
            "experiments/cafe-commits.toml")
    try:
        tree = parsed_toml(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"experiment file {path} is not TOML: {error}") from error
    return build_settings(tree, overrides)


def build_settings(tree: JsonMapping, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a nested mapping; checked as ``settings_problems`` does.

    Raises:
        ConfigError: all problems, one a line.
    """
    merged = {key: value for key, value in tree.items()}
    for override in overrides:
        merged = _override(merged, override)
    if "stages" in merged and isinstance(merged.get("run", {}), Mapping):
        # by its short name
        merged["run"] = {"stages": merged.pop("stages"), **merged.get("run", {})}
    if isinstance(merged.get("engine"), Mapping) and merged["engine"].get("name") in DEPLOYED:
        # whatever lies here, the sites' own records are used
        merged["data"] = {**merged.get("data", {}), "source": AT_SITES}
    merged = with_usual_stages(merged)
    if _retrieves(merged):
        merged["data"] = {"public": MIXED, **merged.get("data", {})}
    if isinstance(merged.get("algorithm"), Mapping):
        merged["algorithm"] = {"name": "ffa", **merged["algorithm"]}
        merged = _rank_of_adapter(merged)
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(expanded(merged))
    except ConfigError as error:
        problems.append(str(error))
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if settings is not None:
        problems += settings_problems(settings)
        problems += [f"{key} is {value}, expected a finite number; correct it"
                     for key, value in _not_finite(settings)
                     if not any(key in problem for problem in problems)]
    if problems or settings is None:
        raise ConfigError("\n".join(problems))
    return with_format(settings)


def _not_finite(settings: Settings) -> Iterator[tuple[str, float]]:
    """Keys whose number is infinite or none at all; a bound ("max_...") may be infinite."""
    tables = settings.model_dump()
    with suppress(ConfigError, ValidationError):  # told by the checks of the method
        tables["algorithm"] = settings.method_config.model_dump()
    for table, keys in tables.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            if (isinstance(value, float) and not math.isfinite(value)
                    and not key.startswith("max_")):
                yield f"{table}.{key}", value


def _rank_of_adapter(tree: JsonObject) -> JsonObject:
    """``algorithm.rank`` is another name of ``adapter.rank``.

    Raises:
        ConfigError: both are there and differ.
    """
    algorithm, adapter = dict(tree["algorithm"]), tree.get("adapter", {})
    if "rank" not in algorithm or not isinstance(adapter, Mapping):
        return tree
    rank = algorithm.pop("rank")
    if adapter.get("rank", rank) != rank:
        raise ConfigError(f"algorithm.rank = {rank!r} and adapter.rank = {adapter['rank']!r} "
                          "differ; set adapter.rank alone")
    return {**tree, "algorithm": algorithm, "adapter": {**adapter, "rank": rank}}


def with_format(settings: Settings) -> Settings:
    """The settings with the format of the records written out, where they leave it to the first
    rows."""
    return settings.model_copy(update={"data": data.resolved(settings.data)})


def _retrieves(tree: JsonMapping) -> bool:
    """Whether the settings ask for public texts to be retrieved, and their tables can be read."""
    synthesis = tree.get("synthesis")
    return (isinstance(synthesis, Mapping) and synthesis.get("source") in ("retrieve", "both")
            and isinstance(tree.get("data", {}), Mapping))


def _override(tree: JsonMapping, override: str) -> JsonObject:
    """The tree with ``a.b=value`` set; list entries by their index."""
    key, found, text = override.partition("=")
    if not found:
        raise ConfigError(f"--set {override}: expected key=value, for example --set train.rounds=3")
    try:
        value = parsed_toml(f"value = {text}")["value"]
    except BeyondLimitsError as error:
        raise ConfigError(f"--set {key}: found {error}, expected a value; correct it") from error
    except ValueError:
        value = text  # a bare word or path
    return dict(_placed(tree, key.strip().split("."), value, key))


def _placed(node: Any, path: Sequence[str], value: Any, key: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list | tuple):
        if not head.isdigit() or int(head) >= len(node):
            raise ConfigError(
                f"--set {key}: '{head}' is not an index of a list of {len(node)}; expected 0 to "
                f"{len(node) - 1}")
        return [_placed(item, rest, value, key) if i == int(head) else item
                for i, item in enumerate(node)]
    branch = dict(node) if isinstance(node, Mapping) else {}
    branch[head] = _placed(branch.get(head, {}), rest, value, key)
    return branch


def _explain(item: Any) -> str:
    """One line for one validation error: found, expected, what to do."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden" and where in PEFT_NAMES:
        return f"unknown key '{where}'; {PEFT_NAMES[where]}"
    if item["type"] == "extra_forbidden":
        return (f"unknown key '{where}'; "
                f"{did_you_mean(str(item['loc'][-1]), _known(item['loc'][:-1]))}")
    # of a whole table everything in it is shown, an address with a password too
    return masked(f"{where} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
                  f"{_several(item['input'])}")


def _several(value: object) -> str:
    """What to do where several settings or values were written as one."""
    if not isinstance(value, str) or not re.search(r";|,\s*[\w.]+\s*=", value):
        return ""
    return ("; one key a --set, so repeat --set for the next; settings of an --arm stand apart by "
            "spaces, values of --over by commas")


def _known(place: Sequence[Any]) -> list[str]:
    """Names of the fields at a place of the tree."""
    model: Any = Settings
    for part in place:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)),
                     model)
    return list(model.model_fields)


def settings_problems(settings: Settings) -> list[str]:
    """Problems that can be seen without reading data or loading a model, one line each."""
    private = not settings.privacy.off
    problems = (
        _check_method(settings) + tiers.problems(settings.federation, settings.compute,
            private) + data.problems(settings.data, settings.privacy.unit_field)
    )
    problems += unit_rule.problems(settings.data, settings.privacy)
    problems += boards.problems(settings.track)
    problems += order_problems(settings.run.stages, settings.train.rounds,
                               settings.synthesis.writes)
    if private:
        problems += _private_as_public(settings)
    problems += _check_kept(settings)
    problems += name_problems(settings.model.name)
    problems += settings.evaluate.problems(settings.model.quant)
    if settings.privacy.protects_records:
        asked = settings.model.dtype.replace("auto", PRECISION)  # which "auto" takes here
        problems += precision_problems(asked, settings.model.quant)
    if not settings.data.pooled or not settings.privacy.off:
        # checked again when the number of clients is known
        problems += settings.privacy.problems(2)
    if settings.data.pooled and any(tier.placement == "split" for tier in settings.federation.tier):
        problems.append("data.pooled = true has no sites to split between; use placement = 'local'")
    if settings.data.pooled and not settings.privacy.off:
        problems.append(
            "data.pooled = true trains on everything in one place; it needs privacy.off = true")
    if (settings.federation.sampling == "poisson" and settings.privacy.relation == "replace"
            and settings.privacy.unit == "client"):
        problems.append(
            "privacy.relation = 'replace' with federation.sampling = 'poisson' is not accounted; "
            "use 'add-remove'")
    problems += _check_robust(settings)
    problems += _check_schedule(settings)
    problems += _check_workers(settings)
    if private:
        problems += _check_turns(settings)
    if settings.privacy.secure:
        problems += _check_secure(settings)
    problems += _check_deployed(settings) if settings.engine.deployed else [
        f"federation.tier '{tier.name}': machine = '{tiers.MEASURED}' is measured by the sites of "
        "a deployment; name a preset here"
        for tier in settings.federation.tier if tier.machine == tiers.MEASURED]
    synthesis = settings.synthesis
    votes = synthesis.asks_for_votes and any(
        tier.placement in ("proxy", "auto") for tier in settings.federation.tier)
    if votes and synthesis.writes and synthesis.neighbours > synthesis.pool:
        problems.append(
            f"synthesis.neighbours = {synthesis.neighbours}, expected at most the "
            f"{synthesis.pool} candidates of a vote (candidates x (1 + variations)); lower it, or "
            "raise synthesis.candidates")
    if votes and synthesis.retrieves and synthesis.neighbours > synthesis.retrieve.cells:
        problems.append(
            f"synthesis.neighbours = {synthesis.neighbours}, expected at most "
            f"synthesis.retrieve.cells = {synthesis.retrieve.cells}; lower it, or raise the other")
    if synthesis.generate.kind == "mask" and synthesis.generate.filler is None:
        problems.append(
            "synthesis.generate.kind = 'mask' needs synthesis.generate.filler, the id or path of a "
            "masked language model")
    return problems


def _check_robust(settings: Settings) -> list[str]:
    """Where no robust rule can stand for the mean, and who cannot be hostile."""
    federation = settings.federation
    found = [] if federation.robust == "none" else [
        f"federation.robust = '{federation.robust}' found with {text}; set robust = \"none\", or "
        "change that" for text in _against_robust(settings)]
    if federation.hostile.share and settings.engine.deployed:
        found.append(f"federation.hostile found with engine.name = '{settings.engine.name}', whose "
                     "clients are real; remove it")
    return found


def _check_schedule(settings: Settings) -> list[str]:
    """What contradicts that clients work at their own pace."""
    federation, compute, privacy = settings.federation, settings.compute, settings.privacy
    if not federation.asynchronous:
        return [f"federation.{key} = {value} found with schedule = 'rounds', where it has no "
                "meaning; set federation.schedule = 'async', or remove it"
                for key, value in (("at_work", federation.at_work),
                                   ("contributions", federation.contributions)) if value]
    try:
        able, name = settings.method.TRAITS.asynchronous, settings.algorithm["name"]
    except ConfigError:  # told by the checks of the method
        return []
    placements = {tier.placement for tier in federation.tier}
    cases = [
        (settings.engine.deployed,
         f"engine.name = '{settings.engine.name}', whose rounds wait for the sites that are asked; "
         "use schedule = 'rounds', or engine.name = 'inline'"),
        (not able,
         f"algorithm '{name}', which reads single updates, or whose clients or rounds remember "
         "what a later round must not miss, expected one that sums how factors moved; use 'fedit' "
         "or 'ffa'"),
        (federation.sampling != "fixed",
         f"sampling = '{federation.sampling}', expected 'fixed', with rate the share of clients "
         "whose updates fill a buffer; set both"),
        (any(tier.machine is None for tier in federation.tier),
         "a tier without a machine, so that nobody is faster than another; give every tier a "
         "machine"),
        ("split" in placements or ("auto" in placements and "split" in compute.allowed),
         "clients that may be split, whose server half works in step with them; place them "
         "otherwise, or set compute.allowed = ['local', 'proxy']"),
        (bool(compute.over_selection or compute.deadline_s),
         "compute.over_selection or compute.deadline_s, where no round waits for anybody; remove "
         "them"),
        (federation.robust != "none",
         f"robust = '{federation.robust}', which weighs all alike; set robust = 'none'"),
        (privacy.secure,
         "privacy.trust = 'secure', whose clients share keys in rounds; use trust = 'server'"),
        (privacy.adaptive is not None,
         "privacy.clip = 'adaptive', whose clients answer about updates of the same age; set "
         "privacy.clip to a number"),
        (not privacy.off and privacy.unit == "client" and privacy.relation == "add-remove",
         "privacy.relation = 'add-remove': who takes part when is public, so a client that adds "
         "nothing stands in the place of another; write relation = 'zero-out'"),
    ]
    return [f"federation.schedule = 'async' found with {text}" for wrong, text in cases if wrong]


def _check_workers(settings: Settings) -> list[str]:
    """What several workers cannot do, and what has no meaning without Ray."""
    engine, model = settings.engine, settings.model
    if engine.address is not None and engine.name != "ray":
        return [f"engine.address = '{engine.address}' found with engine.name = '{engine.name}', "
                "where it has no meaning; set engine.name = 'ray', or remove it"]
    if not engine.spreads:
        return []
    told = f"engine.name = 'ray' or engine.workers = {engine.workers} found with"
    cases = [
        (model.device_map is not None,
         "model.device_map, which spreads one base over all devices; remove one of the two"),
        (":" in model.device or model.device == "mps",
         f"model.device = '{model.device}', which is one device; use 'auto', 'cpu' or 'cuda'"),
    ]
    return [f"{told} {text}" for wrong, text in cases if wrong]


def _against_robust(settings: Settings) -> list[str]:
    """What a rule in the place of the mean cannot be had with."""
    federation, privacy = settings.federation, settings.privacy
    try:
        method, name = settings.method, settings.algorithm["name"]
        weights = str(getattr(settings.method_config, "weights", "uniform"))
    except (ConfigError, ValidationError):  # told by the checks of the method
        return []
    cases = [
        (privacy.secure, "privacy.trust = 'secure', where nobody sees an update to judge it by: "
         "clients clip what they send"),
        (not privacy.off and not privacy.secure and privacy.unit == "client",
         "privacy.unit = 'client', where no noise covers what it gives: privacy.clip bounds what "
         "one client can do"),
        (not method.TRAITS.secure,
         f"algorithm '{name}', which reads more of single updates than their sum"),
        (weights == "size",
         "algorithm.weights = 'size', where a client says its own weight"),
        (len({tier.rank or settings.adapter.rank for tier in federation.tier}) > 1,
         "tiers of different ranks"),
        (federation.preset is not None, "federation.preset, whose tiers differ in rank"),
    ]
    return [text for wrong, text in cases if wrong]


def _check_turns(settings: Settings) -> list[str]:
    """What contradicts that cohorts take turns, and that noise remembers."""
    privacy, turns = settings.privacy, settings.federation.sampling == "turns"
    of_clients = privacy.unit == "client"
    cases = [
        (turns and of_clients and privacy.relation == "add-remove",
         "privacy.relation = 'add-remove' found with federation.sampling = 'turns': who is in "
         "which cohort is public, so a client that adds nothing stands in the place of another; "
         "write relation = \"zero-out\""),
        (turns and of_clients and settings.engine.deployed,
         f"federation.sampling = 'turns' found with engine.name = '{settings.engine.name}', whose "
         "sites count every round as one of theirs; use sampling = \"all\", or engine.name = "
         "'inline'"),
        (privacy.correlated and of_clients and not turns,
         f"privacy.mechanism = 'banded' found with federation.sampling = "
         f"'{settings.federation.sampling}', expected cohorts that take turns: with everybody in "
         "every round correlated noise gains nothing; set federation.sampling = 'turns' and "
         "federation.cohorts"),
    ]
    return [text for found, text in cases if found]


def _check_secure(settings: Settings) -> list[str]:
    """What contradicts that the server sees sums alone."""
    cases = [
        *(_against_sums(settings) if settings.privacy.unit == "record" else ()),
        (settings.federation.sampling == "poisson",
         "federation.sampling = 'poisson': the server sees who is drawn, so that sampling hides "
         "nobody from it; use sampling = 'all'"),
        (settings.synthesis.votes == "exact",
         "synthesis.votes = 'exact', whose sum gets no noise; use 'private'"),
        *(_against_remote_sums(settings) if settings.engine.deployed else ()),
    ]
    return [f"privacy.trust = 'secure' found with {text}" for found, text in cases if found]


def _against_remote_sums(settings: Settings) -> list[tuple[bool, str]]:
    """What sites on other machines cannot yet add up secretly."""
    try:
        method, name = settings.method, settings.algorithm["name"]
    except ConfigError:  # told by the checks of the method
        return []
    where = f"engine.name = '{settings.engine.name}'"
    return [
        (settings.privacy.unit == "record",
         f"privacy.unit = 'record' and {where}: a site adds all of the noise itself there; use "
         "trust = \"server\", or engine.name = 'inline'"),
        (settings.privacy.noise_seed is not None,
         f"privacy.noise_seed and {where}: sites draw noise that nobody can compute again; remove "
         "it"),
        (not method.TRAITS.placed,
         f"algorithm '{name}' and {where}: a site cannot make its part of the sum alone; use "
         "'fedit' or 'ffa', or engine.name = 'inline'"),
    ]


def _against_sums(settings: Settings) -> list[tuple[bool, str]]:
    """What does not go together with sums of single records' gradients over all sites."""
    try:
        method, config = settings.method, settings.method_config
    except (ConfigError, ValidationError):  # told by the checks of the method
        return []
    steps = method.TRAITS.steps and step_mechanism(method, config) == DP_SGD
    return [
        (not steps,
         f"privacy.unit = 'record' and algorithm '{settings.algorithm['name']}', whose updates are "
         "more than the step of a sum of gradients; use 'ffa', 'fedit' or 'dplora'"),
        (getattr(config, "weights", "uniform") == "size",
         "algorithm.weights = 'size', where in the sum every record counts alike; use 'uniform'"),
    ]


def _check_kept(settings: Settings) -> list[str]:
    """What contradicts that the best measured round's adapter is written."""
    if settings.train.keep == "last":
        return []
    problems = []
    if not settings.privacy.off and settings.evaluate.on == "held-out":
        problems.append(
            "train.keep = 'best' would choose by the clients' held-out records, which no epsilon "
            "covers, expected public text under privacy; set evaluate.on = 'public', or "
            "train.keep = 'last'")
    if settings.method.TRAITS.personal:
        problems.append(
            f"train.keep = 'best' with algorithm '{settings.algorithm['name']}', whose clients "
            "end with adapters of the last round; use train.keep = 'last'")
    return problems


def _private_as_public(settings: Settings) -> list[str]:
    """Keys that name the clients' own text where public text is read, which no account covers."""
    named = {"data.public": (settings.data.public,)}
    basis = settings.algorithm.get("basis_text", ())
    named["algorithm.basis_text"] = (basis,) if isinstance(basis, str) else tuple(basis)
    own = _place(settings.data.source)
    return [f"{key} is '{source}', the clients' own text (data.source), expected public text: what "
            "is read as public is shown and learnt without noise; name another source, or "
            "privacy.off = true"
            for key, sources in named.items() for source in sources
            if source and _place(str(source)) == own]


def _place(source: str) -> str:
    """A source in one form: a name as it is, a path as the file that it leads to."""
    path = user_path(source)
    return str(path.resolve()) if is_there(path) else source


def _check_deployed(settings: Settings) -> list[str]:
    """What a simulation can do and a deployment cannot."""
    cases = [
        (settings.data.partition != "natural",
         "data.partition makes clients up, a deployment has real ones; use 'natural'"),
        (settings.data.clients is not None,
         "data.clients keeps some of the clients, a deployment has those enrolled; remove it"),
        (settings.data.unseen not in (0, ()),
         "data.unseen keeps clients apart to measure on; remove it in a deployment"),
        (settings.data.pooled,
         "data.pooled = true puts records in one place; remove it in a deployment"),
        (settings.evaluate.task == "rank",
         "evaluate.task = 'rank' needs everybody's responses in one place; use 'rouge' or 'exact'"),
        (settings.synthesis.votes == "exact" and not settings.privacy.off,
         "synthesis.votes = 'exact' is a control; remove it"),
        (settings.compute.over_selection > 0,
         "compute.over_selection needs virtual time; use engine.deadline_s in a deployment"),
        (settings.privacy.noise_seed is not None,
         "privacy.noise_seed makes noise that can be repeated; remove it in a deployment"),
    ]
    return [f"engine.name = '{settings.engine.name}': {text}" for found, text in cases if found]


def _check_method(settings: Settings) -> list[str]:
    try:
        if elsewhere := _cut_elsewhere(settings):
            return elsewhere
        config = settings.method_config
    except ConfigError as error:
        return [f"algorithm.name: {error}"]
    except ValidationError as error:
        known = settings.method.Config.model_fields
        return [f"unknown key 'algorithm.{e['loc'][-1]}'; {did_you_mean(str(e['loc'][-1]), known)}"
                if e["type"] == "extra_forbidden"
                else _explain({**e, "loc": ("algorithm", *e["loc"])}) for e in error.errors()]
    problems: list[str] = []
    for key in {"cut", "wire"} & {*settings.algorithm}:
        if settings.algorithm[key] != (told := getattr(settings.compute, key)):
            problems.append(
                f"algorithm.{key} = {settings.algorithm[key]!r} and compute.{key} = {told!r} "
                f"differ; set compute.{key} alone")
    whole = [tier.name for tier in settings.federation.tier if tier.placement != "split"]
    if server_site(settings.method) is not None and whole:
        problems.append(
            f"algorithm '{settings.algorithm['name']}' splits every client and federation.tier "
            f"'{whole[0]}' is placed otherwise; set placement = 'split' for all, or use 'fedit', "
            "where split is one role among others")
    if not settings.method.TRAITS.splits and len(whole) < len(settings.federation.tier):
        problems.append(
            f"algorithm '{settings.algorithm['name']}' cannot have split clients: they do more "
            "than training steps on the model; use placement = 'local', or 'fedit'")
    if getattr(config, "weights",
            "uniform") == "size" and not settings.privacy.off and settings.privacy.unit == "client":
        problems.append(
            "algorithm.weights = 'size' changes the sensitivity; use 'uniform' under privacy, or "
            "privacy.off = true")
    name, traits, largest = settings.algorithm[
        "name"], settings.method.TRAITS, settings.adapter.rank
    if "rank" in settings.adapter.auto:
        own = [tier.name for tier in settings.federation.tier if tier.rank or tier.attention_rank]
        return [*problems, f"adapter.rank is 'auto' and federation.tier '{own[0]}' has a rank of "
                "its own; remove that, or set adapter.rank"] if own else problems
    ranks = {largest, *(rank for tier in settings.federation.tier
                        for rank in (tier.rank, tier.attention_rank) if rank)}
    if len(ranks) > 1 and not traits.unequal_ranks:
        problems.append(
            f"algorithm '{name}' needs one rank, adapter.rank and the tiers have {sorted(ranks)}; "
            "set one rank")
    if max(ranks) > largest:
        problems.append(
            f"a federation.tier has rank {max(ranks)}, adapter.rank is {largest}; raise "
            "adapter.rank, or lower the tier's rank")
    # the unit "record" is looked at once the clients are known
    if (not settings.privacy.off and settings.privacy.unit == "client" and not traits.private
            and traits.unit == "client"):
        problems.append(
            f"algorithm '{name}' is {traits.privacy}; use '{traits.instead}', or privacy.off = "
            "true")
    return problems


def _cut_elsewhere(settings: Settings) -> list[str]:
    """Tiers that are cut in places of their own, with a method that cuts all clients in one; raises
    what ``Settings.method`` does."""
    if server_site(settings.method) is None:
        return []
    usual, name = settings.compute.cut, settings.algorithm["name"]
    advice = (f"algorithm '{name}' cuts all clients in one place; set compute.cut to a number of "
              "blocks and leave federation.tier 'cut' out, or use 'hsplitlora'")
    found = [f"compute.cut = 'auto' found, {advice}"] if usual == "auto" else []
    return found + [f"federation.tier '{tier.name}' has cut = {tier.cut!r} and compute.cut is "
                    f"{usual!r}, {advice}"
                    for tier in settings.federation.tier if tier.cut not in (None, usual)]


def dump_settings(settings: Settings) -> str:
    """The resolved settings as TOML; the run can be repeated from it."""
    tree = settings.model_dump(mode="python")
    tree["algorithm"] = {"name": settings.algorithm["name"], **settings.method_config.model_dump()}
    return tomli_w.dumps(_plain(tree))


def renewed_settings(text: str) -> str:
    """The resolved settings that an earlier version wrote, with the keys that have come since at
    their defaults and what was renamed under its new name; unchanged where today's version does not
    take them, or would use other records."""
    try:
        tree = parsed_toml(text)
        tree.get("model", {}).setdefault("dtype", "float32")  # of the time without "auto"
        privacy = tree.get("privacy", {})
        if privacy.get("unit") == "record" and privacy.get("relation") == "add-remove":
            privacy["relation"] = "zero-out"
        algorithm, parts = tree.get("algorithm", {}), tree.get("federation", {}).get("tier", [])
        if algorithm.get("name") == "flora" and any(
                tier.get("rank") or tier.get("attention_rank") for tier in parts):
            algorithm.setdefault("scale", "own")  # of the time when ranks had scales of their own
        if "choice" not in tree.get("data", {}):  # a run of the time when all chose by count
            counted = build_settings(tree, ["data.choice=count"])  # refused under the unit "record"
            return dump_settings(counted.model_copy(update={
                "data": counted.data.model_copy(update={"choice": "auto"})}))
        return dump_settings(build_settings(tree))
    except (ConfigError, ValueError):
        return text


def _plain(node: Any) -> Any:
    """Nested plain values without None, which TOML lacks."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if value is not None}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node
