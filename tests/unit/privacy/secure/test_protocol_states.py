"""A model of the protocol's states: clients drop out at every step, messages come late, and a
coordinator that cheats tells every client another story.

Two machines are driven by hypothesis. In the first the coordinator follows the protocol and the
network does not: what comes out is the plain sum of those whose vectors arrived, or an error and
nothing. In the second the coordinator and some clients are the attacker: it chooses who is told
what, holds back and replays what it likes, and signs with the colluders' keys. Whatever it does it
must not be able to take the masks off a set of honest clients that is smaller than the quorum
leaves; the model decides that by what shares it has seen.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.unit.privacy.secure.parts import parties, plain_sum, random_vectors

from aulait.core.errors import PrivacyError, WireError
from aulait.privacy.secure.coordinator import SecureSum
from aulait.privacy.secure.keys import AgreementKey, Identity, unseal
from aulait.privacy.secure.party import Party
from aulait.privacy.secure.quorum import Quorum
from aulait.privacy.secure.shamir import SHARE_BYTES
from aulait.privacy.secure.terms import SecureTerms, survivors_message

NAMES = tuple(f"c{i}" for i in range(6))
WHO = st.sampled_from(NAMES)
SEVEN = (*NAMES, "c6")
HONEST = SEVEN[:6]
# what a cheating coordinator says of the others: everybody, all but one or two, or anything
STORIES = st.one_of(
    st.just({*SEVEN}), st.just({*SEVEN}), st.sampled_from([{*SEVEN} - {name} for name in SEVEN]),
    st.sampled_from([{*SEVEN} - {"c0", "c1"}, {*SEVEN} - {"c1", "c2"}]),
    st.sets(st.sampled_from(SEVEN), min_size=3))


class Dropouts(RuleBasedStateMachine):
    """An honest coordinator, and a network that loses and delays."""

    @initialize(least=st.integers(4, 6), seed=st.integers(0, 2**32))
    def begin(self, least: int, seed: int) -> None:
        self.terms, self.parties = parties(NAMES, Quorum(least, 0))
        self.server = SecureSum(self.terms)
        self.vectors = random_vectors(NAMES, self.terms, seed)
        self.step, self.inbox, self.arrived = "keys", {}, set()
        self.answered: dict[str, set[str]] = defaultdict(set)
        self.late: list = []
        self.result = None

    @precondition(lambda self: self.step in ("keys", "shares", "vectors", "signatures", "secrets"))
    @rule(name=WHO, lost=st.booleans())
    def answer(self, name: str, lost: bool) -> None:
        """A client answers the step, if it was asked; the message may come when it is too late."""
        if name in self.answered[self.step] or (self.step != "keys" and name not in self.inbox):
            return
        self.answered[self.step].add(name)
        party, given = self.parties[name], self.inbox.get(name)
        step = self.step
        if step == "keys":
            keys = party.advertise()
            send = lambda: self.server.receive_keys(name, keys)  # noqa: E731
        elif step == "shares":
            sealed = party.share(given)
            send = lambda: self.server.receive_shares(name, sealed)  # noqa: E731
        elif step == "vectors":
            masked = party.mask(given, self.vectors[name])
            send = lambda: self.server.receive_vector(name, masked)  # noqa: E731
        elif step == "signatures":
            signature = party.agree(given)
            send = lambda: self.server.receive_signature(name, signature)  # noqa: E731
        else:
            revealed = party.reveal(given)
            send = lambda: self.server.receive_secrets(name, revealed)  # noqa: E731
        if lost:
            self.late.append((step, send))
        else:
            assert send()
            if step == "vectors":
                self.arrived.add(name)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive_late(self, data) -> None:
        """A delayed message arrives: in its step it counts, afterwards it does not."""
        step, send = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        taken = send()
        assert taken == (step == self.step)
        if taken and step == "vectors":
            self.arrived = set(self.server._vectors)

    @precondition(lambda self: self.step != "done")
    @rule()
    def close(self) -> None:
        """The coordinator waits no longer."""
        after = {"keys": ("shares", self.server.keys_for),
                 "shares": ("vectors", self.server.shares_for),
                 "vectors": ("signatures", self.server.survivors),
                 "signatures": ("secrets", self.server.signatures),
                 "secrets": ("done", self.server.total)}
        following, close = after[self.step]
        try:
            found = close()
        except PrivacyError as error:
            self.step, self.refusal = "done", str(error)
            return
        if following == "done":
            self.result = found
        elif following in ("signatures", "secrets"):
            self.inbox = dict.fromkeys(found, found)
        else:
            self.inbox = found
        self.step = following

    @precondition(lambda self: self.step == "done")
    @rule(name=WHO)
    def nothing_follows(self, name: str) -> None:
        """A round that is over takes nothing, and says why there is no sum."""
        assert not self.server.receive_vector(name, bytes(12))
        assert not self.server.receive_shares(name, {})
        if self.result is None:
            assert "take part" in self.refusal or "were revealed" in self.refusal

    @invariant()
    def what_comes_out_is_the_plain_sum(self) -> None:
        if getattr(self, "result", None) is not None:
            total, survivors = self.result
            assert survivors == len(self.arrived) >= self.terms.quorum.least
            assert (total & np.uint64((1 << 24) - 1)).tolist() == plain_sum(
                self.vectors, self.arrived, 3)


class CheatingCoordinator(RuleBasedStateMachine):
    """The attacker is the network, the coordinator and c6."""

    @initialize(least=st.integers(5, 6), stories=st.dictionaries(
        st.sampled_from(HONEST), st.tuples(STORIES, STORIES), max_size=2))
    def begin(self, least: int, stories: dict[str, tuple[set[str], set[str]]]) -> None:
        identities = {name: Identity.new() for name in SEVEN}
        self.evil = identities["c6"]
        self.terms = SecureTerms.drawn(
            {name: own.public.hex() for name, own in identities.items()}, Quorum(least, 1), 2,
            parties(SEVEN, Quorum(6, 0))[0].encoding)
        self.honest = {name: Party(name, identities[name], self.terms) for name in HONEST}
        self.colluder = Party("c6", self.evil, self.terms)
        self.colluder_keys: AgreementKey = self.colluder._secrets.sealing
        self.keys = {name: party.advertise() for name, party in self.honest.items()}
        self.keys["c6"] = self.colluder.advertise()
        self.sealed: dict[str, dict[str, bytes]] = {"c6": self.colluder.share(self.keys)}
        self.signatures: dict[tuple[str, ...], dict[str, bytes]] = defaultdict(dict)
        self.seeds: dict[str, set[str]] = defaultdict(set)  # owner -> holders whose share is known
        self.masking: dict[str, set[str]] = defaultdict(set)
        self.masked_with: dict[str, set[str]] = {}
        self.lists: set[tuple[str, ...]] = set()
        everything = ({*SEVEN}, {*SEVEN})
        for name, party in self.honest.items():  # the first steps, to most clients honestly
            self.show_keys(name, party, stories.get(name, everything)[0])
        for name in HONEST:
            self.show_shares(name, stories.get(name, everything)[1])

    def attempt(self, step) -> object | None:
        """What a client does, or None where it leaves."""
        try:
            return step()
        except (PrivacyError, WireError):
            return None

    def show_keys(self, name: str, party: Party, told: set[str]) -> None:
        found = self.attempt(lambda: party.share({other: self.keys[other] for other in told}))
        if found is not None:
            self.sealed[name] = found
            if "c6" in found:  # the colluder reads what is sealed for it
                beside = party._beside(name, "c6")
                key = self.colluder_keys.agree(self.keys[name].sealing, self.terms.digest, beside)
                assert len(unseal(key, found["c6"], beside)) == 2 * SHARE_BYTES
                self.seeds[name].add("c6")
                self.masking[name].add("c6")

    def show_shares(self, name: str, told: set[str]) -> None:
        """A client is given the shares of some others."""
        given = {other: self.sealed[other][name] for other in told
                 if name in self.sealed.get(other, {})}
        vector = np.zeros(2, dtype=np.uint64)
        if self.attempt(lambda: self.honest[name].mask(given, vector)) is not None:
            self.masked_with[name] = {*given}

    @rule(name=st.sampled_from(HONEST), told=STORIES)
    def tell_survivors(self, name: str, told: set[str]) -> None:
        """A client is told some list of survivors; every client may be told another one."""
        survivors = tuple(sorted(told))
        signature = self.attempt(lambda: self.honest[name].agree(survivors))
        if signature is not None:
            self.signatures[survivors][name] = signature

    @rule(one=STORIES, other=STORIES, first=st.sets(st.sampled_from(HONEST)))
    def tell_two_stories(self, one: set[str], other: set[str], first: set[str]) -> None:
        """Some are told one list and the rest another, and each is shown what its own list got."""
        for name in HONEST:
            self.tell_survivors(name, one if name in first else other)
        for name in HONEST:
            self.reveal(name, dict(self.signatures[self.honest[name]._survivors]))

    @rule(name=st.sampled_from(HONEST), of_other_list=st.booleans(), data=st.data())
    def show_signatures(self, name: str, of_other_list: bool, data) -> None:
        """A client is shown signatures, real or of another list, and the colluder's."""
        survivors = self.honest[name]._survivors
        if of_other_list and self.signatures:
            shown = dict(self.signatures[data.draw(st.sampled_from(sorted(self.signatures)))])
        else:
            shown = dict(self.signatures[survivors])
        self.reveal(name, shown)

    def reveal(self, name: str, shown: dict[str, bytes]) -> None:
        """A client is asked to reveal; the colluder has signed whatever it is shown."""
        survivors = self.honest[name]._survivors
        shown["c6"] = self.evil.sign(survivors_message(self.terms, survivors))
        found = self.attempt(lambda: self.honest[name].reveal(shown))
        if found is not None:
            self.lists.add(survivors)
            for other in found.seeds:
                self.seeds[other].add(name)
            for other in found.keys:
                self.masking[other].add(name)

    def recovered(self, held: dict[str, set[str]]) -> set[str]:
        return {name for name, holders in held.items()
                if name != "c6" and len(holders) >= self.terms.degree.threshold}

    @invariant()
    def nobody_loses_both_secrets(self) -> None:
        if hasattr(self, "seeds"):
            assert not self.recovered(self.seeds) & self.recovered(self.masking)

    @invariant()
    def all_who_reveal_agree_on_one_list_of_the_quorum(self) -> None:
        if hasattr(self, "lists"):
            assert len(self.lists) <= 1
            assert all(len(each) >= self.terms.quorum.least for each in self.lists)

    @invariant()
    def no_few_are_unmasked(self) -> None:
        """The honest clients whose own masks fall, each of whose common masks is known or shared
        with another of them, are as many as the quorum leaves, or their sum stays hidden."""
        if not hasattr(self, "seeds"):
            return
        bare, known = self.recovered(self.seeds), self.recovered(self.masking) | {"c6"}
        bare &= {*self.masked_with}
        left, groups = set(bare), []
        while left:  # connected by masks that the attacker does not know
            group, edge = set(), [next(iter(left))]
            while edge:
                at = edge.pop()
                if at in group:
                    continue
                group.add(at)
                edge += [other for other in bare if other not in known
                         and (other in self.masked_with[at] or at in self.masked_with[other])]
            groups.append(group)
            left -= group
        for group in groups:
            beyond = {other for name in group for other in self.masked_with[name]} - group - known
            if not beyond:  # nothing hides this group's sum
                assert len(group) >= self.terms.quorum.honest


def test_dropouts_at_every_step_and_late_messages():
    run_state_machine_as_test(Dropouts, settings=settings(
        max_examples=30, stateful_step_count=50, deadline=None))


def attacked(examples: int) -> None:
    run_state_machine_as_test(CheatingCoordinator, settings=settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None,
        phases=[Phase.generate]))


def test_a_coordinator_that_tells_two_stories_learns_no_more():
    attacked(40)


def two_stories() -> CheatingCoordinator:
    """Half of the honest clients are told that everybody survived, half that c5 did not."""
    machine = CheatingCoordinator()
    machine.begin(5, {})
    machine.tell_two_stories({*SEVEN}, {*SEVEN} - {"c5"}, {"c0", "c1", "c2"})
    return machine


def test_the_model_notices_clients_that_do_not_compare_their_lists(monkeypatch):
    two_stories().all_who_reveal_agree_on_one_list_of_the_quorum()
    monkeypatch.setattr(Quorum, "agreeing", lambda quorum, clients: 1)
    broken = two_stories()
    with pytest.raises(AssertionError):
        broken.all_who_reveal_agree_on_one_list_of_the_quorum()
