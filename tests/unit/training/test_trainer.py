"""The batched trainer against training alone, and against a plain loop over the bare model."""

from __future__ import annotations

import math

import pytest
import torch
from tests.closeness import assert_learnt_alike
from tests.oracle import plain_training
from tests.tiny_bases import filled, records, tiny

from aulait.core import lora
from aulait.core.errors import DataError
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, Record
from aulait.models import loading
from aulait.models.loading import BREW, AdapterConfig, ModelConfig
from aulait.training.batches import IGNORE, Encoder, collate, scored, too_long
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, LocalTraining, TrainConfig, draws, learning_rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def base(folder):
    return tiny(folder)


def work(base, site: int, rank: int = 2, trainable: Trainable = Trainable.AB, prompt: bool = False, steps: int = 2) -> LocalTraining:
    shapes = loading.targets(base, AdapterConfig(targets=("q_proj", "v_proj", "down_proj")))
    return LocalTraining(filled(shapes, rank, alpha=4.0 + site, seed=site), records(5, site, prompt), trainable, steps, 2, 1e-2, 10 + site)


def apart(left: Adapter, right: Adapter) -> float:
    assert list(left.factors) == list(right.factors)
    return max(float((left.factors[n][i] - right.factors[n][i]).abs().max()) for n in left.factors for i in (0, 1))


@pytest.mark.parametrize("clip", [0.05, 0.0])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("trainable", [Trainable.A, Trainable.B, Trainable.AB])  # a core is trained alone, in tests of cores
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2)])
def test_many_sites_together_equal_each_alone_and_the_plain_loop(base, ranks, trainable, optimizer, clip):
    config = TrainConfig(optimizer=optimizer, max_grad_norm=clip, weight_decay=0.01)
    learner = Learner(base, config)
    works = [work(base, site, rank, trainable, prompt=site == 1) for site, rank in enumerate(ranks)]
    together = learner.train(works)
    for one, done in zip(works, together, strict=True):
        alone = learner.train([one])[0]
        batches = [[one.records[i] for i in step] for step in draws(one, [len(learner.encode(r)[0]) for r in one.records])]
        plain, loss = plain_training.train(
            base.config.name, one.start, batches, part=trainable, lr=one.lr, optimizer=optimizer, max_grad_norm=clip, weight_decay=0.01)
        assert_learnt_alike(done.adapter, alone.adapter, 2e-3, start=one.start)
        assert_learnt_alike(done.adapter, plain, 2e-3, start=one.start)
        assert apart(done.adapter, one.start) > 1e-4
        assert done.loss == pytest.approx(loss, rel=1e-5)
        assert done.adapter.alpha == one.start.alpha
        for name, (a, b) in one.start.factors.items():
            assert done.adapter.factors[name][0].shape == a.shape
            assert trainable != "A" or torch.equal(done.adapter.factors[name][1], b)
            assert trainable != "B" or torch.equal(done.adapter.factors[name][0], a)


def test_brew_equals_the_plain_loop():
    brew = loading.load_base(ModelConfig(context=24, device="cpu"))
    brew.prefix = None  # remembered states are read without padding: other last bits, which AdamW's first steps enlarge
    shapes = loading.targets(brew, AdapterConfig(targets="attention", layers=2))
    texts = (Record("Return the sum of two numbers."), Record("Open a file and read its lines."), Record("A set of names."))
    learner = Learner(brew, TrainConfig())
    one = LocalTraining(filled(shapes, 2, size=0.02), texts, Trainable.AB, 2, 2, 1e-3, 3)
    done = learner.train([one])[0]
    batches = [[texts[i] for i in step] for step in draws(one, [len(learner.encode(r)[0]) for r in texts])]
    plain, loss = plain_training.train(BREW, one.start, batches, part=Trainable.AB, lr=1e-3, optimizer="adamw", max_grad_norm=1.0)
    assert_learnt_alike(done.adapter, plain, 2e-3, start=one.start)
    assert done.loss == pytest.approx(loss, rel=1e-5)


