"""Sites that mean harm to the run: what they send is left out and named, and the others lose nothing by it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run
from tests.flower.attacker import ADAPTER, CACHE, base
from tests.flower.local_transport import LocalTransport, deploy, site
from tests.flower.wire import made, remade, seen, with_tensors

from aulait.core import lora
from aulait.core.errors import AulaitError, WireError
from aulait.core.factors import Trainable
from aulait.core.log_files import plain_text
from aulait.core.seeds import Seeds
from aulait.engines.deployment.coordinator.remote_split import (
    RemoteClients,
    RemoteFront,
    RemoteSplitLearner,
)
from aulait.engines.deployment.protocol import messages
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.models import loading
from aulait.training import split_model
from aulait.training.activation_codec import Activations
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

NAMES = [f"c{k}" for k in range(6)]
EVIL = NAMES[2:]
DEEP = b'{"kind":"refusal","reason":' + b"[" * 700 + b"]" * 700 + b"}"


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["client"] in NAMES]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, {name: [row for row in rows if row["client"] == name] for name in NAMES}


def raw_head(head: bytes):
    """An answer whose head is these bytes, written by hand."""
    return packet_bytes(Packet(head))


def listed(table, data: bytes = b""):
    """A body by hand: safetensors' list of tensors and their numbers."""
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_body(answer, body: bytes):
    return packet_bytes(Packet(seen(answer).packet.head, body))


