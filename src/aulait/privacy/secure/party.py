"""A client of one round of secure aggregation: what it sends, and what it refuses to send.

A party goes through its steps once and in order; after a refusal or its last step its secrets are
gone. What it sends up to its masked vector cannot be told from random numbers by the coordinator,
whoever else drops out or comes late. Then it agrees to one list of survivors, and reveals of every
neighbour one of two secrets: of a survivor the seed of its own mask, of one that dropped out the
key of its common masks. It never reveals both, since it answers once, nor anything unless more
than half of all clients and colluders have signed the same list: a coordinator that tells two
stories gets enough signatures for neither, or for one.

What it cannot check: whether the other identities are clients of flesh and blood. A coordinator
that invents clients sees the sum of the real ones, with their noise; whoever gives the list of
identities is trusted with that.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aulait.core.errors import PrivacyError, WireError, require
from aulait.privacy.secure import shamir
from aulait.privacy.secure.keys import (
    AgreementKey,
    Identity,
    is_agreement_key,
    seal,
    signed_by,
    unseal,
)
from aulait.privacy.secure.masks import Ring, packed, stream
from aulait.privacy.secure.terms import SecureTerms, survivors_message


@dataclass(frozen=True)
class Advertisement:
    """A client's public keys of one round.

    Attributes:
        sealing: X25519, to seal shares for it.
        masking: X25519, for masks in common.
        commitment: to the seed of its own mask: its hash.
        signature: of the three under the round's terms.
    """

    sealing: bytes
    masking: bytes
    commitment: bytes
    signature: bytes

    def message(self, digest: bytes, name: str) -> bytes:
        """What is signed."""
        return b"|".join((b"keys", digest, name.encode(), self.sealing, self.masking,
                          self.commitment))


@dataclass(frozen=True)
class Revealed:
    """Shares that a client reveals at the end: of every neighbour one, or none.

    Attributes:
        seeds: survivor -> share of the seed of its own mask.
        keys: client that dropped out -> share of the key of its common masks.
    """

    seeds: Mapping[str, int]
    keys: Mapping[str, int]


def commitment(digest: bytes, name: str, seed: bytes) -> bytes:
    """What binds a client to the seed of its own mask."""
    return hashlib.sha256(b"|".join((b"seed", digest, name.encode(), seed))).digest()


def pair_stream(terms: SecureTerms, own: AgreementKey, other: bytes, pair: Sequence[str]) -> Ring:
    """The mask that two neighbours have in common; the first by name adds it, the second takes it
    away."""
    purpose = json.dumps(["mask", *sorted(pair)]).encode()
    return stream(own.agree(other, terms.digest, purpose), terms.numbers, terms.encoding.width)


def adds(name: str, other: str) -> bool:
    """Whether a client adds the mask that it has in common with another."""
    return name < other


@dataclass
class _Secrets:
    """What a client never sends in the open.

    Attributes:
        sealing, masking: its pairs of keys.
        seed: of its own mask.
        held: neighbour -> its shares that this client keeps: of its masking key, of its seed.
    """

    sealing: AgreementKey
    masking: AgreementKey
    seed: bytes
    held: dict[str, tuple[int, int]] = field(default_factory=dict)


class Party:
    """One client in one round.

    Args:
        name: its name.
        identity: what it signs with.
        terms: of the round, as it was told.

    Raises:
        PrivacyError: it is no client of these terms.
    """

    def __init__(self, name: str, identity: Identity, terms: SecureTerms) -> None:
        require(terms.identities.get(name) == identity.public.hex(), PrivacyError,
                f"client '{name}' does not stand in the terms with its own identity; it takes no "
                "part")
        self.name, self._identity, self.terms = name, identity, terms
        self._next = "advertise"
        self._secrets: _Secrets | None = _Secrets(AgreementKey.new(), AgreementKey.new(),
                                                  secrets.token_bytes(shamir.SECRET_BYTES))
        self._peers: dict[str, Advertisement] = {}
        self._survivors: tuple[str, ...] = ()

    @property
    def next_step(self) -> str:
        """What it would do next: "advertise", "share", "mask", "agree" or "reveal"; "done" once it
        has left the round."""
        return self._next

    def advertise(self) -> Advertisement:
        """Its public keys."""
        own = self._step("advertise", "share")
        bare = Advertisement(own.sealing.public, own.masking.public,
                             commitment(self.terms.digest, self.name, own.seed), b"")
        signature = self._identity.sign(bare.message(self.terms.digest, self.name))
        return Advertisement(bare.sealing, bare.masking, bare.commitment, signature)

    def share(self, advertised: Mapping[str, Advertisement]) -> dict[str, bytes]:
        """Shares of its secrets, sealed for every neighbour that advertised keys.

        Raises:
            PrivacyError: these are too few.
            WireError: keys are not signed by whom they are said to be of, or are none.
        """
        own = self._step("share", "mask")
        peers = {name: advertised[name] for name in self.terms.neighbours[self.name]
                 if name in advertised}
        self._require_enough(len(peers))
        for name, told in peers.items():
            self._check(signed_by(bytes.fromhex(self.terms.identities[name]), told.signature,
                                  told.message(self.terms.digest, name)), WireError,
                        f"keys of client '{name}' that it did not sign found")
            self._check(is_agreement_key(told.sealing) and is_agreement_key(told.masking),
                        WireError, f"keys of client '{name}' that are none of X25519 found")
        self._check(len({k.masking for k in peers.values()} | {own.masking.public}) > len(peers),
                    WireError, "one public key of two clients found")
        self._peers = peers
        places = [self.terms.places[name] for name in peers]
        keys = shamir.split(own.masking.secret, places, self.terms.degree.threshold)
        seeds = shamir.split(own.seed, places, self.terms.degree.threshold)
        sealed = {}
        for name, place in zip(peers, places, strict=True):
            both = b"".join(share.to_bytes(shamir.SHARE_BYTES, "big")
                            for share in (keys[place], seeds[place]))
            beside = self._beside(self.name, name)
            sealed[name] = seal(own.sealing.agree(peers[name].sealing, self.terms.digest, beside),
                                both, beside)
        return sealed

    def mask(self, sealed: Mapping[str, bytes], vector: Ring) -> bytes:
        """Its vector, with its own mask and those in common with every neighbour whose shares
        came.

        Args:
            sealed: neighbour -> what it sealed for this client.
            vector: encoded, its own noise added.

        Raises:
            PrivacyError: too few shares came.
            WireError: one was changed.
        """
        own = self._step("mask", "agree")
        self._check(len(vector) == self.terms.numbers and {*sealed} <= {*self._peers}, WireError,
                    "a vector or shares of other terms found")
        self._require_enough(len(sealed))
        for name, message in sealed.items():
            beside = self._beside(name, self.name)
            key = own.sealing.agree(self._peers[name].sealing, self.terms.digest, beside)
            try:
                both = unseal(key, message, beside)
            except WireError:
                self._forget()
                raise
            half = shamir.SHARE_BYTES
            self._check(len(both) == 2 * half, WireError, f"shares of client '{name}' of a wrong "
                        "length found")
            own.held[name] = (int.from_bytes(both[:half], "big"),
                              int.from_bytes(both[half:], "big"))
        width = self.terms.encoding.width
        total = vector + stream(own.seed, self.terms.numbers, width)
        for name in own.held:
            common = pair_stream(self.terms, own.masking, self._peers[name].masking,
                                 (self.name, name))
            total = total + common if adds(self.name, name) else total - common
        return packed(total, width)

    def agree(self, survivors: Sequence[str]) -> bytes:
        """Its signature under the list of those whose vectors arrived; it signs one list.

        Raises:
            PrivacyError: they are too few, or it is not among them itself.
        """
        self._step("agree", "reveal")
        named = {*survivors}
        sound = (len(named) == len(survivors) >= self.terms.quorum.least
                 and named <= {*self.terms.ring} and self.name in named)
        self._check(sound, PrivacyError,
                    f"a list of {len(survivors)} survivors found, expected at least "
                    f"{self.terms.quorum.least} clients of the round, this one among them")
        self._survivors = tuple(sorted(survivors))
        return self._identity.sign(survivors_message(self.terms, self._survivors))

    def reveal(self, signatures: Mapping[str, bytes]) -> Revealed:
        """Shares of its neighbours' secrets, once enough clients have signed the very list that it
        signed. Afterwards it knows nothing any more.

        Raises:
            PrivacyError: they have not.
        """
        own = self._step("reveal", "done")
        message = survivors_message(self.terms, self._survivors)
        signers = [name for name, signature in signatures.items() if name in self._survivors
                   and signed_by(bytes.fromhex(self.terms.identities[name]), signature, message)]
        needed = self.terms.quorum.agreeing(len(self.terms.ring))
        self._check(len(signers) >= needed, PrivacyError,
                    f"{len(signers)} signatures under the list of survivors found, expected "
                    f"{needed} at least")
        revealed = Revealed(
            {name: seed for name, (_, seed) in own.held.items() if name in self._survivors},
            {name: key for name, (key, _) in own.held.items() if name not in self._survivors})
        self._forget()
        return revealed

    def _step(self, now: str, after: str) -> _Secrets:
        """The secrets, for the step whose turn it is."""
        own = self._secrets
        if own is None or now != self._next:
            self._forget()
            raise WireError(f"client '{self.name}' is asked to {now} and would {self._next}; it "
                            "takes every step once and in order, and leaves the round")
        self._next = after
        return own

    def _require_enough(self, found: int) -> None:
        threshold = self.terms.degree.threshold
        self._check(found >= threshold, PrivacyError,
                    f"client '{self.name}' has {found} neighbours left, expected at least "
                    f"{threshold}")

    def _check(self, holds: bool, error: type[PrivacyError | WireError], message: str) -> None:
        """Leave the round unless something holds."""
        if not holds:
            self._forget()
            raise error(f"{message}; client '{self.name}' leaves the round")

    def _forget(self) -> None:
        self._secrets, self._next = None, "done"

    def _beside(self, sender: str, receiver: str) -> bytes:
        """What sealed shares are bound to."""
        return json.dumps(["shares", self.terms.digest.hex(), sender, receiver]).encode()
