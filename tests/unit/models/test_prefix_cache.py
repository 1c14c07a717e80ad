"""Remembered hidden states against reading every block every time."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from tests.closeness import assert_learnt_alike, assert_near
from tests.tiny_bases import _IDS, _WIDE, CONFIGS, filled, records, tiny
from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config

from aulait.core.factors import Trainable
from aulait.core.types import Record
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.models import loading
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

_DEEP = {**_IDS, **_WIDE, "num_hidden_layers": 4, "intermediate_size": 24, "num_key_value_heads": 1}
DEEP = {
    "deep-llama": LlamaConfig(**_DEEP, tie_word_embeddings=False),
    "mistral": MistralConfig(**_DEEP, head_dim=8, sliding_window=4),
    "qwen2": Qwen2Config(**_DEEP, sliding_window=3, use_sliding_window=True, max_window_layers=1),
    "gemma": GemmaConfig(**_DEEP, head_dim=8),
}


@pytest.fixture(scope="module", autouse=True)
def _deep_bases():
    with pytest.MonkeyPatch.context() as patch:
        for kind, config in DEEP.items():
            patch.setitem(CONFIGS, kind, config)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def base(folder):
    return tiny(folder, "deep-llama")


@contextmanager
def forgetful(base):
    """Without the memory."""
    kept, base.prefix = base.prefix, None
    try:
        yield
    finally:
        base.prefix = kept


def works(base, layers, sites: int = 4, **more) -> list[LocalTraining]:
    shapes = loading.targets(base, AdapterConfig(layers=layers))
    return [LocalTraining(filled(shapes, 1 + site % 2, seed=site), records(5, site, prompt=site % 2 == 1), Trainable.AB, 3, 2, 1e-2, site, **more)
            for site in range(sites)]


def apart(left, right) -> float:
    return max(
        float((x.adapter.factors[n][i] - y.adapter.factors[n][i]).abs().max())
        for x, y in zip(left, right, strict=True) for n in x.adapter.factors for i in (0, 1))


def factors(some) -> tuple:
    """Of works, those they start from; of what was trained, those it ended with."""
    return tuple((one.start if isinstance(one, LocalTraining) else one.adapter).factors for one in some)


def assert_same(found, wanted, some) -> None:
    assert_learnt_alike(factors(found), factors(wanted), 2e-3, start=factors(some))


@pytest.mark.parametrize("kind", ["llama", "deep-llama", "mistral", "qwen2", "gemma", "neox", "opt"])
def test_training_is_the_same_and_reads_a_sequence_once(kind, folder):
    base = tiny(folder, kind)
    depth = len(base.model.get_decoder().layers) - 1
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    some = works(base, 1)
    with forgetful(base):
        wanted = learner.train(some)
    found = learner.train(some)
    assert base.prefix._fits == {depth: True}
    assert_same(found, wanted, some)
    assert [f.loss for f in found] == pytest.approx([w.loss for w in wanted], rel=1e-5)
    seen = base.prefix.computed
    assert 0 < seen <= 20
    again = learner.train(some)
    assert base.prefix.computed == seen
    assert_near(factors(again), factors(found), 1e-6)


def test_training_with_moments_is_the_same(base):
    learner = Learner(base, TrainConfig())
    with forgetful(base):
        wanted = learner.train(works(base, 2))
    assert_same(learner.train(works(base, 2)), wanted, works(base, 2))
    assert base.prefix.computed


@pytest.mark.parametrize("personal", [False, True])
def test_evaluation_is_the_same(base, personal):
    learner = Learner(base, TrainConfig())
    shapes = loading.targets(base, AdapterConfig(layers=2))
    holdout = {name: records(3, seed, prompt=seed == 1) for seed, name in enumerate("abc")}
    adapter = {name: filled(shapes, 2, seed=seed) for seed, name in enumerate("abc")} if personal else filled(shapes, 2)
    with forgetful(base):
        wanted = evaluate(learner, adapter, holdout, EvaluateConfig()).as_dict()
    assert evaluate(learner, adapter, holdout, EvaluateConfig()).as_dict() == pytest.approx(wanted, rel=1e-5)
    assert base.prefix.computed == 9


def test_runs_with_other_layers_share_a_base(base):
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    for layers in (1, 3, 2, "all", 1):
        with forgetful(base):
            wanted = learner.train(works(base, layers))
        assert_same(learner.train(works(base, layers)), wanted, works(base, layers))
    assert base.prefix._fits == {1: True, 2: True, 3: True}


def test_adapters_everywhere_and_nowhere_are_not_touched(base):
    learner = Learner(base, TrainConfig())
    learner.train(works(base, "all"))
    evaluate(learner, None, {"a": records(3)}, EvaluateConfig())
    assert (base.prefix.computed, base.prefix.held_bytes, base.prefix._fits) == (0, 0, {})


@pytest.mark.parametrize(("block", "depth"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_a_block_that_holds_an_update_is_not_bare(base, block, depth):
    name = f"model.layers.{block}.mlp.down_proj"
    fold = {name: 0.3 * torch.randn(16, 24, generator=torch.Generator().manual_seed(1))}
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    bare = learner.train(works(base, 1))
    with loading.wearing(base, [works(base, 1)[0].start]), loading.folded(base, fold):
        assert base.prefix.depth() == depth
    with forgetful(base):
        wanted = learner.train(works(base, 1, fold=fold))
    assert apart(wanted, bare) > 1e-4
    assert_same(learner.train(works(base, 1, fold=fold)), wanted, works(base, 1))
    assert_near(factors(learner.train(works(base, 1))), factors(bare), 1e-6)


def test_weights_that_were_written_to_are_not_bare(base):
    with loading.wearing(base, [works(base, 1)[0].start]):
        assert base.prefix.depth() == 3
        with torch.no_grad():
            base.slots["model.layers.1.mlp.down_proj"].inner.weight.mul_(2)
        assert base.prefix.depth() == 1


def test_only_what_was_chosen_counts_not_what_the_padding_is(base):
    """Sequences that end in the padding's own token, and positions chosen in the middle."""
    ids = torch.tensor([[1, 70, 71, 0, 0, 0], [1, 70, 71, 72, 0, 9], [0, 0, 0, 0, 0, 0]])
    chosen = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    with torch.no_grad(), loading.wearing(base, [works(base, 2)[0].start]):
        with forgetful(base):
            wanted = loading.logits(base, ids, chosen)
        for _ in range(2):
            assert_near(loading.logits(base, ids, chosen), wanted, 1e-5)
    assert sorted(len(row) for _, row in base.prefix._known) == [1, 2, 5]


