"""Tensors travel by their values, equal objects once."""

from __future__ import annotations

import io

import pytest
import torch

from aulait.core.errors import DataError, DeviceError
from aulait.engines.workers.messages import WorkerReply, packed, receive, send, unpacked


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.arange(4).to(torch.bfloat16),
        torch.tensor([float("nan"), float("-inf"), -0.0]),
        torch.arange(12.0).reshape(3, 4).T,
    ],
)
def test_a_tensor_comes_back_to_the_bit(value):
    found = unpacked(packed(value))
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert (
        found.contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(value.contiguous().reshape(-1).view(torch.uint8))
    )
    assert found.is_contiguous()


def test_a_view_does_not_carry_what_it_is_a_view_of():
    assert len(packed(torch.zeros(1_000_000)[:4])) < 1000


def test_one_object_stays_one():
    fold = {"layer": torch.ones(100, 100)}
    once, twice = unpacked(packed([fold, fold]))
    assert once is twice
    assert len(packed([fold, fold])) < 1.1 * len(packed([fold]))


def test_messages_follow_one_another_and_a_torn_one_is_an_end():
    pipe = io.BytesIO()
    send(pipe, b"one")
    send(pipe, b"")
    send(pipe, b"three")
    whole = pipe.getvalue()
    assert [receive(stream) for stream in [io.BytesIO(whole)] for _ in range(4)] == [
        b"one",
        b"",
        b"three",
        None,
    ]
    torn = io.BytesIO(whole[:-2])
    assert [receive(torn) for _ in range(3)] == [b"one", b"", None]


def failure(words):
    """An error as a library raises it."""
    try:
        raise RuntimeError(words)
    except RuntimeError as error:
        return error


def test_errors_travel_as_one_line():
    told = unpacked(packed(WorkerReply.failed(failure("words of a record\nand more"))))
    assert isinstance(told.error, DeviceError)
    said = str(told.error)
    assert said.startswith("a worker could not train: RuntimeError in test_messages.py, line ")
    assert "\n" not in said
    assert "record" not in said  # errors go into logs, and libraries may quote what they read
    assert isinstance(unpacked(packed(WorkerReply.failed(DataError("none")))).error, DataError)
