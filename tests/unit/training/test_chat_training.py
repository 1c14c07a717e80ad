"""What is scored and learnt of texts, pairs and conversations, against transformers and PEFT themselves."""

from __future__ import annotations

import pytest
from tests.chat_bases import CHATML, chat_base
from tests.oracle.transformers_own import Own
from tests.tiny_bases import filled

from aulait.core.factors import Trainable
from aulait.core.types import Record, Turn
from aulait.data import builtin
from aulait.evaluation.config import EvaluateConfig
from aulait.evaluation.losses import evaluate
from aulait.models import loading, named
from aulait.models.loading import AdapterConfig, Base, ModelConfig
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

ROWS = 50
installed = named.package_file("smollm2") is not None


def sentences() -> list[str]:
    """First lines of real docstrings, all different and short."""
    found = (" ".join(row["text"].split("\n\n")[0].split()) for row in builtin.standard_library())
    return [text for text in dict.fromkeys(found) if 25 < len(text) < 60][: 4 * ROWS]


def records(kind: str) -> list[Record]:
    texts = sentences()
    assert len(texts) >= 4 * ROWS
    if kind == "text":
        return [Record(text) for text in texts[:ROWS]]
    asked, more = texts[ROWS : 2 * ROWS], texts[2 * ROWS :]
    if kind == "pairs":
        return [Record(text, prompt) for text, prompt in zip(texts, asked, strict=False)]
    before = [(Turn("user", a), Turn("assistant", b)) for a, b in zip(more[::2], more[1::2], strict=True)]
    return [Record(text, prompt, before=(*((Turn("system", "Be brief."),) if number % 2 else ()), *turns))
            for number, (text, prompt, turns) in enumerate(zip(texts, asked, before, strict=False))]


@pytest.fixture(scope="module", params=[
    "tiny", pytest.param("smollm2", marks=[pytest.mark.slow, pytest.mark.skipif(not installed, reason="extra smollm2 is not installed")])])
def base(request, tmp_path_factory) -> Base:
    if request.param == "tiny":
        return chat_base(tmp_path_factory.mktemp("chat"), CHATML)
    return loading.load_base(ModelConfig(name="smollm2", context=256, device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def own(base) -> Own:
    return Own(named.folder_of(base.config.name))


@pytest.mark.parametrize("kind", ["text", "pairs", "chat"])
def test_the_loss_is_transformers_own(base, own, kind):
    rows = records(kind)
    assert len(rows) == ROWS
    found = evaluate(Learner(base, TrainConfig()), None, {"a": rows[:20], "b": rows[20:]}, EvaluateConfig(records_per_client=ROWS))
    loss, tokens = own.loss(rows)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["text", "pairs", "chat"])
def test_a_training_step_is_pefts(base, kind):
    batch = tuple(records(kind)[:4])
    shapes = loading.targets(base, AdapterConfig(targets=("q_proj", "v_proj", "down_proj"), layers=2))
    start = filled(shapes, 2, size=0.02)
    learner = Learner(base, TrainConfig(optimizer="sgd", max_grad_norm=0))
    (done,) = learner.train([LocalTraining(start, batch, Trainable.AB, 1, len(batch), 0.05, 1)])
    wanted, loss = Own(named.folder_of(base.config.name)).step(start, batch, 0.05)
    assert done.loss == pytest.approx(loss, rel=1e-5)
    for name, pair in wanted.items():
        for found, right, before in zip(done.adapter.factors[name], pair, start.factors[name], strict=True):
            moved = float((right - before).abs().max())
            assert moved > 1e-6
            rounding = 2**-23 * float(right.abs().max())  # of the sum, in float32
            assert float((found - right).abs().max()) <= 1e-5 * moved + rounding


def test_the_question_carries_no_loss_and_every_answer_does(base):
    learner = Learner(base, TrainConfig())
    pair, chat = records("pairs")[0], records("chat")[1]
    for record in (pair, chat):
        coded = learner.encode.coded(record)
        said = "".join(base.tokenizer.decode(coded.ids[a:b]) for a, b in coded.spans)
        answers = [turn.content for turn in record.turns if turn.role == "assistant"]
        assert len(coded.spans) == len(answers)
        assert said == "".join(f"{answer}<|im_end|>\n" for answer in answers)
