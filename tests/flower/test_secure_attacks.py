"""A coordinator, or a site, that means harm in a secure sum: what the others do."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from tests.flower import secure_sites, wire
from tests.flower.secure_sites import NAMES, Coordinator

from aulait.core.errors import AulaitError, ConfigError, PrivacyError, WireError
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import sum_messages
from aulait.engines.deployment.protocol.envelope import packet_bytes
from aulait.engines.deployment.protocol.sum_messages import (
    SumAgreeMessage,
    SumKeys,
    SumOpenMessage,
    SumRevealMessage,
    SumShareMessage,
    told_bytes,
)
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.privacy.aggregator import BudgetSpent
from aulait.privacy.secure import terms
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.keys import Identity
from aulait.privacy.secure.party import Party

RUNS = (f"{number:032x}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def sites(place):
    return secure_sites.federation(place)


@pytest.fixture(scope="module")
def settings(place, sites):
    return secure_sites.settings(place, **secure_sites.VOTERS)


@pytest.fixture
def coordinator(place, sites, settings):
    sites.fault, sites.gone = lambda name, asked, answer: answer, set()
    return Coordinator(place, sites, settings, next(RUNS)).begin()


def charges(place, name, run):
    """What a site has written down of a run: of itself, and of its sums."""
    lines = [
        json.loads(line)
        for path in (place / name / "state" / "account").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line["stage"] for line in lines if line["run"] == run]


def finish(round):
    round.close()
    return round.total()


def test_a_vote_is_summed_and_charged_before_a_vector_leaves(
    coordinator, sites, place, monkeypatch
):
    vectors, seen = {}, []
    mask = Party.mask

    def spied(self, sealed, vector):
        vectors[self.name] = vector.view(np.int64)
        return mask(self, sealed, vector)

    def watched(name, asked, answer):
        if asked.kind == "vote":
            seen.append(charges(place, name, coordinator.run))
            assert wire.seen(answer).kind == "masked"
            assert (
                len(wire.seen(answer).body)
                == secure_sites.CANDIDATES * coordinator.sums._now.terms.encoding.width
            )
        return answer

    monkeypatch.setattr(Party, "mask", spied)
    sites.fault = watched
    round = coordinator.sums.begin(coordinator.asked())
    assert sorted(coordinator.vote()) == sorted(NAMES)
    total, count = finish(round)
    assert count == 5
    assert seen == [["", "synthesis"]] * 5
    assert (total.numpy() == sum(vectors.values()) * round.terms.encoding.step).all()


@pytest.mark.parametrize("kind", ["sum_open", "sum_share", "vote", "sum_agree", "sum_reveal"])
@pytest.mark.parametrize("lost", [1, 2])
def test_one_site_may_drop_out_anywhere_and_two_are_too_many(
    coordinator, sites, kind, lost, monkeypatch
):
    vectors = {}
    mask = Party.mask
    monkeypatch.setattr(
        Party,
        "mask",
        lambda self, sealed, vector: (
            vectors.update({self.name: vector.view(np.int64)}) or mask(self, sealed, vector)
        ),
    )
    away = NAMES[:lost]
    left = set()

    def fault(name, asked, answer):
        if name in away and asked.kind == kind:
            left.add(name)
        return None if name in left else answer

    sites.fault = fault
    coordinator.outbox.answers = _impatient(coordinator.outbox)

    def go():
        round = coordinator.sums.begin(coordinator.asked())
        coordinator.vote()
        return round, finish(round)

    if lost == 2:
        with pytest.raises(PrivacyError, match="3 clients take part"):
            go()
        return
    round, (total, count) = go()
    there = [name for name in NAMES if name not in away or kind in ("sum_agree", "sum_reveal")]
    assert count == len(there)
    assert (total.numpy() == sum(vectors[name] for name in there) * round.terms.encoding.step).all()


def _impatient(outbox):
    """Answers without waiting for those who are silent."""
    answers = type(outbox).answers

    def at_once(sent):
        sent.due_s = 0.0
        return answers(outbox, sent)

    return at_once


# --- invented sites, changed terms


def test_invented_sites_cannot_surround_a_real_one(place, sites, settings):
    """Four identities that the coordinator made itself, under the names of sites and under
    others."""
    sites.fault = lambda name, asked, answer: answer
    real = {name: secure_sites.identity(place / name, name) for name in NAMES}
    invented = real | {name: Identity.new().public.hex() for name in NAMES[1:]}
    alone = Coordinator(place, sites, settings, next(RUNS), identities=invented)
    with pytest.raises(
        AulaitError, match=r"'c0': .*4 of 5 sites of the secure sums are not in \[peers\]"
    ):
        alone.begin()
    told = Coordinator(place, sites, settings, next(RUNS)).begin()
    sums = told.people.terms["c0"].sums
    strangers = {"c0": real["c0"], **{f"x{k}": Identity.new().public.hex() for k in range(4)}}
    answer = told.tell("c0", next(RUNS), sums=sums.model_copy(update={"peers": strangers}))
    assert "x0, x1, x2, x3" in answer.reason
    # nor in a round of terms that were taken
    told = Coordinator(place, sites, settings, next(RUNS)).begin()
    head = told.exchange(
        "c0",
        SumOpenMessage,
        session="0" * 32,
        of="synthesis",
        ring=("c0", "x0", "x1", "x2", "x3"),
        bound=1.0,
        numbers=4,
    )
    assert "a site that the terms do not name" in head.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"planned": {"synthesis": 2}}, "expected at least 3 that stay"),
        ({"planned": {"synthesis": 9}}, "expected at most"),
        ({"planned": {"synthesis": 3}}, None),
        ({"planned": {"train": 5}}, "plan no secure sum of 'synthesis'"),
        ({"noise": {"synthesis": 0.5}}, "the promise is 1"),
        ({"noise": {"train": 1.0}}, "plan no secure sum of 'synthesis'"),
    ],
)
def test_terms_whose_sums_do_not_keep_the_promise_are_refused(coordinator, change, word):
    sums = coordinator.people.terms["c1"].sums
    answer = coordinator.tell("c1", next(RUNS), sums=sums.model_copy(update=change))
    assert answer.kind == ("refusal" if word else "accepted"), answer
    assert not word or word in answer.reason


def test_terms_that_promise_less_noise_than_epsilon_needs_are_refused(coordinator):
    privacy = coordinator.people.terms["c1"].privacy.model_copy(
        update={"noise_multiplier": None, "epsilon": 4.0}
    )
    answer = coordinator.tell("c1", next(RUNS), privacy=privacy)
    assert "amount to epsilon" in answer.reason
    assert "allowed are 4" in answer.reason


def test_two_sites_that_were_told_two_runs_agree_on_no_keys(coordinator):
    """c4 believes in another noise: then keys of the others are not signed for its round."""
    fields = {
        "session": "1" * 32,
        "of": "synthesis",
        "ring": NAMES,
        "bound": coordinator.asked().bound,
        "numbers": 4,
    }
    keys = {name: coordinator.exchange(name, SumOpenMessage, **fields).keys for name in NAMES[:4]}
    sums = coordinator.people.terms["c4"].sums
    assert (
        coordinator.tell(
            "c4", next(RUNS), sums=sums.model_copy(update={"noise": {"synthesis": 2.0}})
        ).kind
        == "accepted"
    )
    assert coordinator.exchange("c4", SumOpenMessage, **fields).kind == "sum_keys"
    head = coordinator.exchange("c4", SumShareMessage, session="1" * 32, keys=keys)
    assert "that it did not sign" in head.reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bound": 1.0}, "by the terms it is"),
        ({"round": 9}, "the terms have"),
        ({"of": "train"}, "say nothing of it"),
        ({"ring": NAMES[:3]}, "expected at least 3 that stay"),
        ({"ring": NAMES[1:]}, ""),
        ({"ring": (*NAMES[:4], "c0")}, ""),
    ],
)
def test_a_round_that_is_none_of_the_run_is_refused(coordinator, changes, word):
    fields = {
        "session": "2" * 32,
        "of": "synthesis",
        "ring": NAMES,
        "bound": coordinator.asked().bound,
        "numbers": 4,
        "round": 1,
    } | changes
    head = SumOpenMessage(
        **coordinator.outbox.stamp("c0").fields,
        client="c0",
        terms=coordinator.people.terms["c0"].digest,
        **fields,
    )
    ((_, answer),) = coordinator.outbox.exchange({"c0": secure_sites.Message(head)}, 5.0)
    assert answer.head.kind == "refusal"
    assert word in answer.head.reason, answer.head.reason
    assert "\n" not in answer.head.reason


# --- lies within a round


def test_two_lists_of_survivors_open_nothing(coordinator):
    round = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    session = round.terms.session
    lists = {
        name: tuple(sorted(NAMES)) if name in ("c0", "c1", "c4") else tuple(sorted(NAMES[:4]))
        for name in NAMES
    }
    signed = {
        name: coordinator.exchange(
            name, SumAgreeMessage, session=session, survivors=lists[name]
        ).signature
        for name in NAMES
    }
    opened = []
    for name in NAMES:
        agreeing = {
            other: signature for other, signature in signed.items() if lists[other] == lists[name]
        }
        head = coordinator.exchange(name, SumRevealMessage, session=session, signatures=agreeing)
        opened += [name] if head.kind == "sum_secrets" else []
    # three of five may reveal for one list; the other two never do, so each secret has two of three
    # shares it needs
    assert opened == ["c0", "c1", "c4"]
    assert round.terms.degree.threshold == 3


def test_a_signature_is_given_for_one_list_and_shares_once(coordinator):
    round = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    session, whole = round.terms.session, tuple(sorted(NAMES))
    assert (
        coordinator.exchange("c0", SumAgreeMessage, session=session, survivors=whole).kind
        == "sum_signature"
    )
    assert (
        "every step once and in order"
        in coordinator.exchange("c0", SumAgreeMessage, session=session, survivors=whole[:4]).reason
    )
    assert (
        "left it"
        in coordinator.exchange("c0", SumRevealMessage, session=session, signatures={}).reason
    )
    few = coordinator.exchange("c1", SumAgreeMessage, session=session, survivors=whole[1:3])
    assert "at least 4" in few.reason


def test_keys_of_an_older_round_are_refused(coordinator, sites):
    old = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    finish(old)
    kept = {name: SumKeys.of(keys) for name, keys in old._server._keys.items()}
    new = SumOpenMessage(
        **coordinator.outbox.stamp("c0").fields,
        client="c0",
        terms=coordinator.people.terms["c0"].digest,
        round=2,
        session="3" * 32,
        of="synthesis",
        ring=old.terms.ring,
        bound=old.terms.encoding.bound,
        numbers=4,
    )
    ((_, answer),) = coordinator.outbox.exchange({"c0": secure_sites.Message(new)}, 5.0)
    assert answer.head.kind == "sum_keys"
    head = coordinator.exchange(
        "c0",
        SumShareMessage,
        session="3" * 32,
        keys={name: keys for name, keys in kept.items() if name != "c0"},
    )
    assert "that it did not sign" in head.reason
    # nor does the old session live any more
    assert (
        "left it"
        in coordinator.exchange("c0", SumShareMessage, session=old.terms.session, keys={}).reason
    )


def test_an_old_message_opens_nothing_and_the_same_one_gets_the_same_answer(coordinator, sites):
    told = []
    sites.fault = lambda name, asked, answer: told.append((name, asked.packet, answer)) or answer
    round = coordinator.sums.begin(coordinator.asked())
    packet = next(one[1] for one in told if one[0] == "c0")
    share = next(one for one in reversed(told) if one[0] == "c0")
    again = wire.seen(packet_bytes(sites.handlers["c0"].answer(share[1]))).head
    assert again["sealed"] == wire.seen(share[2]).head["sealed"]
    past = wire.seen(packet_bytes(sites.handlers["c0"].answer(packet)))
    assert (past.kind, past.head["why"]) == ("refusal", "refused")
    assert "past" in past.head["reason"]
    assert len(coordinator.vote()) == 5  # it is still in the round
    assert finish(round)[1] == 5


def test_a_plain_update_is_never_given(coordinator, place):
    before = charges(place, "c2", coordinator.run)
    coordinator.sums.begin(coordinator.asked())
    coordinator.sums.joined = dict  # the requests as they are, without their part of the round
    with pytest.raises(AulaitError, match="none of 5 sites answered"):
        coordinator.vote()
    assert "asked for a plain update" in coordinator.refusals()["c2"]
    assert charges(place, "c2", coordinator.run) == before


def test_the_vector_of_another_round_is_not_given(coordinator):
    coordinator.sums.begin(coordinator.asked())
    with pytest.raises(AulaitError, match="none of 5 sites answered"):
        coordinator.vote(round=2)
    assert "no open part in" in coordinator.refusals()["c1"]


def test_a_request_of_another_session_is_refused_before_any_work(coordinator, place):
    before = charges(place, "c1", coordinator.run)
    coordinator.sums.begin(coordinator.asked())
    joined = coordinator.sums.joined

    def elsewhere(outgoing):
        return {
            name: replace(
                message,
                head=message.head.model_copy(
                    update={"sum": message.head.sum.model_copy(update={"session": "0" * 32})}
                ),
            )
            for name, message in joined(outgoing).items()
        }

    coordinator.sums.joined = elsewhere
    with pytest.raises(AulaitError, match="none of 5 sites answered"):
        coordinator.vote()
    assert "no open part in" in coordinator.refusals()["c1"]
    assert charges(place, "c1", coordinator.run) == before


def test_a_site_gives_no_more_sums_than_the_run_promised(coordinator, place):
    """Three rounds; the coordinator forgets two of them and asks again."""
    for number in (1, 1, 1):
        round = coordinator.sums.begin(coordinator.asked())
        assert len(coordinator.vote(number)) == 5
        round.close()
    with pytest.raises(BudgetSpent, match="5 sites have given what the run promised"):
        coordinator.sums.begin(coordinator.asked(2))
    assert charges(place, "c0", coordinator.run) == ["", *["synthesis"] * 3]


def test_a_site_that_starts_again_has_left_the_round_and_its_charge_stays(
    coordinator, sites, place
):
    round = coordinator.sums.begin(coordinator.asked())
    assert len(coordinator.vote()) == 5
    old = sites.handlers["c3"]
    sites.handlers["c3"] = SiteHandler(old._file, lambda event, **fields: None, secure_sites.MODELS)
    _, count = finish(round)  # the others know enough
    assert count == 5
    assert "left it" in coordinator.refusals()["c3"]
    assert charges(place, "c3", coordinator.run) == ["", "synthesis"]
    again = coordinator.sums.begin(coordinator.asked(2))
    assert again.terms.session != round.terms.session
    assert len(coordinator.vote(2)) == 5
    assert finish(again)[1] == 5


def test_who_a_site_is_follows_from_its_key_and_is_told_at_the_site(place, sites):
    assert keys.sums(place / "c0" / "site.toml") == (
        "c0",
        secure_sites.identity(place / "c0", "c0"),
    )
    (place / "bare.toml").write_text('[site]\nname = "c9"\n')
    with pytest.raises(ConfigError, match="found no key"):
        keys.sums(place / "bare.toml")
    (place / "none.toml").write_text("site = 1\n")
    with pytest.raises(ConfigError, match="names no site"):
        keys.sums(place / "none.toml")


# --- sites that mean harm


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (
            "sum_open",
            {
                "keys": {
                    "sealing": "0" * 64,
                    "masking": "1" * 64,
                    "commitment": "2" * 64,
                    "signature": "3" * 128,
                }
            },
        ),
        ("sum_open", {"keys": {"sealing": "0" * 66}}),
        ("sum_open", {"kind": "accepted", "records": 3}),
        ("sum_share", {"sealed": {}}),
        ("sum_share", {"sealed": {"c1": "zz" * 82}}),
        ("sum_share", {"sealed": {f"y{k}": "00" * 82 for k in range(400)}}),
        ("vote", {"kind": "update", "weight": 1.0, "info": {}}),
        ("sum_agree", {"signature": "0" * 128}),
        ("sum_reveal", {"seeds": {"c1": "f" * 66}, "keys": {"c1": "f" * 66}}),
        ("sum_reveal", {"seeds": {}, "keys": {"nobody": "0" * 66}}),
    ],
)
def test_a_site_whose_message_is_bad_has_dropped_out_and_stops_nobody(
    coordinator, sites, kind, head
):
    sites.fault = lambda name, asked, answer: (
        wire.remade(answer, **head) if (name, asked.kind) == ("c0", kind) else answer
    )
    round = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    assert finish(round)[1] == (5 if kind in ("sum_agree", "sum_reveal") else 4)
    assert "c0" in coordinator.refusals()


@pytest.mark.parametrize("size", [-1, 1])
def test_a_masked_vector_of_another_size_is_not_taken(coordinator, sites, size):
    def fault(name, asked, answer):
        if (name, asked.kind) != ("c0", "vote"):
            return answer
        found = wire.seen(answer)
        return packet_bytes(
            wire.made(found.head, found.body[:size] if size < 0 else found.body + b"x")
        )

    sites.fault = fault
    round = coordinator.sums.begin(coordinator.asked())
    assert "c0" not in coordinator.vote()
    assert finish(round)[1] == 4
    assert "masked vector that the secure sum does not take" in coordinator.refusals()["c0"]


def test_wrong_shares_give_an_error_and_no_sum(coordinator, sites, monkeypatch):
    """Held against what was advertised; the round is over, and what it cost stays charged."""

    def fault(name, asked, answer):
        if (name, asked.kind) != ("c0", "sum_reveal"):
            return answer
        found = wire.seen(answer).head
        return wire.remade(
            answer,
            seeds={other: f"{int(share, 16) ^ 1:066x}" for other, share in found["seeds"].items()},
        )

    monkeypatch.setattr(
        terms, "shuffled", lambda names, seed: tuple(sorted(names))
    )  # c0's shares are used
    sites.fault = fault
    round = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    with pytest.raises(WireError, match="fit no secret"):
        finish(round)


def test_what_travels_is_of_one_size(coordinator, sites):
    """A message of a secure sum is bounded before it is looked at; what is longer is no message."""
    heads = [
        wire.Seen(
            secure_sites.Message(
                SumOpenMessage(
                    **coordinator.outbox.stamp("c0").fields,
                    client="c0",
                    terms="t",
                    round=1,
                    session="0" * 32,
                    of="synthesis",
                    ring=("c0",),
                    bound=1.0,
                    numbers=4,
                )
            ).packet()
        ).head
    ]
    for name, value in (
        ("session", "0" * 33),
        ("ring", [f"c{k}" for k in range(65)]),
        ("bound", 0.0),
        ("bound", "1"),
        ("numbers", -1),
        ("of", "all"),
        ("more", 1),
    ):
        with pytest.raises(ValueError, match=name):
            SumOpenMessage.model_validate_json(json.dumps(heads[0] | {name: value}))
    for kind, field, value in (
        (sum_messages.SumSharesAnswer, "sealed", {"c0": "0" * 163}),
        (sum_messages.SumSecretsAnswer, "seeds", {"c0": "0" * 67}),
        (sum_messages.SumSignatureAnswer, "signature", "0" * 127),
        (SumRevealMessage, "signatures", told_bytes({"c0": b"x" * 63})),
        (SumAgreeMessage, "survivors", ["x" * 201]),
    ):
        with pytest.raises(ValueError, match=field):
            kind.model_validate({field: value})


def test_a_coordinator_that_peeks_finds_nothing_in_what_it_holds(coordinator, monkeypatch):
    """Without the last exchange the sum of masked vectors is uniform; here it is at least not
    the sum."""
    found = []
    monkeypatch.setattr(SecureSum, "_take_away", lambda *_: None)
    round = coordinator.sums.begin(coordinator.asked())
    coordinator.vote()
    bare = round.terms.encoding.decoded(round._server._total.copy())
    total, _ = finish(round)
    found = (bare - total).abs()
    assert float(found.min()) > 0