@pytest.mark.parametrize("together", [False, True])
def test_what_is_remembered_depends_on_the_company_on_an_accelerator_only(base, together, monkeypatch):
    sizes, compute = [], base.prefix._compute
    monkeypatch.setattr(base.prefix, "_compute", lambda depth, rows: sizes.append(len(rows)) or compute(depth, rows))
    assert not base.prefix.together
    base.prefix.together = together
    base.prefix._fits[3] = True  # as an earlier pass had found
    evaluate(Learner(base, TrainConfig()), works(base, 1)[0].start, {"a": records(4)}, EvaluateConfig())
    assert sizes == ([4] if together else [1] * 4)


def test_sequences_read_together_are_the_same(base):
    base.prefix.together = True
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    with forgetful(base):
        wanted = learner.train(works(base, 2))
    assert_same(learner.train(works(base, 2)), wanted, works(base, 2))
    assert base.prefix._fits == {2: True}


def test_no_text_decides_how_others_are_read(base, monkeypatch):
    """Whether a model can be cut is looked at with made-up tokens, before and whatever is read."""
    read, whole = [], base.prefix._whole
    monkeypatch.setattr(base.prefix, "_whole", lambda ids: read.append(ids.tolist()) or whole(ids))
    looked = []
    for seed in (1, 2):
        base.prefix._fits.clear()
        read.clear()
        check = base.prefix._check
        monkeypatch.setattr(base.prefix, "_check", lambda depth, check=check: (read.clear(), check(depth), looked.append(list(read)))[1])
        Learner(base, TrainConfig()).train([LocalTraining(works(base, 1)[0].start, records(2, seed), Trainable.AB, 1, 2, 1e-2, 0)])
        monkeypatch.setattr(base.prefix, "_check", check)
    assert looked[0] == looked[1] != []
    assert not any(len(tokens) == 5 and tokens == (0, 1, 2, 3, 4) for _, tokens in base.prefix._known)