FAULTS = [
    ("NaN", lambda a, _: with_tensors(a, lambda t: torch.full_like(t, float("nan")))),
    ("another shape", lambda a, _: with_tensors(a, lambda t: torch.zeros(3, 3))),
    ("whole numbers", lambda a, _: with_tensors(a, lambda t: t.to(torch.int64))),
    ("far too long", lambda a, _: with_tensors(a, lambda t: t + 1e30)),
    ("no tensors", lambda a, _: with_body(a, b"")),
    ("another's name", lambda a, _: remade(a, client="c0")),
    ("another message", lambda a, asked: remade(a, number=asked.head["number"] + 1)),
    ("another run", lambda a, _: remade(a, run="f" * 32)),
    ("more than it sent", lambda a, _: with_body(a, listed({"000000||x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(8)))),
    ("overflow of a shape", lambda a, _: with_body(a, listed({"000000||x": {"dtype": "F32", "shape": [2**52, 2**52, 0], "data_offsets": [0, 0]}}))),
    ("a weight of 400 digits", lambda a, _: raw_head(json.dumps(seen(a).head | {"weight": 0}).encode().replace(
        b'"weight": 0', b'"weight": ' + b"9" * 400))),
    ("info that is no number", lambda a, _: remade(a, info={"x": "<script>"})),
    ("a head 700 deep", lambda a, _: raw_head(DEEP)),
    ("garbage", lambda a, _: b"\0" * 4000),
    ("cut", lambda a, _: a[:-7]),
    ("changed", lambda a, _: a[:-7] + bytes(7)),
    ("a refusal that steers the terminal", lambda a, asked: packet_bytes(
        messages.refusal(asked.stamp, "\x1b[2J\x1b]0;owned\x07 all is well\n[red]error").packet())),
    ("scores instead of an update", lambda a, asked: packet_bytes(made({"kind": "scores", **asked.stamp.fields, "client": seen(a).head["client"],
                                                                        "sums": [0.0, 1.0, 1.0]}))),
    ("sixty-four megabytes", lambda a, _: with_body(a, bytes(2**26))),
    ("nothing", lambda a, _: None),
    ("a kind that is no word", lambda a, _: with_body(a, listed({"000000||x": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))),
    ("a shape that is no list", lambda a, _: with_body(a, listed({"000000||x": {"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}}, bytes(4)))),
    ("a tensor that is a number", lambda a, _: with_body(a, listed({"000000||x": 7}))),
    ("a head that is a list", lambda a, _: raw_head(b"[]")),
]
SCORES = [{"sums": [1e308, 1e308, 1e-300]}, {"sums": "x"}, {"sums": None, "task": {"count": "many", "x": []}}, {"sums": [-1.0, 0, 0]}]


def run(places, name, fault, **tables):
    folder, own = places
    lines: list = []
    handlers = {client: SiteHandler(site(folder / name, client, rows), lambda event, **fields: lines.append(event), CACHE) for client, rows in own.items()}
    settings = tiny_run.settings(
        folder, **{"federation": {"tier": [{"name": "gpu", "clients": NAMES, "placement": "local"}]}, "algorithm": {"name": "fedit"},
                   "engine": {"name": "flower", "threads": 1, "wait_s": 5.0, "deadline_s": 0.2},
                   "train": {"rounds": 6, "steps": 1, "batch": 2, "rows_at_once": 2}, "evaluate": {"records_per_client": 1, "every": 6}} | tables)
    result = deploy(LocalTransport(handlers, fault), settings, folder / name, folder / name / "run")
    return result, load_file(folder / name / "run" / "adapter" / "adapter_model.safetensors")


def test_evil_sites_are_left_out_and_named_and_the_others_are_as_if_they_had_dropped_out(places):
    done = []

    def evil(name, asked, answer):
        if name not in EVIL:
            return answer
        if asked.kind == "evaluate":
            return remade(answer, **SCORES[EVIL.index(name)])
        if asked.kind != "train":
            return answer
        number = (asked.head["round"] - 1) * len(EVIL) + EVIL.index(name)
        done.append((name, asked.head["round"], FAULTS[number][0]))
        return FAULTS[number][1](answer, asked)

    def silent(name, asked, answer):
        return None if name in EVIL and asked.kind in ("train", "evaluate") else answer

    found, adapter = run(places, "evil", evil)
    expected, other = run(places, "silent", silent)
    assert len(done) == len(FAULTS) == 24
    assert adapter.keys() == other.keys()
    for name in adapter:
        assert torch.equal(adapter[name], other[name]), name
    assert found["eval"]["loss"] == pytest.approx(expected["eval"]["loss"], rel=1e-5), "scores that cannot be are not counted"
    folder = places[0] / "evil" / "run"
    told = [json.loads(line) for line in (folder / "serve" / "log.jsonl").read_text().splitlines()]
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    accused = {(line["site"]) for line in told if line["event"] in ("silent", "refused")}
    left_out = [entry for line in rounds for entry in line.get("info", line).get("refused_clients", [])]
    assert accused == set(EVIL)
    # Every fault is told once: by the journal where a message could not be read, by the round where a share is not sound.
    requests = [line for line in told if line["event"] in ("silent", "refused")]
    assert len(requests) + len(left_out) >= len(FAULTS)
    assert not any(honest_one in json.dumps(requests) + json.dumps(left_out) for honest_one in ("'c1'", '"c1"'))
    raw = (folder / "serve" / "log.jsonl").read_bytes() + (folder / "serve" / "sites.json").read_bytes()
    assert b"\x1b" not in raw


@pytest.mark.parametrize("private", [False, True])
def test_what_a_site_tells_of_itself_changes_neither_the_run_nor_its_record(places, private):
    """Diagnostics by the names of the coordinator's own, and one that stands for a split model, which privacy forbids."""
    tables = {"train": {"rounds": 2, "steps": 1, "batch": 2, "rows_at_once": 2}}
    if private:
        tables |= {"privacy": {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 1.0,
                               "delta_acknowledged": True}, "algorithm": {"name": "ffa"}}
    lies = {"wire_up_bytes": 0, "wire_down_bytes": 1e9, "refused": 7, "refused_clients": 0, "stage": 0.5, "round": 9, "epsilon": 0}

    def lying(name, asked, answer):
        return remade(answer, info=lies) if name in EVIL and asked.kind == "train" else answer

    expected, honest = run(places, "honest", lambda name, asked, answer: answer, **tables)
    found, adapter = run(places, "lying", lying, **tables)
    assert private or all(torch.equal(adapter[name], honest[name]) for name in honest)
    lines = [[json.loads(line) for line in (places[0] / who / "run" / "rounds.jsonl").read_text().splitlines()] for who in ("honest", "lying")]
    drawn = ("eval", "noise_std", "signal_to_noise", "update_norm") if private else ("eval",)  # the noise is the system's
    plain = [[{key: value for key, value in line.items() if key not in ("wall_s", "train_loss", "train_tokens", *drawn)} for line in own]
             for own in lines]
    assert plain[0] == plain[1]
    assert found["traffic"]["up_bytes"] == expected["traffic"]["up_bytes"]


def test_a_site_that_refuses_is_told_in_one_harmless_line(places):
    def refuses(name, asked, answer):
        words = "\x1b[2J\x1b]0;owned\x07 line\nline " + "x" * 10_000
        return packet_bytes(messages.refusal(asked.stamp, words).packet()) if (name, asked.kind) == ("c3", "terms") else answer

    with pytest.raises(AulaitError) as stopped:
        run(places, "refused", refuses)
    text = str(stopped.value)
    assert text.startswith("site 'c3': ")
    assert text.isprintable()
    assert len(text) < 600


def test_texts_of_strangers_are_made_plain():
    assert plain_text("a\x1b[31mb\nc\u202ed\ud800") == "a?[31mb?c?d?"
    assert plain_text(["x"]) == "no text"
    assert len(plain_text("x" * 9999)) == 500


@pytest.mark.parametrize("told", [
    {}, {"square": torch.full((1,), float("nan"))}, {"square": torch.zeros(2, 2)}, {"sent/data": torch.zeros(2, 3, 5), "sent/labels": torch.zeros(2, 3)},
    {"sent/data": torch.full((2, 3, 288), float("inf")), "sent/labels": torch.zeros(2, 3, dtype=torch.int32)},
    {"sent/data": torch.zeros(2, 3, 288), "sent/labels": torch.full((2, 3), 10**6, dtype=torch.int32)},
    {"sent/data": torch.zeros(2, 3, 288), "sent/labels": torch.zeros(9, 9, dtype=torch.int32)},
    {"sent/data": torch.zeros(2, 3, 288, dtype=torch.float16), "sent/unit": torch.full((1,), float("inf")),
     "sent/labels": torch.zeros(2, 3, dtype=torch.int32)},
    {"sent/data": torch.full((2, 3, 288), 9.0, dtype=torch.float16), "sent/unit": torch.full((1,), 3e38),
     "sent/labels": torch.zeros(2, 3, dtype=torch.int32)},
    {"sent/data": torch.zeros(()), "sent/labels": torch.zeros(())}, {"sent/labels": torch.zeros(2, 3, dtype=torch.int32)},
])
def test_what_a_split_site_sends_is_looked_at_before_it_meets_the_model(told):
    learner = Learner(base(), TrainConfig())
    width = split_model.hidden_width(base())
    told = {name: t if t.shape[-1:] != (288,) else t.new_full((*t.shape[:-1], width), float(t.flatten()[0])) for name, t in told.items()}
    start = lora.initial(loading.targets(base(), ADAPTER), 1, ADAPTER.alpha, Seeds(1))
    work = LocalTraining(start, (), Trainable.AB, 2, 2, 1e-3, 1)
    clients = RemoteClients(["c0", "c1"], 1, lambda name: {"run": "a" * 32, "epoch": 1, "number": 1, "client": name, "terms": ""},
                            lambda sent: {name: told for name in sent})
    halves = RemoteSplitLearner(learner, 2, "float32", clients)
    front = RemoteFront(halves, [work, work], ["c0", "c1"], clients)
    sent = front.forward(0)
    assert set(halves.lost) == {"c0", "c1"}
    assert all("does not fit" in reason for reason in halves.lost.values()), "the operator is told why"
    assert all(bool(torch.isfinite(own.hidden["data"]).all()) for own in sent)
    assert isinstance(sent[0], Activations)


def test_an_answer_beyond_the_limit_is_not_read():
    large = packet_bytes(made({"kind": "update"}, bytes(2000)))
    with pytest.raises(WireError, match="expected at most 1,000"):
        packet_from(large, 1000)
