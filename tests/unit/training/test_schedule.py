"""The learning rate over rounds, by hand."""

import pytest

from aulait.runs.experiment_file import build_settings
from aulait.training.trainer import TrainConfig, learning_rate


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [1.0, 0.82, 0.64, 0.46, 0.28]),
    ("cosine", [1.0, 0.1 + 0.45 * 1.8090169943749475, 0.1 + 0.45 * 1.3090169943749475, 0.1 + 0.45 * 0.6909830056250525,
                0.1 + 0.45 * 0.19098300562505255]),
])
def test_five_rounds(schedule, expected):
    config = TrainConfig(rounds=5, lr=1.0, schedule=schedule)
    assert [learning_rate(config, r) for r in range(1, 6)] == pytest.approx(expected)


def test_a_method_setting_alone_keeps_the_default_method():
    settings = build_settings({"privacy": {"off": True}}, ["algorithm.local_weight=2.0"])
    assert settings.algorithm["name"] == "ffa"
    assert settings.method_config.local_weight == 2.0
