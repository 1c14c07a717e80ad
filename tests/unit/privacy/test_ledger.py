"""A ledger that survives crashes and refuses to be edited."""

import hashlib
import json
import math
import os

import pytest

from aulait.core.errors import PrivacyError
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.ledger import Ledger, LedgerHead, first_link
from aulait.privacy.ledger_line import LedgerLine

LINE = LedgerLine(
    release=1, stage="train", round=1, role="local", mechanism="gaussian", sensitivity=0.5, sigma=1.5,
    noise_multiplier=3.0, planned=10, sampling={"kind": "all"}, epsilon={"local": 1.25, "proxy": math.inf}, delta=1e-5,
    relation="add-remove", unit="client", time="2026-01-01T00:00:00+00:00", private=True,
)


def changed(**values):
    return LedgerLine(**LINE.model_dump() | values)


def written(path, count):
    ledger = Ledger(path)
    for number in range(1, count + 1):
        ledger.append(changed( release=number))
    return path


def unlinked(lines):
    """The lines as they were before a ledger took them."""
    return tuple(line.model_copy(update={"previous": None}) for line in lines)


def head_of(path):
    return path.with_suffix(".head")


def sha(raw):
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_round_trip(path):
    first = Ledger(path)
    assert first.lines == ()
    assert not path.exists()
    first.append(LINE)
    sampled = changed( release=2, role="proxy+local", sampling={"kind": "poisson", "rate": 0.25})
    first.append(sampled)
    assert [json.loads(text)["epsilon"] for text in path.read_text().splitlines()] == [{"local": 1.25, "proxy": None}] * 2
    again = Ledger(path)
    assert again.lines == first.lines
    assert unlinked(again.lines) == (LINE, sampled)
    assert again.events("local") == [Event(3.0), Event(3.0, 0.25)]
    assert again.events("proxy") == [Event(3.0, 0.25)]
    assert again.events("split") == []
    accountant = Accountant(1e-5, {"local": 9.0, "proxy": 9.0})
    again.replay(accountant)
    assert dict(accountant.events("local")) == {Event(3.0): 1, Event(3.0, 0.25): 1}
    assert dict(accountant.events("proxy")) == {Event(3.0, 0.25): 1}


def test_synchronised_before_append_returns(path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    ledger = Ledger(path)
    head = [f"{head_of(path)}.tmp", str(path.parent)]
    ledger.append(LINE)
    assert synced == [*head, str(path), str(path.parent), *head]
    ledger.append(changed( release=2))
    assert synced[6:] == [str(path), *head]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_torn_last_line_is_set_aside(path, cut):
    head = head_of(written(path, 2)).read_bytes()
    Ledger(path).append(changed( release=3))
    head_of(path).write_bytes(head)  # a crash within the third line: its head was not written yet
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    path.write_bytes(data[: start + cut])
    ledger = Ledger(path)
    assert [line.release for line in ledger.lines] == [1, 2]
    assert path.read_bytes() == data[:start]
    assert path.with_suffix(".torn").read_bytes() == data[start : start + cut] + b"\n"
    ledger.append(changed( release=3))
    assert [line.release for line in Ledger(path).lines] == [1, 2, 3]


def test_a_last_line_that_is_whole_and_not_sound_is_an_error_and_stays(path):
    first, last = written(path, 2).read_bytes().splitlines(keepends=True)
    data = first + last.replace(b'"gaussian"', b'"not-installed"').rstrip(b"\n")
    path.write_bytes(data)
    with pytest.raises(PrivacyError, match="not-installed"):
        Ledger(path)
    assert path.read_bytes() == data


def test_whole_line_without_line_feed_is_kept(path):
    data = written(path, 2).read_bytes()
    path.write_bytes(data[:-1])
    ledger = Ledger(path)
    assert len(ledger.lines) == 2
    assert path.read_bytes() == data
    ledger.append(changed( release=3))
    assert len(Ledger(path).lines) == 3


def edit(number, old, new):
    def apply(lines):
        assert old in lines[number]
        return [*lines[:number], lines[number].replace(old, new), *lines[number + 1 :]]

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[1:], lambda lines: [lines[0], lines[2]], lambda lines: lines[:1] * 2,
        lambda lines: [lines[0], "", *lines[1:]], lambda lines: [lines[0], lines[1][:50], lines[2]],
        lambda lines: [lines[0], "\0" * 9, lines[2]], lambda lines: ["[]", *lines[1:]],
        edit(2, '"sigma": 1.5', '"sigma": NaN'), edit(2, '"sigma": 1.5', '"sigma": 9.5'),
        edit(0, '"sensitivity": 0.5', '"sensitivity": 1e999'), edit(0, '"delta": 1e-05', '"delta": Infinity'),
        edit(1, '"round": 1', '"round": NaN'), edit(1, '"noise_multiplier": 3.0', '"noise_multiplier": "3"'),
        edit(1, '"local": 1.25', '"local": -1'), edit(1, '"kind": "all"', '"kind": "poisson"'),
        edit(1, '"private": true', '"other": true'), edit(1, '"relation": "add-remove"', '"relation": "none"'),
    ],
)
def test_damage_elsewhere_raises_and_nothing_is_rewritten(path, damage):
    lines = written(path, 3).read_text().splitlines()
    text = "".join(f"{line}\n" for line in damage(lines))
    path.write_text(text)
    with pytest.raises(PrivacyError):
        Ledger(path)
    assert path.read_text() == text
    assert not path.with_suffix(".torn").exists()


