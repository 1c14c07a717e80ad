"""The sampling loop: tokens after tokens, from any Hugging Face model with a language-model head.

Random by a seed alone: the global generators are neither read nor moved. Legend: B batch · T tokens
· V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aulait.core.errors import ModelError, require
from aulait.models.padding import padding_id
from aulait.models.record_form import RecordForm

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DROP_SHARE = 0.75  # ended rows are taken out of a batch when at most this share of it is left


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the fields mean what they mean in ``GenerateConfig``."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 50
    batch: int = 64


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        ids: the new tokens, without the one that ended it.
        ended: False when it was cut by the token limit.
    """

    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class TextModel:
    """A language model that writes, with what it needs for it.

    Attributes:
        model: a Hugging Face model with a language-model head.
        tokenizer: its tokenizer.
        device: where the model lies.
        template: how turns are written for it, as ``model.template``.
    """

    model: PreTrainedModel  # PreTrainedModel, or a PEFT model around one
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    template: str = "auto"

    @property
    def form(self) -> RecordForm:
        """How it reads texts and conversations."""
        return RecordForm(self.tokenizer, self.template)

    @property
    def answers(self) -> bool:
        """Whether it is an encoder-decoder, which answers a prompt instead of continuing it."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def pad(self) -> int:
        """The token that fills rows up."""
        return padding_id(self.model, self.tokenizer)


@dataclass(frozen=True)
class Draws:
    """How the tokens of one batch are drawn.

    Attributes:
        how: temperature and cuts.
        stops: tokens that end a row.
        most_B: token limits of the rows.
        uniform_BT: the random numbers of the rows.
    """

    how: Sampling
    stops: Sequence[int]
    most_B: Tensor  # noqa: N815
    uniform_BT: Tensor  # noqa: N815


def encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """Token numbers of a text; special tokens spelled out in it are removed; none added unless
    ``special``."""
    ids = tokenizer(plain(tokenizer, text), add_special_tokens=special, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of the tokens without any special token, whether one token or spelled out in
    several."""
    return plain(tokenizer, tokenizer.decode(list(ids), skip_special_tokens=True))


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without the strings of the special tokens."""
    marks = [mark for mark in tokenizer.all_special_tokens if len(mark) > 1]
    while any(mark in text for mark in marks):  # removing one may join the halves of another
        for mark in marks:
            text = text.replace(mark, "")
    return text


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that open a document: what the tokenizer itself sets before a text, else its
    beginning or end of sequence where that marks no turn of a chat, else nothing."""
    form = RecordForm(tokenizer)
    if form.opening:
        return form.opening
    for mark, token in ((tokenizer.bos_token, tokenizer.bos_token_id),
                        (tokenizer.eos_token, tokenizer.eos_token_id)):
        if token is not None and mark not in form.sample:
            return [int(token)]
    return []


def extend(
    writer: TextModel, prompts: Sequence[Sequence[int]], how: Sampling, seed: int,
    limits: Sequence[int] | None = None,
) -> list[Continuation]:
    """The continuation of every list of tokens, in order.

    Every prompt has its own row of random numbers, drawn before batches are formed: how prompts are
    grouped changes a text only through float32 rounding. A prompt too long for the model's context
    loses its beginning; an encoder, whose context the answer does not share, loses the prompt's
    end.

    Args:
        writer: the model.
        prompts: token ids.
        how: how tokens are drawn.
        seed: of the draws.
        limits: token limits of the single prompts, from 1 to ``how.max_tokens``; None is
            ``how.max_tokens`` for all.

    Raises:
        ModelError: a prompt is empty, or ``max_tokens`` does not fit in the model's context.
    """
    require(all(len(p) > 0 for p in prompts), ModelError,
            "a prompt has no token; expected one; give it some text")
    context = getattr(writer.model.config, "max_position_embeddings", None) or 10**9
    fits = f"max_tokens is {how.max_tokens}, the model's context {context}; ask for fewer tokens"
    require(how.max_tokens < context, ModelError, fits)
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand(len(prompts), how.max_tokens, generator=generator, dtype=torch.float64)
    # equal lengths together: little padding; equal prompts together: read once
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), list(prompts[i])))
    found: dict[int, Continuation] = {}
    stateful = getattr(writer.model, "_is_stateful", False)
    step = _answered if writer.answers else _generated if stateful else _extended
    ends = stops(writer)
    with frozen(writer.model):
        for start in range(0, len(order), how.batch):
            rows = order[start : start + how.batch]
            part = [list(prompts[i])[:context] if writer.answers
                    else list(prompts[i])[-(context - how.max_tokens) :] for i in rows]
            most_B = torch.tensor([limits[i] if limits else how.max_tokens for i in rows])
            draws = Draws(how, ends, most_B.to(writer.device), uniform_BT[rows].to(writer.device))
            written = step(writer, part, draws)
            for row, ids, most in zip(rows, written, most_B.tolist(), strict=True):
                found[row] = Continuation(ids[:most], ended=len(ids) < most)
    return [found[i] for i in range(len(prompts))]


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout and gradients, put back as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # inference mode would leave tensors that training cannot use
            yield
    finally:
        model.train(training)