def test_padded_ranks_stay_zero(base, monkeypatch):
    """Sites of rank 1 and 3 in one pass: rows 2 and 3 of the padded factors of the first are zero after training."""
    seen = {}
    take = Stack.take

    def spy(stack, k):
        seen.update({name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in stack.factors.items()})
        return take(stack, k)

    monkeypatch.setattr(Stack, "take", spy)
    Learner(base, TrainConfig(weight_decay=0.1)).train([work(base, 0, 1), work(base, 1, 3)])
    for a_KRN, b_KMR in seen.values():
        assert a_KRN.shape[1] == 3
        short = 0 if not a_KRN[0, 1:].any() else 1  # sites of a pass are ordered by the length of their records
        assert not a_KRN[short, 1:].any()
        assert not b_KMR[short, :, 1:].any()
        assert a_KRN[1 - short, 1:].any()


def test_clipping_is_by_site_not_by_pass(base):
    """A site with tiny gradients must not be shortened by its neighbour's large ones."""
    config = TrainConfig(optimizer="sgd", max_grad_norm=1e-3)
    learner = Learner(base, config)
    works = [work(base, 0, steps=1), work(base, 1, steps=1)]
    for one, done in zip(works, learner.train(works), strict=True):
        moved = math.sqrt(sum(float((done.adapter.factors[n][i] - one.start.factors[n][i]).double().square().sum())
                              for n in done.adapter.factors for i in (0, 1)))
        assert moved == pytest.approx(1e-3 * one.lr, rel=2e-2)  # float32 holds a step of 1e-5 to a few digits
        assert done.updates > 1e-3


def test_groups_of_unequal_work_come_back_in_order(base):
    learner = Learner(base, TrainConfig(rows_at_once=4))
    works = [work(base, 0), work(base, 1, trainable=Trainable.B), work(base, 2, steps=1), work(base, 3), work(base, 4)]
    told = []
    done = learner.train(works, told.append)
    assert sum(told) == len(works)
    for one, result in zip(works, done, strict=True):
        alone = learner.train([one])[0].adapter
        assert_learnt_alike(result.adapter, alone, 2e-3, start=one.start)
        assert result.adapter.alpha == one.start.alpha


def test_rows_at_once_changes_nothing_but_speed(base):
    works = [work(base, site) for site in range(3)]
    few, many = (Learner(base, TrainConfig(rows_at_once=rows)).train(works) for rows in (1, 64))
    for one, left, right in zip(works, few, many, strict=True):
        assert_learnt_alike(left.adapter, right.adapter, 2e-3, start=one.start)
        assert left.tokens == right.tokens


def test_training_lowers_the_loss(base):
    learner = Learner(base, TrainConfig())
    one = LocalTraining(filled(loading.targets(base, AdapterConfig()), 4), records(2), Trainable.AB, 30, 2, 3e-2, 0)
    first = learner.train([LocalTraining(**{**one.__dict__, "steps": 1})])[0].loss
    assert learner.train([one])[0].loss < first - 0.05


def test_nobody_trains_on_nothing(base):
    with pytest.raises(DataError, match="no records"):
        Learner(base, TrainConfig()).train([LocalTraining(filled({"x": (2, 2)}, 1), (), Trainable.AB, 1, 1, 1e-3, 0)])


def test_no_works_is_no_answer(base):
    assert Learner(base, TrainConfig()).train([]) == []


# -- which tokens carry loss -------------------------------------------------------------------------------------


def losses_per_token(base, encode, batch: list[Record]) -> list[list[float]]:
    out, target, row = scored(base, collate(base, encode, batch))
    each = torch.nn.functional.cross_entropy(out, target, reduction="none")
    return [each[row == i].tolist() for i in range(len(batch))]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5"])
