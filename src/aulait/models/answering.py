"""Answers to questions and conversations, in the form in which a base reads them."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.types import Turn
from aulait.models.generation import Sampling, TextModel, decode, extend, opening
from aulait.models.turn_cutting import fitting, shortened


def continuations(writer: TextModel, texts: Sequence[str], how: Sampling, seed: int) -> list[str]:
    """What the model writes after the beginning of every text; an encoder-decoder answers it.

    Args:
        writer: the model.
        texts: beginnings; control tokens that they spell out are words.
        how: how tokens are drawn.
        seed: of the draws.
    """
    if writer.answers:
        return answers(writer, [[Turn("user", text)] for text in texts], how, seed)
    first = opening(writer.tokenizer)
    prompts = [first + writer.form.words(text) for text in texts]
    return [decode(writer.tokenizer, new.ids) for new in extend(writer, prompts, how, seed)]


def answers(writer: TextModel, asked: Sequence[Sequence[Turn]], how: Sampling,
            seed: int) -> list[str]:
    """The assistant's next turn in every conversation, without outer white space.

    Of a conversation that leaves no room for the answer the oldest exchanges are left out, then the
    beginning of the last question.

    Args:
        writer: the model.
        asked: turns of the conversations; the last of each is to be answered.
        how: how tokens are drawn.
        seed: of the draws.

    Raises:
        DataError: the chat template refuses a conversation.
        ModelError: the answer alone does not fit in the model's context.
    """
    prompts = [_prompt(writer, turns, how.max_tokens) for turns in asked]
    return [decode(writer.tokenizer, new.ids).strip()
            for new in extend(writer, prompts, how, seed)]


def _prompt(writer: TextModel, turns: Sequence[Turn], most: int) -> list[int]:
    """The tokens of a conversation, with room for the answer."""
    form = writer.form
    if writer.answers:
        return form.source("\n".join(turn.content for turn in turns))
    context = getattr(writer.model.config, "max_position_embeddings", None) or 10**9

    def over(some: Sequence[Turn]) -> int:
        return len(form.asked(some)) + most - int(context)

    kept = fitting(turns, over)
    return form.asked(shortened(form, kept, over) if form.chat else kept)
