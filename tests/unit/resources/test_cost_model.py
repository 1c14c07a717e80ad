"""The cost model against what torch counts, against hand-computed toys, and its laws."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from tests import tiny_bases
from tests.oracle import flops
from transformers import T5Config

from aulait.core.errors import ConfigError
from aulait.core.factors import Trainable
from aulait.core.types import Profile
from aulait.models.loading import AdapterConfig, ModelConfig, load_base, targets
from aulait.models.shape import from_config, model_shape
from aulait.resources import cost_model
from aulait.resources.cost_model import Batch, Block, Cost, ModelShape
from aulait.training.batches import Rows, scored
from aulait.training.stacked import Stack

ROWS, TOKENS, SOURCE, RANK = 3, 32, 20, 4


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    found = {kind: tiny_bases.tiny(folder, kind, 64) for kind in tiny_bases.CONFIGS}
    found["brew"] = load_base(ModelConfig(device="cpu"))
    for base in found.values():
        if base.prefix:
            base.prefix.most_bytes = 0  # nothing is remembered: every block runs
    return found


def rows_of(base):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (ROWS, TOKENS), generator=generator)
    if base.config.kind == "seq2seq":
        source = torch.randint(3, 250, (ROWS, SOURCE), generator=generator)
        return Rows(ids, ids, source, torch.ones_like(source)), Batch(ROWS, TOKENS, SOURCE, TOKENS)
    labels = ids.clone()
    labels[:, 0] = -100
    # nothing follows the last token, which is not read
    return Rows(ids, labels), Batch(ROWS, TOKENS - 1, 0, TOKENS - 1)


def stepped(base, trainable, **adapter):
    """A step's ranks, its forward pass, and all of it."""
    shapes, (rows, _) = targets(base, AdapterConfig(**adapter)), rows_of(base)
    stack = Stack.of([tiny_bases.filled(shapes, RANK)], trainable, base.device)
    optimizer = torch.optim.AdamW(stack.leaves)

    def forward():
        with stack.applied_to(base):
            out, target, _ = scored(base, rows)
        return torch.nn.functional.cross_entropy(out, target)

    def step():
        forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return dict.fromkeys(shapes, RANK), forward, step


@pytest.mark.parametrize("trainable", [Trainable.AB, Trainable.B, Trainable.A])
@pytest.mark.parametrize("adapter", [{}, {"layers": 1}, {"layers": 1, "targets": "attention"}], ids=["all", "last", "attention"])
@pytest.mark.parametrize("kind", ["brew", "llama", "gpt2", "t5", "opt"])
def test_flop_are_those_that_torch_counts(bases, kind, adapter, trainable):
    base = bases[kind]
    ranks, _, step = stepped(base, trainable, **adapter)
    found = cost_model.lora_step(model_shape(base), rows_of(base)[1], ranks, trainable=trainable)
    assert found.flop == pytest.approx(flops.executed(step), rel=0.015)


@pytest.mark.parametrize("kind", ["neox", "gemma2"])
def test_flop_of_unlike_blocks_stay_close(bases, kind):
    ranks, _, step = stepped(bases[kind], Trainable.AB)
    assert cost_model.lora_step(model_shape(bases[kind]), rows_of(bases[kind])[1], ranks).flop == pytest.approx(flops.executed(step), rel=0.05)


@pytest.mark.parametrize("kind", ["brew", "gpt2", "t5"])
def test_flop_of_a_forward_pass_and_of_full_training(bases, kind):
    base, (rows, batch) = bases[kind], rows_of(bases[kind])
    with torch.no_grad():
        assert cost_model.evaluation(model_shape(base), batch, {}).flop == pytest.approx(flops.executed(lambda: scored(base, rows)), rel=0.01)
    base.model.requires_grad_(True)
    try:
        counted = flops.executed(lambda: torch.nn.functional.cross_entropy(*scored(base, rows)[:2]).backward())
    finally:
        base.model.requires_grad_(False)
        base.model.zero_grad(set_to_none=True)
    # T5 trains a bias of its scores, and torch then takes another way through the attention.
    assert cost_model.full_step(model_shape(base), batch).flop == pytest.approx(counted, rel=0.05 if kind == "t5" else 0.01)


