"""A site of the roster that speaks Flower's own language with a program of its own: nobody else is held up or lost by it."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message as Outer
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from tests.flower import toy_processes as toy

from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower import flwr_records, serving

LIMIT = 1_000_000
SERVER = '''
import json, time
from pathlib import Path
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower.transport import FlowerTransport

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    folder, expected = Path(context.run_config["folder"]), set(context.run_config["asked"].split(","))
    post = FlowerTransport(grid, keys.roster(Path(context.run_config["evil"])))
    while set(post.connected()) < expected:
        time.sleep(0.2)
    letters, heard, slowest, until = {}, {}, 0.0, time.time() + context.run_config["wait_s"]
    late = {name: post.send(address, Packet(b'{"kind":"late"}'), None, -1.0) for name, address in post.connected().items()}
    for name, address in post.connected().items():
        letters[post.send(address, Packet(b'{"kind":"hello"}'), post.shared_body(bytes(3)), 60.0)] = name
    while time.time() < until and len(heard) < len(letters) - 1:
        began = time.time()
        for one in post.collect([letter for letter in letters if letter not in heard], 1_000_000):
            heard[one.message_id] = [json.loads(one.packet.head)["kind"] if one.packet else None, one.fault]
        slowest = max(slowest, time.time() - began)
        time.sleep(0.2)
    short = post.send(post.connected()["honest"], Packet(b'{"kind":"hello"}'), None, 8.0)
    time.sleep(15.0)  # the server's own work, longer than sites are waited for
    kept = [json.loads(one.packet.head)["kind"] for one in post.collect([short], 1_000_000) if one.packet]
    part = folder / "outcome.part"
    part.write_text(json.dumps({"ok": True, "kept": kept, "slowest": slowest, "heard": {letters[k]: v for k, v in heard.items()}}))
    part.replace(folder / "outcome.json")
'''


COUNTS = '''
import json, time
from pathlib import Path
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from aulait.engines.deployment.pki import keys
from aulait.engines.deployment.protocol.envelope import Packet
from aulait.engines.flower.transport import FlowerTransport

app = ServerApp()

def peak() -> int:
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

@app.main()
def main(grid: Grid, context: Context) -> None:
    folder, expected = Path(context.run_config["folder"]), int(context.run_config["sites"])
    post = FlowerTransport(grid, keys.roster(Path(context.run_config["evil"])))
    while len(post.connected()) < expected:
        time.sleep(0.2)
    before = peak()
    letters = {post.send(address, Packet(b'{"kind":"hello"}'), None, 600.0) for address in post.connected().values()}
    total, until = 0, time.time() + context.run_config["wait_s"]
    while letters and time.time() < until:
        for one in post.collect(sorted(letters), 2**31):
            letters.discard(one.message_id)
            total += len(one.packet.body)
        time.sleep(0.2)
    part = folder / "outcome.part"
    used = peak()
    part.write_text(json.dumps({"ok": True, "total": total, "before_kib": before, "peak_kib": used}))
    part.replace(folder / "outcome.json")
'''


class Stranger:
    """A node of the roster, spoken for by hand."""

    def __init__(self, site, server: Path, port: int, open_clients: ExitStack) -> None:
        private = load_ssh_private_key(site.keys.private.read_bytes(), None)
        signed = [NodeAuthHttpInterceptor(private, private.public_key())]
        self.client = open_clients.enter_context(
            FleetHttpClient.from_server_address(f"127.0.0.1:{port}", False, (server / "ca.pem").read_bytes(), signed))
        self.public = public_key_to_bytes(private.public_key())

    def begin(self) -> None:
        self.number = self.client.ActivateNode(ActivateNodeRequest(public_key=self.public, heartbeat_interval=60)).node_id

    def asked(self, limit_s: float = 40.0) -> Message:
        """The next message."""
        end = time.monotonic() + limit_s
        while not (found := self.client.PullMessages(PullMessagesRequest(node=Node(node_id=self.number)))).messages_list:
            assert time.monotonic() < end, "no message came"
            time.sleep(0.2)
        outer, tree = found.messages_list[0], found.message_object_trees[0]
        run, node = outer.metadata.run_id, Node(node_id=self.number)
        contents = {}
        for own in iterate_object_tree(tree):
            asked = PullObjectRequest(node=node, run_id=run, object_id=own.object_id)
            while not (piece := self.client.PullObject(asked)).object_available:
                time.sleep(0.1)
            contents[own.object_id] = piece.object_content
        message = inflate_object_from_contents(outer.metadata.message_id, contents)
        message.metadata.__dict__["_message_id"] = outer.metadata.message_id
        return message

    def answer(self, asked: Message, objects: dict[str, bytes], tree: ObjectTree, upload: bool = True) -> None:
        """Announce an answer, and send its pieces."""
        metadata = Metadata(run_id=asked.metadata.run_id, src_node_id=self.number, dst_node_id=asked.metadata.src_node_id,
                            message_id=tree.object_id, reply_to_message_id=asked.metadata.message_id, ttl=60.0, created_at=time.time(),
                            message_type=asked.metadata.message_type)
        outer = Outer(metadata=metadata)
        outer.content.SetInParent()
        told = self.client.PushMessages(PushMessagesRequest(node=Node(node_id=self.number), messages_list=[outer], message_object_trees=[tree]))
        for name in told.objects_to_push if upload else ():
            self.client.PushObject(PushObjectRequest(node=Node(node_id=self.number), run_id=asked.metadata.run_id, object_id=name,
                                                     object_content=objects[name], session_id=told.session_id))


def number(content: bytes) -> str:
    return sha256(content).hexdigest()


def made(message: Message) -> tuple[dict[str, bytes], ObjectTree]:
    return {name: own.deflate() for name, own in get_all_nested_objects(message).items()}, get_object_tree(message)


def update(asked: Message, body: bytes = b"", **metadata) -> Message:
    found = Message(flwr_records.records(Packet(b'{"kind":"facts"}', body)), reply_to=asked)
    for key, value in metadata.items():
        found.metadata.__dict__[f"_{key}"] = value
    return found


def alone(content: bytes) -> tuple[dict[str, bytes], ObjectTree]:
    return {number(content): content}, ObjectTree(object_id=number(content))


def repeated(asked: Message) -> tuple[dict[str, bytes], ObjectTree]:
    """An honest answer whose body's array names its one piece forty times."""
    objects, _ = made(update(asked, bytes(100_000)))
    old = next(name for name, content in objects.items() if content.startswith(b"Array ") and b"[100000]" in content.replace(b" ", b""))
    renamed = {}
    head, _, body = objects[old].partition(b"\0")
    told = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 40}).encode()
    renamed[old] = b" ".join([*head.split(b" ")[:2], str(len(told)).encode()]) + b"\0" + told
    while renamed:
        old, new = next(iter(renamed.items()))
        del renamed[old], objects[old]
        objects[number(new)] = new
        for parent in [name for name, content in objects.items() if old.encode() in content]:
            kind, children, _ = objects[parent].partition(b"\0")[0].split(b" ")
            body = objects[parent].partition(b"\0")[2].replace(old.encode(), number(new).encode())
            renamed[parent] = b" ".join([kind, children.replace(old.encode(), number(new).encode()), str(len(body)).encode()]) + b"\0" + body
        top = number(new)
    def tree_of(name: str) -> ObjectTree:
        children = objects[name].partition(b"\0")[0].decode().split(" ")[1]
        return ObjectTree(object_id=name, children=[tree_of(child) for child in children.split(",") if child])
    return objects, tree_of(top)


