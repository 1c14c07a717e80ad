"""The one replacement of a file and the one durable append."""

from __future__ import annotations

import errno
import os

import pytest

from aulait.core.files import append_durably, replace_file


def refuse(_descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def synced(monkeypatch):
    found, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (found.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    return found


def test_a_replaced_file_and_its_name_are_on_disk(tmp_path, synced):
    path = tmp_path / "a.json"
    assert replace_file(path, b"one") == path
    assert replace_file(path, b"two").read_bytes() == b"two"
    assert synced == [f"{path}.tmp", str(tmp_path)] * 2
    assert replace_file(path, b"three", durable=False).read_bytes() == b"three"
    assert len(synced) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = replace_file(tmp_path / "a", b"one")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_new_file_has_its_mode(tmp_path, mode):
    before = os.umask(0o022)
    try:
        append_durably(tmp_path / "log", b"x\n", mode=mode)
        replace_file(tmp_path / "whole", b"x", mode=mode)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("log", "whole")} == {mode}


def test_an_appended_line_is_on_disk_and_so_is_the_name_of_a_new_file(tmp_path, synced):
    path = tmp_path / "log"
    append_durably(path, b"one\n")
    append_durably(path, b"two\n")
    assert synced == [str(path), str(tmp_path), str(path)]
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_write_in_pieces_is_whole(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    append_durably(tmp_path / "log", b"a longer line\n")
    assert (tmp_path / "log").read_bytes() == b"a longer line\n"


@pytest.mark.parametrize(("undo", "left"), [(True, b"one\n"), (False, b"one\ntwo\n")])
def test_a_failed_append_is_taken_back_when_asked(tmp_path, monkeypatch, undo, left):
    path = tmp_path / "log"
    append_durably(path, b"one\n")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        append_durably(path, b"two\n", undo=undo)
    assert path.read_bytes() == left
