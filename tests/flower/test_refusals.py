"""What a site refuses, and how little it says: a coordinator, a neighbour or a user of the machine who means harm."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flower import attacker
from tests.flower.attacker import PRIVATE, RUN, SECRETS, Attacker

from aulait.core.errors import DeviceError, WireError
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import envelope, signing, tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.deployment.protocol.tensor_codec import Stamp
from aulait.engines.deployment.site import local_socket, worker
from aulait.engines.deployment.site import site_file as site_files
from aulait.engines.flower import flwr_records

SOURCE = Path(envelope.__file__).parents[2]


@pytest.fixture
def enemy(tmp_path):
    return Attacker(tmp_path)


# Whose order it is


def test_an_order_without_the_coordinators_signature_is_refused(enemy, tmp_path):
    keys.server(tmp_path / "other", ["localhost"])
    stranger = signing.load_private(tmp_path / "other" / "order-key.pem")
    hello = Packet({"kind": "hello", **enemy.stamp().head(), "client": "ward", "version": 1})
    good = enemy.signed(hello)
    for forged in (hello, enemy.signed(hello, stranger), Packet(hello.head, b"", good.signature[:-1]), Packet(hello.head, b"", bytes(64)),
                   Packet({**hello.head, "version": 2}, b"", good.signature), Packet(hello.head, b"more", good.signature)):
        enemy.refused(enemy.resident.answer(forged), "not signed by the coordinator")
    assert enemy.resident.answer(good).kind == "facts"
    assert not enemy.resident._runs, "nothing was loaded"


def test_a_signed_order_for_another_client_and_of_an_unknown_kind_is_refused(enemy):
    for client in ("ward-b", "", None, "*", ["ward"]):
        enemy.refused(enemy.ask(Packet({"kind": "brief", **enemy.stamp().head(), "client": client, "brief": {}})), "for another client")
    enemy.refused(enemy.ask(Packet({"kind": "health", **enemy.stamp().head(), "client": "ward"})), "of kind 'health'")
    enemy.refused(enemy.ask(Packet({"kind": "rm -rf", **enemy.stamp().head(), "client": "ward"})), "of kind 'rm -rf'")


def test_a_head_or_a_body_that_changed_on_the_way_is_refused(enemy):
    assert enemy.tell().kind == "accepted"
    sent = enemy.signed(enemy.order())
    for changed in (Packet({**sent.head, "settings": {"lr": 1.0}}, sent.body, sent.signature),
                    Packet({**sent.head, "round": 2}, sent.body, sent.signature),
                    Packet(sent.head, sent.body[:-1] + b"\x01", sent.signature), Packet(sent.head, b"", sent.signature)):
        enemy.refused(enemy.resident.answer(changed), "not signed")
    assert enemy.resident.answer(sent).kind == "reply"


def test_an_old_message_is_not_worked_on_again(enemy):
    enemy.tell()
    first = enemy.signed(enemy.order(stamp=Stamp(RUN, 2, 5)))
    answer = enemy.resident.answer(first)
    assert answer.kind == "reply"
    again = enemy.resident.answer(first)
    assert envelope.dumps(again) == envelope.dumps(answer)
    assert enemy.lines[-1]["event"] == "repeated"
    other = enemy.resident.answer(enemy.signed(enemy.order(stamp=Stamp(RUN, 2, 5), lr=50.0)))
    enemy.refused(other, "is past")  # a repeated number with another body is no repetition
    for past in (Stamp(RUN, 2, 4), Stamp(RUN, 1, 99)):
        enemy.refused(enemy.resident.answer(enemy.signed(enemy.order(stamp=past))), "is past")
    enemy.restart()
    assert envelope.dumps(enemy.resident.answer(first)) == envelope.dumps(answer), "also after the site has started anew"
    enemy.refused(enemy.resident.answer(enemy.signed(enemy.order(stamp=Stamp(RUN, 1, 99)))), "is past")


# What a run is


def test_a_run_has_one_brief(enemy):
    enemy.refused(enemy.ask(enemy.order()), "send its brief")
    assert enemy.tell().kind == "accepted"
    enemy.refused(enemy.tell(rounds=99), "told another brief before")
    order = enemy.order()
    for brief in ("", "0" * 64, None, 7):
        enemy.refused(enemy.ask(Packet({**order.head, "brief": brief}, order.body)), "by another brief")
    enemy.restart()
    enemy.refused(enemy.tell(rounds=99), "told another brief before")


@pytest.mark.parametrize("path", ["../../own.jsonl", "/etc/passwd", "own.jsonl\0", "~/notes.jsonl", "hf:some/dataset", "."])
def test_no_path_of_a_brief_is_followed(enemy, tmp_path, path):
    before = sorted(tmp_path.rglob("*"))
    enemy.refused(enemy.tell(model__name=path), "model", "asked for")
    enemy.refused(enemy.tell(embedder=path, votes=True, synthesis_rounds=1), "embedder", "asked for")
    enemy.refused(enemy.tell(client=path), "this site is 'ward'")
    enemy.refused(enemy.tell(run=path), "not sound")
    enemy.refused(enemy.tell(algorithm={"name": path}))
    enemy.refused(enemy.tell(data={"source": path}), "not sound")
    enemy.refused(enemy.tell(source=path), "not sound")
    with pytest.raises(WireError, match="stamp"):
        enemy.ask(Packet({"kind": "brief", "run": path, "epoch": 1, "number": 1, "client": "ward", "brief": attacker.told()}))
    assert not enemy.resident._runs, "nothing was loaded"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tensor_named_as_a_path_goes_nowhere(enemy, tmp_path):
    enemy.tell()
    before = {path for path in tmp_path.rglob("*") if "state" not in path.parts}
    for name in ("../../x.A", "/tmp/x.B", "a\0b"):
        answer = enemy.ask(enemy.order(tensors=attacker.start() | {name: torch.zeros(1, 1)}))
        assert answer.kind in ("reply", "refusal")
        attacker.silent(answer)
    assert {path for path in tmp_path.rglob("*") if "state" not in path.parts} == before


@pytest.mark.parametrize(("limits", "changes", "words"), [
    ({"roles": ["proxy"]}, {}, "role 'local'"),
    ({"roles": ["local"]}, {"placement": "split"}, "role 'split'"),
    ({"roles": ["local"]}, {"placement": "proxy", "votes": True, "synthesis_rounds": 1}, "role 'proxy'"),
    ({"roles": ["local"]}, {"votes": True, "synthesis_rounds": 1}, "votes asked for"),
    ({"methods": ["ffa"]}, {}, "method 'fedit'"),
    ({"privacy": True}, {}, "demands privacy"),
    ({"privacy": True}, {"privacy": PRIVATE | {"noise_seed": 3}}, "noise_seed"),
    ({"privacy": True}, {"privacy": PRIVATE, "votes": True, "exact_votes": True, "synthesis_rounds": 1}, "exact"),
    ({"privacy": True, "roles": ["local", "proxy", "split"]}, {"placement": "split"}, "demands privacy"),
    ({"privacy": True}, {"privacy": PRIVATE, "algorithm": {"name": "flora"}}, "'flora'"),
    ({"privacy": True, "epsilon": 1.0}, {"privacy": PRIVATE | {"noise_multiplier": None, "epsilon": 2.0}}, "privacy.epsilon"),
    ({"privacy": True, "epsilon": 1.0}, {"privacy": PRIVATE | {"noise_multiplier": 0.5}}, "amounts to epsilon"),
    ({"privacy": True, "delta": 1e-6}, {"privacy": PRIVATE}, "privacy.delta"),
    ({"privacy": True, "units": ["record"]}, {"privacy": PRIVATE}, "privacy.unit"),
    ({"records": 2}, {}, "records_per_client"),
    ({"rounds": 2}, {}, "rounds"),
    ({"rounds": 4}, {"votes": True, "synthesis_rounds": 5}, "synthesis_rounds"),
    ({"steps": 1}, {"steps": 2}, "steps"),
    ({"batch": 1}, {}, "batch"),
    ({"rank": 1}, {"rank": 2}, "rank"),
    ({"rank": 1}, {"adapter__rank": 2}, "rank"),
    ({"rank": 1}, {"ranks": {"a": 9}}, "rank"),
])
def test_a_brief_beyond_a_limit_is_refused_before_anything_is_loaded(tmp_path, limits, changes, words):
    enemy = Attacker(tmp_path, **limits)
    enemy.refused(enemy.tell(**changes), words)
    assert not enemy.resident._runs, "nothing was loaded"
    enemy.refused(enemy.ask(enemy.order()), "send its brief")
    assert not (enemy.file.site.state / "runs").exists()


def test_limits_that_were_lowered_hold_for_a_run_that_goes_on(tmp_path):
    enemy = Attacker(tmp_path)
    assert enemy.tell().kind == "accepted"
    enemy.file = enemy.file.model_copy(update={"limits": enemy.file.limits.model_copy(update={"privacy": True})})
    enemy.restart()
    enemy.refused(enemy.ask(enemy.order()), "demands privacy")


# What an order asks


def test_an_order_beyond_its_brief_is_refused(enemy):
    enemy.tell()
    steep = {name: torch.zeros(5 if name.endswith("A") else t.shape[0], t.shape[1] if name.endswith("A") else 5)
             for name, t in attacker.start().items()}
    nan = {name: torch.full_like(t, float("nan")) for name, t in attacker.start().items()}
    wide = {name: torch.zeros(3, 3) for name in attacker.start()}
    for order, words in (
        (enemy.order("synthesis", tensors={"embeddings": torch.zeros(4, 8)}, neighbours=1), "does not vote"),
        (enemy.order("delete"), "stage"), (enemy.order(round=0), "round"), (enemy.order(round=4), "the brief has 3"),
        (enemy.order(steps=10**6), "steps"), (enemy.order(batch=10**6), "batch"), (enemy.order(rank=10**6), "rank"),
        (enemy.order(lr=1e9), "lr"), (enemy.order(lr=-1.0), "lr"), (enemy.order(more="x" * 20_000), "plain finite"),
        (enemy.order(tensors=steep), "rank 5"), (enemy.order(tensors=nan), "NaN"), (enemy.order(tensors=wide), "does not fit"),
        (Packet({"kind": "split", **enemy.stamp().head(), "client": "ward", "brief": enemy.brief, "stage": "train", "round": 1,
                 "do": "begin", "tensors": []}), "asked for activations"),
    ):
        enemy.refused(enemy.ask(order), words)
    assert enemy.ask(enemy.order()).kind == "reply"


def test_a_proxy_is_not_made_to_train(enemy):
    enemy.tell(placement="proxy", votes=True, synthesis_rounds=1)
    enemy.refused(enemy.ask(enemy.order()), "asked to train")
    vote = enemy.order("synthesis", tensors={"embeddings": torch.randn(4, 8)}, neighbours=1)
    answer = enemy.ask(vote)
    assert answer.kind == "reply", enemy.lines[-1]
    enemy.refused(enemy.ask(enemy.order("synthesis", 2, {"embeddings": torch.randn(4, 8)}, neighbours=1)), "the brief has 1")
    for tensors, neighbours in (({}, 1), ({"embeddings": torch.randn(4)}, 1), ({"embeddings": torch.randn(4, 8)}, 5),
                                ({"embeddings": torch.randn(4, 7)}, 1), ({"embeddings": torch.randn(4, 8), "x": torch.zeros(1)}, 1)):
        enemy.refused(enemy.ask(enemy.order("synthesis", 1, tensors, neighbours=neighbours)))


def test_a_site_that_measures_nothing_says_so_and_a_private_one_keeps_its_scores(tmp_path):
    enemy = Attacker(tmp_path / "a", evaluate=False)
    enemy.tell()

    def asked():
        return Packet({"kind": "evaluate", **enemy.stamp().head(), "client": "ward", "brief": enemy.brief, "what": "base", "round": 0,
                       "stage": "train", "tensors": []})

    enemy.refused(enemy.ask(asked()), "measures nothing")
    enemy = Attacker(tmp_path / "b", privacy=True)
    enemy.tell(privacy=PRIVATE)
    answer = enemy.ask(asked())
    assert set(answer.head) == {"kind", "run", "epoch", "number", "client"}, "no score leaves under privacy"
    assert any(line["event"] == "measured" and line["loss"] > 0 for line in enemy.lines)


def test_split_rounds_end_with_the_brief(tmp_path):
    enemy = Attacker(tmp_path)
    enemy.tell(placement="split")

    def begin(**changes):
        return Packet({"kind": "split", **enemy.stamp().head(), "client": "ward", "brief": enemy.brief, "stage": "train", "round": 1,
                       "do": "begin", "tensors": []} | changes)

    enemy.refused(enemy.ask(begin(round=4)), "outside the 3")
    enemy.refused(enemy.ask(begin(round=0)), "outside the 3")
    enemy.refused(enemy.ask(begin(steps=99)), "other work than the brief")
    enemy.refused(enemy.ask(begin(do="go", step=0)), "not going on here")
    enemy = Attacker(tmp_path / "private", privacy=True)
    enemy.tell(privacy=PRIVATE)
    enemy.refused(enemy.ask(begin()), "without privacy")


# Its own account


RECORD = {"privacy": PRIVATE | {"unit": "record", "noise_multiplier": 2.0}, "algorithm": {"name": "dplora"}}


def noised(enemy, round=1, **changes):
    told = {"mode": "dpsgd", "sigma": 2.0, "clip": 1.0, "protected": True, "most_rate": 1.0, "most_steps": 1} | changes
    return enemy.ask(enemy.order(round=round, **{key: value for key, value in told.items() if value is not None}))


@pytest.mark.parametrize("change", [
    {"sigma": 0.0}, {"sigma": None}, {"sigma": "2"}, {"sigma": True}, {"clip": None}, {"clip": 0.0}, {"clip": 1e-40}, {"clip": 1e30},
    {"protected": False}, {"protected": None}, {"protected": 1}, {"noise_seed": 1}, {"mode": "literal"}, {"most_rate": None},
    {"most_rate": 2.0}, {"sigma": 0.02}, {"sigma": 1.9}, {"clip": 100.0},
])
def test_an_order_with_less_noise_than_promised_is_refused_and_not_charged(tmp_path, change):
    enemy = Attacker(tmp_path, privacy=True, epsilon=8.0)
    assert enemy.tell(**RECORD).kind == "accepted"
    answer = noised(enemy, **change)
    enemy.refused(answer, "failed (PrivacyError); the reason is in the site's own log")
    assert "refused" in enemy.lines[-1]["reason"]
    assert not (enemy.file.site.state / "runs" / RUN / "account.jsonl").exists()


def test_a_site_keeps_its_own_account_until_it_is_spent(tmp_path):
    enemy = Attacker(tmp_path, privacy=True, epsilon=8.0)
    assert enemy.tell(rounds=3, **RECORD).kind == "accepted"
    account, rounds = enemy.file.site.state / "runs" / RUN / "account.jsonl", 0
    while (answer := noised(enemy, round=3)).kind == "reply":  # one round, asked for again and again
        rounds += 1
        assert not answer.head["info"], "under privacy no diagnostics leave"
        assert len(account.read_text().splitlines()) == rounds
        if rounds == 2:
            enemy.restart()
        assert rounds < 100
    enemy.refused(answer, "failed (PrivacyError)")
    assert "would bring this site's records to epsilon" in enemy.lines[-1]["reason"]
    assert rounds == 3, "what was promised was given and no more, though the site's own limit is wider"
    enemy.restart()
    enemy.refused(noised(enemy, round=3), "failed (PrivacyError)")
    account.write_text("{}\n")
    enemy.restart()
    enemy.refused(noised(enemy, round=3), "failed (PrivacyError)")


# Sizes and shapes of messages


def framed(start: bytes, content: bytes = b"", **lengths: int) -> bytes:
    """A packet by hand, its lengths as told."""
    import hashlib

    sizes = [lengths.get("head", len(start)), lengths.get("signature", 0), lengths.get("body", len(content))]
    return envelope.MAGIC + envelope._LENGTHS.pack(*sizes) + hashlib.sha256(start + content).digest() + start + content


@pytest.mark.parametrize(("raw", "words"), [
    (b"", "ended before its head"), (b"GET / HTTP/1.1\r\n" * 10, "no message of aulait"),
    (envelope.MAGIC[:-1] + b"\x09" + bytes(60), "layout 9"), (framed(b"{}", body=2**40), "expected at most"),
    (framed(b"{}", head=2**31), "expected at most"), (framed(b"{}", signature=999), "expected at most"), (framed(b"{}", body=50), "ended early"),
    (framed(b'{"kind":"a"}') + b"x", "behind its end"), (framed(b"{}")[:-1] + b"!", "checksum"), (framed(b"[]"), "no table with a 'kind'"),
    (framed(b'{"kind": 7}'), "no table with a 'kind'"), (framed(b"\xff\xfe"), "no JSON"), (framed(b'{"kind":"a","x":NaN}'), "no JSON"),
    (framed(b'{"kind":"a","x":1e999}'), "no JSON"), (framed(b'{"kind":"a","x":' + b"9" * 400 + b"}"), "no JSON"),
    (framed(b'{"kind":"a","x":' + b"[" * 500 + b"]" * 500 + b"}"), "deep"), (framed(b'{"kind":"a","x":' + b"[" * 99999 + b"}"), "no JSON"),
    (framed(b'{"kind":"a","x":"\\ud800"}'), "no JSON"),
])
def test_bytes_that_are_no_sound_packet_are_refused(raw, words):
    with pytest.raises(WireError, match=words):
        envelope.loads(raw, 10_000_000)


@pytest.mark.parametrize("listed", [
    None, {}, [["a", "float32", [2]]], [["a", "float32", [2**60]]], [["a", "float32", [2**52, 2**52, 0]]], [["a", "object", [1]]],
    [["a", "float32", [-1]]], [["a", "float32", [1.0]]], [["a", "float32", [True]]], [["a", "float32"]], [["a" * 999, "float32", [0]]],
    [["a", "float32", [0]], ["a", "float32", [0]]], [["a", "float32", [0] * 9]], [["a", "float32", [0]]] * 100_001, [[["a"], "float32", [0]]],
    [["a\x1fdata", "int8", [1, 1, 0]], ["a\x1funit", "float32", [0]]],
])
def test_lists_of_tensors_that_do_not_fit_their_bytes_are_refused(listed):
    with pytest.raises(WireError):
        tensor_codec.tensors(listed, b"")


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_a_wire_error_and_nothing_else(raw):
    for given_ in (raw, envelope.MAGIC + raw, framed(raw)):
        with pytest.raises(WireError):
            envelope.loads(given_, 1000)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(["client", "weight", "info", "tensors", "run", "epoch", "number"]), JUNK), st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_reply_of_junk_is_a_wire_error_or_a_reply(head, body):
    try:
        found = tensor_codec.read_reply(Packet({"kind": "reply", **head}, body))
        assert abs(found.weight) <= tensor_codec.LARGEST_NUMBER
        Stamp.of(head)
    except WireError:
        pass


# The worker and its socket


@pytest.fixture
def working(tmp_path):
    """A worker on a real socket, in a thread."""
    enemy = Attacker(tmp_path, message_bytes=1_000_000)
    site_files.own_state(enemy.file)
    stop, lines = threading.Event(), []
    thread = threading.Thread(target=worker.serve, args=(enemy.file, stop, lambda event, **fields: lines.append({"event": event, **fields})))
    thread.start()
    until(lambda: worker.running(enemy.file) is not None)
    yield enemy, worker.socket_path(enemy.file), lines
    stop.set()
    thread.join(10)


def until(true, limit_s=20.0):
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_garbage_on_the_local_socket_ends_a_connection_and_nothing_else(working):
    enemy, path, lines = working
    for raw in (b"", b"\0" * 999, b"GET / HTTP/1.1\r\n\r\n" * 99, framed(b"{}", body=2**50), framed(b'{"kind":"order"}'),
                framed(b"{}", body=2_000_000) + bytes(2_000_000), framed(b'{"kind":"order"}', body=9)):
        before = len(lines)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            try:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass  # it had hung up before all had been sent
        until(lambda before=before: len(lines) > before)
        assert lines[-1]["event"] == "unreadable"
    hello = enemy.signed(Packet({"kind": "hello", **enemy.stamp().head(), "client": "ward", "version": 1}))
    assert local_socket.ask(path, hello, 10**6, 10).kind == "facts"
    forged = local_socket.ask(path, Packet(hello.head), 10**6, 10)
    assert forged.kind == "refusal"
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert oct(path.parent.stat().st_mode & 0o777) == "0o700"


NOBODY = "import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
ASK = NOBODY + "s=socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]); s.sendall(b'x'); sys.exit(len(s.recv(9)))"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as another user")
def test_another_user_of_the_machine_can_neither_ask_nor_answer(working, tmp_path):
    _, path, lines = working
    words = [sys.executable, "-c", ASK, str(path)]
    asked = subprocess.run(words, capture_output=True, text=True)
    assert asked.returncode != 0
    assert "PermissionError" in asked.stderr
    # Were the folders open, the kernel still tells who asks.
    opened = [folder for folder in path.parents if folder != Path("/") and not folder.stat().st_mode & 0o001]
    modes = {folder: folder.stat().st_mode for folder in opened}
    try:
        for folder in opened:
            folder.chmod(0o755)
        path.chmod(0o666)
        subprocess.run(words, capture_output=True, timeout=20)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    until(lambda: any(line["event"] == "intruder" for line in lines))
    # And nobody is taken for the worker who runs under another user.
    place = Path("/tmp") / f"aulait-{os.getpid()}-{time.monotonic_ns() % 10**6}.sock"
    impostor = (NOBODY + "s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(1, flush=True); "
                "c=s.accept()[0]; c.settimeout(3); sys.exit(len(c.recv(9)))")
    process = subprocess.Popen([sys.executable, "-c", impostor, str(place)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline()
        with pytest.raises(DeviceError, match="runs under another user"), local_socket.calling(place, 5):
            pass
        assert process.wait(10) == 0, "not a byte was sent to it"
    finally:
        process.kill()
        process.wait()
        place.unlink(missing_ok=True)


def test_a_socket_in_a_folder_that_others_may_enter_is_refused(tmp_path):
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    with pytest.raises(DeviceError, match="expected 700"), local_socket.listening(open_folder / "w.sock"):
        pass
    assert not list(open_folder.iterdir())


def test_health_is_not_answered_over_the_network(working, monkeypatch):
    pytest.importorskip("flwr")
    from aulait.engines.flower import client_app

    _, path, _ = working
    monkeypatch.setenv("AULAIT_SOCKET", str(path))
    asked = SimpleNamespace(content=flwr_records.records(worker.HEALTH))
    with pytest.raises(WireError, match="came over the network"):
        client_app.query(asked, SimpleNamespace(node_config={}))
    large = SimpleNamespace(content=flwr_records.records(Packet({"kind": "order"}, bytes(100))))
    monkeypatch.setattr(client_app, "LIMIT_BYTES", 50)
    with pytest.raises(WireError, match="expected at most 50"):
        client_app.query(large, SimpleNamespace(node_config={}))


# Nothing of the records is told


BRIEFS = st.fixed_dictionaries({}, optional={
    "rounds": st.integers(-1, 2000), "steps": st.integers(-1, 2000), "batch": st.integers(0, 400), "rank": st.integers(-1, 300),
    "records_per_client": st.integers(0, 3), "holdout": st.floats(0, 1), "too_long": st.sampled_from(["error", "cut", "drop", "x"]),
    "model__context": st.sampled_from([8, 9, 12, 24]), "pairs": st.booleans(), "seed": st.integers(0, 9),
    "fingerprint": st.sampled_from(["0" * 16, attacker.SECRETS[0][:0]]), "algorithm": st.sampled_from([{"name": "ffa"}, {"name": "dplora"}, {}]),
    "privacy": st.sampled_from([PRIVATE, PRIVATE | {"epsilon": 1.0}, PRIVATE | {"unit": "record"}, {"off": True}]),
})
SPOILT = st.sampled_from([
    "", '{"text": "zyxxandra', '{"note": "qvelmoor"}\n', '["brintopax"]\n', '{"text": 7}\n{"text": ["ulvharrow"]}\n', "ospidreth\xff\n",
    '{"text": ""}\n', '{"text": "kwimbleth \ud83d\ude00"}\n' * 3, None])


@given(BRIEFS, SPOILT, st.booleans(), JUNK)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_no_refusal_ever_holds_a_word_of_the_records(tmp_path_factory, changes, spoilt, private, junk):
    enemy = Attacker(tmp_path_factory.mktemp("site"), privacy=private)
    if spoilt is not None:
        Path(enemy.file.data.source).write_bytes(spoilt.encode("utf-8", "surrogatepass") if "\ud83d" not in spoilt else b"x" + spoilt.encode(
            "utf-16", "surrogatepass"))
    for answer in (enemy.tell(**changes), enemy.ask(enemy.order(junk=1.0)), enemy.ask(enemy.order(round=7)),
                   enemy.ask(Packet({"kind": "evaluate", **enemy.stamp().head(), "client": "ward", "brief": enemy.brief, "what": "state",
                                     "round": 1, "tensors": []}))):
        if answer.kind == "refusal":
            attacker.silent(answer)
            assert str(enemy.file.data.source) not in json.dumps(answer.head)


@pytest.mark.parametrize("how", ["error", "drop"])
def test_under_privacy_a_brief_does_not_find_out_how_long_a_record_is(tmp_path, how):
    answers = []
    for name, rows in (("short", [{"text": "a b"}, {"text": "c d"}]), ("long", [{"text": "word " * 200}, {"text": "more " * 300}])):
        enemy = Attacker(tmp_path / name, rows, privacy=True)
        answers.append(envelope.dumps(enemy.tell(privacy=PRIVATE, too_long=how, model__context=8, model__name="brew")))
    assert answers[0] == answers[1]
    assert envelope.loads(answers[0], 10**6).kind == "accepted"


def test_under_privacy_refusals_are_the_same_whatever_the_records_are(tmp_path):
    told = []
    for name, rows in (("one", attacker.ROWS), ("two", [{"text": f"{word} {number}"} for number, word in enumerate(SECRETS * 2)])):
        enemy = Attacker(tmp_path / name, rows, privacy=True)
        enemy.tell(privacy=PRIVATE)
        packets = [enemy.order(round=9), enemy.order(lr="x"), enemy.order(tensors={}), enemy.order(tensors={"x.A": torch.zeros(2, 2)}),
                   Packet({"kind": "evaluate", **enemy.stamp().head(), "client": "ward", "brief": enemy.brief, "what": "adapter",
                           "round": 1, "stage": "train", "tensors": []})]
        told.append([envelope.dumps(enemy.ask(own)) for own in packets])
    assert told[0] == told[1]


def test_nothing_that_arrives_could_be_run():
    """No file of the package unpickles or evaluates; the site's and the server's code are among them."""
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert not banned & {name.partition(".")[0] for name in names}, path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system"), path
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle") != "True", path
            assert given.get("trust_remote_code") != "True", path
            assert given.get("shell") != "True", path
