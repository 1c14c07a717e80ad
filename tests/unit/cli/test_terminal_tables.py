"""Tables in a narrow terminal: whole columns are left out, no number and no word is broken."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from aulait.cli import app, terminal

WIDTHS = (60, 80, 120)
WORDS = st.text("abcdefgh", min_size=1, max_size=12)
CELLS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@given(rows=st.integers(2, 7).flatmap(
           lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=2, max_size=5)),
       width=st.integers(30, 140))
@settings(deadline=None, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_word_stays_whole_and_every_line_fits(
        rows: list[list[str]], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    head, *body = rows
    capsys.readouterr()
    terminal.table("t", head, body, width=width)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    printed = {word for line in lines for word in line.replace(",", " ").replace(";", " ").split()}
    for row in rows:
        for cell in row[:2]:
            assert set(cell.split()) <= printed


def test_a_number_is_never_broken_at_its_blank(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table("t", ("name", "size"), [("a long name of a thing", "1,234.5 MB")], right=(1,),
                   width=22)
    assert "1,234.5 MB" in capsys.readouterr().out


def test_columns_come_back_with_room(capsys: pytest.CaptureFixture[str]) -> None:
    head, row = ("first", "second", "third"), ("a" * 20, "b" * 20, "c" * 20)
    terminal.table("t", head, [row], width=50)
    narrow = capsys.readouterr().out
    terminal.table("t", head, [row], width=70)
    wide = capsys.readouterr().out
    assert "c" * 20 not in narrow
    assert "left out of a narrow terminal: third" in narrow
    assert "c" * 20 in wide
    assert "left out" not in wide


@pytest.mark.parametrize("width", WIDTHS)
def test_the_catalogue_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= width


def test_names_from_files_do_not_steer_the_terminal(capsys):
    name = "ward\x1b[31m\x9b2J\r\u202eneo"
    terminal.fail(f"no client '{name}'")
    terminal.note(name)
    terminal.say(name)
    terminal.table(name, ("client",), [(name,)])
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "ward?[31m?2J??neo" in text
        assert not set(text) & set("\x1b\x9b\r\u202e")
