"""What a site has given of its data sources, for whoever asks at the site: read from its folder, no
file changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from aulait.core.errors import PrivacyError
from aulait.core.files import JsonObject
from aulait.engines.deployment.site.lifetime_account import (
    FOLDER,
    ChargedUnit,
    account_path,
    read_lines,
    spent,
)
from aulait.engines.deployment.site.site_file import SiteFile

UNITS: Final[tuple[ChargedUnit, ...]] = ("client", "record", "none")


def summary(site: SiteFile) -> list[JsonObject]:
    """The accounts of a site: that of the data source of its file, and those of sources that it had
    before.

    Returns:
        A table for each: source (of an earlier one the name of its file), error (None, or what is
        damaged) and units, each with unit ("none": runs without privacy), runs, charges, epsilon
        (None is infinite), delta and limit (largest epsilon; None for none).
    """
    own = account_path(site.site.state, site.data.source)
    others = sorted({*(site.site.state / FOLDER).glob("*.jsonl")} - {own})
    return [_one(site, path, site.data.source if path == own else path.name)
            for path in (own, *others)]


def _one(site: SiteFile, path: Path, source: str) -> JsonObject:
    try:
        lines = read_lines(path)
    except PrivacyError as error:
        return {"source": source, "error": str(error), "units": []}
    units = []
    for unit in UNITS:
        found = spent(lines, unit)
        if found.charges or (unit != "none" and source == site.data.source):
            units.append({
                "unit": unit, "runs": found.runs, "charges": found.charges,
                "epsilon": found.epsilon if math.isfinite(found.epsilon) else None,
                "delta": found.delta,
                "limit": None if unit == "none" else site.limits.lifetime_epsilon})
    return {"source": source, "error": None, "units": units}
