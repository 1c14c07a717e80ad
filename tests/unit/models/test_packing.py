"""Texts behind one another without padding say what padded rows say: losses, gradients, dropout, remembered states."""

from __future__ import annotations

import pytest
import torch
from tests.families import FAMILIES, load_family, write_family
from tests.tiny_bases import filled, records, tiny
from torch import nn

from aulait.core.factors import Trainable
from aulait.models import packing
from aulait.models.grouped_update import adapted
from aulait.models.head_loss import head_losses
from aulait.models.loading import AdapterConfig, targets
from aulait.training.batches import collate, losses, scored
from aulait.training.stacked import Stack
from aulait.training.trainer import Learner, TrainConfig

DOES_NOT_PACK = {"Bloom", "Mamba2", "Falcon-H1", "Mistral"}  # ALiBi, states, a window shorter than the context
CAUSAL = [family for family, config in FAMILIES.items() if not config.is_encoder_decoder]


def gradients(base, packs: bool, sites: int = 2, layers="all", dropout: float = 0.0) -> list[torch.Tensor]:
    """Losses and the gradients of the factors of some sites, four texts of unequal length."""
    base.packs = packs
    learner = Learner(base, TrainConfig(), dropout)
    some = records(4, seed=3)
    assert len({len(learner.encode(record)[0]) for record in some}) > 2
    shapes = targets(base, AdapterConfig(layers=layers))
    stack = Stack.of([filled(shapes, 1 + site, seed=site) for site in range(sites)], Trainable.AB, base.device)
    loss_K, _ = learner.losses(collate(base, learner.encode, some), stack, sites,
                               learner.masks([(1, 2, record) for record in some]))
    loss_K.sum().backward()
    return [loss_K.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in stack.leaves)]


def assert_same(found, wanted, slack: float = 1e-4) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= slack * max(1e-3, float(other.abs().max()))


@pytest.mark.parametrize("family", CAUSAL)
def test_packed_and_padded_rows_say_the_same(family, tmp_path):
    base = load_family(family, write_family(family, tmp_path / "m"))
    if not base.packs:
        pytest.skip("read in padded rows")
    assert_same(gradients(base, True), gradients(base, False))


def test_most_families_pack_and_those_that_look_across_do_not(tmp_path):
    found = {family for family in CAUSAL if load_family(family, write_family(family, tmp_path / family)).packs}
    assert {"Llama", "Qwen2", "Qwen3", "OLMo2", "Mixtral"} <= found
    assert not found & DOES_NOT_PACK
    assert len(found) > len(CAUSAL) / 2


@pytest.mark.parametrize("sites", [1, 2, 4])
@pytest.mark.parametrize("more", [{}, {"layers": 1}, {"dropout": 0.4}])
def test_sites_and_remembered_states_and_dropout(tmp_path, sites, more):
    base = tiny(tmp_path)
    assert base.packs
    assert base.prefix is not None
    wanted = gradients(base, False, sites, **more)
    base.prefix._known.clear()
    assert_same(gradients(base, True, sites, **more), wanted)
    assert_same(gradients(base, True, sites, **more), wanted)  # from what is remembered


def test_packing_is_off_where_it_is_set_off_or_the_attention_has_a_window(tmp_path):
    path = write_family("Llama", tmp_path / "m")
    assert load_family("Llama", path).packs
    assert not load_family("Llama", path, packing=False).packs
    base = load_family("Llama", path)
    decoder = base.model.get_decoder()
    decoder.config.sliding_window = 12
    assert packing.can_pack(decoder, 12)
    assert not packing.can_pack(decoder, 13)
    decoder.config.sliding_window, decoder.config._attn_implementation = None, "eager"
    assert not packing.can_pack(decoder, 12)


def test_blocks_computed_again_are_computed_as_packed(tmp_path):
    path = write_family("Llama", tmp_path / "m")
    plain, again = load_family("Llama", path), load_family("Llama", path, gradient_checkpointing=True)
    assert again.packs
    for one, other in zip(gradients(again, True, dropout=0.3), gradients(plain, True, dropout=0.3), strict=True):
        assert torch.equal(one, other)


def test_the_attention_is_refused_where_nothing_is_packed(tmp_path):
    decoder = tiny(tmp_path).model.get_decoder()
    decoder.config._attn_implementation = packing.NAME
    with pytest.raises(ValueError, match="where there are none"):
        decoder(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


@pytest.mark.parametrize("sizes", [None, [2, 5, 5], [4, 4, 4]])
@pytest.mark.parametrize("with_layer", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_update_is_the_sum_of_its_products(sizes, with_layer, dtype):
    torch.manual_seed(1)
    layer = nn.Linear(6, 9).requires_grad_(False).to(dtype) if with_layer else None
    x = torch.randn(12, 6).to(dtype).requires_grad_()
    a, b = torch.randn(3, 2, 6, requires_grad=True), torch.randn(3, 9, 2, requires_grad=True)
    scale, given = torch.tensor([0.5, 1.0, 2.0]), torch.randn(12, 9)
    slow = torch.cat([own.float() @ (scale[k] * b[k] @ a[k]).T for k, own in enumerate(x.split(sizes or [4, 4, 4]))])
    slow = slow if layer is None else layer(x) + slow.to(dtype)
    found = adapted(x, layer, (a, b, scale), sizes)
    wanted = torch.autograd.grad((slow.float() * given).sum(), (x, a, b))
    own = torch.autograd.grad((found.float() * given).sum(), (x, a, b))
    slack = 1e-5 if dtype == torch.float32 else 0.05
    assert_same([found.float(), *(g.float() for g in own)], [slow.float(), *(g.float() for g in wanted)], slack)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_losses_of_the_head_in_blocks_are_the_cross_entropy(block, monkeypatch):
    monkeypatch.setattr("aulait.models.head_loss.BLOCK", block)
    torch.manual_seed(2)
    head = nn.Linear(5, 40).requires_grad_(False)
    hidden, target, weight = torch.randn(37, 5, requires_grad=True), torch.randint(0, 40, (37,)), torch.rand(37)
    slow = nn.functional.cross_entropy(head(hidden), target, reduction="none")
    found = head_losses(head, hidden, target)
    assert_same([found, torch.autograd.grad((found * weight).sum(), hidden)[0]],
                [slow, torch.autograd.grad((slow * weight).sum(), hidden)[0]], 1e-5)


def test_losses_are_those_of_the_scored_logits(tmp_path):
    for base in (tiny(tmp_path / "a"), tiny(tmp_path / "b", kind="t5")):
        rows = collate(base, Learner(base, TrainConfig()).encode, records(3, prompt=True))
        with torch.no_grad():
            out, target, row = scored(base, rows)
            each, own = losses(base, rows)
        assert torch.equal(row, own)
        assert_same([each], [nn.functional.cross_entropy(out, target, reduction="none")], 1e-5)
