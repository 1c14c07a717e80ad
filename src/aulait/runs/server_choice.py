"""``algorithm.server = "auto"``: whether the clients that train search for the server's step."""

from __future__ import annotations

from aulait.core.errors import ConfigError, require
from aulait.methods.contract import RunContext
from aulait.runs.experiment_file import Settings


def with_settled_server(settings: Settings, context: RunContext) -> Settings:
    """The settings with the server's optimiser as it will be: "auto" is "search" where the run
    allows that, else "plain".

    Args:
        settings: the experiment.
        context: tells whose ranks differ.

    Raises:
        ConfigError: "search" is wanted where it cannot be.
    """
    wanted = settings.algorithm.get("server", getattr(settings.method_config, "server", ""))
    if wanted not in ("search", "auto"):
        return settings
    lacking = _lacking(settings, context)
    require(wanted == "auto" or not lacking, ConfigError,
            f"algorithm.server = 'search' found with {lacking}, where clients cannot search for "
            "the step; set algorithm.server = 'plain'")
    return settings.model_copy(update={
        "algorithm": {**settings.algorithm, "server": "plain" if lacking else "search"}})


def _lacking(settings: Settings, context: RunContext) -> str:
    """What of a run stands against a search; nothing where it can be."""
    if not settings.method.TRAITS.searches:
        return f"algorithm '{settings.algorithm['name']}'"
    if settings.privacy.protects_records:
        return "privacy.unit = 'record'"
    if settings.federation.sampling != "all":
        return f"federation.sampling = '{settings.federation.sampling}'"
    if context.ranks:
        return "clients of unequal ranks"
    if any(tier.placement == "split" for tier in settings.federation.tier):
        return "split clients"
    return ""
