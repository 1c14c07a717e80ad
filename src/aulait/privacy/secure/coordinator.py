"""The coordinator of one round of secure aggregation: it carries messages, and in the end sums.

It is honest here and may be curious. A client that is late for a step has dropped out of the round,
and what it sends afterwards is not looked at. Each step is closed once, and refused where fewer
clients than the quorum are left: then the coordinator holds masked vectors, whose masks nobody will
ever tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from aulait.core.errors import PrivacyError, WireError, require
from aulait.privacy.secure import shamir
from aulait.privacy.secure.keys import TAG_BYTES, AgreementKey, is_agreement_key, signed_by
from aulait.privacy.secure.masks import Ring, stream, unpacked
from aulait.privacy.secure.party import Advertisement, Revealed, adds, commitment, pair_stream
from aulait.privacy.secure.terms import SecureTerms, survivors_message, too_few

_STEPS: Final = ("keys", "shares", "vectors", "signatures", "secrets", "done")
_SEALED_BYTES: Final = 2 * shamir.SHARE_BYTES + TAG_BYTES


class SecureSum:
    """One round at the coordinator.

    Args:
        terms: of the round.

    Attributes:
        terms: of the round.
    """

    def __init__(self, terms: SecureTerms) -> None:
        self.terms = terms
        self._step = "keys"
        self._keys: dict[str, Advertisement] = {}
        self._public: set[bytes] = set()  # those of all clients
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._vectors: set[str] = set()
        self._total: Ring = np.zeros(terms.numbers, dtype=np.uint64)
        self._signatures: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}

    def receive_keys(self, name: str, keys: Advertisement) -> bool:
        """Whether a client's keys are taken; not if they are late, not its own, or none with which
        its neighbours could go on: one client cannot make the others leave by them."""
        message = keys.message(self.terms.digest, name)
        identity = self.terms.identities.get(name)
        taken = (self._step == "keys" and identity is not None and name not in self._keys
                 and signed_by(bytes.fromhex(identity), keys.signature, message)
                 and is_agreement_key(keys.sealing) and is_agreement_key(keys.masking)
                 and keys.sealing != keys.masking
                 and self._public.isdisjoint((keys.sealing, keys.masking)))
        if taken:
            self._keys[name] = keys
            self._public |= {keys.sealing, keys.masking}
        return taken

    def keys_for(self) -> dict[str, dict[str, Advertisement]]:
        """Close the step: client -> the keys of its neighbours.

        Raises:
            PrivacyError: too few clients are left; so for the other steps.
        """
        self._close("keys", len(self._keys))
        return {name: {other: self._keys[other] for other in self.terms.neighbours[name]
                       if other in self._keys} for name in self._keys}

    def receive_shares(self, name: str, sealed: Mapping[str, bytes]) -> bool:
        """Whether what a client sealed for its neighbours is taken."""
        expected = {other for other in self.terms.neighbours.get(name, ()) if other in self._keys}
        taken = (self._step == "shares" and name in self._keys and name not in self._sealed
                 and {*sealed} == expected
                 and all(len(both) == _SEALED_BYTES for both in sealed.values()))
        if taken:
            self._sealed[name] = dict(sealed)
        return taken

    def shares_for(self) -> dict[str, dict[str, bytes]]:
        """Close the step: client -> what its neighbours sealed for it."""
        self._close("shares", len(self._sealed))
        return {name: {other: self._sealed[other][name] for other in self.terms.neighbours[name]
                       if other in self._sealed} for name in self._sealed}

    def receive_vector(self, name: str, masked: bytes) -> bool:
        """Whether a client's masked vector is added to the sum."""
        numbers, width = self.terms.numbers, self.terms.encoding.width
        taken = (self._step == "vectors" and name in self._sealed and name not in self._vectors
                 and len(masked) == numbers * width)
        if taken:
            self._total += unpacked(masked, numbers, width)
            self._vectors.add(name)
        return taken

    def survivors(self) -> tuple[str, ...]:
        """Close the step: the clients whose vectors are in the sum, for all of them to sign."""
        self._close("vectors", len(self._vectors))
        return tuple(sorted(self._vectors))

    def receive_signature(self, name: str, signature: bytes) -> bool:
        """Whether a client's signature under the list of survivors is taken."""
        taken = (self._step == "signatures" and name in self._vectors
                 and signed_by(bytes.fromhex(self.terms.identities[name]), signature,
                               survivors_message(self.terms, tuple(sorted(self._vectors)))))
        if taken:
            self._signatures[name] = signature
        return taken

    def signatures(self) -> dict[str, bytes]:
        """Close the step: the signatures, for every client that signed. From here on the sum may
        become known: whoever accounts for it does so before."""
        self._close("signatures", len(self._signatures))
        return dict(self._signatures)

    def receive_secrets(self, name: str, revealed: Revealed) -> bool:
        """Whether a client's shares of its neighbours' secrets are taken."""
        peers = {*self.terms.neighbours.get(name, ())}
        taken = (self._step == "secrets" and name in self._signatures
                 and name not in self._revealed
                 and {*revealed.seeds} <= self._vectors & peers
                 and {*revealed.keys} <= ({*self._sealed} - self._vectors) & peers)
        if taken:
            self._revealed[name] = revealed
        return taken

    def total(self) -> tuple[Ring, int]:
        """Take the masks away: the sum of the survivors' vectors, and how many they are.

        Raises:
            PrivacyError: too few clients revealed shares.
            WireError: shares fit no secret that was advertised.
        """
        self._close("secrets", len(self._revealed))
        terms = self.terms
        numbers, width = terms.numbers, terms.encoding.width
        for name in sorted(self._vectors):
            seed = self._secret(name, {holder: shares.seeds[name]
                                       for holder, shares in self._revealed.items()
                                       if name in shares.seeds})
            require(commitment(terms.digest, name, seed) == self._keys[name].commitment, WireError,
                    _WRONG.format(name))
            self._total -= stream(seed, numbers, width)
        for name in sorted({*self._sealed} - self._vectors):
            others = [other for other in terms.neighbours[name] if other in self._vectors]
            if others:
                self._take_away(name, others)
        return self._total, len(self._vectors)

    def _take_away(self, name: str, others: list[str]) -> None:
        """Take away the masks that survivors have in common with one that dropped out."""
        own = AgreementKey.of(self._secret(name, {
            holder: shares.keys[name] for holder, shares in self._revealed.items()
            if name in shares.keys}))
        require(own.public == self._keys[name].masking, WireError, _WRONG.format(name))
        for other in others:
            common = pair_stream(self.terms, own, self._keys[other].masking, (name, other))
            if adds(other, name):
                self._total -= common
            else:
                self._total += common

    def _secret(self, name: str, shares: Mapping[str, int]) -> bytes:
        """A secret from what its holders revealed."""
        threshold = self.terms.degree.threshold
        require(len(shares) >= threshold, PrivacyError,
                f"{len(shares)} shares of client '{name}' were revealed, expected {threshold}; "
                "the round is refused, its sum stays unknown")
        return shamir.combine({self.terms.places[holder]: share
                               for holder, share in shares.items()}, threshold)

    def _close(self, step: str, count: int) -> None:
        """Go on to the next step, if enough clients are left."""
        require(self._step == step, WireError,
                f"step '{step}' is closed and the round is at '{self._step}'; report this as a "
                "defect")
        if count < self.terms.quorum.least:
            self._step = "done"
            raise PrivacyError(too_few(count, self.terms.quorum.least))
        self._step = _STEPS[_STEPS.index(step) + 1]


_WRONG: Final = ("shares of client '{}' that fit no secret of its own found, expected those that "
                 "it sealed; the round is refused")
