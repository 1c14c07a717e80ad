"""What can only be checked once the data are read and every client has a role."""

from __future__ import annotations

from aulait.core.errors import ConfigError, DataError, require
from aulait.core.seeds import Seeds
from aulait.core.units import units
from aulait.data import sources
from aulait.methods.contract import (
    AUTO,
    PUBLIC,
    RELEASED,
    PublicTextMethod,
    RunContext,
    State,
    server_site,
    step_mechanism,
)
from aulait.privacy import record_level
from aulait.privacy.secure.quorum import Quorum
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import Federation


def check_roles(settings: Settings, federation: Federation) -> None:
    """Raise what is wrong with the roles of a run's clients.

    Args:
        settings: the experiment.
        federation: its clients.

    Raises:
        ConfigError, DataError, PrivacyError: in full sentences.
    """
    require(settings.evaluate.on == "held-out" or bool(federation.corpus.public), DataError,
            "evaluate.on = 'public' found without public texts; set data.public")
    _check_names(settings, federation)
    _check_sources(settings, federation)
    if federation.roles["proxy"] and settings.synthesis.proxies != "absent":
        public = federation.corpus.public
        require(bool(public), DataError,
                "stage 1 needs public texts to start from and found none; set data.public")
        _check_pairs(settings, isinstance(public[0], str))
    _check_models(settings, federation)
    if not federation.trainers and (not federation.roles["proxy"]
                                    or settings.synthesis.proxies == "absent"):
        raise ConfigError(
            "nobody trains: no tier is local and proxies are absent; give a tier placement = "
            "'local'")
    require(bool(federation.trainers) or settings.run.stages[0] == "synthesis"
            or settings.synthesis.proxies == "public", ConfigError,
            f"run.stages = {list(settings.run.stages)} begins with training and every client is "
            "proxied, so that nobody could train yet; begin with 'synthesis', or give a tier "
            "placement = 'local'")
    if (settings.federation.sampling == "poisson" and settings.synthesis.voters == "all"
            and not settings.privacy.protects_records):  # where no sampling of clients is counted
        raise ConfigError(
            "synthesis.voters = 'all' with federation.sampling = 'poisson' is not accounted; use "
            "sampling = 'all'")
    _check_unit(settings, federation)
    _check_quorum(settings, federation)


def _check_names(settings: Settings, federation: Federation) -> None:
    """Names of sites at the server are kept for them."""
    reserved = [n for n in sorted(federation.sites) if n.startswith(("proxy-", "reference-"))]
    require(not reserved, DataError,
            f"client '{reserved[0] if reserved else ''}' has a name kept for sites of the server; "
            "rename it (names may not begin with 'proxy-' or 'reference-')")
    taken = server_site(settings.method)
    require(taken not in federation.sites, DataError,
            f"client '{taken}' has the name of the server's own site; rename it")


def _check_sources(settings: Settings, federation: Federation) -> None:
    """Raise what is wrong with the text that the method will read, as far as it is known before
    the run.

    Raises:
        DataError: a source is not there.
    """
    method, config = settings.method, settings.method_config
    if not isinstance(method, PublicTextMethod):
        return
    first = RunContext({}, 1, 1.0, Seeds(0))  # before the first round nothing of it is asked
    opened = settings.run.stages[0] == "synthesis"
    for source in method.wants(config, first, State(0, {})):
        made = (federation.breeds and opened) or (settings.synthesis.proxies == "public"
                                     and bool(federation.roles["proxy"]))
        there = {PUBLIC: bool(federation.corpus.public), RELEASED: made,
                 AUTO: made or bool(federation.corpus.public)}
        problem = None if source in there else sources.problem(source, sources.PUBLIC_SUFFIXES)
        require(problem is None, DataError, f"the text that algorithm "
                f"'{settings.algorithm['name']}' reads: {problem}")
        require(there.get(source, True), DataError,
                f"algorithm '{settings.algorithm['name']}' reads {source} text and there is none; "
                "set data.public, or name another source in the method's settings")


def _check_pairs(settings: Settings, plain: bool) -> None:
    """Proxies of clients with prompts learn from pairs, so stage 1 must start from pairs."""
    own = settings.data
    if not own.answers or not plain or (own.public_plain and settings.model.kind == "causal"):
        return
    other = (
        "" if settings.model.kind == "seq2seq"
        else ", or data.public_plain = true to let proxies learn from text without a prompt"
    )
    wanted = " and ".join(f"'{name}'" for name in own.row.needed.values())
    raise DataError(
        f"data.public = '{own.public}' has plain texts and the data have prompts, expected rows "
        f"with {wanted} so that stage 1 breeds pairs; set data.public to such a source{other}")


def _check_models(settings: Settings, federation: Federation) -> None:
    """A sequence-to-sequence base cannot continue texts, and needs prompts."""
    seq2seq = (
        settings.model.kind == "seq2seq" and settings.synthesis.writes
        and settings.synthesis.generator == "base"
        and settings.synthesis.generate.kind == "prefix"
    )
    require(not (federation.breeds and seq2seq), ConfigError,
            "synthesis.generator = 'base' with synthesis.generate.kind = 'prefix' needs a causal "
            "model and model.kind is 'seq2seq'; set synthesis.generator = 'brew' (built in) or to "
            "the id or folder of another causal model, or kind to 'prompt' or 'mask'")
    require(settings.model.kind == "causal" or settings.data.answers, ConfigError,
            "model.kind is 'seq2seq' and the data are plain text, expected a prompt for the "
            "encoder and a response for the decoder; set data.prompt and data.response")


def _check_quorum(settings: Settings, federation: Federation) -> None:
    """Under secure aggregation every sum needs clients enough to hide one of them."""
    privacy = settings.privacy
    if not privacy.secure:
        return
    trainers, config = len(federation.trainers), settings.federation
    training = "clients that train"
    if config.sampling == "turns":
        trainers, training = trainers // config.cohorts, "clients in the smallest cohort"
    for count, who in ((len(federation.voters), "clients that vote"), (trainers, training)):
        problem = Quorum.of(count, privacy.dropouts, privacy.colluders).problem(count, who)
        if problem and (count or (who == training and federation.trainers)):
            raise ConfigError(problem)


def _check_unit(settings: Settings, federation: Federation) -> None:
    """The method must be able to protect what ``privacy.unit`` names."""
    method, privacy = settings.method, settings.privacy
    mechanism = step_mechanism(method, settings.method_config)
    problems = record_level.unit_problems(privacy, settings.algorithm["name"], method.TRAITS.units,
                                          mechanism)
    if privacy.protects_records:
        problems += privacy.problems(sum(len(units(site.train))
                                         for site in federation.sites.values()))
    require(not problems, ConfigError, "\n".join(problems))