@pytest.mark.parametrize("kind", ["brew", "llama"])
def test_flop_of_both_halves(bases, kind):
    """Blocks of a llama run by hand on either side of a cut."""
    base, (rows, _) = bases[kind], rows_of(bases[kind])
    batch = Batch(ROWS, TOKENS, 0, TOKENS - 1)  # all positions cross the cut
    shapes, cut = targets(base, AdapterConfig()), 1
    stack, decoder = Stack.of([tiny_bases.filled(shapes, RANK)], Trainable.AB, base.device), base.model.get_decoder()
    places = torch.arange(TOKENS)[None]

    def run(hidden, blocks):
        angles = decoder.rotary_emb(hidden, places)
        for block in blocks:
            hidden = block(hidden, position_embeddings=angles, position_ids=places)
        return hidden

    def front():
        with stack.applied_to(base):
            out = run(decoder.embed_tokens(rows.ids), decoder.layers[:cut])
        out.backward(torch.ones_like(out))

    def back():
        given = torch.zeros(ROWS, TOKENS, model_shape(base).width, requires_grad=True)
        with stack.applied_to(base):
            hidden = decoder.norm(run(given, decoder.layers[cut:]))[:, : TOKENS - 1]
        torch.nn.functional.cross_entropy(base.model.get_output_embeddings()(hidden).flatten(0, 1), rows.ids[:, 1:].flatten()).backward()

    found = cost_model.split_step(model_shape(base), cost_model.Cut(cut, 2), batch, dict.fromkeys(shapes, RANK))
    assert found.client.flop == pytest.approx(flops.executed(front), rel=0.01)
    assert found.server.flop == pytest.approx(flops.executed(back), rel=0.01)
    states = ROWS * TOKENS * model_shape(base).width * 2
    assert (found.up_bytes, found.down_bytes) == (states + 4 * ROWS * TOKENS, states)


@pytest.mark.parametrize("trainable", [Trainable.AB, Trainable.B])
@pytest.mark.parametrize("layers", ["all", 1])
@pytest.mark.parametrize("kind", ["brew", "llama", "gpt2", "t5"])
def test_memory_is_the_peak_that_the_profiler_sees(bases, kind, layers, trainable):
    base = bases[kind]
    ranks, _, step = stepped(base, trainable, layers=layers)
    found = cost_model.lora_step(model_shape(base), rows_of(base)[1], ranks, trainable=trainable)
    assert found.memory_bytes - model_shape(base).weight_bytes == pytest.approx(flops.peak_bytes(step), rel=0.25)


@pytest.mark.parametrize("kind", ["brew", "llama", "t5"])
def test_memory_of_what_is_kept_for_the_backward_pass(bases, kind):
    base = bases[kind]
    ranks, forward, _ = stepped(base, Trainable.AB)
    body, batch = model_shape(base), rows_of(base)[1]
    found = cost_model.lora_step(body, batch, ranks)
    factors = sum(RANK * (m + n) for m, n in targets(base, AdapterConfig()).values())
    logits = ROWS * (batch.scored if body.split_head else TOKENS) * body.vocabulary
    # Of the logits only log-softmax is kept; the factors are counted as kept, not their gradient and two moments.
    activations = found.memory_bytes - body.weight_bytes - 4 * (3 * factors + 2 * logits)
    assert activations == pytest.approx(flops.kept_bytes(forward, base.model), rel=0.25)


def toy() -> ModelShape:
    layers = {"m.0.attn.q_proj": (8, 8), "m.0.attn.k_proj": (8, 8), "m.0.attn.v_proj": (8, 8), "m.0.attn.o_proj": (8, 8),
              "m.0.mlp.up": (16, 8), "m.0.mlp.down": (8, 16)}
    return ModelShape((Block(layers, 8, "decoder", False),), 8, 10, 512 + 80, 80, 4 * 592, "causal", True)


