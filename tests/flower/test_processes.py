"""The processes for real: what a server ships never runs at a site, nothing answers strangers, nothing outlives a kill."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from tests.flower import toy_processes as toy

from aulait.core import process_lock
from aulait.core.errors import AulaitError, ConfigError
from aulait.engines.deployment.pki import keys
from aulait.engines.flower import joining, processes, serving
from aulait.engines.flower.hardening import supported

SERVED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from tests.flower import toy_processes as toy
from aulait.engines.flower import serving as coordinator
from aulait.engines.deployment.pki import keys
folder, server = Path({folder!r}), Path({server!r})
with coordinator.start_link(server, folder / "serve", "127.0.0.1", {port}) as link:
    link.register(keys.roster(server))
    link.submit(toy.toy_app(folder / "app", folder / "marker"), {{"folder": str(folder / "serve"), "hang": {hang}, "asked": "one"}})
    print(coordinator.follow(link, lambda *_: None), flush=True)
"""


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(toy.HERE))
    return tmp_path, toy.server_keys(tmp_path / "keys"), toy.free_port()


def status(url: str, body: bytes | None = None) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def announced(port: int, headers: dict[str, str]) -> int:
    """The answer to a request whose body never comes."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=ssl._create_unverified_context())
    connection.putrequest("POST", "/v1/fleet/push-object")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse().status


@pytest.mark.slow
def test_nothing_that_is_shipped_runs_and_nothing_of_an_error_is_told(federation):
    folder, server, port = federation
    site = toy.site(folder / "ward", server, "ward", port, message_bytes=2_000_000)
    with serving.start_link(server, folder / "serve", "127.0.0.1", port) as link:
        link.register(keys.roster(server))
        with toy.joined(site) as said:
            told = {"folder": str(folder / "serve"), "asked": "one,fail,*3000000,two"}
            link.submit(toy.toy_app(folder / "app", folder / "marker"), told)
            found = serving.follow(link, lambda *_: None)["found"]
        children = toy.descendants(link.process.pid) | {link.process.pid}
    assert found["one"] == [{"text": "site app answers one", "config": "{}", "fab": "", "limit": "2000000"}]
    assert "secret" not in str(found["fail"])
    assert "its own log says why" in str(found["fail"])
    assert found["*3000000"] == ["the message is larger than this site accepts"]
    assert found["two"][0]["text"] == "site app answers two"
    assert not (folder / "marker").exists()
    assert not list((site.site.state / "flower").rglob("*.py")), "the bundle was never written"
    assert any("connected" in line for line in said)
    assert any("message_bytes" in line for line in said)
    assert "the secret diagnosis" in (site.site.state / "supernode.log").read_text()
    toy.until(lambda: not any(toy.alive(pid) for pid in children), 5)


@pytest.mark.slow
def test_strangers_find_the_fleet_api_alone_and_nothing_without_the_pass(federation):
    folder, server, port = federation
    with serving.start_link(server, folder / "serve", "127.0.0.1", port) as link:
        public, inner = f"https://127.0.0.1:{port}", str(link.control._client._base_url)
        for path in ("/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/v1/fleet"):
            assert status(public + path, b"") == 404, path
            assert status(inner + path, b"") == 404, path
        assert status(f"{public}/v1/fleet/pull-messages", b"") in (400, 401, 415, 422)
        assert announced(port, {"Content-Length": str(17 * 2**20)}) == 413
        assert announced(port, {"Transfer-Encoding": "chunked"}) == 411
        with pytest.raises(ConfigError, match="another process at work"), serving.start_link(server, folder / "serve", "127.0.0.1", port):
            pass
        link.register({})
        assert link.control.enrolled() == {}


@pytest.mark.slow
def test_a_site_cannot_answer_for_another(federation):
    import httpx
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    folder, server, port = federation
    thief = toy.site(folder / "thief", server, "thief", port)
    toy.site(folder / "victim", server, "victim", port)
    private = load_ssh_private_key(thief.keys.private.read_bytes(), None)
    public = public_key_to_bytes(private.public_key())
    with serving.start_link(server, folder / "serve", "127.0.0.1", port) as link:
        link.register(keys.roster(server))
        nodes = {key: node for key, (node, _) in link.control.enrolled().items()}
        victim = next(node for key, node in nodes.items() if key != public)
        authority = (server / "ca.pem").read_bytes()
        signed = [NodeAuthHttpInterceptor(private, private.public_key())]
        with FleetHttpClient.from_server_address(f"127.0.0.1:{port}", False, authority, signed) as client:
            assert client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30)).node_id == nodes[public]
            forged = Message(metadata=Metadata(run_id=1, src_node_id=victim, message_id="x", reply_to_message_id="y"))
            with pytest.raises(httpx.HTTPStatusError):
                client.PushMessages(PushMessagesRequest(node=Node(node_id=nodes[public]), messages_list=[forged]))
    assert "in the name of another one" in link.log.read_text()


def test_a_site_is_sent_nowhere_else_and_reads_no_packed_or_endless_answer():
    import httpx

    from aulait.engines.flower.hardening.supernode import careful

    answers = {
        "/away": httpx.Response(307, headers={"location": "http://inside.example/", "content-length": "0"}),
        "/packed": httpx.Response(200, headers={"content-encoding": "gzip", "content-length": "3"}, content=iter([b"..."])),
        "/large": httpx.Response(200, headers={"content-length": str(2**30)}),
        "/endless": httpx.Response(200, content=iter([b"x"])),
    }
    asked = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return answers[request.url.path]

    client = httpx.Client(transport=httpx.MockTransport(server), follow_redirects=True)
    careful(client)
    assert client.post("http://server/away").status_code == 307
    for path in ("/packed", "/large", "/endless"):
        with pytest.raises(httpx.ReadError, match="packed, of no stated length"):
            client.post(f"http://server{path}")
    assert set(asked) == {"server"}


@pytest.mark.slow
def test_join_ends_when_asked_to(federation):
    folder, server, port = federation
    toy.site(folder / "ward", server, "ward", port)
    program = [sys.executable, "-c", "from aulait.cli import main; main()", "join", str(folder / "ward" / "site.toml")]
    joined = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    toy.until(lambda: (folder / "ward" / "state" / "worker.sock").exists() and len(toy.descendants(joined.pid)) >= 1, 60)
    time.sleep(3)
    children = toy.descendants(joined.pid)
    joined.terminate()
    _, told = joined.communicate(timeout=30)
    assert joined.returncode == 0, told
    assert "roles: local, proxy" in told
    assert "left; nothing runs any more" in told
    assert not any(toy.alive(pid) for pid in children)


@pytest.mark.slow
def test_an_unknown_site_and_a_server_of_another_authority_are_turned_away(federation):
    folder, server, port = federation
    stranger = toy.site(folder / "stranger", server, "stranger", port, enrolled=False)
    known = toy.site(folder / "known", server, "known", port)
    other = toy.server_keys(folder / "other")
    (folder / "known" / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    with serving.start_link(server, folder / "serve", "127.0.0.1", port) as link:
        link.register(keys.roster(server))
        with toy.joined(stranger) as unknown, toy.joined(known) as doubting:
            toy.until(lambda: any("does not know this key" in line for line in unknown), 40)
            toy.until(lambda: any("not reachable" in line and "CERTIFICATE" in line for line in doubting), 40)
        assert not any("connected to" in line for line in [*unknown, *doubting])


@pytest.mark.slow
def test_a_killed_server_leaves_nothing_and_can_begin_again(federation):
    folder, server, port = federation
    site = toy.site(folder / "ward", server, "ward", port)
    words = {"here": str(toy.HERE), "folder": str(folder), "server": str(server), "port": port}
    with toy.joined(site) as said:
        first = subprocess.Popen([sys.executable, "-c", SERVED.format(**words, hang=True)])
        try:
            toy.until(lambda: (folder / "serve" / "hanging").exists(), 60)
            children = toy.descendants(first.pid)
            assert len(children) >= 3
        finally:
            first.kill()
            first.wait()
        toy.until(lambda: not any(toy.alive(pid) for pid in children), 5)
        second = subprocess.run([sys.executable, "-c", SERVED.format(**words, hang=False)], capture_output=True, text=True, timeout=240)
    assert "site app answers one" in second.stdout, second.stderr
    assert any("not reachable" in line for line in said)
    assert any("reached again" in line for line in said)


@pytest.mark.slow
def test_a_server_app_that_dies_is_told_with_its_last_words(federation):
    folder, server, port = federation
    toy.site(folder / "ward", server, "ward", port)
    with serving.start_link(server, folder / "serve", "127.0.0.1", port) as link:
        link.register(keys.roster(server))
        link.submit(toy.toy_app(folder / "app", folder / "marker"), {"folder": str(folder / "serve"), "sites": 0, "hang": True})
        toy.until(lambda: (folder / "serve" / "hanging").exists(), 60)
        os.kill(int((folder / "serve" / "pids").read_text().split()[-1]), signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(AulaitError, match="ended without a word"):
            serving.follow(link, lambda *_: None)
        assert time.monotonic() - begun < 10
        link.process.kill()
        toy.until(lambda: link.process.poll() is not None, 10)
        with pytest.raises(AulaitError, match="SuperLink ended with code"):
            link.check()


@pytest.mark.slow
def test_a_killed_site_leaves_nothing_and_a_killed_node_comes_back(federation):
    folder, server, port = federation
    toy.site(folder / "ward", server, "ward", port)
    program = f"""
