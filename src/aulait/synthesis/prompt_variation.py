"""Texts from an instruction model that is asked for them in words.

The model computes in this process (``chat_with``) or at a server (``openai_server.chat_at``). Only
public or released texts are ever put into a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aulait.core.errors import ModelError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record, Turn
from aulait.models.generation import TextModel, decode, encode, extend, opening, plain
from aulait.models.record_form import RecordForm
from aulait.synthesis.openai_server import chat_at
from aulait.synthesis.topics import Description
from aulait.synthesis.variation import (
    Chat,
    GenerateConfig,
    clean,
    pair_will_do,
    redrawn,
    will_do,
)

VARY = (
    "Below is a text between two lines of dashes. Write one new text of the same kind, about as "
    "long, {turn}. "
    "Answer with the new text alone.\n-----\n{text}\n-----"
)
WRITE = (
    "Below are {count} texts between lines of dashes. Write one new text that could stand in the "
    "same collection: "
    "the same kind, language, length and format, but another content. Answer with the new text "
    "alone.\n"
    "-----\n{texts}\n-----"
)
PAIR = "[INPUT]\n{prompt}\n[ANSWER]\n{text}"
VARY_PAIR = (
    "Below is an input and the answer that belongs to it. Write one new pair of the same kind, "
    "about as long, {turn}. "
    "Keep the form: a line [INPUT], the new input, a line [ANSWER], the answer that belongs to it, "
    "and nothing else.\n\n{pair}"
)
VARY_RESPONSE = (
    "Below is an input and an answer to it. Write another answer to the same input, of the same "
    "kind and about as long. "
    "Write the new answer alone.\n\n{pair}"
)
WRITE_PAIR = (
    "Below are {count} pairs of an input and the answer that belongs to it. Write one new pair "
    "that could stand in the same "
    "collection: the same kind, language and format, but another content. Keep the form: a line "
    "[INPUT], the new input, "
    "a line [ANSWER], the answer that belongs to it, and nothing else.\n\n{pairs}"
)
DESCRIBED = "Write {kind}.{words}{shown} Answer with the text alone."
DESCRIBED_PAIR = (
    "Write {kind}, as an input and the answer that belongs to it.{words}{shown} Keep the form: a "
    "line [INPUT], the new input, a line [ANSWER], the answer that belongs to it, and nothing else."
)
EXAMPLES = (
    " It should be of the same kind, language, length and format as the examples between lines of "
    "dashes, but of another content.\n-----\n{texts}\n-----\n"
)
PARTS = re.compile(r"\[INPUT\]\s(.*\S.*)\s\[ANSWER\]\s(.*\S.*)", re.DOTALL)
MARKS = ("[INPUT]", "[ANSWER]")
TURNS = (
    "with the same subject in other words",
    "with the same subject but other details",
    "on a neighbouring subject",
    "as another person would write it",
    "keeping its form and replacing its facts",
    "a little more formal",
    "a little plainer",
    "that could come right after it in a collection",
)
DASHES = re.compile(r"^-{3,}\s*|\s*-{3,}$")


class Prompted:
    """Asks an instruction model for texts.

    Every request names a turn drawn at random, so that children of one parent differ even where the
    model is nearly deterministic.
    """

    def __init__(self, chat: Chat, config: GenerateConfig) -> None:
        """See the class.

        Args:
            chat: (prompts, seed) -> one answer for each, such as ``chat_with`` or ``chat_at`` make.
            config: what counts as a text.
        """
        self._chat, self._config = chat, config

    def vary(self, texts: Sequence[str], seed: int) -> list[str | None]:
        """One child for every text. None where four answers were empty, too short, or the parent
        itself."""

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            turns = _drawn(len(indices), 1, len(TURNS), attempt_seed)
            prompts = [VARY.format(turn=TURNS[t[0]], text=texts[i])
                       for i, t in zip(indices, turns, strict=True)]
            return self._answers(prompts, attempt_seed)

        return redrawn(draw, lambda i, child: will_do(child, self._config, (texts[i],)), len(texts),
                       seed)

    def write(self, examples: Sequence[str], count: int, seed: int) -> list[str]:
        """New texts, each asked for with three examples drawn at random."""
        if not examples:
            return []
        known = set(examples)

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            rows = _drawn(len(indices), 3, len(examples), attempt_seed)
            shown = ["\n-----\n".join(examples[i] for i in row) for row in rows]
            return self._answers([WRITE.format(count=3, texts=texts) for texts in shown],
                                 attempt_seed)

        texts = redrawn(draw, lambda i, text: will_do(text, self._config, known), count, seed)
        return [text for text in texts if text is not None]

    def write_described(self, descriptions: Sequence[Description],
                        examples: Sequence[Sequence[str]], seed: int) -> list[str | None]:
        """One text for every description, after its own examples. None where four answers were
        empty, too short, or an example."""

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            return self._answers([_described(DESCRIBED, descriptions[i], examples[i])
                                  for i in indices], attempt_seed)

        return redrawn(draw, lambda i, text: will_do(text, self._config, examples[i]),
                       len(descriptions), seed)

    def write_described_pairs(self, descriptions: Sequence[Description],
                              examples: Sequence[Sequence[Record]],
                              seed: int) -> list[Record | None]:
        """One pair for every description, likewise."""
        known = {(pair.prompt, pair.text) for some in examples for pair in some}

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
            asked = [_described(DESCRIBED_PAIR, descriptions[i], [*map(_shown, examples[i])])
                     for i in indices]
            return [_parted(answer) for answer in self._answers(asked, attempt_seed)]

        return redrawn(draw, lambda i, p: pair_will_do(p, self._config)
                       and (p.prompt, p.text) not in known, len(descriptions), seed)

    def vary_pairs(self, pairs: Sequence[Record], seed: int) -> list[Record | None]:
        """One child for every pair. None where four answers did not keep the form, or were the
        parent itself."""
        both = self._config.pairs == "both"

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
            turns = _drawn(len(indices), 1, len(TURNS), attempt_seed)
            form = VARY_PAIR if both else VARY_RESPONSE
            asked = [form.format(turn=TURNS[t[0]], pair=_shown(pairs[i]))
                     for i, t in zip(indices, turns, strict=True)]
            answers = self._answers(asked, attempt_seed)
            return [_parted(answer) if both else Record("" if any(mark in answer for mark in MARKS)
                else answer, pairs[i].prompt)
                    for i, answer in zip(indices, answers, strict=True)]

        return redrawn(draw, lambda i, child: pair_will_do(child, self._config, pairs[i]),
                       len(pairs), seed)

    def write_pairs(self, examples: Sequence[Record], count: int, seed: int) -> list[Record]:
        """New pairs, each asked for with three examples drawn at random."""
        if not examples:
            return []
        known = {(pair.prompt, pair.text) for pair in examples}

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
            rows = _drawn(len(indices), 3, len(examples), attempt_seed)
            shown = ["\n\n".join(_shown(examples[i]) for i in row) for row in rows]
            return [_parted(answer)
                for answer in self._answers([WRITE_PAIR.format(count=3, pairs=s) for s in shown],
                                            attempt_seed)]

        made = redrawn(draw, lambda i, p: pair_will_do(p, self._config)
                       and (p.prompt, p.text) not in known, count, seed)
        return [pair for pair in made if pair is not None]

    def _answers(self, prompts: list[str], seed: int) -> list[str]:
        """Answers without dashes, quotation marks or hidden reasoning; "" for one that contains its
        prompt."""
        answers = self._chat(prompts, seed)
        require(
            len(answers) == len(prompts),
            ModelError,
            f"chat gave {len(answers)} answers to {len(prompts)} prompts; expected one each; check "
            "the chat function",
        )
        bare = [_bare(answer) for answer in answers]
        return ["" if _bare(prompt) in answer else answer
                for answer, prompt in zip(bare, prompts, strict=True)]


def _drawn(rows: int, columns: int, limit: int, seed: int) -> list[list[int]]:
    """Numbers below the limit, drawn with replacement."""
    generator = torch.Generator().manual_seed(Seeds(seed).integer("prompts"))
    found: list[list[int]] = torch.randint(limit, (rows, columns), generator=generator).tolist()
    return found


def _described(form: str, description: Description, examples: Sequence[str]) -> str:
    """A request for a text that is described in words, shown by examples, or both."""
    kind = f"one new text of this kind: {description.about}" if description.about else (
        "one new text that could stand in the same collection as the examples")
    words = f" It has to do with: {', '.join(description.keywords)}." * bool(description.keywords)
    shown = EXAMPLES.format(texts="\n-----\n".join(examples)) if examples else ""
    return form.format(kind=kind, words=words, shown=shown)


def _shown(pair: Record) -> str:
    """A pair between its markers; markers that it spells out itself are removed."""
    prompt, text = pair.prompt or "", pair.text
    for mark in MARKS:
        prompt, text = prompt.replace(mark, ""), text.replace(mark, "")
    return PAIR.format(prompt=prompt, text=text)


def _parted(answer: str) -> Record:
    """The two parts of an answer; empty ones unless each marker occurs once and in its place."""
    found = PARTS.fullmatch(answer) if all(answer.count(mark) == 1 for mark in MARKS) else None
    return Record(found[2].strip(), found[1].strip()) if found else Record("", "")


def _bare(answer: str) -> str:
    """An answer without the wrapping that models add."""
    answer = DASHES.sub("", answer.rpartition("</think>")[2].strip())
    if len(answer) > 1 and (answer[0], answer[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}:
        answer = answer[1:-1].strip()
    return answer


def chat_with(model: Any, tokenizer: Any, config: GenerateConfig,
              device: str | torch.device = "cpu", template: str = "auto") -> Chat:
    """A chat with a model in this process: through its chat template where it has one (and
    ``template``, as ``model.template``, is not "plain"), otherwise as plain text."""

    form = RecordForm(tokenizer, template)

    def encoded(prompt: str) -> list[int]:
        safe = plain(tokenizer, prompt)  # a text must not be able to end its own turn
        if form.chat:
            return form.asked([Turn("user", safe)])
        if model.config.is_encoder_decoder:
            return encode(tokenizer, safe, special=True)
        return opening(tokenizer) + encode(tokenizer, safe + "\n")

    def chat(prompts: list[str], seed: int) -> list[str]:
        found = extend(TextModel(model, tokenizer, torch.device(device)),
                       [encoded(prompt) for prompt in prompts], config.sampling, seed)
        return [clean(decode(tokenizer, new.ids), new.ended) for new in found]

    return chat


def build_prompt(config: GenerateConfig, model: Callable[[], TextModel]) -> Prompted:
    """See ``GENERATORS``; with a URL no model is loaded here."""
    if config.url is not None:
        return Prompted(chat_at(config), config)
    asked = model()
    return Prompted(chat_with(asked.model, asked.tokenizer, config, asked.device, asked.template),
                    config)
