"""The messages of a secure sum (``aulait.privacy.secure``): four exchanges around the one in which
a request is answered by a masked vector.

    coordinator to site   sum_open · sum_share · (train, vote, search) · sum_agree · sum_reveal
    site to coordinator   sum_keys · sum_shares · masked · sum_signature · sum_secrets

What is told of a round is its session, who stands where on its ring, and what is needed to know
what is asked for; all else a site computes from the terms of its run. Bytes travel as hexadecimal
digits of their one length, so whatever comes is bounded before it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from aulait.engines.deployment.protocol.heads import (
    AnswerHead,
    Count,
    HexKey,
    Name,
    RunHead,
    SumStage,
)
from aulait.privacy.secure import shamir
from aulait.privacy.secure.graph import COMPLETE
from aulait.privacy.secure.keys import TAG_BYTES
from aulait.privacy.secure.party import Advertisement, Revealed

MOST_CLIENTS: Final = COMPLETE  # of a round: with more there is a ring that could be ground


def _digits(count: int) -> str:
    return f"^[0-9a-f]{{{2 * count}}}$"


HexSignature = Annotated[str, Field(pattern=_digits(64))]
HexSealed = Annotated[str, Field(pattern=_digits(2 * shamir.SHARE_BYTES + TAG_BYTES))]
HexShare = Annotated[str, Field(pattern=_digits(shamir.SHARE_BYTES))]
Session = Annotated[str, Field(pattern=_digits(16))]
Sealed = Annotated[dict[Name, HexSealed], Field(max_length=MOST_CLIENTS)]
Shares = Annotated[dict[Name, HexShare], Field(max_length=MOST_CLIENTS)]


class SumKeys(BaseModel):
    """A client's public keys of a round; see ``Advertisement``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    sealing: HexKey
    masking: HexKey
    commitment: HexKey
    signature: HexSignature

    @classmethod
    def of(cls, keys: Advertisement) -> Self:
        """As they travel."""
        return cls(sealing=keys.sealing.hex(), masking=keys.masking.hex(),
                   commitment=keys.commitment.hex(), signature=keys.signature.hex())

    @property
    def keys(self) -> Advertisement:
        """As they are used."""
        return Advertisement(*map(bytes.fromhex, (self.sealing, self.masking, self.commitment,
                                                  self.signature)))


class SumPart(BaseModel):
    """What a request bears that is to be answered by a masked vector.

    Attributes:
        session: of the round.
        sealed: neighbour -> its shares for this client.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    session: Session
    sealed: Sealed


class SumOpenMessage(RunHead):
    """A round begins; the site answers with its keys.

    Attributes:
        session: of this attempt.
        of: whose sum it is.
        ring: the clients in the order of the graph's ring.
        bound: L2 bound of a vector.
        numbers: coordinates of a vector.
    """

    kind: Literal["sum_open"] = "sum_open"
    session: Session
    of: SumStage
    ring: Annotated[tuple[Name, ...], Field(max_length=MOST_CLIENTS)]
    bound: Annotated[float, Field(gt=0)]
    numbers: Count


class SumShareMessage(RunHead):
    """The keys of a client's neighbours; it answers with its sealed shares."""

    kind: Literal["sum_share"] = "sum_share"
    session: Session
    keys: Annotated[dict[Name, SumKeys], Field(max_length=MOST_CLIENTS)]


class SumAgreeMessage(RunHead):
    """Whose vectors arrived; a survivor answers with its signature."""

    kind: Literal["sum_agree"] = "sum_agree"
    session: Session
    survivors: Annotated[tuple[Name, ...], Field(max_length=MOST_CLIENTS)]


class SumRevealMessage(RunHead):
    """Who signed; the site answers with shares of its neighbours' secrets."""

    kind: Literal["sum_reveal"] = "sum_reveal"
    session: Session
    signatures: Annotated[dict[Name, HexSignature], Field(max_length=MOST_CLIENTS)]


class SumKeysAnswer(AnswerHead):
    """A client's keys of this round."""

    kind: Literal["sum_keys"] = "sum_keys"
    keys: SumKeys


class SumSharesAnswer(AnswerHead):
    """Neighbour -> shares sealed for it."""

    kind: Literal["sum_shares"] = "sum_shares"
    sealed: Sealed


class MaskedAnswer(AnswerHead):
    """A masked vector, in the body; it cannot be told from random bytes."""

    kind: Literal["masked"] = "masked"


class SumSignatureAnswer(AnswerHead):
    """A client's signature under the list of survivors."""

    kind: Literal["sum_signature"] = "sum_signature"
    signature: HexSignature


class SumSecretsAnswer(AnswerHead):
    """Shares of neighbours' secrets; see ``Revealed``."""

    kind: Literal["sum_secrets"] = "sum_secrets"
    seeds: Shares
    keys: Shares

    @property
    def revealed(self) -> Revealed:
        """As they are used."""
        return Revealed({name: int(share, 16) for name, share in self.seeds.items()},
                        {name: int(share, 16) for name, share in self.keys.items()})


SumMessage = SumOpenMessage | SumShareMessage | SumAgreeMessage | SumRevealMessage
SumAnswer = SumKeysAnswer | SumSharesAnswer | SumSignatureAnswer | SumSecretsAnswer


def told_shares(shares: Mapping[str, int]) -> dict[str, str]:
    """Shares as they travel."""
    return {name: share.to_bytes(shamir.SHARE_BYTES, "big").hex() for name, share in shares.items()}


def told_bytes(values: Mapping[str, bytes]) -> dict[str, str]:
    """Bytes as they travel."""
    return {name: value.hex() for name, value in values.items()}


def as_bytes(values: Mapping[str, str]) -> dict[str, bytes]:
    """Bytes as they are used."""
    return {name: bytes.fromhex(value) for name, value in values.items()}
