"""Files that a run, a site or a user left damaged: one AulaitError, nothing begun anew in their
place, nothing changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests import tiny_run

from aulait.core.errors import (
    AulaitError,
    ConfigError,
    DataError,
    ModelError,
    PrivacyError,
    WireError,
)
from aulait.data import sources
from aulait.data.config import DataConfig
from aulait.data.source_row import Asked
from aulait.engines.deployment.coordinator.deployed_run import _written_records, _written_roll
from aulait.engines.deployment.protocol import receipts
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.messages import Stamp
from aulait.engines.deployment.site import site_file
from aulait.engines.deployment.site.kept_state import KeptState, read_kept_state
from aulait.engines.deployment.site.old_accounts import take_over
from aulait.models import exported, named
from aulait.privacy.ledger import Ledger
from aulait.resources.profiles import load_profile
from aulait.runfolder.finished_ledger import check_finished
from aulait.runfolder.run_folder import RunFolder
from aulait.runs.experiment_file import build_settings, read_settings
from aulait.runs.progress import Progress
from aulait.synthesis.corpus_index import load as load_clusters

DEEP, LONG = "[" * 50_000, "9" * 5000
SITE = '[site]\nname = "a"\nserver = "h:9443"\n[data]\nsource = "notes.jsonl"\n'


def kept_site(tmp_path):
    """A site's memory of a run, as it writes it, and its file."""
    kept = KeptState(
        tmp_path / "runs" / "r",
        memory={"x": torch.arange(4.0), "n": {"y": 2}},
        before={(0, 1): {"x": torch.ones(2)}},
    )
    kept.done(Stamp("r", 1, 3), "asked", Packet(b"{}"))
    return kept.folder / "kept.safetensors"


def rewritten(path, **changes):
    """A file of tensors with other texts in its head."""
    with safe_open(path, framework="pt") as file:
        tensors, head = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (key,) = head
    save_file(tensors, path, metadata={key: json.dumps(json.loads(head[key]) | changes)})


def test_a_sites_memory(tmp_path):
    path = kept_site(tmp_path)
    found = read_kept_state(tmp_path, "r")
    assert (found.epoch, found.number, found.asked, found.memory["n"]) == (1, 3, "asked", {"y": 2})
    assert torch.equal(found.before[0, 1]["x"], torch.ones(2))
    whole = path.read_bytes()
    for changes in (
        {"memory": {"now": {"tensor": 99}}},
        {"memory": 3},
        {"memory": {"now": 3}},
        {"rounds": [[1]]},
        {"rounds": 3},
        {"key": ["a", 1]},
        {"epoch": None},
        {"number": "x"},
        {"rounds": [[[], 1]]},
    ):
        path.write_bytes(whole)
        rewritten(path, **changes)
        with pytest.raises(WireError, match="is damaged"):
            read_kept_state(tmp_path, "r")
    for raw in (whole[:-3], b"", b"\0" * 40, whole.replace(b'\\"asked', b'\\"aksed')):
        path.write_bytes(raw)
        with pytest.raises(WireError, match="is damaged"):
            read_kept_state(tmp_path, "r")


def checkpointed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin("", {}, False)
    folder.append({"stage": "train", "round": 1})
    Progress(stage="train", place=1).save(folder)
    return folder, folder.path / "checkpoint" / "state.safetensors"