def test_a_toy_by_hand():
    """One block, 2 rows of 3 tokens, 2 scored: 6 tokens and 4 positions; only q carries rank 1."""
    found = cost_model.lora_step(toy(), Batch(2, 3, 0, 2), {"m.0.attn.q_proj": 1})
    forward = 2 * 6 * 512 + 4 * 2 * 9 * 8 + 2 * 4 * 10 * 8 + 2 * 6 * 16
    # q, k and v read states without a gradient: no frozen product runs backward there; o, up, down and the head do.
    backward = 2 * 6 * (64 + 128 + 128) + 10 * 2 * 9 * 8 + 2 * 4 * 10 * 8 + 2 * 6 * 8 * 3
    assert found.flop == forward + backward
    assert found.model_flop == 6 * 512 * 6
    assert cost_model.evaluation(toy(), Batch(2, 3, 0, 2), {}).flop == forward - 2 * 6 * 16
    full = cost_model.full_step(toy(), Batch(2, 3, 0, 2))
    assert full.flop == 6 * 6 * 512 + 14 * 2 * 9 * 8 + 6 * 4 * 10 * 8
    # Weights, gradients and two moments of 592 numbers are the least that full training holds.
    assert full.memory_bytes > 16 * 592


def test_the_convention_of_six_n(bases):
    body, batch = model_shape(bases["brew"]), Batch(2, 10, 0, 9)
    numbers = body.parameters - body.embedding_parameters
    ranks = dict.fromkeys(targets(bases["brew"], AdapterConfig()), 2)
    assert cost_model.lora_step(body, batch, ranks).model_flop == cost_model.full_step(body, batch).model_flop == 6 * numbers * 20
    assert cost_model.evaluation(body, batch, ranks).model_flop == 2 * numbers * 20


def test_blocks_without_an_adapter_in_front_are_cheaper(bases):
    body, batch = model_shape(bases["brew"]), Batch(4, 32, 0, 31)
    last = dict.fromkeys(targets(bases["brew"], AdapterConfig(layers=2)), 4)
    every = dict.fromkeys(targets(bases["brew"], AdapterConfig()), 4)
    shallow, deep = cost_model.lora_step(body, batch, last), cost_model.lora_step(body, batch, every)
    remembered = cost_model.lora_step(body, batch, last, blocks=(4, 6))
    assert remembered.flop < shallow.flop < deep.flop
    assert shallow.memory_bytes < deep.memory_bytes
    bare = sum(2 * 128 * m * n for block in body.blocks[:4] for m, n in block.layers.values()) + 4 * 4 * 4 * 32 * 32 * 256
    assert shallow.flop - remembered.flop == pytest.approx(bare)


def test_generation_reads_all_weights_for_every_token(bases):
    body = model_shape(bases["brew"])
    short, longer = (cost_model.generation(body, 8, 10, new) for new in (16, 17))
    assert longer.moved_bytes - short.moved_bytes > 4 * (body.parameters - 2 * body.width * 13)
    assert longer.flop - short.flop == pytest.approx(2 * 8 * (body.parameters + 6 * 2 * 256 * 26.5), rel=0.01)
    # Without the first pass a token costs the same flop as in an evaluation of a single position, its past left out.
    assert cost_model.generation(model_shape(bases["t5"]), 2, 20, 4).flop > cost_model.generation(model_shape(bases["t5"]), 2, 10, 4).flop


def test_generation_counts_what_is_run(bases):
    from aulait.models.generation import Sampling, TextModel, extend

    base = bases["brew"]
    # a beginning that texts share is read once
    prompts, new = [list(range(first, first + 10)) for first in (100, 101, 102)], 6
    written: list[int] = []

    def work():
        found = extend(TextModel(base.model, base.tokenizer, base.device), prompts, Sampling(max_tokens=new, temperature=0.0), 0)
        written.append(min(len(text.ids) for text in found))

    counted = flops.executed(work)
    assert written == [new]
    assert cost_model.generation(model_shape(base), 3, len(prompts[0]), new).flop == pytest.approx(counted, rel=0.05)


def test_embedding_counts_what_is_run():
    from aulait.synthesis import embedding

    made = embedding.load_embedder("minilm", capacity=0)
    assert isinstance(made, embedding.SentenceEmbedder)
    words = [" ".join(["word"] * 60 + [str(i)]) for i in range(3)]
    tokens = made.model.tokenize(words)["input_ids"].shape[1]
    counted = flops.executed(lambda: made.embed(words))
    assert cost_model.embedding(22_700_000, made.width, 3, tokens).flop == pytest.approx(counted, rel=0.05)