def test_loss_of_every_token_is_the_same_alone_and_padded(folder, kind, prompt):
    base = tiny(folder, kind, context=32)
    encode = Encoder(base)
    short, long = Record("abc", "pq" if prompt else None), Record("defghijklmnopqrstu", "vwxyz" if prompt else None)
    if kind == "t5" and not prompt:
        pytest.skip("a sequence-to-sequence record without a prompt gives the encoder nothing")
    both = losses_per_token(base, encode, [short, long])
    for record, padded in zip((short, long), both, strict=True):
        alone = losses_per_token(base, encode, [record])[0]
        assert len(alone) == len(record.text) + 1
        assert padded == pytest.approx(alone, rel=1e-5)


def test_only_the_response_carries_loss(base):
    encode = Encoder(base)
    rows = collate(base, encode, [Record("abc", "xy"), Record("abc")])
    letters = [int(base.tokenizer(c, add_special_tokens=False)["input_ids"][0]) for c in "abc"]
    end = base.tokenizer.eos_token_id
    assert rows.labels[0].tolist() == [IGNORE] * 4 + [*letters, end]  # <s> x y newline
    assert rows.labels[1].tolist()[:5] == [IGNORE, *letters, end]
    assert set(rows.labels[1].tolist()[5:]) == {IGNORE}
    _, target, row = scored(base, rows)
    assert target.tolist() == [*letters, end] * 2  # the first letter of the response is predicted from the prompt
    assert row.tolist() == [0] * 4 + [1] * 4


def test_seq2seq_gives_the_prompt_to_the_encoder(folder):
    base = tiny(folder, "t5")
    rows = collate(base, Encoder(base), [Record("abc", "xyz"), Record("d", "w")])
    assert base.tokenizer.decode(rows.source[0]) == "xyz"
    assert rows.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert base.tokenizer.decode(rows.labels[0]) == "abc</s>"
    assert rows.labels[1].tolist()[2:] == [IGNORE] * 2


# -- the context -------------------------------------------------------------------------------------------------


def text_of(base, coded: tuple[list[int], int]) -> tuple[str, str]:
    ids, given = coded
    return base.tokenizer.decode(ids[:given]), base.tokenizer.decode(ids[given:])


@pytest.mark.parametrize(("record", "expected"), [
    (Record("a" * 22), ("<s>", "a" * 22 + "</s>")),  # 24 tokens: just fits
    (Record("a" * 23), ("<s>", "a" * 23)),  # the end mark is cut
    (Record("a" * 50), ("<s>", "a" * 23)),
    (Record("b" * 5, "x" * 50), ("<s>" + "x" * 16 + "\n", "bbbbb</s>")),  # the prompt gives way, its end stays
    (Record("b" * 50, "x" * 50), ("<s>" + "x" * 10 + "\n", "b" * 12)),  # half and half
    (Record("b" * 50, "xyz"), ("<s>xyz\n", "b" * 19)),  # a short prompt is kept whole
])
def test_what_is_cut_when_a_record_exceeds_the_context(base, record, expected):
    coded = Encoder(base)(record)
    assert text_of(base, coded) == expected
    assert len(coded[0]) <= base.config.context


def test_the_end_of_a_prompt_is_what_stays(base):
    prompt = "".join(chr(97 + i % 26) for i in range(40))
    given, response = text_of(base, Encoder(base)(Record("zz", prompt)))
    assert given == "<s>" + prompt[-19:] + "\n"
    assert response == "zz</s>"


def test_seq2seq_cuts_both_sides_on_their_own(folder):
    base = tiny(folder, "t5")
    ids, given = Encoder(base)(Record("b" * 50, "x" * 50))
    assert (given, len(ids) - given) == (24, 24)


def test_too_long_counts_before_the_cut(base):
    fits, long = Record("a" * 22), Record("a" * 23)
    assert list(too_long(Encoder(base), base.config.context, [fits, long])) == [(1, 25)]


# -- which records a step reads -----------------------------------------------------------------------------------


