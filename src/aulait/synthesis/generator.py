"""The generator that an experiment file asks for, and the models that generators load."""

from __future__ import annotations

from functools import cache

import torch
import transformers

from aulait.core.errors import ModelError
from aulait.models.generation import TextModel
from aulait.models.loading import BREW
from aulait.synthesis.variation import GENERATORS, GenerateConfig, Variation


def build_generator(config: GenerateConfig, generator: str, base: TextModel) -> Variation:
    """The generator of ``config.kind``, with the model that ``synthesis.generator`` names.

    Args:
        config: how texts are made.
        generator: "base" for the run's own; "brew" for the built-in one; "http://..." for a server
            that speaks the OpenAI protocol, which is always prompted; otherwise the Hugging Face id
            or path of another model.
        base: the run's own base.

    Raises:
        ModelError: a model cannot be loaded or does not fit the kind.
        ConfigError: the kind is unknown or broken, or "mask" has no filler.
    """
    if generator.startswith(("http://", "https://")):
        config = config.model_copy(update={"kind": "prompt", "url": generator})

    @cache
    def model() -> TextModel:
        """Loaded only by a generator that asks for it."""
        if generator == "base":
            return base
        return load_text_model(BREW if generator == "brew" else generator, base.device)

    return GENERATORS.find(config.kind)(config, model)


def load_text_model(name: str, device: torch.device, masked: bool = False) -> TextModel:
    """A frozen model and its tokenizer.

    Args:
        name: Hugging Face id or path.
        device: where it will lie.
        masked: a masked model instead of one that writes.

    Raises:
        ModelError: it cannot be loaded.
    """
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        settings = transformers.AutoConfig.from_pretrained(name)
        kind = "Seq2SeqLM" if settings.is_encoder_decoder else "CausalLM"
        auto = getattr(transformers, f"AutoModelFor{'MaskedLM' if masked else kind}")
        model = auto.from_pretrained(name).to(device).eval().requires_grad_(False)
        return TextModel(model, transformers.AutoTokenizer.from_pretrained(name), device)
    except (OSError, ValueError, ImportError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"generator '{name}' cannot be loaded ({cause}); expected 'base', 'brew', a Hugging "
            "Face id, a folder or a URL; without network download the model elsewhere and give "
            "the path of its folder"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