def test_numbers_must_follow(path):
    for target in (path, None):
        ledger = Ledger(target)
        with pytest.raises(PrivacyError, match="1 is expected"):
            ledger.append(changed( release=2))
        ledger.append(LINE)
        with pytest.raises(PrivacyError, match="2 is expected"):
            ledger.append(LINE)
        assert len(ledger.lines) == 1


def test_two_writers_are_noticed(path):
    one, two = Ledger(path), Ledger(path)
    one.append(LINE)
    with pytest.raises(PrivacyError, match="another run"):
        two.append(LINE)
    assert len(Ledger(path).lines) == 1
    path.unlink()
    with pytest.raises(PrivacyError):
        one.append(changed( release=2))


def test_failed_write_stops_all_later_ones(path, monkeypatch):
    ledger = Ledger(path)
    ledger.append(LINE)

    def full(fd):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        ledger.append(changed( release=2))
    monkeypatch.undo()
    with pytest.raises(PrivacyError, match="a write failed"):
        ledger.append(changed( release=2))
    assert len(ledger.lines) == 1
    assert len(Ledger(path).lines) == 2  # what may be on disk is counted when the run resumes


@pytest.mark.parametrize(
    "change",
    [
        dict(sigma=1.0), dict(sensitivity=0.0, sigma=0.0), dict(noise_multiplier=math.nan), dict(planned=math.inf),
        dict(release=0), dict(epsilon={"local": math.nan}), dict(sampling={"kind": "poisson", "rate": 2.0}),
        dict(noise_multiplier=-3.0, sigma=-1.5), dict(unit="record"), dict(mechanism="laplace"),
    ],
)
def test_impossible_lines_cannot_be_made(change):
    with pytest.raises(PrivacyError):
        changed( **change)


# --- the chain ------------------------------------------------------------------------------------------------------


def test_every_line_holds_the_hash_of_the_line_before_it(path):
    written(path, 3)
    raw = path.read_bytes().splitlines()
    head = json.loads(head_of(path).read_text())
    assert [json.loads(line)["previous"] for line in raw] == [first_link(head["run"]), sha(raw[0]), sha(raw[1])]
    assert head == {"run": head["run"], "lines": 3, "hash": sha(raw[2])}
    assert Ledger(path).head == LedgerHead(**head)
    assert Ledger(path).chained


def test_two_ledgers_of_equal_lines_are_two_chains(tmp_path):
    one, two = (written(tmp_path / name / "ledger.jsonl", 2) for name in ("one", "two") if not (tmp_path / name).mkdir())
    assert json.loads(one.read_bytes().splitlines()[0])["previous"] != json.loads(two.read_bytes().splitlines()[0])["previous"]


