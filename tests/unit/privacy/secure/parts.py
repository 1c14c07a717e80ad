"""Small rounds for the tests of secure aggregation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.masks import Ring
from aulait.privacy.secure.party import Party
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.terms import SecureTerms

ENCODING = Encoding(bound=1.0, step=2.0**-20, noise_steps=100.0, width=3)


def parties(names, quorum: Quorum, numbers: int = 4, encoding: Encoding = ENCODING
            ) -> tuple[SecureTerms, dict[str, Party]]:
    identities = {name: Identity.new() for name in names}
    terms = SecureTerms.drawn({name: own.public.hex() for name, own in identities.items()}, quorum,
                              numbers, encoding)
    return terms, {name: Party(name, own, terms) for name, own in identities.items()}


def random_vectors(names, terms: SecureTerms, seed: int) -> dict[str, Ring]:
    generator = np.random.default_rng(seed)
    most = 1 << (8 * terms.encoding.width)
    return {name: generator.integers(0, most, terms.numbers, dtype=np.uint64) for name in names}


def plain_sum(vectors: Mapping[str, Ring], who, width: int) -> list[int]:
    """The obvious sum, number by number."""
    return [sum(int(vectors[name][i]) for name in who) % (1 << (8 * width))
            for i in range(len(next(iter(vectors.values()))))]


def shared(terms: SecureTerms, all_parties: Mapping[str, Party], silent=(), lost=()
           ) -> tuple[SecureSum, dict[str, dict[str, bytes]]]:
    """The first two steps; ``silent`` send no keys, ``lost`` no shares."""
    server = SecureSum(terms)
    for name, party in all_parties.items():
        if name not in silent:
            assert server.receive_keys(name, party.advertise())
    for name, keys in server.keys_for().items():
        if name not in lost:
            assert server.receive_shares(name, all_parties[name].share(keys))
    return server, server.shares_for()


def finished(server: SecureSum, all_parties: Mapping[str, Party], gone=()) -> tuple[Ring, int]:
    """The last two steps; ``gone`` sign and reveal nothing."""
    survivors = server.survivors()
    for name in survivors:
        if name not in gone:
            assert server.receive_signature(name, all_parties[name].agree(survivors))
    signatures = server.signatures()
    for name in signatures:
        assert server.receive_secrets(name, all_parties[name].reveal(signatures))
    return server.total()