def stops(writer: TextModel) -> list[int]:
    """Tokens that end a text: every end of sequence and of a turn, padding, the beginning of
    another document.

    Not that beginning for an encoder-decoder: some (BART) write it first.
    """
    tokenizer = writer.tokenizer
    known = getattr(getattr(writer.model, "generation_config", None), "eos_token_id", None)
    ends = known if isinstance(known, list) else [known]
    begin = None if writer.answers else tokenizer.bos_token_id
    ends = [*ends, tokenizer.eos_token_id, begin, tokenizer.pad_token_id, *writer.form.turn_end]
    return sorted({int(token) for token in ends if token is not None})


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device,
            left: bool) -> tuple[Tensor, Tensor]:
    """Token numbers and attention mask, both (B, T), the padding on one side."""
    longest = max(map(len, prompts))

    def filled(row: Sequence[int], fill: int) -> list[int]:
        more = [fill] * (longest - len(row))
        return more + list(row) if left else list(row) + more

    ids_BT = torch.tensor([filled(p, pad) for p in prompts], device=device)
    mask_BT = torch.tensor([filled([1] * len(p), 0) for p in prompts], device=device)
    return ids_BT, mask_BT


def _extended(writer: TextModel, prompts: list[list[int]], draws: Draws) -> list[list[int]]:
    """One batch through a causal model: every different prompt once, however many rows begin with
    it, then token by token with the cache of keys and values."""
    # loads transformers, which settings and commands can do without
    from aulait.models.key_cache import roomy_cache

    model = writer.model
    takes = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    first, mask_BT = _padded(list(places), writer.pad, writer.device, left=True)
    row_B = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=writer.device)
    cache = roomy_cache(model.config)

    def read(given: Tensor) -> Tensor:
        nonlocal mask_BT
        if given is not first:
            mask_BT = torch.cat([mask_BT, torch.ones_like(given)], dim=1)
        extra: dict[str, object] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        if "position_ids" in takes:
            extra["position_ids"] = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -given.shape[1] :]
        out: Tensor = model(input_ids=given, attention_mask=mask_BT, past_key_values=cache,
                            use_cache=True, **extra).logits
        if given is first and len(row_B) > len(first):
            keep(row_B)
            return out[row_B, -1]
        return out[:, -1]

    def keep(left: Tensor) -> None:
        nonlocal mask_BT
        cache.batch_select_indices(left)
        mask_BT = mask_BT[left]

    return _drawn(read, keep, first, draws)


def _answered(writer: TextModel, prompts: list[list[int]], draws: Draws) -> list[list[int]]:
    """One batch through an encoder-decoder: the encoder once, then token by token with the caches
    of the decoder."""
    # loads transformers, which settings and commands can do without
    from aulait.models.key_cache import paired_cache

    model = writer.model
    # On the right, as in training: a model with absolute positions would read a prompt padded on
    # the left elsewhere.
    ids_BN, mask_BN = _padded(prompts, writer.pad, writer.device, left=False)
    told_BND = model.get_encoder()(input_ids=ids_BN, attention_mask=mask_BN)[0]
    cache = paired_cache()

    def read(given: Tensor) -> Tensor:
        out: Tensor = model(encoder_outputs=(told_BND,), attention_mask=mask_BN,
                            decoder_input_ids=given, past_key_values=cache,
                            use_cache=True).logits
        return out[:, -1]

    def keep(left: Tensor) -> None:
        nonlocal told_BND, mask_BN
        cache.batch_select_indices(left)
        told_BND, mask_BN = told_BND[left], mask_BN[left]

    start = torch.full((len(prompts), 1), decoder_start(model, writer.tokenizer),
                       device=writer.device)
    return _drawn(read, keep, start, draws)


