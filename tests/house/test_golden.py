"""The golden comparison notices what differs, and nothing in two recordings of one checkout."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tests.house import golden, golden_read

ROOT = Path(__file__).resolve().parents[2]


def safetensors(path: Path, name: str, *numbers: float) -> None:
    """A file with one tensor of float32 numbers, by hand."""
    size = 4 * len(numbers)
    entry = {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [0, size]}
    head = json.dumps({"__metadata__": {"format": "pt"}, name: entry}).encode()
    path.write_bytes(
        struct.pack("<Q", len(head)) + head + struct.pack(f"<{len(numbers)}f", *numbers)
    )


def run(folder: Path) -> Path:
    """A run folder with a little of everything that is compared."""
    (folder / "adapter").mkdir(parents=True)
    safetensors(folder / "adapter" / "adapter_model.safetensors", "layer.lora_B", 1.0, 2.0)
    (folder / "machine.json").write_text('{"threads": 1}')
    (folder / "config.toml").write_text("[train]\nrounds = 2\n")
    (folder / "result.json").write_text('{"time": {"wall_s": 3.5}, "eval": {"loss": 4.25}}')
    (folder / "rounds.jsonl").write_text('{"round": 1, "wall_s": 0.1, "update_norm": 0.5}\n')
    return folder


def recorded(folder: Path, source: Path) -> Path:
    """A recording of one run folder."""
    folder.mkdir()
    (folder / "golden.json").write_text(
        json.dumps({"runs": {"one": golden_read.run_folder(source)}})
    )
    return folder


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_two_runs_that_differ_in_times_alone_are_equal(tmp_path, capsys):
    before, after = run(tmp_path / "a"), run(tmp_path / "b")
    change(after / "result.json", "3.5", "7.25")
    change(after / "rounds.jsonl", "0.1", "0.2")
    one, two = recorded(tmp_path / "one", before), recorded(tmp_path / "two", after)
    assert golden.main(["compare", str(one), str(two)]) == 0
    assert "DIFFERS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "path"),
    [
        ("result.json", "4.25", "4.250000000000001", "result.json/eval/loss"),
        ("result.json", "3.5", "null", "result.json/time/wall_s"),
        ("rounds.jsonl", "0.5}", '0.5, "late": 0}', "rounds.jsonl/0/late"),
        ("config.toml", "rounds = 2", "rounds = 2.0", "config.toml/train/rounds"),
        ("machine.json", "threads", "cores", "keys of machine.json"),
    ],
)
def test_a_changed_value_or_key_is_named(tmp_path, capsys, file, old, new, path):
    before, after = run(tmp_path / "a"), run(tmp_path / "b")
    change(after / file, old, new)
    one, two = recorded(tmp_path / "one", before), recorded(tmp_path / "two", after)
    assert golden.main(["compare", str(one), str(two)]) == 1
    told = capsys.readouterr().out
    assert f"DIFFERS  runs/one/{path}\n" in told
    assert "\n1 difference between" in told


def test_the_last_bit_of_a_tensor_is_noticed(tmp_path, capsys):
    before, after = run(tmp_path / "a"), run(tmp_path / "b")
    path = after / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 2.0000002))
    one, two = recorded(tmp_path / "one", before), recorded(tmp_path / "two", after)
    assert golden.main(["compare", str(one), str(two)]) == 1
    assert "adapter_model.safetensors/layer.lora_B\n" in capsys.readouterr().out


def test_a_new_file_is_noticed_and_a_meant_key_does_not_count(tmp_path, capsys):
    before, after = run(tmp_path / "a"), run(tmp_path / "b")
    change(after / "result.json", '{"time', '{"schema_version": 1, "time')
    one, two = recorded(tmp_path / "one", before), recorded(tmp_path / "two", after)
    assert golden.main(["compare", str(one), str(two)]) == 0
    assert "meant, 1 times: a run folder" in capsys.readouterr().out
    assert golden.main(["compare", str(two), str(one)]) == 1  # only its arrival is meant
    (after / "notes.txt").write_text("more")
    assert golden.main(["compare", str(one), str(recorded(tmp_path / "three", after))]) == 1


def test_the_numbers_of_a_page_without_its_words():
    text = (
        "<main><p>It took 1\u202f024 B and ε = 8.00.</p><section id='cost'><td>−3</td></section>"
        '<script type=\'application/json\' id=\'figures\'>{"a": [1, "red", {"x": "y", "z": [2.5]}]}'
        "</script><script>let a = 7</script></main>"
    )
    page = golden_read.Page(text)
    assert page.numbers == {"opening": ["1\u202f024", "8.00"], "cost": ["−3"]}
    assert page.figures == {"a": [1, {"z": [2.5]}]}


@pytest.mark.slow
def test_a_run_recorded_twice_is_equal_and_one_with_another_noise_is_not(tmp_path):
    """Records this checkout; ``golden both`` compares with another one."""
    out = tmp_path / "out"
    assert golden.main(["both", str(ROOT), str(ROOT), str(out), "--only", "ffa-noise"]) == 0
    same = json.loads((out / "new" / "golden.json").read_text())
    checkout = golden.Checkout(ROOT, tmp_path / "other")
    change(checkout.folder / "ffa-noise.toml", "noise_seed = 11", "noise_seed = 12")
    assert [*golden.inline(checkout, ["ffa-noise"])] == ["run ffa-noise"]
    checkout.close()
    other = {path.split("/")[2] for path, *_ in golden.differences(same, checkout.golden)}
    assert {"adapter", "config.toml", "result.json", "rounds.jsonl"} <= other
    assert "ledger.jsonl" not in other  # noise of the same size was spent
    with pytest.raises(SystemExit, match="not empty"):
        golden.main(["record", str(ROOT), str(out)])