def test_draws_pass_over_all_records_before_any_repeats():
    one = LocalTraining(Adapter({}, 1.0), (), Trainable.AB, 5, 2, 1e-3, 4)
    steps = draws(one, [7] * 5)
    assert [len(step) for step in steps] == [2] * 5
    drawn = sorted(i for step in steps for i in step)
    assert drawn == sorted([0, 1, 2, 3, 4] * 2)
    assert steps == draws(one, [7] * 5)
    few = [draws(LocalTraining(Adapter({}, 1.0), (), Trainable.AB, 1, 2, 1e-3, seed), [7] * 5)[0] for seed in range(40)]
    assert {i for step in few for i in step} == set(range(5))


def test_draws_put_similar_lengths_into_a_step():
    lengths = [3, 30, 4, 31, 5, 32]
    steps = draws(LocalTraining(Adapter({}, 1.0), (), Trainable.AB, 3, 2, 1e-3, 0), lengths)
    assert sorted(sorted(lengths[i] for i in step) for step in steps) == [[3, 4], [5, 30], [31, 32]]


def test_tokens_read_are_those_with_loss_and_no_padding(base):
    one = work(base, 0)
    learner = Learner(base, TrainConfig())
    steps = draws(one, [len(learner.encode(r)[0]) for r in one.records])
    assert learner.train([one])[0].tokens == sum(len(one.records[i].text) + 1 for step in steps for i in step)


def test_a_dense_update_needs_no_rank(base):
    """Padding to a larger rank with alpha grown alike is the same function: one site, two ranks, one loss."""
    one = work(base, 0, rank=2)
    wide = Adapter({n: lora.pad(a, b, 4) for n, (a, b) in one.start.factors.items()}, one.start.alpha * 2)
    learner = Learner(base, TrainConfig())
    done, same = learner.train([one, LocalTraining(**{**one.__dict__, "start": wide})])
    assert done.loss == pytest.approx(same.loss, rel=1e-5)


@pytest.mark.parametrize(("schedule", "wanted"), [
    ("constant", [2e-3] * 4), ("linear", [2e-3, 1.55e-3, 1.1e-3, 6.5e-4]),
    ("cosine", [2e-3, 2e-3 * (0.55 + 0.45 * math.sqrt(0.5)), 1.1e-3, 2e-3 * (0.55 - 0.45 * math.sqrt(0.5))])])
def test_the_learning_rate_of_every_round(schedule, wanted):
    config = TrainConfig(rounds=4, lr=2e-3, schedule=schedule)
    assert [learning_rate(config, round) for round in (1, 2, 3, 4)] == pytest.approx(wanted)


# -- one site whose batch is larger than a pass ----------------------------------------------------


def test_a_batch_larger_than_a_pass_takes_several_and_learns_the_same(tmp_path, monkeypatch):
    from tests.tiny_bases import filled, records, tiny

    import aulait.training.trainer as trainer_module
    from aulait.core.factors import Trainable
    from aulait.models import loading
    from aulait.models.loading import AdapterConfig
    from aulait.training.trainer import Learner, LocalTraining, TrainConfig

    base = tiny(tmp_path)
    start = filled(loading.targets(base, AdapterConfig(rank=2)), 2)
    work = LocalTraining(start, tuple(records(12)), Trainable.AB, 2, 10, 0.1, 0)
    seen, plain = [], trainer_module.collate
    monkeypatch.setattr(trainer_module, "collate",
                        lambda b, e, r: (seen.append(len(r)), plain(b, e, r))[1])
    (some,) = Learner(base, TrainConfig(rows_at_once=4, optimizer="sgd")).train([work])
    assert seen == [4, 4, 2] * 2
    (whole,) = Learner(base, TrainConfig(rows_at_once=10, optimizer="sgd")).train([work])
    assert some.tokens == whole.tokens
    assert abs(some.loss - whole.loss) < 1e-5 * whole.loss
    for name, (a, b) in whole.adapter.factors.items():
        for ours, theirs in zip(some.adapter.factors[name], (a, b), strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
