"""What travels to a site once and stays there: the basis of cores. A site that lacks it says so, is sent it, and is asked again."""

from __future__ import annotations

import json

import pytest
import torch
from tests import tiny_run
from tests.closeness import assert_same_adapters
from tests.flower import attacker
from tests.flower.local_transport import LocalTransport, deploy, site
from tests.flower.test_every_method import adapter
from tests.flower.wire import made

from aulait.core import lora
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter
from aulait.engines.deployment.protocol import tensor_codec
from aulait.engines.deployment.protocol.messages import digest_of
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.inline import InlineEngine
from aulait.methods import cores
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.training.public_basis import random_basis

CACHE = SharedCache()
CLIENTS = ("c0", "c1", "c2")


def deployed(tmp_path, *, spoil=None, out="away", **algorithm):
    """A run of four rounds at three sites; ``spoil`` is called before every message that asks c0 to train."""
    tiny_run.write_data(tmp_path)
    rows = [row for row in map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()) if row["client"] in CLIENTS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "algorithm": {"name": "cores", **algorithm},
            "train": {"rounds": 4, "steps": 1, "batch": 2, "rows_at_once": 2}, "evaluate": {"every": 4, "records_per_client": 1}}
    handlers = {name: SiteHandler(site(tmp_path, name, [row for row in rows if row["client"] == name]), lambda event, **fields: None) for name in CLIENTS}
    post = LocalTransport(handlers)
    send = post.send

    def spoiling(address, packet, body, wait_s):
        head = json.loads(packet.head)
        if spoil is not None and head["kind"] == "train" and head["client"] == "c0":
            spoil(head["round"], tmp_path / "c0" / "state" / "runs" / ("a" * 32))
        return send(address, packet, body, wait_s)

    post.send = spoiling
    deploy(post, tiny_run.settings(tmp_path, **told, engine={"name": "flower", "threads": 1, "wait_s": 5.0}), tmp_path, tmp_path / out)
    loop.run(tiny_run.settings(tmp_path, **told), tmp_path / f"{out}-here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    assert_same_adapters(adapter(tmp_path / f"{out}-here"), adapter(tmp_path / out))
    return post


def sent(post, kind):
    return [(name, packet) for name, packet in post.asked if packet.kind == kind]


@pytest.mark.parametrize("renew", [0, 2])
def test_a_basis_travels_once_and_requests_hold_cores_alone(tmp_path, renew):
    post = deployed(tmp_path, renew=renew)
    assert [name for name, _ in sent(post, "keep")] == [*CLIENTS] * (2 if renew else 1)
    for _, packet in sent(post, "train"):
        assert all(name.endswith(".R") and tensor.shape == (1, 1) for name, tensor in packet.tensors.items())
        assert "kept" in packet.head["settings"]
    for _, packet in sent(post, "keep"):
        assert {name.partition("/")[0] for name in packet.tensors} <= {"basis", "past"}


def test_a_site_that_lost_or_damaged_its_basis_is_sent_it_again(tmp_path):
    def spoil(round, folder):
        for path in folder.glob("public-*.bin"):
            if round == 2:
                path.unlink()
            elif round == 3 and not (folder / "spoilt").exists():
                path.write_bytes(path.read_bytes()[:-1])
                (folder / "spoilt").touch()

    post = deployed(tmp_path, spoil=spoil)
    names = [name for name, _ in sent(post, "keep")]
    assert names.count("c1") == names.count("c2") == 1
    assert names.count("c0") >= 3


@pytest.fixture
def enemy(tmp_path):
    made = attacker.Attacker(tmp_path)
    assert made.tell(algorithm={"name": "cores"}).kind == "accepted"
    return made


SHAPES = attacker.targets(attacker.base(), attacker.ADAPTER)


def request(enemy, kept=None, **more):
    zero = {f"{layer}.R": torch.zeros(1, 1) for layer in SHAPES}
    return enemy.request(tensors=zero | more, **({} if kept is None else {"kept": kept}))


def keep(enemy, tensors, **changes):
    body = tensor_codec.pack_tensors(tensors).raw
    answer = enemy.ask(made({"kind": "keep", **enemy.address(), "round": 1} | changes, body))
    return answer, digest_of(body)


def basis(change=lambda t: t):
    vectors = Adapter(random_basis(SHAPES, 1, Seeds(0)), 1.0)
    return {name: change(t) for name, t in lora.tagged(cores.BASIS, lora.to_tensors(vectors)).items()}


def test_a_site_trains_in_the_basis_that_it_was_sent(enemy):
    answer, digest = keep(enemy, basis())
    assert answer.kind == "accepted"
    answer = enemy.ask(request(enemy, digest))
    assert answer.kind == "update", enemy.lines[-1]
    assert {name: tuple(t.shape) for name, t in answer.tensors.items()} == {f"{layer}.R": (1, 1) for layer in SHAPES}


def test_tensors_that_a_site_does_not_have_are_asked_for_and_no_path_is_followed(enemy, tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"ulvharrow")
    for name in ("0" * 64, "../../../secret", "/etc/passwd", "", 7, ["x"], None):
        answer = enemy.ask(request(enemy, name) if name is not None else request(enemy, {"a": 1}))
        enemy.refused(answer, "does not have")
        assert answer.head["why"] == "kept"


def test_a_basis_that_does_not_fit_is_refused(enemy):
    for change, words in ((lambda t: torch.full_like(t, float("nan")), "NaN"), (lambda t: torch.zeros(3, 3), "does not fit")):
        _, digest = keep(enemy, basis(change))
        enemy.refused(enemy.ask(request(enemy, digest)), words)
    enemy.refused(enemy.ask(request(enemy)))  # without any basis, which the method itself finds
    _, digest = keep(enemy, basis())
    enemy.refused(enemy.ask(request(enemy, digest, **{f"{min(SHAPES)}.R": torch.zeros(1, 2)})), "does not fit")
    enemy.refused(enemy.ask(request(enemy, digest, **{f"{min(SHAPES)}.R": torch.zeros(2, 2)})), "rank 2")
    assert enemy.ask(request(enemy, digest)).kind == "update"


def test_tensors_of_a_run_that_is_not_known_or_by_other_terms_are_refused(enemy):
    answer, _ = keep(enemy, basis(), run="c" * 32)
    enemy.refused(answer, "not known")
    answer, _ = keep(enemy, basis(), terms="other")
    enemy.refused(answer, "other terms")
    answer, digest = keep(enemy, {"basis/x.A": torch.zeros(1)})
    assert answer.kind == "accepted"
    body = b"no tensors"
    assert enemy.ask(made({"kind": "keep", **enemy.address(), "round": 1}, body)).kind == "accepted"
    enemy.refused(enemy.ask(request(enemy, digest_of(body))))
    assert digest != digest_of(body)


def test_a_site_holds_the_last_two_and_no_more(enemy, tmp_path):
    for size in range(1, 6):
        keep(enemy, {"basis/x.A": torch.zeros(size)})
    assert len(list((tmp_path / "ward" / "state").rglob("public-*.bin"))) == 2
