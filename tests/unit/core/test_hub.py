"""The hub is asked once, and quickly given up where it cannot be reached."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from aulait.core import hub
from aulait.core.errors import ModelError
from aulait.models.loading import ModelConfig, load_base


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were said about offline mode; restored afterwards, also in the libraries."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setenv(hub.OFFLINE, "0")
    monkeypatch.setattr(huggingface_hub.constants, hub.OFFLINE, False)
    monkeypatch.setattr(datasets.config, hub.OFFLINE, False)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes calls and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            call, _ = listening.accept()
            with call:
                call.recv(1000)
                call.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_hub_that_does_not_answer_fails_in_one_line_within_three_seconds(
        silent: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", silent)
    with pytest.raises(ModelError) as told:  # the first imports what loads models
        load_base(ModelConfig(name="nobody/nothing-of-the-name", device="cpu"))
    monkeypatch.setenv(hub.OFFLINE, "0")
    started = time.process_time()
    with pytest.raises(ModelError):
        load_base(ModelConfig(name="nobody/nothing-of-the-name", device="cpu"))
    # beside the patience, which is waiting and not work
    assert hub.PATIENCE_S + time.process_time() - started < 2.7
    assert "\n" not in str(told.value)
    assert "cannot be loaded" in str(told.value)
    assert capfd.readouterr().err == ""


def test_whoever_answers_anything_is_reached(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", answering)
    hub.settle("nobody/nothing")
    assert os.environ[hub.OFFLINE] == "0"


def test_a_network_that_comes_back_is_used(answering: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(hub, "PATIENCE_S", 0.2)
    monkeypatch.setenv("HF_ENDPOINT", silent)
    hub.settle("nobody/nothing")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    monkeypatch.setenv("HF_ENDPOINT", answering)
    monkeypatch.setattr(hub, "PATIENCE_S", 2.0)
    hub.settle("nobody/nothing")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_nobody_is_asked_for_a_folder_or_in_offline_mode(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda address: pytest.fail("asked"))
    hub.settle(str(tmp_path))
    monkeypatch.setenv(hub.OFFLINE, "1")
    hub.settle("nobody/nothing")
