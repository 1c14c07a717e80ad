"""A ledger that survives crashes and refuses to be edited."""

import json
import math
import os

import pytest

from aulait.core.errors import PrivacyError
from aulait.privacy.accounting import Accountant, Event
from aulait.privacy.ledger import Ledger
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
    assert again.lines == first.lines == (LINE, sampled)
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
    ledger.append(LINE)
    assert synced == [str(path), str(path.parent)]
    ledger.append(changed( release=2))
    assert synced[2:] == [str(path)]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_torn_last_line_is_set_aside(path, cut):
    data = written(path, 3).read_bytes()
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
