"""``aulait generate``: continue or answer a prompt with the base and the adapter of a run."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from aulait.cli import terminal
from aulait.cli.options import ClientOption, JsonOption, RunArgument
from aulait.core.errors import ConfigError
from aulait.models import exported
from aulait.models.generation import Sampling, TextModel
from aulait.synthesis.prefix_variation import sample_texts


def generate(  # noqa: PLR0913 (the options of a command)
    run: RunArgument,
    prompt: Annotated[str,
                      typer.Argument(metavar="PROMPT", help="The text to continue or to answer.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="New tokens, at most.")] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    base: Annotated[bool,
                    typer.Option("--base", help="The base alone, without the adapter.")] = False,
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with what a run has learnt, or answer it where the run's data had prompts.

    Example: aulait generate runs/demo "Return the"
    """
    if base and client is not None:
        raise ConfigError(
            "found --base and --client, expected one of them; --base is the base without any "
            "adapter")
    with terminal.work(as_json):

        device = "cuda" if torch.cuda.is_available() else "cpu"
        answers = exported.settings(run, "data").get("prompt") is not None
        model, tokenizer = exported.load_exported(run, adapted=not base, client=client,
            device=device)
        # a causal model has learnt to answer after a new line, an encoder-decoder reads the prompt
        # as it is
        asked = f"{prompt}\n" if answers and not model.config.is_encoder_decoder else prompt
        writer = TextModel(model, tokenizer, torch.device(device))
        (text,) = sample_texts(writer, [asked], Sampling(tokens, temperature), seed)
    if as_json:
        terminal.document(
            {
                "prompt": prompt,
                "text": text,
                "adapter": not base,
                "client": client,
                "tokens": tokens,
                "temperature": temperature,
                "seed": seed,
            }
        )
    else:
        terminal.say(text.strip() if answers else prompt + text)
