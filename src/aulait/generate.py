"""Texts from a model: the base itself, another model in process, or a server that speaks the OpenAI protocol.

Only public or released values enter this file: prompts are public texts or candidates that the door has let out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aulait.errors import ConfigError, ModelError
from aulait.masking import MaskFill
from aulait.prompting import Prompted, chat_at, chat_with
from aulait.registry import require
from aulait.sampling import Sampling, decode, encode, extend, opening
from aulait.seeds import Seeds
from aulait.variation import GenerateConfig, Variation, clean, redrawn, will_do

__all__ = ["GenerateConfig", "MaskFill", "PrefixResample", "Prompted", "Variation", "build", "sample"]


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 50,
    seed: int = 0,
    device: str | torch.device = "cpu",
    add_bos: bool = True,
    batch: int = 64,
) -> list[str]:
    """The continuation of every prompt, in order, without the prompt and without special tokens.

    Random by ``seed`` alone; the global generators are neither read nor moved. An encoder-decoder model answers the
    prompt instead of continuing it.

    Args:
        model: a Hugging Face model with a language-model head.
        tokenizer: its tokenizer.
        prompts: released texts; special tokens spelled out in them are removed. May be empty with ``add_bos``.
        max_tokens, temperature, top_p, top_k, batch: as in ``GenerateConfig``; here only new tokens count.
        seed: of the draws.
        device: where the model lies.
        add_bos: put the token that opens a document first, where the tokenizer has one.

    Raises:
        ModelError: a prompt is empty and the tokenizer has no token to start from.
    """
    how = Sampling(max_tokens, temperature, top_p, top_k, batch)
    first = opening(tokenizer) if add_bos and not model.config.is_encoder_decoder else []
    encoded = [first + encode(tokenizer, prompt, model.config.is_encoder_decoder) for prompt in prompts]
    found = extend(model, tokenizer, encoded, how, seed, device)
    return [decode(tokenizer, new.ids) for new in found]


class PrefixResample:
    """A random part of the parent from its beginning, continued by a causal model.

    Works with any base, with or without instruction tuning; the base may wear an adapter.
    """

    def __init__(self, model: Any, tokenizer: Any, config: GenerateConfig, device: str | torch.device = "cpu") -> None:
        """See the class.

        Raises:
            ModelError: the model is an encoder-decoder, which answers instead of continuing.
        """
        require(
            not model.config.is_encoder_decoder,
            ModelError,
            "kind 'prefix' found an encoder-decoder model; expected a causal one; use kind 'prompt' or 'mask'",
        )
        self._model, self._tokenizer, self._config, self._device = model, tokenizer, config, device
        self._opening = opening(tokenizer)

    def vary(self, texts: Sequence[str], seed: int) -> list[str | None]:
        """One child for every text: its first words and a new rest. None where four tries gave nothing new."""
        parents = [encode(self._tokenizer, text)[: self._config.max_tokens] for text in texts]

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            return self._continued([parents[i] for i in indices], attempt_seed)

        return redrawn(draw, lambda i, child: will_do(child, self._config, (texts[i],)), len(texts), seed)

    def write(self, examples: Sequence[str], count: int, seed: int) -> list[str]:
        """New texts: what the model writes after three documents drawn from the examples.

        Redraws, for lack of luck with that, continue the beginning of one example.
        """
        if not examples:
            return []
        encoded = [encode(self._tokenizer, text)[: self._config.max_tokens] for text in examples]
        known = set(examples)

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            shots = 3 if attempt == 0 else 1
            generator = torch.Generator().manual_seed(Seeds(attempt_seed).integer("examples"))
            chosen = torch.randint(len(encoded), (len(indices), shots), generator=generator).tolist()
            if attempt > 0:
                return self._continued([encoded[row[0]] for row in chosen], attempt_seed)
            prompts = [self._documents([encoded[i] for i in row]) for row in chosen]
            found = extend(self._model, self._tokenizer, prompts, self._config.sampling, attempt_seed, self._device)
            return [clean(decode(self._tokenizer, new.ids), new.ended) for new in found]

        texts = redrawn(draw, lambda i, text: will_do(text, self._config, known), count, seed)
        return [text for text in texts if text is not None]

    def _documents(self, examples: Sequence[list[int]]) -> list[int]:
        """The examples as the base saw documents in training, and the opening of one more."""
        end = self._tokenizer.eos_token_id
        closing = [] if end is None or [end] == self._opening else [int(end)]
        between = closing or self._opening or encode(self._tokenizer, "\n\n")
        ids: list[int] = []
        for example in examples:
            ids += [*self._opening, *example, *(closing if self._opening else between)]
        return ids + self._opening

    def _continued(self, parents: Sequence[list[int]], seed: int) -> list[str]:
        """Prefix and continuation of every parent; "" where the model added nothing."""
        low, high = self._config.keep
        generator = torch.Generator().manual_seed(Seeds(seed).integer("keep"))
        share = (low + (high - low) * torch.rand(len(parents), generator=generator, dtype=torch.float64)).tolist()
        kept = [p[: max(0, min(int(s * len(p)), len(p) - 1))] for p, s in zip(parents, share, strict=True)]
        able = [i for i, prefix in enumerate(kept) if self._opening or prefix]
        prompts = [self._opening + kept[i] for i in able]
        limits = [self._config.max_tokens - len(kept[i]) for i in able]
        found = extend(self._model, self._tokenizer, prompts, self._config.sampling, seed, self._device, limits)
        texts = [""] * len(parents)
        for i, new in zip(able, found, strict=True):
            prefix, whole = decode(self._tokenizer, kept[i]), decode(self._tokenizer, kept[i] + new.ids)
            child = clean(whole, new.ended, start=len(prefix))
            texts[i] = "" if child == prefix.strip() else child
        return texts


def build(config: GenerateConfig, generator: str, model: Any, tokenizer: Any, device: str = "cpu") -> Variation:
    """The generator that an experiment file asks for.

    Args:
        config: how texts are made.
        generator: "base" for the model given here; "http://..." for a server that speaks the OpenAI protocol, which is
            always prompted; otherwise the Hugging Face id or path of another model.
        model: the base.
        tokenizer: its tokenizer.
        device: where the models compute.

    Raises:
        ModelError: a model cannot be loaded or does not fit the kind.
        ConfigError: kind "mask" without a filler.
    """
    served = generator.startswith(("http://", "https://"))
    url = generator if served else config.url if config.kind == "prompt" else None
    if url is not None:
        return Prompted(chat_at(config.model_copy(update={"url": url})), config)
    if generator != "base":
        model, tokenizer = _loaded(generator, device)
    if config.kind == "prompt":
        return Prompted(chat_with(model, tokenizer, config, device), config)
    writer = None if model.config.is_encoder_decoder else PrefixResample(model, tokenizer, config, device)
    if config.kind == "prefix":
        return writer or PrefixResample(model, tokenizer, config, device)
    require(config.filler is not None, ConfigError, "kind 'mask' has no filler; give the id or path of a masked model")
    return MaskFill(*_loaded(str(config.filler), device, masked=True), config, device, writer)


def _loaded(name: str, device: str, masked: bool = False) -> tuple[Any, Any]:
    """A model, frozen, and its tokenizer."""
    import transformers

    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        settings = transformers.AutoConfig.from_pretrained(name)
        kind = "Seq2SeqLM" if settings.is_encoder_decoder else "CausalLM"
        auto = getattr(transformers, f"AutoModelFor{'MaskedLM' if masked else kind}")
        model = auto.from_pretrained(name).to(device)
        return model.eval().requires_grad_(False), transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"generator '{name}' cannot be loaded ({cause}); expected 'base', a Hugging Face id, a folder or a URL; "
            "without network download the model elsewhere and give the path of its folder"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
