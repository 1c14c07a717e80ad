"""The generator that an experiment file asks for, and the models that generators load."""

from __future__ import annotations

from functools import cache

import torch
import transformers

from aulait.core import hub
from aulait.core.errors import ModelError
from aulait.models.generation import TextModel
from aulait.models.named import EXPECTED, folder_of
from aulait.synthesis.variation import GENERATORS, GenerateConfig, Variation


def build_generator(config: GenerateConfig, generator: str, base: TextModel) -> Variation:
    """The generator of ``config.kind``, with the model that ``synthesis.generator`` names.

    Args:
        config: how texts are made.
        generator: "base" for the run's own; "http://..." for a server that speaks the OpenAI
            protocol, which is always prompted; otherwise the name of another model, as
            ``model.name`` has it.
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
        return load_text_model(generator, base.device)

    return GENERATORS.find(config.kind)(config, model)


def load_text_model(name: str, device: torch.device, masked: bool = False) -> TextModel:
    """A frozen model and its tokenizer.

    Args:
        name: as ``model.name`` has it.
        device: where it will lie.
        masked: a masked model instead of one that writes.

    Raises:
        ModelError: it cannot be loaded.
    """
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        where = folder_of(name)
        hub.settle(str(where))
        settings = transformers.AutoConfig.from_pretrained(where)
        kind = "Seq2SeqLM" if settings.is_encoder_decoder else "CausalLM"
        auto = getattr(transformers, f"AutoModelFor{'MaskedLM' if masked else kind}")
        model = auto.from_pretrained(where).to(device).eval().requires_grad_(False)
        return TextModel(model, transformers.AutoTokenizer.from_pretrained(where), device)
    except (OSError, ValueError, ImportError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"generator '{name}' cannot be loaded ({cause}); expected 'base', a URL, {EXPECTED}; "
            "without network download the model elsewhere and give the path of its folder"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
