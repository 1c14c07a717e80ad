"""Whatever stands in a file: what comes of it is a value or an AulaitError, and nothing else."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests import tiny_run

from aulait.core.errors import AulaitError
from aulait.core.seeds import Seeds
from aulait.data.client_data import load_clients
from aulait.data.config import DataConfig
from aulait.models.gguf_file import converted
from aulait.models.read_back import load_adapter
from aulait.privacy.ledger import Ledger
from aulait.privacy.ledger_line import LedgerLine
from aulait.runs.experiment_file import Settings, build_settings, read_settings

LEAVES = (st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats()
          | st.text(max_size=6) | st.sampled_from(["auto", "-1", "", "../x", "nan", "all"]))
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=5), inner, max_size=3), max_leaves=5)
TABLES = {name: sorted(getattr(field.annotation, "model_fields", None) or ["name", "rank", "weights"])
          for name, field in Settings.model_fields.items()}
PLACES = st.sampled_from([(table, key) for table, keys in TABLES.items() for key in keys])
# AULAIT_FUZZ=50 takes fifty times as many; a failure is kept and tried first the next time
QUICK = settings(max_examples=60 * int(os.environ.get("AULAIT_FUZZ", "1")), deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def tree(tmp_path):
    tiny_run.write_data(tmp_path)
    return json.loads(tiny_run.settings(tmp_path).model_dump_json())


@QUICK
@given(changes=st.lists(st.tuples(PLACES, JUNK), min_size=1, max_size=3), whole=st.booleans())
@example(changes=[(("algorithm", "name"), [])], whole=False)
@example(changes=[(("algorithm", "name"), None)], whole=False)
def test_settings(tree, changes, whole):
    own = dict(tree)
    for (table, key), value in changes:
        if whole:
            own[table] = value
        elif isinstance(own.get(table), dict):
            own[table] = own[table] | {key: value}
    with suppress(AulaitError):
        assert isinstance(build_settings(own), Settings)


@QUICK
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(raw=b"[run]\nname = 1e999\n")
@example(raw=b"privacy = 3\n")
@example(raw=b"\xff\xfe[run]")
def test_an_experiment_file(tmp_path, raw):
    file = tmp_path / "experiment.toml"
    file.write_bytes(raw)
    with suppress(AulaitError):
        read_settings(file)


ROLES = st.sampled_from(["user", "assistant", "system", "tool", "", 3, None])
TURN = st.fixed_dictionaries({"role": ROLES, "content": JUNK}) | JUNK
ROW = st.dictionaries(st.sampled_from(["client", "text", "prompt", "response", "messages", "label"]),
                      JUNK | st.lists(TURN, max_size=4), max_size=5)


@QUICK
@given(rows=st.lists(ROW, max_size=4), tail=st.binary(max_size=12),
       form=st.sampled_from(["auto", "text", "pairs", "chat"]),
       ending=st.sampled_from(["jsonl", "json", "csv", "txt", "parquet"]))
def test_rows(rows, tail, form, ending):
    with tempfile.TemporaryDirectory() as name:
        source, public = Path(name) / f"data.{ending}", Path(name) / "public.txt"
        lines = [json.dumps(row) for row in rows]
        text = f"[{','.join(lines)}]" if ending == "json" else "".join(f"{x}\n" for x in lines)
        source.write_bytes(text.encode() + tail)
        public.write_text("A text.\nAnother one.\n")
        config = DataConfig(source=str(source), public=str(public), format=form, min_records=1)
        with suppress(AulaitError):
            corpus = load_clients(config, Seeds(1))
            assert corpus.clients


@QUICK
@given(raw=st.binary(max_size=200), version=st.integers(0, 5), tensors=st.integers(0, 2**63),
       keys=st.integers(0, 2**63))
def test_a_gguf_file(tmp_path, monkeypatch, raw, version, tensors, keys):
    monkeypatch.setenv("AULAIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + raw)
    with pytest.raises(AulaitError):
        converted(file)


LINE = {"release": 1, "stage": "train", "round": 1, "role": "local", "mechanism": "gaussian",
        "sensitivity": 1.0, "sigma": 2.0, "noise_multiplier": 2.0, "planned": 3,
        "sampling": {"kind": "all"}, "epsilon": {"local": 1.0}, "delta": 1e-5,
        "relation": "add-remove", "unit": "client", "time": "", "private": True, "steps": 1}


@QUICK
@given(changes=st.dictionaries(st.sampled_from(sorted(LINE)), JUNK | st.sampled_from(
    ["banded:3", "banded:", "banded:0", "gaussian:1"]), max_size=3), cut=st.integers(0, 400))
@example(changes={"sampling": {"kind": "turns", "turn": 9, "cohorts": 3}}, cut=400)
def test_a_ledger(tmp_path, changes, cut):
    raw = json.dumps(LINE | changes, default=str).encode()[:cut]
    with suppress(AulaitError):
        LedgerLine.decoded(raw)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(raw)
    with suppress(AulaitError):
        Ledger(path, repair=False)


@QUICK
@given(weights=st.binary(max_size=80), config=JUNK)
def test_an_adapter_folder(tmp_path, weights, config):
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=str))
    with pytest.raises(AulaitError):
        load_adapter(tmp_path)