import sys, threading
from pathlib import Path
sys.path.insert(0, {str(toy.HERE)!r})
from aulait.engines.deployment.site import site_file
from aulait.engines.flower import joining
joining.join(site_file.read(Path({str(folder / "ward" / "site.toml")!r})), True, lambda line: print(line, flush=True), threading.Event(),
             work=lambda _site, stop, _log: stop.wait(), app="toy_site:app")
"""
    with serving.start_link(None, folder / "serve", "127.0.0.1", port) as link, open(folder / "said", "w") as output:
        link.register(keys.roster(server))
        joined = subprocess.Popen([sys.executable, "-c", program], stdout=output)

        def connections() -> int:
            return (folder / "said").read_text().count("connected to")

        try:
            toy.until(lambda: connections() == 1, 40)
            node = next(pid for pid in toy.descendants(joined.pid) if b"flower-supernode" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(node, signal.SIGKILL)
            toy.until(lambda: connections() == 2, 40)
            children = toy.descendants(joined.pid)
            assert len(children) >= 2
        finally:
            joined.kill()
            joined.wait()
        toy.until(lambda: not any(toy.alive(pid) for pid in children), 5)


@pytest.mark.parametrize("name", ["flwr-agentapp", "flwr-serverapp", "flwr-connector", "flwr-model", "flwr-simulation", "flower-superlink"])
def test_a_site_refuses_every_task_but_a_client_app(tmp_path, name):
    supported.launchers(tmp_path / "bin", {"flower-superexec": "", "flwr-clientapp": joining.APP})
    around = supported.environment(tmp_path / "bin", tmp_path, "pass", alone=True)
    refused = subprocess.run([tmp_path / "bin" / name, "--token", "x"], env=around, capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"a task of {name} was refused" in refused.stderr


def test_a_flower_without_a_name_ends_the_process_with_a_line(tmp_path):
    program = ("from aulait.engines.flower.hardening.patching import require_names; from aulait.engines.flower.hardening.private_names import "
               "PrivateName; require_names([PrivateName('flwr.app', 'gone', ('superlink',), '')])")
    unfit = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert unfit.returncode == supported.UNFIT
    assert "flwr.app.gone, expected flwr>=1.41,<1.43" in unfit.stderr


def test_another_version_of_flower_is_refused(monkeypatch):
    monkeypatch.setattr(supported.metadata, "version", lambda _: "1.43.0")
    with pytest.raises(ConfigError, match=r"found Flower 1\.43\.0, expected flwr>=1\.41,<1\.43"):
        supported.supported()


def test_without_tls_only_loopback(tmp_path):
    with pytest.raises(ConfigError, match="expected loopback"), serving.start_link(None, tmp_path, "0.0.0.0", 1):
        pass
    server = toy.server_keys(tmp_path / "keys")
    site = toy.site(tmp_path / "ward", server, "ward", 1)
    far = site.model_copy(update={"site": site.site.model_copy(update={"server": "example.org:9443"})})
    with pytest.raises(ConfigError, match="expected loopback"):
        joining.check(far, True)
    site.keys.private.chmod(0o644)
    with pytest.raises(ConfigError, match="expected mode 0600"):
        joining.check(site, False)


def test_the_environment_carries_nothing_of_flower_along(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("AULAIT_NODE_KEY", "elsewhere")
    around = supported.environment(tmp_path / "bin", tmp_path / "home", "pass", alone=True)
    assert around["PATH"] == str(tmp_path / "bin")
    assert "FLWR_LOG_LEVEL" not in around
    assert "AULAIT_NODE_KEY" not in around
    assert "127.0.0.1" in around["NO_PROXY"]


def test_a_port_that_is_taken_and_a_lock_that_is_held_are_told(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen on"):
            processes.claim("127.0.0.1", taken.getsockname()[1], 0.1)
    with process_lock.only_process_of(tmp_path):
        assert process_lock.lock_is_held(tmp_path / "lock")
        with pytest.raises(ConfigError, match="another process at work"), process_lock.only_process_of(tmp_path):
            pass
    assert not process_lock.lock_is_held(tmp_path / "lock")
