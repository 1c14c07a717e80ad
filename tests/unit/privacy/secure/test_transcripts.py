"""What the coordinator sees: two federations with one sum look the same to it.

A bijection shows it exactly: for every choice of masks of the one federation there is one of the
other that gives the very same messages, so where masks are uniform the messages have one law. That
masks cannot be told from uniform numbers is what ChaCha20 and X25519 are trusted with; a test of
the real messages stands beside.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chi2
from tests.unit.privacy.secure.parts import finished, parties, plain_sum, shared

from aulait.privacy.secure import party as module
from aulait.privacy.secure.masks import stream, unpacked
from aulait.privacy.secure.quorum import Quorum

NAMES = [f"c{i}" for i in range(6)]
MOST = np.uint64((1 << 24) - 1)
SIZE = 5


def transcript(vectors, masks, monkeypatch):
    """The masked vectors, without every survivor's own mask, when the common masks are these."""
    def common(terms, own, other, pair):
        return masks[tuple(sorted(pair))]

    monkeypatch.setattr(module, "pair_stream", common)
    monkeypatch.setattr(module, "stream", lambda seed, count, width: np.zeros(count, np.uint64))
    terms, everyone = parties(NAMES, Quorum(4, 0), numbers=SIZE)
    _, sealed = shared(terms, everyone)
    return {name: unpacked(everyone[name].mask(message, vectors[name]), SIZE, 3)
            for name, message in sealed.items()}


def federation(seed, total=None):
    """Six vectors; the last makes their sum the given one."""
    drawn = np.random.default_rng(seed).integers(0, 1 << 24, (6, SIZE), dtype=np.uint64)
    if total is not None:
        drawn[-1] = (total - drawn[:-1].sum(0)) & MOST
    return dict(zip(NAMES, drawn, strict=True))


def test_for_all_masks_of_one_federation_there_are_masks_of_the_other(monkeypatch):
    """Along the path c0 - c1 - ... - c5 the masks take up the difference of the vectors."""
    one = federation(1)
    total = sum(one.values()) & MOST
    other = federation(2, total)
    draw = np.random.default_rng(3)
    masks = {(a, b): draw.integers(0, 1 << 24, SIZE, dtype=np.uint64)
             for i, a in enumerate(NAMES) for b in NAMES[i + 1:]}
    moved, carried = dict(masks), np.zeros(SIZE, np.uint64)
    for a, b in itertools.pairwise(NAMES):
        carried = carried + one[a] - other[a]  # a adds the mask, b takes it away
        moved[a, b] = masks[a, b] + carried
    assert not ((carried + one["c5"] - other["c5"]) & MOST).any()
    first, second = (transcript(*each, monkeypatch) for each in ((one, masks), (other, moved)))
    assert all((first[name] == second[name]).all() for name in NAMES)
    assert any((one[name] != other[name]).any() for name in NAMES)


def test_with_another_sum_no_masks_do_it(monkeypatch):
    """Common masks leave the sum of all messages as it is: exactly that is learnt."""
    for seed in (4, 5):
        vectors = federation(seed)
        masks = {(a, b): np.random.default_rng(seed).integers(0, 1 << 24, SIZE, dtype=np.uint64)
                 for i, a in enumerate(NAMES) for b in NAMES[i + 1:]}
        seen = transcript(vectors, masks, monkeypatch)
        assert (sum(seen.values()) & MOST).tolist() == plain_sum(vectors, NAMES, 3)


@pytest.mark.parametrize("gone", [(), ("c5",)])
def test_real_messages_are_uniform_whatever_the_vectors(gone):
    """Of survivors without their own masks, which the coordinator learns: every byte of the real
    messages, over many rounds, for a federation of zeros and one of equal large vectors."""
    for value in (0, (1 << 24) - 7):
        seen = []
        for _ in range(25):
            terms, everyone = parties(NAMES, Quorum(4, 0), numbers=40)
            vectors = {name: np.full(40, value, np.uint64) for name in NAMES}
            server, sealed = shared(terms, everyone)
            seeds = {name: party._secrets.seed for name, party in everyone.items()}
            sent = {}
            for name, message in sealed.items():
                if name not in gone:
                    sent[name] = everyone[name].mask(message, vectors[name])
                    server.receive_vector(name, sent[name])
            total, survivors = finished(server, everyone)
            assert ((total & MOST) == (survivors * value) % (1 << 24)).all()
            # any five of six are independent; the sixth follows from the sum
            for name in sorted(sent)[:-1]:
                bare = unpacked(sent[name], 40, 3) - stream(seeds[name], 40, 3)
                seen.append((bare & MOST).view(np.uint8).reshape(-1, 8)[:, :3])
        counts = np.bincount(np.concatenate(seen).reshape(-1), minlength=256)
        expected = counts.sum() / 256
        assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255)


def test_what_two_federations_with_one_sum_send_has_the_same_form():
    """Structure: who sends how many bytes to whom does not depend on any vector."""
    forms = []
    for seed, total in ((1, None), (2, sum(federation(1).values()) & MOST)):
        vectors = federation(seed, total)
        terms, everyone = parties(NAMES, Quorum(4, 0), numbers=SIZE)
        server, sealed = shared(terms, everyone)
        sizes = {name: sorted((other, len(raw)) for other, raw in message.items())
                 for name, message in sealed.items()}
        for name, message in sealed.items():
            raw = everyone[name].mask(message, vectors[name])
            sizes[name].append(("server", len(raw)))
            server.receive_vector(name, raw)
        found, survivors = finished(server, everyone)
        forms.append((sizes, survivors, (found & MOST).tolist()))
    assert forms[0] == forms[1]
