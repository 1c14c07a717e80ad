"""What a site has given of its data sources, for whoever asks at the site: read from its folder, no
file changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.files import JsonObject
from aulait.engines.deployment.protocol.receipts import identity
from aulait.engines.deployment.site.lifetime_account import (
    FOLDER,
    FRESH,
    ChargedUnit,
    account_path,
    read_lines,
    spent,
)
from aulait.engines.deployment.site.lost_account import lost_path, read_lost
from aulait.engines.deployment.site.site_file import SiteFile

UNITS: Final[tuple[ChargedUnit, ...]] = ("client", "record", "none")


def summary(site: SiteFile) -> list[JsonObject]:
    """The accounts of a site: that of the data source of its file, and those of sources that it had
    before.

    Returns:
        A table for each: source (of an earlier one the name of its file), error (None, or what is
        damaged), begun_anew (when, after a loss; None for most) and units, each with unit ("none":
        runs without privacy), runs, charges, epsilon (None is infinite), delta and limit (largest
        epsilon; None for none).
    """
    own = account_path(site.site.state, site.data.source)
    others = sorted({*(site.site.state / FOLDER).glob("*.jsonl")} - {own})
    return [_one(site, path, site.data.source if path == own else path.name)
            for path in (own, *others)]


def _one(site: SiteFile, path: Path, source: str) -> JsonObject:
    lost, beginning = None, FRESH
    try:
        if source == site.data.source and lost_path(site.site.state, source).exists():
            lost = read_lost(site.site.state, source, identity(site.site.name, site.keys.private))
            beginning = lost.beginning(source) if lost else FRESH
        lines = [*beginning.charges, *read_lines(path, beginning)]
    except (PrivacyError, ConfigError) as error:
        return {"source": source, "error": str(error), "begun_anew": None, "units": []}
    units = []
    for unit in UNITS:
        found = spent(lines, unit)
        if found.charges or (unit != "none" and source == site.data.source):
            units.append({
                "unit": unit, "runs": found.runs, "charges": found.charges,
                "epsilon": found.epsilon if math.isfinite(found.epsilon) else None,
                "delta": found.delta,
                "limit": None if unit == "none" else site.limits.lifetime_epsilon})
    return {"source": source, "error": None, "begun_anew": lost and lost.time, "units": units}