@pytest.mark.slow
def test_what_one_site_does_with_flowers_messages_costs_the_others_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(toy.HERE))
    server, port = toy.server_keys(tmp_path / "keys"), toy.free_port()
    names = ("honest", "no-message", "empty", "another", "stalled", "repeats", "honest-too")
    sites = {name: toy.site(tmp_path / name, server, name, port) for name in names}
    app = toy.toy_app(tmp_path / "app", tmp_path / "marker")
    (app / "server_app.py").write_text(SERVER)
    with ExitStack() as held:
        link = held.enter_context(serving.start_link(server, tmp_path / "serve", "127.0.0.1", port))
        link.register(keys.roster(server))
        them = {name: Stranger(site, server, port, held) for name, site in sites.items()}
        for one in them.values():
            one.begin()
        link.submit(app, {"folder": str(tmp_path / "serve"), "evil": str(server), "asked": ",".join(names), "wait_s": 90})
        asked = {name: one.asked() for name, one in them.items()}
        kinds = {flwr_records.packet(message.content, LIMIT).head for message in asked.values()}
        assert kinds == {b'{"kind":"hello"}'}, "a message whose time is over is not delivered, though it was sent before"
        them["stalled"].answer(asked["stalled"], *made(update(asked["stalled"])), upload=False)
        them["no-message"].answer(asked["no-message"], *alone(b"ArrayRecord  2\0{}"))
        them["empty"].answer(asked["empty"], *alone(b"Message  0\0"))
        them["another"].answer(asked["another"], *made(update(asked["another"], reply_to_message_id=asked["honest"].metadata.message_id)))
        them["repeats"].answer(asked["repeats"], *repeated(asked["repeats"]))
        for name in ("honest", "honest-too"):
            them[name].answer(asked[name], *made(update(asked[name], bytes(70_000))))
        again = them["honest"].asked()
        them["honest"].answer(again, *made(update(again)))
        found = serving.follow(link, lambda *_: None)
    assert found["kept"] == ["facts"], "an answer that came in time is there when the server looks"
    heard = found["heard"]
    assert heard["honest"] == heard["honest-too"] == ["facts", ""]
    assert set(heard) == {*names} - {"stalled"}, "an answer that is not here is no answer yet"
    assert found["slowest"] < 5.0, "and nobody waits for it"
    assert heard["no-message"][0] is None
    assert heard["empty"][0] is None
    assert heard["another"] == [None, "sent a message that says it answers another one"]
    assert "once its pieces are put together" in heard["repeats"][1]


