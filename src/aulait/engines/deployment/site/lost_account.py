"""An account that was lost for good, and the one that goes on in its place.

What had been given of the data source is not known any more. So all that the site's limits let be
given counts as given, for records and for clients: a run fits again only when the owner raises
``limits.lifetime_epsilon`` and ``limits.lifetime_delta``.

It cannot be used to turn an account back unnoticed. The new account has a name of its own in
receipts, drawn at random, so every coordinator that kept a receipt of the lost one says that it
meets another account. And what is written here is signed by the site's key: somebody who can only
write to the state folder, and so could delete the account, cannot begin it anew.

    STATE/account/NAME.lost.json    beside the account, which the last such file begins
    STATE/account/NAME.jsonl.TIME   what was there before, put aside
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aulait.core.errors import ConfigError, PrivacyError, require
from aulait.core.files import private_folder, replace_file, sync_folder, writing
from aulait.engines.deployment.protocol.receipts import SiteIdentity, identity
from aulait.engines.deployment.site.lifetime_account import (
    FRESH,
    Beginning,
    Charge,
    LifetimeAccount,
    account_path,
)
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.privacy.accounting import calibrate

_RUN: Final = "lost"  # in the place of the run of a charge


class LostAccount(BaseModel):
    """What stands in the place of an account's lost charges.

    Attributes:
        name: of the new account in receipts, 32 hexadecimal digits.
        time: when it was begun, UTC.
        epsilon, delta: that count as spent, for each unit.
        signature: of the site, base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    time: str
    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    signature: str = ""

    def content(self, source: str) -> bytes:
        """What is signed: of this data source and no other."""
        return json.dumps([source, self.model_dump(exclude={"signature"})], sort_keys=True).encode()

    def beginning(self, source: str) -> Beginning:
        """What the new account's lines follow on."""
        noise = calibrate(self.epsilon, self.delta, 1) if self.epsilon else None
        return Beginning(hashlib.sha256(self.content(source)).hexdigest(), (
            Charge(run=_RUN, unit="client", epsilon=self.epsilon, delta=self.delta),
            Charge(run=_RUN, unit="record", delta=self.delta, noise_multiplier=noise)))


def read_lost(state: Path, source: str, owner: SiteIdentity | None) -> LostAccount | None:
    """What the account of a data source was begun anew with; None where it never was.

    Raises:
        PrivacyError: it is damaged, or the site's key did not sign it.
    """
    path = lost_path(state, source)
    if not path.exists():
        return None
    try:
        lost = LostAccount.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PrivacyError(f"{path} is damaged, expected what an account was begun anew with; "
                           "restore the newest copy of it") from error
    signed = owner is not None and owner.is_own_text(lost.content(source), lost.signature)
    require(signed, PrivacyError,
            f"{path} found without a signature by this site's key, expected one; restore the "
            "newest copy of it, and ask who changed it")
    return lost


def begin_anew(site: SiteFile) -> LostAccount:
    """Put the account of the site's data source aside and begin another, in which everything that
    the site's limits allow counts as spent. The site must not be running.

    Raises:
        ConfigError: the site has no key.
    """
    state, source, limits = site.site.state, site.data.source, site.limits
    owner = identity(site.site.name, site.keys.private)
    if owner is None:
        raise ConfigError(f"found no key {site.keys.private}, expected the site's: what an account "
                          "is begun anew with is signed; give keys.private")
    known = _known(state, source, owner)
    plain = LostAccount(name=secrets.token_hex(16), time=datetime.now(UTC).isoformat(),
                        epsilon=max(limits.lifetime_epsilon, known[0]),
                        delta=max(limits.lifetime_delta, known[1]))
    lost = plain.model_copy(update={"signature": owner.signed_text(plain.content(source))})
    path, account = lost_path(state, source), account_path(state, source)
    with writing(path.parent):
        private_folder(path.parent)
        replace_file(path, lost.model_dump_json(indent=2).encode() + b"\n", mode=0o600)
        if account.exists():  # no run could go on with it: it does not follow on the new beginning
            account.rename(account.with_name(f"{account.name}.{datetime.now(UTC):%Y%m%dT%H%M%S}"))
        sync_folder(path.parent)
    return lost


def lost_path(state: Path, source: str) -> Path:
    """Where it is written that an account was lost."""
    return account_path(state, source).with_suffix(".lost.json")


def _known(state: Path, source: str, owner: SiteIdentity) -> tuple[float, float]:
    """The largest finite epsilon and delta that the account tells, where it can still be read."""
    try:
        lost = read_lost(state, source, owner)
        account = LifetimeAccount(state, source,
                                  beginning=lost.beginning(source) if lost else FRESH)
    except PrivacyError:
        return 0.0, 0.0
    found = [account.spent("client"), account.spent("record")]
    return (max(one.epsilon for one in found if math.isfinite(one.epsilon)),
            min(max(one.delta or 0.0 for one in found), 0.999))