def decoder_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a decoder begins with."""
    known = [getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None),
             getattr(model.config, "decoder_start_token_id", None), tokenizer.bos_token_id,
             tokenizer.pad_token_id]
    return int(next(token for token in (*known, 0) if token is not None))


def _drawn(
    read: Callable[[Tensor], Tensor], keep: Callable[[Tensor], None], given: Tensor, draws: Draws,
) -> list[list[int]]:
    """The tokens drawn for every row.

    Args:
        read: the next tokens of the rows (B, T) -> logits (B, V) of what follows them.
        keep: told which rows are left when others have ended.
        given: the first tokens (B, T), or fewer rows, which ``read`` knows to spread.
        draws: how tokens are drawn, and until when.
    """
    most_B = draws.most_B
    ends = torch.tensor(draws.stops, device=given.device)
    written_BT = torch.full((len(most_B), draws.how.max_tokens), -1, device=given.device)
    alive_B = torch.ones(len(most_B), dtype=torch.bool, device=given.device)
    # which rows of the batch are still computed
    rows = torch.arange(len(most_B), device=given.device)
    for step in range(int(most_B.max())):
        token_B = choose_tokens(read(given), draws.how, draws.uniform_BT[rows, step])
        # A row that has ended stays ended, whatever is drawn for it until it is dropped.
        written_BT[rows, step] = torch.where(torch.isin(token_B, ends) | ~alive_B[rows], -1,
            token_B)
        alive_B &= (written_BT[:, step] >= 0) & (step + 1 < most_B)
        left = alive_B[rows].nonzero()[:, 0]
        if len(left) == 0:
            break
        if len(left) <= DROP_SHARE * len(rows):
            keep(left)
            rows, token_B = rows[left], token_B[left]
        given = token_B[:, None]
    return [[token for token in row if token >= 0] for row in written_BT.tolist()]


def _generated(writer: TextModel, prompts: list[list[int]], draws: Draws) -> list[list[int]]:
    """One batch through Hugging Face's own loop: models without a cache of keys.

    Its draws come from the global generator, which is seeded from our own row of numbers and then
    put back.
    """
    how, device = draws.how, writer.device
    ids_BT, mask_BT = _padded(prompts, writer.pad, device, left=True)
    drawn: dict[str, object] = {"do_sample": True, "temperature": how.temperature,
                                "top_p": how.top_p, "top_k": how.top_k}
    manner = drawn if how.temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(draws.uniform_BT[:, 0].sum().item() / len(prompts) * 2**53))
        out = writer.model.generate(ids_BT, attention_mask=mask_BT,
                                    max_new_tokens=how.max_tokens, pad_token_id=writer.pad,
                                    **manner)
    ends = set(draws.stops)
    found = []
    for row in out[:, ids_BT.shape[1] :].tolist():
        length = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:length])
    return found


def choose_tokens(logits_BV: Tensor, how: Sampling, uniform_B: Tensor) -> Tensor:
    """One token for every row, (B,) int64: the likeliest at temperature 0, else drawn by one
    uniform number each.

    Temperature first, then ``top_k``, then ``top_p`` over what is left, as Hugging Face's samplers
    do.
    """
    if how.temperature == 0:
        return logits_BV.argmax(dim=-1)
    kept = min(how.top_k or logits_BV.shape[-1], logits_BV.shape[-1])
    value_BK, token_BK = logits_BV.float().topk(kept, dim=-1)
    mass_BK = (value_BK / how.temperature).double().softmax(dim=-1).cumsum(dim=-1)
    # A token stays if the likelier ones together have less than top_p; the first one always stays.
    within_B = (mass_BK < how.top_p).sum(dim=-1).clamp(max=kept - 1)
    target_B = uniform_B.double() * mass_BK.gather(1, within_B[:, None])[:, 0]
    place_B = (mass_BK <= target_B[:, None]).sum(dim=-1).minimum(within_B)
    return token_BK.gather(1, place_B[:, None])[:, 0]
