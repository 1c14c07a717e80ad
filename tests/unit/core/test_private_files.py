"""What is private is its owner's alone, whatever the umask, also where it is written again."""

import os

import pytest

from aulait.core.files import PUBLIC, append_durably, private_folder, replace_file
from aulait.engines.deployment.site import kept_state


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_new_files_and_folders_are_private(tmp_path, umask):
    folder = private_folder(tmp_path / "one")
    append_durably(folder / "log", b"x\n")
    replace_file(folder / "whole", b"x")
    assert [mode(path) for path in (folder, folder / "log", folder / "whole")] == [0o700, 0o600,
        0o600]


def test_what_was_open_to_all_is_closed_when_it_is_written_again(tmp_path, umask):
    folder = tmp_path / "one"
    folder.mkdir()
    folder.chmod(0o755)
    # the last is what a crash of an earlier version left
    for name in ("log", "whole", "whole.tmp"):
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
        (folder / name).chmod(0o644)
    append_durably(private_folder(folder) / "log", b"x\n")
    replace_file(folder / "whole", b"x")
    assert [mode(path) for path in (folder, folder / "log", folder / "whole")] == [0o700, 0o600,
        0o600]
    assert not (folder / "whole.tmp").exists()


def test_what_a_site_remembers_is_private(tmp_path, umask):
    folder = private_folder(tmp_path / "runs") / "run"
    folder.mkdir()
    folder.chmod(0o755)
    kept_state._write(folder / "kept.safetensors", b"x")
    assert [mode(folder), mode(folder / "kept.safetensors")] == [0o700, 0o600]


def test_a_page_to_hand_on_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "page", b"x", mode=PUBLIC)
    finally:
        os.umask(before)
    assert mode(tmp_path / "page") == 0o640
