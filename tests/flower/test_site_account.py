"""A site's account over all runs: charged before anything leaves, never turned back unnoticed."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.flower import attacker
from tests.flower.attacker import PRIVATE, Attacker
from tests.flower.local_transport import receipt_book, site_keys
from tests.flower.test_refusals import RECORD, noised
from tests.flower.wire import Seen, made
from typer.testing import CliRunner

from aulait.cli import app
from aulait.core.errors import PrivacyError, WireError
from aulait.engines.deployment.protocol.receipts import Receipt, identity, is_signed
from aulait.engines.deployment.site import lifetime_account, old_accounts
from aulait.engines.deployment.site.lifetime_account import Charge, LifetimeAccount, account_path
from aulait.engines.deployment.site.lost_account import LostAccount, lost_path
from aulait.engines.deployment.site.site_policy import SitePolicy
from aulait.privacy.accounting import Event, epsilon

CLIENT = {"privacy": PRIVATE | {"noise_multiplier": None, "epsilon": 3.0},
          "algorithm": {"name": "ffa"}}


class Owner:
    """A site and coordinators who begin run after run."""

    def __init__(self, enemy: Attacker, monkeypatch) -> None:
        self.enemy, self.monkeypatch = enemy, monkeypatch

    def run(self, digit: str, **terms):
        """Terms of a new run; what the site answers."""
        self.monkeypatch.setattr(attacker, "RUN", digit * 32)
        return self.enemy.tell(run=digit * 32, **terms)

    @property
    def account(self) -> LifetimeAccount:
        return LifetimeAccount(self.enemy.file.site.state, self.enemy.file.data.source)


@pytest.fixture
def owner(tmp_path, monkeypatch):
    return Owner(Attacker(tmp_path, keyed=True, privacy=True, epsilon=8.0, lifetime_epsilon=10.0),
                 monkeypatch)


def test_runs_of_all_coordinators_share_one_account_of_clients(owner):
    """Before, every run had a fresh account: five runs of epsilon 9.9 were taken, and a hundred."""
    for digit in "abc":
        assert owner.run(digit, **CLIENT).kind == "accepted"
        assert owner.enemy.ask(owner.enemy.request()).kind == "update"
        assert owner.enemy.ask(
            owner.enemy.request(round=2)).kind == "update", "a run is charged once"
    spent = owner.account.spent("client")
    assert (spent.epsilon, spent.delta, spent.charges, spent.runs) == (9.0, pytest.approx(3e-4), 3,
        3)
    owner.enemy.refused(owner.run("d", **CLIENT), "beyond what this site gives in its lifetime")
    owner.enemy.restart()
    owner.enemy.refused(owner.run("e", **CLIENT), "lifetime")
    assert "epsilon 12.000, allowed are 10" in [line for line in owner.enemy.lines
        if line["event"] == "spent"][-1]["reason"]
    assert owner.account.sequence == 3


def test_two_runs_that_were_both_accepted_cannot_both_be_answered(owner):
    """Accepting charges nothing, so the first answer is looked at again."""
    big = {**CLIENT, "privacy": CLIENT["privacy"] | {"epsilon": 6.0}}
    assert [owner.run(digit, **big).kind for digit in "ab"] == ["accepted"] * 2
    assert owner.enemy.ask(owner.enemy.request()).kind == "update"
    owner.monkeypatch.setattr(attacker, "RUN", "a" * 32)
    owner.enemy.terms = owner.enemy.handler._known("a" * 32).terms.digest
    owner.enemy.refused(owner.enemy.ask(owner.enemy.request()), "failed (PrivacyError)")
    assert "lifetime account" in owner.enemy.lines[-1]["reason"]


def test_records_are_counted_together_over_runs_and_apart_from_clients(tmp_path, monkeypatch):
    owner, taken = Owner(Attacker(tmp_path, privacy=True, epsilon=8.0, lifetime_epsilon=4.0),
                         monkeypatch), 0
    for digit in "0123456789":
        if owner.run(digit, **RECORD).kind != "accepted":
            break
        assert noised(owner.enemy).kind == "update"
        taken += 1
    spent = owner.account.spent("record")
    rate = owner.account.charges[0].rate
    assert rate in (2 / 3, 2 / 2)
    assert spent.epsilon == pytest.approx(epsilon([Event(2.0, rate)] * taken, 1e-4), rel=1e-6)
    assert 1 < taken < 10
    assert spent.epsilon <= 4.0
    assert owner.account.spent("client").charges == 0
    assert owner.run("f", **CLIENT).kind == "accepted", "clients have an account of their own"


def test_a_request_beyond_the_lifetime_is_refused_before_it_is_answered(tmp_path, monkeypatch):
    owner = Owner(Attacker(tmp_path, privacy=True, epsilon=8.0), monkeypatch)
    assert owner.run("a", **RECORD).kind == "accepted"
    assert noised(owner.enemy).kind == "update"
    limits = owner.enemy.file.limits.model_copy(
        update={"lifetime_epsilon": owner.account.spent("record").epsilon * 1.01})
    owner.enemy.file = owner.enemy.file.model_copy(update={"limits": limits})
    owner.enemy.restart()
    owner.enemy.refused(noised(owner.enemy, round=2), "failed (PrivacyError)")
    assert "lifetime account" in owner.enemy.lines[-1]["reason"]
    assert owner.account.sequence == 1


def test_the_charge_is_on_disk_before_the_answer_is_made(owner, monkeypatch):
    from aulait.methods import dplora

    owner.run("a", **RECORD)
    seen = []
    monkeypatch.setattr(dplora, "answer", lambda *_: seen.append(owner.account.sequence) or 1 / 0)
    owner.enemy.refused(noised(owner.enemy), "failed by a defect")
    assert seen == [1]
    assert owner.account.sequence == 1, "what may have left is paid"


def test_a_run_without_privacy_is_told_beside(tmp_path, monkeypatch):
    owner = Owner(Attacker(tmp_path), monkeypatch)
    assert owner.run("a").kind == "accepted"
    assert owner.enemy.ask(owner.enemy.request()).kind == "update"
    found = owner.account.spent("none")
    assert (found.runs, found.epsilon) == (1, float("inf"))


# The chain


@pytest.fixture
def filled(tmp_path):
    account = LifetimeAccount(tmp_path, "notes.jsonl")
    for number in range(4):
        account.add(Charge(run=f"{number}" * 32, unit="record", delta=1e-5,
                           noise_multiplier=2.0 + number))
    return account_path(tmp_path, "notes.jsonl")


@pytest.mark.parametrize("change", ["edit", "cut out", "swap", "first"])
def test_a_line_that_was_edited_taken_out_or_moved_is_found(filled, tmp_path, change):
    lines = filled.read_text().splitlines()
    if change == "edit":
        lines[1] = lines[1].replace('"noise_multiplier":3.0', '"noise_multiplier":30.0')
    elif change == "cut out":
        del lines[1]
    elif change == "first":
        del lines[0]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    filled.write_text("\n".join(lines) + "\n")
    with pytest.raises(PrivacyError, match="damaged at line"):
        LifetimeAccount(tmp_path, "notes.jsonl")


def test_a_torn_last_line_was_never_answered(filled, tmp_path):
    filled.write_bytes(filled.read_bytes()[:-9])
    account = LifetimeAccount(tmp_path, "notes.jsonl")
    assert account.sequence == 3
    account.add(Charge(run="9" * 32, unit="none"))
    assert LifetimeAccount(tmp_path, "notes.jsonl").sequence == 4
    assert oct(filled.stat().st_mode & 0o777) == "0o600"
    assert oct(filled.parent.stat().st_mode & 0o777) == "0o700"


# Receipts


def shown(enemy, receipt) -> Seen:
    return enemy.ask(made(Seen(enemy.hello()).head | {"receipt": receipt}))


def test_every_answer_bears_a_receipt_that_the_roster_can_verify(owner):
    line = (owner.enemy.file.keys.public).read_text()
    answers = [owner.enemy.ask(owner.enemy.hello()), owner.run("a", **CLIENT),
               owner.enemy.ask(owner.enemy.request()),
               owner.enemy.ask(owner.enemy.evaluation())]
    found = [Receipt.model_validate(answer.head["receipt"]) for answer in answers]
    assert [receipt.sequence for receipt in found] == [0, 0, 1, 1]
    assert all(is_signed(line, "ward", receipt) for receipt in found)
    assert found[-1].head == owner.account.head
    assert not is_signed(line, "other", found[-1])
    assert not is_signed(line, "ward", found[-1].model_copy(update={"sequence": 2}))
    assert "own.jsonl" not in json.dumps(answers[-1].head)


@pytest.mark.parametrize("how", ["restored", "deleted", "state deleted"])
def test_a_site_whose_account_was_turned_back_refuses_in_one_line(owner, tmp_path, how):
    """Before, a deleted or restored folder was a fresh account."""
    state = owner.enemy.file.site.state
    owner.run("a", **CLIENT)
    owner.enemy.ask(owner.enemy.request())
    shutil.copytree(state, tmp_path / "copy")
    owner.run("b", **CLIENT)
    receipt = owner.enemy.ask(owner.enemy.request()).head["receipt"]
    assert receipt["sequence"] == 2
    shutil.rmtree(state / "account" if how == "deleted" else state)
    if how == "restored":
        shutil.copytree(tmp_path / "copy", state)
    owner.enemy.restart()
    answer = shown(owner.enemy, receipt)
    owner.enemy.refused(answer, "restore the newest")
    assert "\n" not in answer.head["reason"]
    shown_in_a_request = made(Seen(owner.enemy.request()).head | {"receipt": receipt},
                              owner.enemy.request().body)
    owner.enemy.refused(owner.enemy.ask(shown_in_a_request), "restore the newest")


def test_another_history_of_the_same_length_is_found(owner):
    owner.run("a", **CLIENT)
    receipt = owner.enemy.ask(owner.enemy.request()).head["receipt"]
    shutil.rmtree(owner.enemy.file.site.state)
    owner.enemy.restart()
    owner.run("a", **CLIENT)
    assert owner.enemy.ask(owner.enemy.request()).kind == "update"
    owner.enemy.refused(shown(owner.enemy, receipt), "another history")


def test_nobody_else_can_stop_a_site_with_a_receipt(owner, tmp_path):
    site_keys(tmp_path / "other", "ward")
    other = identity("ward", tmp_path / "other" / "site-key")
    own = identity("ward", owner.enemy.file.keys.private)
    name = own.account_name(owner.enemy.file.data.source)
    forged = other.signed(name, 99, "f" * 64)
    assert shown(owner.enemy, forged.model_dump()).kind == "facts"
    assert shown(owner.enemy,
        own.signed("0" * 32, 99, "f" * 64).model_dump()).kind == "facts", "of another data source"
    owner.enemy.refused(shown(owner.enemy, own.signed(name, 99, "f" * 64).model_dump()), "old copy")
    owner.enemy.refused(shown(owner.enemy, {"account": name, "sequence": -1, "head": "",
        "signature": ""}), "not valid")


def test_a_coordinator_says_that_a_counter_went_back_and_remembers_over_runs(tmp_path):
    site_keys(tmp_path / "ward", "ward")
    (tmp_path / "run" / "serve").mkdir(parents=True)
    own = identity("ward", tmp_path / "ward" / "site-key")
    first, second = own.signed("1" * 32, 1, "a" * 64), own.signed("1" * 32, 2, "b" * 64)
    book = receipt_book(tmp_path, tmp_path / "run", ["ward"])
    assert book.newest("ward") is None
    assert book.take("ward", None, first) == ""
    assert book.take("ward", first, second) == ""
    assert book.take("ward", first, second) == "", "an answer to a message of before"
    again = receipt_book(tmp_path, tmp_path / "run", ["ward"])  # another run, with the same keys
    assert again.newest("ward") == second
    for came, words in ((first, "turned back"), (own.signed("1" * 32, 2, "c" * 64), "turned back"),
                        (None, "without a receipt"),
                        (second.model_copy(update={"sequence": 9}), "did not sign")):
        with pytest.raises(WireError, match=words):
            again.take("ward", second, came)
    assert "another account" in again.take("ward", second, own.signed("2" * 32, 1, "d" * 64))
    assert again.newest("ward").account == "2" * 32
    assert len((tmp_path / "run" / "serve" / "receipts.jsonl").read_text().splitlines()) == 3


# An account that is lost for good


@pytest.fixture
def lost(owner):
    """A site that gave epsilon 3 in a run, whose account is gone; its newest receipt."""
    owner.run("a", **CLIENT)
    receipt = owner.enemy.ask(owner.enemy.request()).head["receipt"]
    shutil.rmtree(owner.enemy.file.site.state)
    owner.enemy.restart()
    owner.enemy.refused(shown(owner.enemy, receipt), "--account-lost")
    return receipt


def begun_anew(owner) -> str:
    path = owner.enemy.file.site.state.parent / "site.toml"
    found = CliRunner().invoke(app, ["join", str(path), "--account-lost"])
    assert found.exit_code == 0, found.output
    owner.enemy.restart()
    return found.stdout


def test_a_lost_account_is_begun_anew_with_all_that_was_allowed(owner, lost, tmp_path):
    told = begun_anew(owner)
    assert "epsilon 10 and delta 0.002" in told
    answer = shown(owner.enemy, lost)  # the coordinator shows what it knows
    assert answer.kind == "facts", "the site answers again"
    owner.enemy.refused(owner.run("b", **CLIENT), "beyond what this site gives in its lifetime")
    path = owner.enemy.file.site.state.parent / "site.toml"
    (account,) = json.loads(CliRunner().invoke(app, ["status", str(path), "--json"]).stdout)[
        "accounts"]
    assert account["begun_anew"] is not None
    assert account["error"] is None
    clients, records = account["units"]
    assert (clients["epsilon"], clients["delta"]) == (10.0, 2e-3)
    assert records["epsilon"] == pytest.approx(10.0, rel=1e-3)


def test_every_coordinator_notices_that_it_is_another_account(owner, lost, tmp_path):
    begun_anew(owner)
    came = Receipt.model_validate(shown(owner.enemy, lost).head["receipt"])
    (tmp_path / "run" / "serve").mkdir(parents=True)
    before = Receipt.model_validate(lost)
    book = receipt_book(tmp_path, tmp_path / "run", ["ward"])
    assert book.take("ward", None, before) == ""
    assert "lost and begun anew" in book.take("ward", before, came)
    begun_anew(owner)  # and every further time
    again = Receipt.model_validate(shown(owner.enemy, came.model_dump()).head["receipt"])
    assert len({before.account, came.account, again.account}) == 3
    assert "lost and begun anew" in book.take("ward", came, again)


def test_nothing_is_given_again_but_beyond_the_raised_limit(owner, lost):
    begun_anew(owner)
    raised = SitePolicy(epsilon=8.0, lifetime_epsilon=14.0, lifetime_delta=4e-3)
    owner.enemy.file = owner.enemy.file.model_copy(update={
        "limits": owner.enemy.file.limits.model_copy(update={
            "lifetime_epsilon": raised.lifetime_epsilon,
            "lifetime_delta": raised.lifetime_delta})})
    owner.enemy.restart()
    assert owner.run("b", **CLIENT).kind == "accepted"
    assert owner.enemy.ask(owner.enemy.request()).kind == "update"
    owner.enemy.refused(owner.run("c", **CLIENT), "lifetime")  # 10 + 3 + 3 > 14


@pytest.mark.parametrize("how", ["edited", "of another site", "deleted", "malformed"])
def test_whoever_can_only_write_to_the_state_cannot_begin_an_account_anew(owner, lost, tmp_path,
                                                                         how):
    begun_anew(owner)
    own = owner.enemy.file
    path = lost_path(own.site.state, own.data.source)
    tree = json.loads(path.read_text())
    owner.enemy.file = own.model_copy(update={"limits": own.limits.model_copy(update={
        "lifetime_epsilon": 14.0, "lifetime_delta": 4e-3})})
    owner.enemy.restart()
    owner.run("b", **CLIENT)
    receipt = owner.enemy.ask(owner.enemy.request()).head["receipt"]
    assert receipt["sequence"] == 1
    if how == "edited":
        path.write_text(json.dumps(tree | {"epsilon": 0.1}))
    elif how == "of another site":
        site_keys(tmp_path / "other", "ward")
        plain = LostAccount.model_validate(tree | {"epsilon": 0.1})
        other = identity("ward", tmp_path / "other" / "site-key")
        path.write_text(plain.model_copy(update={"signature": other.signed_text(
            plain.content(own.data.source))}).model_dump_json())
    elif how == "deleted":
        path.unlink()
    else:
        path.write_text("{}")
    owner.enemy.restart()
    answer = shown(owner.enemy, receipt)
    assert answer.kind == "refusal", answer.head


def test_deleting_the_new_account_as_well_meets_the_receipt_of_the_lost_one(owner, lost, tmp_path):
    """The coordinator goes by the account that the site names, from the second message on."""
    begun_anew(owner)
    (tmp_path / "run" / "serve").mkdir(parents=True)
    book = receipt_book(tmp_path, tmp_path / "run", ["ward"])
    book.take("ward", None, Receipt.model_validate(lost))
    came = Receipt.model_validate(shown(owner.enemy, lost).head["receipt"])
    book.take("ward", book.newest("ward"), came)
    shutil.rmtree(owner.enemy.file.site.state)
    owner.enemy.restart()
    fresh = shown(owner.enemy, book.newest("ward").model_dump())
    book.take("ward", book.newest("ward"), Receipt.model_validate(fresh.head["receipt"]))
    assert book.newest("ward") == Receipt.model_validate(lost)
    owner.enemy.refused(shown(owner.enemy, book.newest("ward").model_dump()), "old copy")


def test_putting_the_lost_account_back_is_noticed_too(owner, tmp_path):
    """Somebody kept a copy, so that it was not lost to them: what was given since would be
    forgotten."""
    state = owner.enemy.file.site.state
    owner.run("a", **CLIENT)
    before = Receipt.model_validate(owner.enemy.ask(owner.enemy.request()).head["receipt"])
    shutil.copytree(state, tmp_path / "copy")
    begun_anew(owner)
    (tmp_path / "run" / "serve").mkdir(parents=True)
    book = receipt_book(tmp_path, tmp_path / "run", ["ward"])
    book.take("ward", None, before)
    came = Receipt.model_validate(shown(owner.enemy, before.model_dump()).head["receipt"])
    assert "another account" in book.take("ward", book.newest("ward"), came)
    assert book.take("ward", book.newest("ward"), came) == ""
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "copy", state)
    owner.enemy.restart()
    back = Receipt.model_validate(shown(owner.enemy, came.model_dump()).head["receipt"])
    assert back.account == before.account
    assert "another account" in book.take("ward", book.newest("ward"), back)


# Old states, old site files


def test_what_an_older_version_kept_is_taken_over_once(owner):
    state = owner.enemy.file.site.state
    for run, terms, more in (("a" * 32, RECORD, "account.jsonl"),
                             ("b" * 32, CLIENT, "answer-1-2.bin"), ("c" * 32, CLIENT, "none")):
        folder = state / "runs" / run
        folder.mkdir(parents=True)
        told = attacker.told(run=run, **terms) | {"version": 2}
        told["privacy"] = {"off": False, "unit": "client"} | told["privacy"]
        for key in ("candidates", "neighbours"):
            told.pop(key, None)
        (folder / "terms.json").write_text(json.dumps(told))
        line = json.dumps({"noise_multiplier": 2.0, "rate": 1.0, "steps": 1}) + "\n"
        (folder / more).write_text(line * 2 + line[:9])
    owner.enemy.ask(owner.enemy.hello())
    account = owner.account
    assert account.spent("record").epsilon == pytest.approx(epsilon([Event(2.0)] * 2, 1e-4))
    assert (account.spent("client").epsilon, account.spent("client").runs) == (3.0,
        1), "answered runs alone"
    old_accounts.take_over(state, owner.enemy.file.data.source)
    assert owner.account.sequence == 3
    (state / "runs" / ("a" * 32) / "account.jsonl").write_text("{}\n")
    shutil.rmtree(state / "account")
    owner.enemy.restart()
    owner.enemy.refused(owner.enemy.ask(owner.enemy.hello()), "failed (PrivacyError)")


def test_a_lifetime_that_is_not_written_is_two_of_the_largest_runs():
    assert (SitePolicy().lifetime_epsilon, SitePolicy().lifetime_delta) == (20.0, 2e-3)
    old = SitePolicy(epsilon=50.0, delta=0.7)
    assert (old.lifetime_epsilon, old.lifetime_delta) == (100.0, 0.999)
    assert SitePolicy(epsilon=50.0, lifetime_epsilon=1.0).lifetime_epsilon == 1.0
    assert lifetime_account.spent([], "record").epsilon == 0.0


def test_the_command_line_tells_what_a_site_has_given(owner):
    owner.run("a", **CLIENT)
    owner.enemy.ask(owner.enemy.request())
    path = owner.enemy.file.site.state.parent / "site.toml"
    found = CliRunner().invoke(app, ["status", str(path), "--json"])
    (account,) = json.loads(found.stdout)["accounts"]
    clients, records = account["units"]
    assert (clients["unit"], clients["runs"], clients["epsilon"], clients["limit"],
            clients["delta"]) == ("client", 1, 3.0, 10.0, 1e-4)
    assert (records["unit"], records["charges"], records["epsilon"]) == ("record", 0, 0.0)
    assert account["source"] == owner.enemy.file.data.source
    told = CliRunner().invoke(app, ["status", str(path)]).stdout
    assert "lifetime accounts" in told
    lines = account_path(owner.enemy.file.site.state, owner.enemy.file.data.source)
    lines.write_text("{}\n")
    (account,) = json.loads(CliRunner().invoke(app, ["status", str(path), "--json"]).stdout)[
        "accounts"]
    assert "damaged at line 1" in account["error"]