def test_a_checkpoint(tmp_path):
    folder, path = checkpointed(tmp_path)
    assert Progress.load(folder).stage == "train"
    whole = path.read_bytes()
    for changes in (
        {"lines": "x"},
        {"lines": None},
        {"stage": "other", "place": None} | {"memory": 1},
        {"texts": 3},
        {"texts": [[3]]},
        {"synthesis": 3},
        {"synthesis": {"pool": []}},
        {"memory": {"c": {"tensor": 4}}},
        {"trained": None, "memory": {"c": 1}},
    ):
        path.write_bytes(whole)
        rewritten(path, **changes)
        with pytest.raises(DataError, match="is no checkpoint of a run"):
            Progress.load(folder)
    path.write_bytes(whole)
    rewritten(path, ledger={"run": 3})
    with pytest.raises(PrivacyError, match="no head"):
        Progress.load(folder)
    lines = (folder.path / "rounds.jsonl").read_bytes()
    for raw in (
        b"",
        whole[:-1],
        whole[:30],
        b"\xff" * 99,
        whole.replace(b'\\"memory\\"', b'\\"mem0ry\\"'),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="is no checkpoint of a run"):
            Progress.load(folder)
        assert (folder.path / "rounds.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    "line",
    [b"{", DEEP.encode(), b"3", b"\xff", b'{"a": ' + LONG.encode() + b"}"],
    ids=["cut", "deep", "number", "bytes", "digits"],
)
def test_lines_of_a_run(tmp_path, line):
    folder, _ = checkpointed(tmp_path)
    path = folder.path / "rounds.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(DataError, match="line 1 is no JSON"):
        folder.restore()
    (folder.path / "result.json").write_bytes(line)
    with pytest.raises(DataError, match=r"result\.json"):
        folder.result()
    with pytest.raises(PrivacyError):
        check_finished(
            folder.path,
            {"privacy": {"off": False, "ledger": {"run": "0" * 32, "lines": 0, "hash": "0" * 64}}},
        )


@pytest.mark.parametrize(
    "tail",
    [DEEP, '{"release": ' + LONG + "}", "[" * 500 + "]" * 500],
    ids=["deep", "digits", "closed"],
)
def test_an_end_of_a_ledger_that_may_be_a_line_is_never_cut_off(tmp_path, tail):
    path = tmp_path / "ledger.jsonl"
    path.write_text(tail)
    with pytest.raises(PrivacyError, match="line 1 is malformed"):
        Ledger(path)
    assert path.read_text() == tail
    path.write_text(tail + "\n")
    with pytest.raises(PrivacyError, match="line 1 is malformed"):
        Ledger(path)
    (tmp_path / "ledger.head").write_text(tail)
    with pytest.raises(PrivacyError, match="no head"):
        Ledger(path)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "[]",
        '{"privacy": {"off": false, "unit": "record", "delta": ' + LONG + "}}",
        '{"privacy": []}',
        '{"privacy": {"off": false, "unit": "client", "epsilon": null, "delta": 1e-5, "noise_multiplier": 1}}',
    ],
    ids=["deep", "list", "digits", "table", "lacking"],
)
def test_the_terms_of_an_old_run_are_never_taken_for_none(tmp_path, text):
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "terms.json").write_text(text)
    (folder / "kept.safetensors").write_bytes(b"")
    with pytest.raises(PrivacyError, match="cannot be read"):
        take_over(tmp_path, "notes.jsonl")
    assert not (tmp_path / "account").exists()


def test_what_a_server_notes_of_a_run(tmp_path):
    server_app = pytest.importorskip("aulait.engines.flower.server_app")
    path = tmp_path / "serve" / "run.json"
    path.parent.mkdir()
    for text in (
        DEEP,
        "[]",
        "{}",
        '{"run": "a", "epoch": "x"}',
        '{"run": 3, "epoch": 1}',
        "{",
        '{"run": "a", "epoch": ' + LONG + "}",
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"run\.json"):
            server_app.enter(tmp_path, True)
        assert path.read_text() == text
    path.write_text('{"run": "a", "epoch": 4}')
    assert server_app.enter(tmp_path, True) == ("a", 5)
    for text in (DEEP, "[]", '{"a": "x"}', "{"):
        path.write_text(text)
        for read in (_written_roll, _written_records):
            with pytest.raises(DataError, match=r"run\.json"):
                read(path)


