"""JSON, TOML, tensors and paths of others: whatever they hold, one kind of error, and never a
later one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aulait.core.errors import DataError
from aulait.core.parsing import DEEPEST, BeyondLimitsError, parsed_json, parsed_toml
from aulait.core.places import is_file, is_folder, is_there, user_path
from aulait.core.reading import read_json, read_json_object
from aulait.core.tensor_file import read_arrays, read_tensor_file, read_tensor_head

SOURCE = Path(__file__).parents[3] / "src" / "aulait"
BROKEN_JSON = ["", "{", "[1,]", b"\xff\xfe{", b'{"a": "\xff"}', "nul"]
BEYOND_JSON = [
    "[" * 100_000,
    "[" * 500 + "]" * 500,
    '{"a":' * 500 + "1" + "}" * 500,
    f'{{"a": {"9" * 5000}}}',
    f"[{2**64}]",
    f"[-{10**400}]",
]
BROKEN_TOML = ["a = ", b"a = \xff", "a = 1\na = 2"]
BEYOND_TOML = [
    f"a = {'[' * 5000}",
    f"a = {'[' * 150}{']' * 150}",
    f"a = {'9' * 5000}",
    f"a = 0x{'f' * 5000}",
    f"a = {2**64}",
    f"{'.'.join('a' * 200)} = 1",
    f"[{'.'.join('a' * 2000)}]",
]


@pytest.mark.parametrize("text", BROKEN_JSON + BEYOND_JSON, ids=lambda text: repr(text[:12]))
def test_json_that_cannot_be_used(text):
    with pytest.raises(BeyondLimitsError if text in BEYOND_JSON else ValueError):
        parsed_json(text)


@pytest.mark.parametrize("text", BROKEN_TOML + BEYOND_TOML, ids=lambda text: repr(text[:12]))
def test_toml_that_cannot_be_used(text):
    with pytest.raises(BeyondLimitsError if text in BEYOND_TOML else ValueError):
        parsed_toml(text)


def test_what_can_be_used_is_what_the_parsers_say():
    for value in ({"a": [1, -2.5, None, True, "[" * 300]}, 2**64 - 1, -(2**64) + 1, [[[]] * 300]):
        assert parsed_json(json.dumps(value)) == value
        assert parsed_json(json.dumps(value).encode()) == value
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parsed_json(deep) == json.loads(deep)
    assert parsed_toml("a = [[1], [{b = 0xff}]]\nc.d = 1979-05-27")["a"] == [[1], [{"b": 255}]]
    assert parsed_json("[NaN]")[0] != parsed_json("[NaN]")[0]
    with pytest.raises(ValueError, match="finite"):
        parsed_json("[NaN]", finite=True)


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json cannot be read \(No such file"):
        read_json(path, DataError, "numbers")
    path.write_text("[1]")
    assert read_json(path, DataError, "numbers") == [1]
    with pytest.raises(DataError, match="holds list, expected an object: numbers"):
        read_json_object(path, DataError, "numbers")


def test_tensors_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(6.0)}, path, metadata={"told": "yes"})
    found, head = read_tensor_file(path)
    assert torch.equal(found["x"], torch.arange(6.0))
    assert head == read_tensor_head(path) == {"told": "yes"}
    whole = path.read_bytes()
    for raw in (
        b"",
        whole[:4],
        whole[:-1],
        whole + b"1",
        b"\xff" * 64,
        whole.replace(b"F32", b"F99"),
        whole.replace(b'"x"', b'"\xff"'),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError):
            read_tensor_file(path)
    with pytest.raises(ValueError):
        read_tensor_file(tmp_path / "gone")


def test_arrays_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(300))
    assert read_arrays(path)["x"].sum() == 300 * 299 // 2
    whole = path.read_bytes()
    broken = [
        b"",
        whole[:40],
        whole[:-30],
        b"PK" + whole,
        *(
            whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
            for at in range(0, len(whole), 7)
        ),
    ]
    refused = 0
    for raw in broken:
        path.write_bytes(raw)
        try:
            read_arrays(path)
        except ValueError:
            refused += 1
    assert refused >= len(broken) // 2
    np.savez(path, x=np.array([object()], dtype=object))
    with pytest.raises(ValueError):
        read_arrays(path)


def test_paths_that_cannot_be_lead_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    for text in ("~nobody-of-this-name/x", "a" * 5000, "a\0b", "~a\0b"):
        assert str(user_path(text)) == text
        assert [is_file(user_path(text)), is_folder(text), is_there(text)] == [False] * 3
    assert is_folder(tmp_path)
    assert is_there(tmp_path)


# what a library made a moment ago, or what ships with the package, or travels where only these
# bytes may be imported
OWN_TEXTS = {
    "core/parsing.py",
    "core/places.py",
    "core/tensor_file.py",
    "data/builtin.py",
    "cli/listing.py",
    "cli/written_help.py",
    "cli/demo.py",
    "models/word_counts.py",
    "models/gguf_tokens.py",
    "runs/planned_run.py",
    "engines/flower/hardening/patching.py",
    "engines/flower/demo.py",
    "synthesis/corpus_index.py",
}


def test_every_reader_is_one_of_these():
    raw = re.compile(
        r"json\.loads?\(|tomllib\.loads?\(|\bsafe_open\(|\bload_file\(|np\.load\(|\.expanduser\("
    )
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if raw.search(path.read_text())
    }
    assert found - OWN_TEXTS == set(), (
        "read what others wrote with core/reading, core/tensor_file and core/places"
    )
