"""Which tokens the assistant wrote, told slowly: every beginning of a conversation is tokenised for itself."""

from __future__ import annotations

from collections.abc import Sequence

from aulait.core.types import Turn


def spelled(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as transformers takes them."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def scored_tokens(tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """Tokens of the conversation as transformers itself writes it, and whether each is the assistant's: those that come when
    its turn is added to the turns before it with the prompt for an answer. For templates that write a turn in one way."""

    def tokens(some: Sequence[Turn], answer: bool = False) -> list[int]:
        return tokenizer.apply_chat_template(spelled(some), tokenize=True, add_generation_prompt=answer, return_dict=True)["input_ids"]

    whole = tokens(turns)
    scored = [False] * len(whole)
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            for place in range(len(tokens(turns[:number], True)), len(tokens(turns[: number + 1]))):
                scored[place] = True
    return whole, scored