def test_laws_of_costs():
    one, other = Cost(1, 2, 3, 4, 50), Cost(10, 20, 30, 40, 5, {"a": (20.0, 30.0, 40.0)})
    total = one + 2 * other
    assert (total.model_flop, total.flop, total.moved_bytes, total.operations, total.memory_bytes) == (21, 42, 63, 84, 50)
    assert [sum(part[i] for part in total.parts.values()) for i in range(3)] == [42, 63, 84]
    step = cost_model.lora_step(toy(), Batch(2, 3, 0, 2), {"m.0.attn.q_proj": 1})
    assert [sum(part[i] for part in step.parts.values()) for i in range(3)] == pytest.approx([step.flop, step.moved_bytes, step.operations])


def test_seconds_add_on_a_processor_and_overlap_on_an_accelerator():
    spent = Cost(0, 6e9, 2e9, 100, 0, {"a": (6e9, 1e9, 0.0), "b": (0.0, 1e9, 100.0)})
    machine = Profile(device="cpu", flop_per_s={"float32": 2e9}, memory_bytes_per_s=1e9, operation_s=0.02)
    assert cost_model.seconds(spent, machine) == pytest.approx(3 + 2 + 2)
    assert cost_model.seconds(spent, replace(machine, device="cuda")) == pytest.approx(3 + 2)
    assert cost_model.seconds(spent, machine, "bfloat16") == pytest.approx(7)  # at the speed of float32
    assert cost_model.seconds(spent, replace(machine, flop_per_s={"float32": 2e9, "bfloat16": 6e9}), "bfloat16") == pytest.approx(5)
    with pytest.raises(ConfigError, match="no flop_per_s for 'float32'"):
        cost_model.seconds(spent, Profile(name="x"))
    assert cost_model.joules(2.0, replace(machine, power_w=30.0)) == 60
    assert cost_model.joules(2.0, machine) is None


def test_wrong_arguments_are_one_line():
    with pytest.raises(ConfigError, match="cut = 1 of 1 blocks"):
        cost_model.split_step(toy(), cost_model.Cut(1), Batch(1, 2, 0, 1), {})
    with pytest.raises(ConfigError, match="precision 'int3'"):
        cost_model.lora_step(toy(), Batch(1, 2, 0, 1), {}, dtype="int3")
    with pytest.raises(ConfigError, match=r"blocks = \(1, 3\)"):
        cost_model.lora_step(toy(), Batch(1, 2, 0, 1), {}, blocks=(1, 3))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "gemma2"])
def test_a_configuration_has_the_shape_of_its_model(bases, kind):
    assert from_config(tiny_bases.CONFIGS[kind]) == model_shape(bases[kind])


def test_flan_t5_by_its_configuration():
    """The shapes of google/flan-t5-xl; transformers 5 ties the head of every T5 to its embedding."""
    config = T5Config(vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu",
                      decoder_start_token_id=0)
    body = from_config(config, dtype="bfloat16")
    matrices = 24 * (4 * 2048**2 + 3 * 2048 * 5120) + 24 * (8 * 2048**2 + 3 * 2048 * 5120)
    norms_and_biases = 2048 * (24 * 2 + 24 * 3 + 2) + 2 * 32 * 32
    assert body.parameters == matrices + norms_and_biases + 32128 * 2048
    assert body.weight_bytes == 2 * body.parameters
    assert [block.side for block in body.blocks] == ["encoder"] * 24 + ["decoder"] * 24
    assert body.embedding_parameters == 32128 * 2048
    assert len(body.blocks[-1].layers) == 11
    ranks = {name: 8 for block in body.blocks for name in block.layers}
    found = cost_model.lora_step(body, Batch(4, 64, 256, 64), ranks, dtype="bfloat16")
    assert 0.6 < found.flop / found.model_flop < 0.8


def test_a_call_takes_less_than_a_millisecond(bases):
    body = model_shape(bases["brew"])
    ranks = dict.fromkeys(targets(bases["brew"], AdapterConfig()), 4)
    machine = Profile(flop_per_s={"float32": 1e9})

    def call(rows):
        for tokens in range(50):
            cost_model.seconds(cost_model.lora_step(body, Batch(rows, tokens + 8, 0, tokens + 7), ranks), machine)

    call(1)
    started = time.process_time()
    call(2)  # batches not seen before
    new_s = time.process_time() - started
    started = time.process_time()
    call(2)
    assert time.process_time() - started < new_s
    assert new_s / 50 < 1e-3