@pytest.mark.slow
def test_neither_the_superlink_nor_the_server_app_holds_more_for_more_sites(tmp_path, monkeypatch, capfd):
    """Answers of 45 MB, those of a 1B model's rank 16, from 8 and from 16 sites, four uploads at a time."""
    monkeypatch.setenv("PYTHONPATH", str(toy.HERE))
    found = {sites: peaks(tmp_path / str(sites), sites) for sites in (8, 16)}
    with capfd.disabled():
        print("\n".join(f"{sites} sites: SuperLink {link / 1e6:.0f} MB, server app {app / 1e6:.0f} MB above its start"
                        for sites, (link, app) in found.items()), flush=True)
    assert found[16][0] < 1.5 * found[8][0]
    assert found[16][1] < 1.5 * found[8][1]


def peaks(folder: Path, count: int, size: int = 45_000_000) -> tuple[float, float]:
    """Peak bytes of the SuperLink, and of the server app beyond what it had before the first message."""
    server, port = toy.server_keys(folder / "keys"), toy.free_port()
    sites = [toy.site(folder / f"s{k}", server, f"s{k}", port) for k in range(count)]
    app = toy.toy_app(folder / "app", folder / "marker")
    (app / "server_app.py").write_text(COUNTS)
    with ExitStack() as held:
        link = held.enter_context(serving.start_link(server, folder / "serve", "127.0.0.1", port))
        link.register(keys.roster(server))
        them = [Stranger(site, server, port, held) for site in sites]
        for one in them:
            one.begin()
        link.submit(app, {"folder": str(folder / "serve"), "evil": str(server), "sites": count, "wait_s": 300})

        def send(one: Stranger) -> None:
            asked = one.asked()
            one.answer(asked, *made(update(asked, os.urandom(size))))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, them))
        told = serving.follow(link, lambda *_: None)
        lines = Path(f"/proc/{link.process.pid}/status").read_text().splitlines()
    assert told["total"] == count * size
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak * 1024.0, (told["peak_kib"] - told["before_kib"]) * 1024.0
