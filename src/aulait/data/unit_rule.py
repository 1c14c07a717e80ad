"""By what it is decided which records a client uses: by counting them, or by a hash of each unit.

Counting fills a cap and a hold-out of an exact size by a random order of all records, so that one
record more moves others in or out. Where single records (or all records of one value of a field)
are protected, that may not be: there a keyed hash of the unit alone decides (``core.units``).
"""

from __future__ import annotations

from dataclasses import dataclass

from aulait.data.config import DataConfig
from aulait.privacy.config import PrivacyConfig


@dataclass(frozen=True)
class UnitRule:
    """How a client's records are chosen.

    Attributes:
        by_hash: a keyed hash of each unit decides alone; False: numbers of records decide.
        field: of a row, whose value names the unit (``privacy.unit_field``). None: every record is
            a unit of its own.
    """

    by_hash: bool = False
    field: str | None = None

    @classmethod
    def of(cls, data: DataConfig, privacy: PrivacyConfig) -> UnitRule:
        """The rule of an experiment. Under the unit "record" it is the hash, whatever ``data``
        says."""
        return cls(privacy.protects_records or data.choice == "hash", privacy.unit_field)

    @property
    def noun(self) -> str:
        """What is counted, in the plural."""
        return "records" if self.field is None else f"units (values of '{self.field}')"


def problems(data: DataConfig, privacy: PrivacyConfig) -> list[str]:
    """What contradicts the rule, one line each."""
    found = []
    if data.choice == "count" and privacy.protects_records:
        found.append(
            "data.choice = 'count' found with privacy.unit = 'record', where one unit more may not "
            "move others; expected 'hash'; set data.choice = 'auto'")
    if data.share < 1 and not UnitRule.of(data, privacy).by_hash:
        found.append(
            f"data.share = {data.share:g} found where records are chosen by count, expected 1; set "
            "data.choice = 'hash', or lower data.records_per_client")
    return found