def rewrite(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def consistent(raw, **values):
    """An edit after which the line agrees with itself."""
    return json.dumps(json.loads(raw) | values).encode()


def rechained(path, lines, run):
    """Lines whose chain was made anew, as somebody would who knows how."""
    link, made = first_link(run), []
    for line in lines:
        made.append(consistent(line, previous=link))
        link = sha(made[-1])
    rewrite(path, made)


TAMPERING = {
    "cut": lambda path, lines, run: rewrite(path, lines[:2]),
    "emptied": lambda path, lines, run: rewrite(path, []),
    "deleted": lambda path, lines, run: path.unlink(),
    "cut within the last line": lambda path, lines, run: path.write_bytes(path.read_bytes()[:-9]),
    "edited": lambda path, lines, run: rewrite(path, [lines[0], consistent(lines[1], sigma=1500.0, noise_multiplier=3000.0), *lines[2:]]),
    "last line edited": lambda path, lines, run: rewrite(path, [*lines[:3], consistent(lines[3], sigma=1500.0, noise_multiplier=3000.0)]),
    "edited and chained anew": lambda path, lines, run: rechained(
        path, [consistent(line, sigma=1500.0, noise_multiplier=3000.0) for line in lines], run),
    "cut in front and chained anew": lambda path, lines, run: rechained(
        path, [consistent(line, release=i) for i, line in enumerate(lines[1:], start=1)], run),
    "reordered": lambda path, lines, run: rewrite(
        path, [consistent(lines[i], release=k) for k, i in enumerate((1, 0, 2, 3), start=1)]),
    "chain taken out": lambda path, lines, run: rewrite(
        path, [json.dumps({k: v for k, v in json.loads(line).items() if k != "previous"}).encode() for line in lines]),
    "chain taken out of the last line": lambda path, lines, run: rewrite(
        path, [*lines[:3], json.dumps({k: v for k, v in json.loads(lines[3]).items() if k != "previous"}).encode()]),
    "head deleted": lambda path, lines, run: head_of(path).unlink(),
    "head damaged": lambda path, lines, run: head_of(path).write_text("{"),
    "two lines more": lambda path, lines, run: rechained(
        path, [*lines, consistent(lines[3], release=5), consistent(lines[3], release=6)], run),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_ledger_that_was_changed_does_not_fit_its_head(path, how):
    written(path, 4)
    run = json.loads(head_of(path).read_text())["run"]
    TAMPERING[how](path, path.read_bytes().splitlines(), run)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for repair in (True, False):
        with pytest.raises(PrivacyError, match=r"restore|malformed"):
            Ledger(path, repair=repair)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before, "a refusal changes nothing"


@pytest.mark.parametrize("also_head", [False, True])
def test_another_runs_ledger_is_refused(tmp_path, also_head):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (written(tmp_path / name / "ledger.jsonl", 3) for name in ("one", "two"))
    known = Ledger(one).head
    one.write_bytes(two.read_bytes())
    if also_head:
        head_of(one).write_bytes(head_of(two).read_bytes())
        with pytest.raises(PrivacyError, match="another run"):
            Ledger(one).hold_against(known, "the checkpoint")
    else:
        with pytest.raises(PrivacyError, match="does not follow"):
            Ledger(one)


def test_what_was_noted_earlier_is_a_beginning_of_the_ledger(path):
    known = [Ledger(path).head]
    Ledger(path).begin()
    known = [Ledger(path).head]
    for number in range(1, 4):
        Ledger(path).append(changed(release=number))
        known.append(Ledger(path).head)
    ledger = Ledger(path)
    for head in known:
        ledger.hold_against(head, "the checkpoint")
    for wrong, message in ((known[3].model_copy(update={"hash": known[2].hash}), "another line 3"),
                           (known[2].model_copy(update={"lines": 4}), "expected at least 4"),
                           (known[2].model_copy(update={"run": "0" * 32}), "another run")):
        with pytest.raises(PrivacyError, match=message):
            ledger.hold_against(wrong, "the checkpoint")


def test_a_ledger_that_was_begun_and_then_deleted_is_missed(path):
    first = Ledger(path)
    first.begin()
    known = first.head
    assert known.lines == 0
    head_of(path).unlink()
    with pytest.raises(PrivacyError, match="deleted"):
        Ledger(path).hold_against(known, "the checkpoint")


def test_a_line_whose_head_a_crash_kept_from_being_written_is_counted(path):
    written(path, 2)
    head = head_of(path).read_bytes()
    Ledger(path).append(changed(release=3))
    head_of(path).write_bytes(head)
    again = Ledger(path)
    assert len(again.lines) == 3
    again.begin()
    assert json.loads(head_of(path).read_text())["lines"] == 3


def old(path, count):
    """A ledger of a version without hashes."""
    path.write_bytes(b"".join(changed(release=number).encoded() for number in range(1, count + 1)))
    return path


def test_a_ledger_of_an_earlier_version_is_read_and_goes_on_chained(path):
    ledger = Ledger(old(path, 2))
    assert unlinked(ledger.lines) == ledger.lines
    assert not ledger.chained
    assert not head_of(path).exists()
    ledger.append(changed(release=3))
    again = Ledger(path)
    assert [line.previous is None for line in again.lines] == [True, True, False]
    assert not again.chained
    lines = path.read_bytes().splitlines()
    rewrite(path, [consistent(lines[0], sigma=1500.0, noise_multiplier=3000.0), *lines[1:]])
    with pytest.raises(PrivacyError, match="does not follow"):
        Ledger(path)


def test_reading_a_ledger_changes_no_file(path):
    written(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert len(Ledger(path, repair=False).lines) == 2
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_ledger_and_head_are_the_owners_alone_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        written(path, 2)
    finally:
        os.umask(before)
    path.chmod(0o644)
    head_of(path).chmod(0o644)
    Ledger(path).append(changed(release=3))
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {"ledger.jsonl": 0o600, "ledger.head": 0o600}
