"""What a site signs about its own account, so that an older copy of it can be told.

Every answer of a site bears a receipt: how many charges its account holds, and the hash of the last
one. The coordinator keeps the newest and shows it in its next message, so that a site whose state
was turned back meets its own signature. A receipt tells nothing of records, of runs or of other
coordinators but how many charges there have been.

The signature is ECDSA over SHA-256 by the site's key on the curve P-256, the one that is in the
coordinator's roster; a fixed prefix keeps it from meaning anything in another protocol.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field

from aulait.core.errors import ConfigError
from aulait.core.places import is_there
from aulait.engines.deployment.protocol import signing
from aulait.privacy.secure.keys import Identity

_PREFIX: Final = b"aulait account receipt, version 1\0"
_OWN_PREFIX: Final = b"aulait account begun anew, version 1\0"
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())


class Receipt(BaseModel):
    """The state of a site's account at one moment.

    Attributes:
        account: names the account without telling its data source, 32 hexadecimal digits.
        sequence: number of charges.
        head: hash of the last charge, which holds that of the one before, and so on; zeros while
            there is none.
        signature: of the site, base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    account: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sequence: Annotated[int, Field(ge=0, lt=2**53)]
    head: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, Field(max_length=200)] = ""

    def content(self, site: str) -> bytes:
        """What is signed."""
        return _PREFIX + json.dumps([site, self.account, self.sequence, self.head]).encode()


@dataclass(frozen=True)
class SiteIdentity:
    """A site's name and private key; sensitive.

    Attributes:
        name: of the site.
        key: as the roster has its public half.
    """

    name: str
    key: ec.EllipticCurvePrivateKey

    def account_name(self, source: str) -> str:
        """Names the account of a data source in receipts: the same whatever becomes of the state
        folder, and nobody else can guess the source from it."""
        number = self.key.private_numbers().private_value.to_bytes(32, "big")
        return hmac.digest(number, b"aulait data source\0" + source.encode(),
                           hashlib.sha256).hex()[:32]

    @property
    def sums(self) -> Identity:
        """Who this site is to the other sites in secure sums: an Ed25519 pair that follows from its
        key, so that no other file has to be kept."""
        number = self.key.private_numbers().private_value.to_bytes(32, "big")
        return Identity.of(hmac.digest(number, b"aulait secure sums\0", hashlib.sha256))

    def signed(self, account: str, sequence: int, head: str) -> Receipt:
        """A receipt with its signature."""
        plain = Receipt(account=account, sequence=sequence, head=head)
        signature = self.key.sign(plain.content(self.name), _ALGORITHM)
        return plain.model_copy(update={"signature": base64.b64encode(signature).decode()})

    def signed_text(self, text: bytes) -> str:
        """A signature of what this site wrote for itself, base64; no receipt is made of it."""
        return base64.b64encode(self.key.sign(_OWN_PREFIX + text, _ALGORITHM)).decode()

    def is_own_text(self, text: bytes, signature: str) -> bool:
        """Whether this site wrote it, with the key that it has now."""
        return _is_signature(self.key.public_key(), _OWN_PREFIX + text, signature)

    def is_own(self, receipt: Receipt) -> bool:
        """Whether this site signed it, with the key that it has now."""
        return _verified(self.key.public_key(), self.name, receipt)


def identity(name: str, path: Path) -> SiteIdentity | None:
    """The site with the key in a file; None where there is no file, as in a trial without keys.

    Raises:
        ConfigError: others may read the file, or it holds something else.
    """
    if not is_there(path):
        return None
    try:
        key = serialization.load_ssh_private_key(signing.private_bytes(path), password=None)
    except signing.NO_KEY as error:
        raise ConfigError(f"{path} is no private key of a site without a passphrase; give the "
                          "site-key that aulait keys site made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds a key of another kind, expected one on the curve P-256; "
                          "give the site-key that aulait keys site made")
    return SiteIdentity(name, key)


def is_signed(line: str, site: str, receipt: Receipt) -> bool:
    """Whether the owner of a roster's key signed a receipt of the site of this name.

    Args:
        line: the public key, as the roster has it.
        site: its name there.
        receipt: what came.
    """
    key = serialization.load_ssh_public_key(line.encode())
    return isinstance(key, ec.EllipticCurvePublicKey) and _verified(key, site, receipt)


def _verified(key: ec.EllipticCurvePublicKey, site: str, receipt: Receipt) -> bool:
    return _is_signature(key, receipt.content(site), receipt.signature)


def _is_signature(key: ec.EllipticCurvePublicKey, text: bytes, signature: str) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), text, _ALGORITHM)
    except (InvalidSignature, ValueError):
        return False
    return True
