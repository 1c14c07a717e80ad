"""``algorithm.server = "auto"``: whether the clients that train search for the server's step.

Without privacy a search costs nothing and gains. Under it a fifth of the budget went to a search
and what it found did not make that good on any data that we measured
(docs/decisions/0023-line-search.md), so there it is done where it is asked for.
"""

from __future__ import annotations

from aulait.core.errors import ConfigError, require
from aulait.methods.contract import RunContext
from aulait.runs.experiment_file import Settings


def with_settled_server(settings: Settings, context: RunContext) -> Settings:
    """The settings with the server's optimiser as it will be: "auto" is "search" without privacy
    where the run allows it, else "plain".

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
    found = "plain" if lacking or (wanted == "auto" and not settings.privacy.off) else "search"
    return settings.model_copy(update={"algorithm": {**settings.algorithm, "server": found}})


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