def test_the_oldest_is_forgotten_when_it_is_too_much(base):
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    with forgetful(base):
        wanted = learner.train(works(base, 1))
    base.prefix.most_bytes = 16 * 4 * 40
    assert_same(learner.train(works(base, 1)), wanted, works(base, 1))
    assert base.prefix.computed > len(base.prefix._known) > 0
    assert base.prefix.held_bytes == sum(state.nbytes for state in base.prefix._known.values()) <= base.prefix.most_bytes
    before, base.prefix.most_bytes = base.prefix.computed, 0
    assert_near(factors(learner.train(works(base, 1))), factors(wanted), 1e-6)
    assert base.prefix.computed == before


def test_states_first_seen_in_inference_can_be_trained_on(base):
    learner = Learner(base, TrainConfig())
    texts = records(4)
    with torch.inference_mode():
        evaluate(learner, works(base, 1)[0].start, {"a": texts}, EvaluateConfig())
    assert learner.train([LocalTraining(works(base, 1)[0].start, texts, Trainable.AB, 1, 4, 1e-2, 0)])
    assert base.prefix.computed == 4


@pytest.mark.parametrize("fault", ["reads another block", "fails without it"])
def test_a_model_that_cannot_be_cut_reads_everything(base, fault, monkeypatch):
    first, last = base.model.get_decoder().layers[0], base.model.get_decoder().layers[3]
    left = []  # by the first block, for the last one of the same pass
    base.model.get_decoder().register_forward_pre_hook(lambda *_: left.clear())
    first.register_forward_hook(lambda _, __, out: left.append(out))

    def forward(hidden, *args, **more):
        if fault == "fails without it" and not left:
            raise RuntimeError("no state of the first block")
        hidden = type(last).forward(last, hidden, *args, **more)
        return hidden + 0.5 * left[-1] if left else hidden

    monkeypatch.setattr(last, "forward", forward)
    texts = (Record("abcdef"), Record("xyz"))
    one = [LocalTraining(works(base, 1)[0].start, texts, Trainable.AB, 1, 2, 1e-2, 0)]
    learner = Learner(base, TrainConfig(optimizer="sgd"))
    with forgetful(base):
        wanted = learner.train(one)
    assert_near(factors(learner.train(one)), factors(wanted), 1e-6)
    assert base.prefix._fits == {3: False}
    assert base.model.get_decoder().layers[0] is first


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "t5"])
def test_other_models_have_no_such_memory(kind, folder):
    base = tiny(folder, kind)
    assert base.prefix is None
    start = filled(loading.targets(base, AdapterConfig(layers=1)), 2)
    assert Learner(base, TrainConfig()).train([LocalTraining(start, records(3, prompt=kind == "t5"), Trainable.AB, 1, 2, 1e-2, 0)])


def test_brew_remembers():
    brew = loading.load_base(ModelConfig(context=24, device="cpu"))
    learner, adapter = Learner(brew, TrainConfig()), filled(loading.targets(brew, AdapterConfig(layers=2)), 2)
    texts = {"a": (Record("Return the sum of two numbers."), Record("Open a file."))}
    with forgetful(brew):
        wanted = evaluate(learner, adapter, texts, EvaluateConfig()).loss
    assert evaluate(learner, adapter, texts, EvaluateConfig()).loss == pytest.approx(wanted, rel=1e-5)
    assert brew.prefix._fits == {4: True}