def test_clusters_of_a_corpus(tmp_path):
    path = tmp_path / "clusters.npz"
    sound = {
        "labels": np.array([0, 1, 0], np.uint32),
        "centroids": np.eye(2, 4, dtype=np.float16),
        "names": np.array(["d", "e"]),
        "asked": np.array(2),
    }
    np.savez(path, **sound)
    assert load_clusters(path).labels.tolist() == [0, 1, 0]
    whole = path.read_bytes()
    for raw in (b"", whole[:50], whole[:-5], b"no zip"):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="remove it"):
            load_clusters(path)
    for name, value in (
        ("labels", np.array([0, 2])),
        ("labels", np.array("x")),
        ("labels", np.array([[0]])),
        ("centroids", np.eye(2, dtype=int)),
        ("centroids", np.zeros(3)),
        ("centroids", np.full((2, 2), np.nan)),
        ("centroids", np.zeros((0, 4))),
        ("names", np.array(["d"])),
        ("names", np.array(3)),
        ("asked", np.array([1, 2])),
        ("asked", np.array("x")),
    ):
        np.savez(path, **(sound | {name: value}))
        with pytest.raises(DataError, match="remove it"):
            load_clusters(path)
    np.savez(path, labels=sound["labels"])
    with pytest.raises(DataError, match="remove it"):
        load_clusters(path)


@pytest.mark.parametrize(
    "text",
    [
        f"a = {DEEP}",
        f"[run]\nseed = {LONG}",
        f"[run]\nseed = 0x{'f' * 5000}",
        f"[{'.'.join('a' * 2000)}]",
    ],
    ids=["deep", "digits", "hex", "dotted"],
)
def test_settings_and_site_files(tmp_path, text):
    path = tmp_path / "a.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_settings(path)
    with pytest.raises(ConfigError):
        site_file.read(path)
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.toml"):
        exported.settings(tmp_path)


@pytest.mark.parametrize(
    "text", [DEEP, LONG, '{"memory_bytes": ' + LONG + "}"], ids=["deep", "digits", "field"]
)
def test_a_machine_profile(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_profile(path)


PLACES = [
    "~nobody-of-this-name/a.jsonl",
    "/" + "a" * 5000 + ".jsonl",
    "a" * 5000,
    "a\0b.jsonl",
    "~nobody-of-this-name/*.jsonl",
]


@pytest.mark.parametrize("place", PLACES, ids=["nobody", "long", "name", "zero", "pattern"])
def test_paths_that_users_write(tmp_path, place):
    tiny_run.write_data(tmp_path)
    tree = json.loads(tiny_run.settings(tmp_path).model_dump_json())
    for table, key in (
        ("data", "source"),
        ("data", "public"),
        ("model", "name"),
        ("evaluate", "tasks_folder"),
        ("synthesis", "generator"),
    ):
        for value in (place, place.replace(".jsonl", ".gguf"), f"hf:{place}"):
            try:
                build_settings({**tree, table: {**tree[table], key: value}})
            except AulaitError:
                continue
    with pytest.raises(AulaitError):
        list(sources.rows(place))
    with pytest.raises(ConfigError):
        read_settings(tmp_path / place if "\0" not in place else tmp_path / "gone")
    with pytest.raises((ModelError, DataError)):
        named.folder_of(
            place.replace(".jsonl", ".gguf")
            if "gguf" in place.replace(".jsonl", ".gguf")
            else place + ".gguf"
        )
    path = tmp_path / "site.toml"
    path.write_text(SITE.replace("notes.jsonl", place) if "\0" not in place else SITE)
    path.chmod(0o600)
    assert site_file.absent(site_file.read(path))
    if "\0" not in place:
        path.write_text(SITE + f'[keys]\nprivate = "{place}"\n')
        site = site_file.read(path)
        assert len(site_file.absent(site)) == 5
        assert receipts.identity("a", site.keys.private) is None


@pytest.mark.parametrize("header", ['"a"b,text', '"te"xt'], ids=["tail", "within"])
def test_a_header_that_is_no_csv(tmp_path, header):
    path = tmp_path / "data.csv"
    path.write_text(header + "\nx,a text\ny,another\n")
    for read in (sources.field_names, lambda *asked: list(sources.rows(*asked))):
        with pytest.raises(DataError, match="header is not CSV"):
            read(str(path), Asked(fields=("text",)))
    with pytest.raises(ConfigError, match="header is not CSV"):
        build_settings({"data": DataConfig(source=str(path)).model_dump()})
