"""Whole rounds against the plain sum, with clients that drop out at every step."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.privacy.secure.parts import (
    ENCODING,
    finished,
    parties,
    plain_sum,
    random_vectors,
    shared,
)

from aulait.core.errors import PrivacyError, WireError
from aulait.privacy.noise import SeededNoise
from aulait.privacy.secure import rounds
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.encoding import Encoding
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.local_round import LocalRound
from aulait.privacy.secure.masks import centred
from aulait.privacy.secure.party import Advertisement, Party, Revealed
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.terms import SecureTerms

NAMES = [f"c{i}" for i in range(7)]
QUORUM = Quorum(5, 1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_sum_is_the_plain_sum_whoever_drops_out_where(data):
    """Up to two of seven are lost: before keys, shares, the vector, or the last two steps."""
    away = data.draw(st.permutations(NAMES))[:data.draw(st.integers(0, 2))]
    steps = {name: data.draw(st.sampled_from(["keys", "shares", "vector", "late"]))
             for name in away}

    def lost(step):
        return [name for name, where in steps.items() if where == step]

    terms, everyone = parties(NAMES, QUORUM)
    vectors = random_vectors(NAMES, terms, data.draw(st.integers(0, 2**32)))
    server, sealed = shared(terms, everyone, lost("keys"), lost("shares"))
    for name, message in sealed.items():
        if name not in lost("vector"):
            assert server.receive_vector(name, everyone[name].mask(message, vectors[name]))
    total, survivors = finished(server, everyone, lost("late"))
    there = [name for name in NAMES if steps.get(name, "late") == "late"]
    assert survivors == len(there)
    most = np.uint64((1 << 24) - 1)
    assert (total & most).tolist() == plain_sum(vectors, there, terms.encoding.width)


@pytest.mark.parametrize("step", ["keys", "shares", "vector", "signature", "secret"])
def test_below_the_quorum_a_round_is_refused_at_every_step(step):
    terms, everyone = parties(NAMES, QUORUM)
    vectors, few = random_vectors(NAMES, terms, 1), NAMES[:3]  # three of seven are away

    def go():
        server, sealed = shared(terms, everyone, few if step == "keys" else (),
                                few if step == "shares" else ())
        for name, message in sealed.items():
            if step != "vector" or name not in few:
                server.receive_vector(name, everyone[name].mask(message, vectors[name]))
        if step != "secret":
            return finished(server, everyone, few if step == "signature" else ())
        survivors = server.survivors()
        for name in survivors:
            server.receive_signature(name, everyone[name].agree(survivors))
        signatures = server.signatures()
        for name in NAMES[3:]:
            server.receive_secrets(name, everyone[name].reveal(signatures))
        return server.total()

    with pytest.raises(PrivacyError, match=r"4 clients take part.*at least 5"):
        go()


def test_a_ring_of_many_gives_the_plain_sum():
    names = [f"c{i:02d}" for i in range(70)]
    terms, everyone = parties(names, Quorum.of(70, 0.1, 0), numbers=3)
    assert terms.degree.degree < 69
    vectors = random_vectors(names, terms, 5)
    gone = random.Random(1).sample(names, 7)
    server, sealed = shared(terms, everyone)
    for name, message in sealed.items():
        if name not in gone:
            server.receive_vector(name, everyone[name].mask(message, vectors[name]))
    total, _ = finished(server, everyone)
    there = [name for name in names if name not in gone]
    assert (total & np.uint64((1 << 24) - 1)).tolist() == plain_sum(vectors, there, 3)


def test_a_round_in_one_process_is_the_plain_sum_of_what_clients_send(monkeypatch):
    """Clipping, grid and noise of every client included, to the last bit."""
    encoding = Encoding.fitting(1.0, 0.5, 4, 7)
    words = SeededNoise(5).client_words
    here = LocalRound(NAMES, QUORUM, 30, encoding, words)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(30, generator=generator) * k for k, name in enumerate(NAMES)}
    for name in NAMES[:6]:
        assert here.add(name, vectors[name])
    assert not here.add(NAMES[0], vectors[NAMES[0]])  # once
    assert not here.add("stranger", vectors[NAMES[0]])
    here.close()
    total, survivors = here.total()
    sent = [encoding.noised(vectors[name], words(name)).view(np.int64) for name in NAMES[:6]]
    assert survivors == 6
    assert (total.numpy() == sum(sent) * encoding.step).all()
    assert here.traffic.up[NAMES[6]] < here.traffic.up[NAMES[0]]


def test_late_messages_are_not_looked_at():
    terms, everyone = parties(NAMES, QUORUM)
    vectors = random_vectors(NAMES, terms, 2)
    late = NAMES[0]
    server, sealed = shared(terms, everyone)
    masked = {name: everyone[name].mask(message, vectors[name])
              for name, message in sealed.items()}
    for name in NAMES[1:]:
        server.receive_vector(name, masked[name])
    survivors = server.survivors()
    assert not server.receive_vector(late, masked[late])
    assert not server.receive_keys(late, Advertisement(b"", b"", b"", b""))
    assert not server.receive_shares(late, {})
    for name in survivors:
        server.receive_signature(name, everyone[name].agree(survivors))
    assert not server.receive_signature(late, b"no")
    with pytest.raises(PrivacyError, match="among them"):
        everyone[late].agree(survivors)
    signatures = server.signatures()
    for name in signatures:
        server.receive_secrets(name, everyone[name].reveal(signatures))
    assert not server.receive_secrets(late, Revealed({}, {}))
    total, _ = server.total()
    assert (total & np.uint64((1 << 24) - 1)).tolist() == plain_sum(vectors, NAMES[1:], 3)


def test_every_step_is_taken_once_and_in_order():
    _, everyone = parties(NAMES, QUORUM)
    party = everyone[NAMES[0]]
    party.advertise()
    for again in (party.advertise, lambda: party.share({}), lambda: party.agree(NAMES)):
        with pytest.raises(WireError, match="leaves the round"):
            again()
    with pytest.raises(WireError):
        everyone[NAMES[1]].reveal({})


def test_keys_that_their_client_did_not_sign_are_refused():
    """The server may not put its own keys between two clients."""
    terms, everyone = parties(NAMES, QUORUM)
    keys = {name: party.advertise() for name, party in everyone.items()}
    swapped = Advertisement(keys["c1"].sealing, keys["c1"].masking, keys["c1"].commitment,
                            keys["c1"].signature)
    with pytest.raises(WireError, match="did not sign"):
        everyone["c0"].share({**keys, "c2": swapped})
    other, others = parties(NAMES, QUORUM)  # nor keys of another round
    with pytest.raises(WireError, match="did not sign"):
        everyone["c3"].share({**keys, "c2": others["c2"].advertise()})
    assert other.digest != terms.digest


def test_shares_that_were_changed_are_refused():
    terms, everyone = parties(NAMES, QUORUM)
    vectors = random_vectors(NAMES, terms, 3)
    _, sealed = shared(terms, everyone)
    message = dict(sealed["c0"])
    message["c1"], message["c2"] = message["c2"], message["c1"]
    with pytest.raises(WireError, match="changed"):
        everyone["c0"].mask(message, vectors["c0"])


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_wrong_shares_of_a_client_give_an_error_and_no_sum(kind):
    terms, everyone = parties(NAMES, QUORUM)
    vectors = random_vectors(NAMES, terms, 4)
    server, sealed = shared(terms, everyone)
    for name, message in sealed.items():
        if name != "c6":
            server.receive_vector(name, everyone[name].mask(message, vectors[name]))
    survivors = server.survivors()
    for name in survivors:
        server.receive_signature(name, everyone[name].agree(survivors))
    signatures = server.signatures()
    for name in signatures:
        found = everyone[name].reveal(signatures)
        if name == min(signatures, key=terms.places.__getitem__):
            wrong = {other: share ^ 1 for other, share in getattr(found, kind).items()}
            found = Revealed(**{**vars(found), kind: wrong})
        server.receive_secrets(name, found)
    with pytest.raises(WireError, match="fit no secret"):
        server.total()


def test_terms_that_keep_no_promise_are_refused():
    identities = {name: Identity.new().public.hex() for name in NAMES}
    encoding = Encoding.fitting(1.0, 1.0, 4, 7)
    good = SecureTerms.drawn(identities, QUORUM, 3, encoding)
    changes = [dict(quorum=Quorum(3, 1)), dict(quorum=Quorum(7, 6)),
               dict(degree=type(good.degree)(6, 3)), dict(degree=type(good.degree)(7, 5)),
               dict(ring=good.ring[:-1]), dict(ring=(*good.ring[:-1], good.ring[0]))]
    for change in changes:
        with pytest.raises(PrivacyError, match="keep its promise"):
            SecureTerms(**{**vars(good), **change})
    with pytest.raises(PrivacyError, match="takes no part"):
        Party("c0", Identity.new(), good)
    with pytest.raises(PrivacyError, match="4 clients take part"):
        SecureTerms.drawn(dict(itertools.islice(identities.items(), 4)), QUORUM, 3, encoding)


def test_what_is_accounted_is_what_is_proven():
    with pytest.raises(PrivacyError, match="no more than is proven"):
        rounds.check_multiplier(1.0, 0.999)


NO_POINT = bytes(32)  # of small order: agreement with it gives zero


def _signed(terms: SecureTerms, identity: Identity, name: str, own: Advertisement,
            **other: bytes) -> Advertisement:
    """Keys that a client who means harm puts in the place of its own, and signs."""
    bare = replace(own, **other)
    return replace(bare, signature=identity.sign(bare.message(terms.digest, name)))


def _with_one_hostile(names: str) -> tuple[SecureTerms, dict[str, Party], Identity]:
    identities = {name: Identity.new() for name in names}
    terms = SecureTerms.drawn({name: own.public.hex() for name, own in identities.items()},
                              Quorum(4, 1), 4, ENCODING)
    return (terms, {name: Party(name, own, terms) for name, own in identities.items()},
            identities[names[0]])


@pytest.mark.parametrize("other", [
    {"sealing": NO_POINT}, {"masking": NO_POINT}, {"masking": b"short"}, {"sealing": b""}])
def test_signed_keys_that_are_none_stop_nobody_elses_round(other):
    terms, clients, identity = _with_one_hostile("abcde")
    server = SecureSum(terms)
    assert not server.receive_keys("a", _signed(terms, identity, "a", clients["a"].advertise(),
                                                **other))
    honest = "bcde"
    for name in honest:
        assert server.receive_keys(name, clients[name].advertise())
    for name, keys in server.keys_for().items():
        assert server.receive_shares(name, clients[name].share(keys))
    vectors = random_vectors(honest, terms, seed=5)
    for name, sealed in server.shares_for().items():
        server.receive_vector(name, clients[name].mask(sealed, vectors[name]))
    total, count = finished(server, clients)
    assert count == 4
    width = terms.encoding.width
    assert centred(total, width).tolist() == centred(np.array(
        plain_sum(vectors, honest, width), dtype=np.uint64), width).tolist()


@pytest.mark.parametrize("which", ["sealing", "masking"])
def test_a_client_that_is_told_keys_that_are_none_forgets_its_secrets(which):
    terms, clients, identity = _with_one_hostile("abcde")
    told = {name: client.advertise() for name, client in clients.items()}
    told["a"] = _signed(terms, identity, "a", told["a"], **{which: NO_POINT})
    with pytest.raises(WireError, match="none of X25519"):
        clients["b"].share({name: keys for name, keys in told.items() if name != "b"})
    with pytest.raises(WireError, match="every step once and in order"):
        clients["b"].mask({}, np.zeros(4, dtype=np.uint64))


def test_one_key_of_two_clients_and_shares_of_a_wrong_length_are_not_taken():
    terms, clients, identity = _with_one_hostile("abcde")
    server = SecureSum(terms)
    told = {name: client.advertise() for name, client in clients.items()}
    for name in "bcde":
        assert server.receive_keys(name, told[name])
    assert not server.receive_keys(
        "a", _signed(terms, identity, "a", told["a"], masking=told["b"].masking))
    keys = server.keys_for()
    sealed = clients["b"].share(keys["b"])
    assert not server.receive_shares("b", {name: both + b"x" for name, both in sealed.items()})
    assert server.receive_shares("b", sealed)
