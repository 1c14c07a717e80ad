"""Messages of a 1B model's rank-16 adapter: they pass on every wire within its error, and the server's memory does not grow with sites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")
from tests.flower import large
from tests.flower import toy_processes as toy

from aulait.core.types import ClientUpdate, TrainRequest
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol import messages, tensor_codec
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes
from aulait.engines.deployment.protocol.messages import Stamp
from aulait.engines.deployment.site import local_socket, worker
from aulait.engines.flower import flwr_records, serving
from aulait.training.activation_codec import coded_bytes

ROOT = Path(__file__).resolve().parents[2]
STAMP = Stamp("a" * 32, 1, 1)
BOUND = {"float32": 0.0, "float16": 2**-11, "int8": 1 / 253 + 2**-37}  # of an entry, over the largest of its tensor; see encoding
ADAPTER_BYTES = 4 * 16 * 16 * (2 * 4096 + 2 * 2560 + 3 * 10240)


def within(found, sent, form):
    """Every entry within the bound of its wire, as ``encoding`` states it: of its own size, of its tensor's or of its row's largest."""
    for name, x in sent.items():
        error, m = (found[name] - x).abs(), x.abs().max()
        if form == "float32":
            assert torch.equal(found[name], x), name
        elif form == "float16":
            assert bool((error <= torch.maximum(x.abs() / 2**11, m / 2**38)).all()), name
        else:
            assert bool((error <= x.abs().amax(1, keepdim=True) / 253 + m / 2**37).all()), name


def through_the_socket(folder, packet):
    """A packet to a worker that gives it back."""
    folder.mkdir(mode=0o700)
    path = folder / "w.sock"
    with local_socket.listening(path) as server:
        def echo():
            connection, _ = server.accept()
            with connection:
                local_socket.send(connection, local_socket.receive(connection, large.LIMIT))

        thread = threading.Thread(target=echo)
        thread.start()
        with local_socket.calling(path, 120.0) as connection:
            local_socket.send_raw(connection, flwr_records.raw(flwr_records.records(packet), large.LIMIT))
            found = local_socket.receive(connection, large.LIMIT)
        thread.join()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_an_order_and_a_reply_pass_within_the_error_of_their_wire(tmp_path, form):
    sent = large.adapter()
    assert sum(t.numel() * 4 for t in sent.values()) == ADAPTER_BYTES == 45_088_768
    made = tensor_codec.pack_tensors(sent, form)
    exact = sum(coded_bytes(1, t.shape[0], t.shape[1], form) for t in sent.values())
    assert tensor_codec.data_bytes(made.raw) == exact, "the formula of the wire"
    assert len(made.raw) <= exact + 400 * len(sent), "and a line for every tensor"
    asked = messages.request_message(TrainRequest("ward", 1, sent, {"lr": 1e-3}), STAMP, "0" * 64, made).packet()
    arrived = flwr_records.packet(flwr_records.records(asked), large.LIMIT)
    within(messages.client_request(messages.read_request(arrived)).tensors, sent, form)
    update = messages.update_message(ClientUpdate("ward", sent, 1.0), STAMP, form)
    assert update.head.error <= BOUND[form]
    assert (update.head.error > 0) == (form != "float32")
    back = flwr_records.packet(flwr_records.records(through_the_socket(tmp_path / "s", update.packet())), large.LIMIT)
    within(messages.client_update(messages.read_answer(back)).tensors, sent, form)
    print(f"{form}: {len(made.raw):,} bytes, error {update.head.error:.3g} of the largest, bound {BOUND[form]:.3g}")


def peak(sites, form):
    around = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "tests.flower.large", str(sites), form], env=around, cwd=ROOT, capture_output=True, text=True,
                          timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] == 0
    assert found["moved"] > 0
    print(f"{sites} sites, {form}: peak {found['peak_bytes'] / 1e6:.0f} MB, of it {found['before_bytes'] / 1e6:.0f} MB before the round")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_the_servers_memory_does_not_grow_with_the_number_of_sites(form):
    """Engine, post, method and aggregator in a process of their own; eight sites, and more; answers come one at a time."""
    few, many = peak(8, form), peak(24, form)
    assert many["down_bytes"] == 3 * few["down_bytes"]
    assert many["up_bytes"] == 3 * few["up_bytes"]
    assert many["peak_bytes"] - few["peak_bytes"] < 1.5 * ADAPTER_BYTES, "sixteen more sites; runs of the same number differ by one adapter"


@pytest.fixture
def identity():
    """Messages are made outside a run of Flower's; afterwards nobody's again."""
    from flwr.supercore.task_identity import TaskIdentity

    yield
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = None


@pytest.mark.parametrize("ranks", [{}, {"site-01": 2, "site-02": 2}])
def test_orders_with_the_same_numbers_share_their_bytes(tmp_path, monkeypatch, identity, ranks):
    """Methods hand every client views of its own of one state; a body for each would fill the server."""
    monkeypatch.setattr(large, "shapes", lambda: {"q": (6, 4), "v": (2, 4)})
    monkeypatch.setattr(large, "RANK", 4)
    made, body = [], tensor_codec.pack_tensors

    def counted(tensors, form="float32"):
        made.append(1)
        return body(tensors, form)

    monkeypatch.setattr(tensor_codec, "pack_tensors", counted)
    monkeypatch.setattr("aulait.engines.deployment.coordinator.outbox.SOON_S", 0.0)
    found = large.one_round(5, "float32", tmp_path, ranks)
    assert found["refused"] == len(ranks), "the sites of the test always answer at full rank"
    assert len(made) == 1 + (2 if ranks else 1), "the answer of the test, and a body for every rank"


SERVER = '''
import json, os, time
from pathlib import Path
from flwr.serverapp import ServerApp
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol.envelope import packet_from
from aulait.engines.flower.transport import FlowerTransport

app = ServerApp()

@app.main()
def main(grid, context):
    folder = Path(context.run_config["folder"])
    post = FlowerTransport(grid, keys.roster(Path(context.run_config["keys"])))
    found = {}
    while len(there := post.connected()) < 2:
        time.sleep(0.2)
    for form in ("float32", "float16", "int8"):
        sent = packet_from((folder / form).read_bytes(), 2**31)
        began, body = time.time(), post.shared_body(sent.body)
        letters = [post.send(node, sent, body, 600.0) for node in there.values()]
        pushed = time.time()
        answers = []
        while len(answers) < 2 and time.time() < began + 500:
            for heard in post.collect([letter for letter in letters if letter not in answers], 2**31):
                assert heard.packet is not None, heard.fault
                assert len(heard.packet.body) == len(sent.body)
                answers.append(heard.message_id)
            time.sleep(0.1)
        found[form] = {"seconds": time.time() - began, "push_s": pushed - began, "bytes": len(sent.body), "answers": len(answers)}
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found["peak_kb"] = int(status.partition("VmHWM:")[2].split()[0])
    part = folder / "outcome.part"
    part.write_text(json.dumps({"ok": True, "found": found}))
    part.replace(folder / "outcome.json")
'''


def echoing(site, stop, log):
    """A worker that sends back as much as it was sent, and nothing that another site sends too: Flower stores equal pieces once."""
    with local_socket.listening(worker.socket_path(site)) as server:
        server.settimeout(0.2)
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(120.0)
                asked = local_socket.receive(connection, site.limits.message_bytes)
                own, mark = bytearray(asked.body), site.site.name.encode().ljust(8)
                for at in range(0, len(own) - len(mark), 1 << 20):
                    own[at : at + len(mark)] = mark
                local_socket.send(connection, Packet(asked.head, bytes(own), asked.signature))


@pytest.mark.slow
def test_it_passes_through_real_processes(tmp_path, monkeypatch):
    """SuperLink, SuperNodes, aulait's client app, two sites, three wires, TLS."""
    server, port, folder = toy.server_keys(tmp_path / "keys"), toy.free_port(), tmp_path / "serve"
    sites = [toy.site(tmp_path / name, server, name, port) for name in ("ward", "lab")]
    app = toy.toy_app(tmp_path / "app", tmp_path / "marker")
    (app / "server_app.py").write_text(SERVER)
    project = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(f'{project}keys = ""\n')
    monkeypatch.setattr(serving, "_APP_START_S", 600.0)
    with serving.start_link(server, folder, "127.0.0.1", port) as link:
        for form in ("float32", "float16", "int8"):
            made = tensor_codec.pack_tensors(large.adapter(), form)
            request = messages.request_message(TrainRequest("ward", 1, {}, {}), STAMP, "0" * 64, made)
            (folder / form).write_bytes(packet_bytes(request.packet()))
        link.register(keys.roster(server))
        with JoinedAll(sites):
            link.submit(app, {"folder": str(folder), "keys": str(server)})
            found = serving.follow(link, lambda *_: None)["found"]
            status = Path(f"/proc/{link.process.pid}/status").read_text()
        database = sum(path.stat().st_size for path in folder.glob("superlink.db*"))
    for form in ("float32", "float16", "int8"):
        assert found[form]["answers"] == 2, form
        print(f"{form}: {found[form]['bytes']:,} bytes there and back to two sites in {found[form]['seconds']:.1f} s, handed over in "
              f"{found[form]['push_s']:.1f} s")
    link_kb = int(status.partition("VmHWM:")[2].split()[0])
    print(f"peak memory: server app {found['peak_kb'] / 1e3:.0f} MB, SuperLink {link_kb / 1e3:.0f} MB; its database {database / 1e6:.0f} MB")
    assert found["peak_kb"] * 1024 < 20 * ADAPTER_BYTES


class JoinedAll:
    """Sites in threads of this process, their SuperNodes as children."""

    def __init__(self, sites):
        self.sites = sites

    def __enter__(self):
        from aulait.engines.flower import joining

        self.stop = threading.Event()
        self.threads = [threading.Thread(target=joining.join, args=(site, False, lambda _: None, self.stop), kwargs={"work": echoing})
                        for site in self.sites]
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
