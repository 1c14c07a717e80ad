"""How a base reads a text and a conversation: special tokens as its tokenizer sets them, turns in
its own chat template, loss on what the assistant says alone.

Without a chat template turns are written plainly: every turn's words and a line break; the
assistant's words and the end of sequence, on both of which there is loss. A pair is then
``prompt, line break, response, end``.

Which tokens the assistant wrote is found by rendering beginnings of the conversation: its turn is
what the template adds between the turns before it, with the prompt for an answer, and the turns up
to it. Few templates mark the assistant's words themselves. Templates that write an earlier turn in
another way than the last are searched for the words.

A conversation that the template refuses (a system's turn, two turns of one side in a row) is tried
once more with such turns made one.

Control tokens that a person's words spell out are words like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from aulait.core.errors import DataError
from aulait.core.types import Record, Turn

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

TokenSpan = tuple[int, int]
MARK = "\ue000{}\ue001"  # stands for a spelled-out control token; private-use characters
FOUND = re.compile("\ue000([0-9]+)\ue001")
ANCHOR = "\ue002"  # stands for the words of a turn


class Written(NamedTuple):
    """A text or a conversation in tokens.

    Attributes:
        ids: of the tokens.
        spans: (first, behind the last) token of every part that carries loss.
    """

    ids: list[int]
    spans: list[TokenSpan]


class PartSum(NamedTuple):
    """A record whose tokens are those of its parts.

    Attributes:
        marks: number of special tokens.
        texts: what is read as words, each by itself.
    """

    marks: int
    texts: list[str]


class RecordForm:
    """The form in which one base reads records."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> None:
        """See the class.

        Args:
            tokenizer: of the base.
            template: "auto" for the tokenizer's own chat template where it has one, "plain" for the
                plain form.
        """
        self.tokenizer = tokenizer
        self.chat = template == "auto" and bool(getattr(tokenizer, "chat_template", None))

    @property
    def name(self) -> str:
        """What the form of a conversation is called."""
        return "chat template" if self.chat else "plain"

    def words(self, text: str) -> list[int]:
        """Tokens of a person's words: nothing is added, and no control token is in them."""
        found = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False,
                               split_special_tokens=True)["input_ids"]
        return [int(token) for token in found]

    def spelled(self, ids: Sequence[int]) -> str:
        """The words of tokens."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer itself sets before and behind a text."""
        bare = self.words("a")
        whole = [int(token) for token in self.tokenizer("a", verbose=False)["input_ids"]]
        at = next((i for i in range(len(whole) - len(bare) + 1)
                   if whole[i : i + len(bare)] == bare), None)
        return ([], []) if at is None or not bare else (whole[:at], whole[at + len(bare) :])

    @property
    def opening(self) -> list[int]:
        """What stands before a text: what the tokenizer itself sets there."""
        return self.frame[0]

    @property
    def end(self) -> list[int]:
        """The end of sequence; none where the tokenizer has none."""
        token = self.tokenizer.eos_token_id
        return [] if token is None else [int(token)]

    @cached_property
    def closing(self) -> list[int]:
        """What stands behind a text: what the tokenizer itself sets there, else the end of
        sequence, unless it is the mark by which the tokenizer's chat template ends a turn: a text
        is no turn."""
        if self.frame[1] or not self.end:
            return self.frame[1]
        return [] if self.tokenizer.eos_token in self.sample else self.end

    @cached_property
    def _text_marks(self) -> int:
        """Number of tokens that stand around a text."""
        return len(self.opening) + len(self.closing)

    @cached_property
    def sample(self) -> str:
        """A short conversation in the tokenizer's chat template; empty where it has none."""
        if not getattr(self.tokenizer, "chat_template", None):
            return ""
        try:
            return self._rendered([Turn("user", "a"), Turn("assistant", "b")])
        except DataError:
            return ""

    @cached_property
    def turn_end(self) -> list[int]:
        """The control token that ends the assistant's turn in the chat template, where there is
        one; it need not be the end of sequence (Qwen2.5)."""
        if not self.sample or not self.chat:
            return []
        written = self._in_template([Turn("user", "a"), Turn("assistant", "b")])
        first, behind = written.spans[-1]
        known = {token for token, _, _ in self._known.values()}
        after = [token for token in written.ids[first:behind] if token in known]
        return after[-1:]

    def sum_of_parts(self, record: Record) -> PartSum | None:
        """What a record's tokens are the sum of; None where a chat template renders it as one."""
        if not record.asked:
            return PartSum(self._text_marks, [record.text])
        if self.chat:
            return None
        marks, texts = len(self.opening), []
        for number, turn in enumerate(turns := record.turns):
            said = turn.role == "assistant"
            texts.append(turn.content if said else turn.content + "\n")
            marks += len(self.end) if said else 0
            if said and not self.end and number < len(turns) - 1:
                texts.append("\n")
        return PartSum(marks, texts)

    def text(self, text: str) -> Written:
        """A plain text."""
        ids = [*self.opening, *self.words(text), *self.closing]
        return Written(ids, [(len(self.opening), len(ids))])

    def source(self, text: str) -> list[int]:
        """What an encoder reads: the words within the special tokens that the tokenizer sets."""
        found = self.tokenizer(text, add_special_tokens=True, truncation=False, verbose=False,
                               split_special_tokens=True)["input_ids"]
        return [int(token) for token in found]

    def conversation(self, turns: Sequence[Turn]) -> Written:
        """A conversation that ends with the assistant's turn.

        Raises:
            DataError: the template refuses it.
        """
        return self._in_template(turns) if self.chat else self._plain(turns)

    def refusal(self, turns: Sequence[Turn]) -> str | None:
        """Why the chat template does not take a conversation; None where it does, or where there is
        no template."""
        try:
            if self.chat:
                self._accepted(turns)
        except DataError as error:
            return str(error)
        return None

    def asked(self, turns: Sequence[Turn]) -> list[int]:
        """A conversation up to the place where the assistant's next turn begins.

        Raises:
            DataError: the template refuses it.
        """
        if self.chat:
            marked, marks = self._marked(turns)
            return self._tokens(self._accepted(marked, True)[1], marks)[0]
        ids = list(self.opening)
        for turn in turns:
            ids += self._plain_turn(turn)[0]
        return ids

    def _plain(self, turns: Sequence[Turn]) -> Written:
        """The plain form."""
        ids, spans = list(self.opening), []
        for number, turn in enumerate(turns):
            part, scored = self._plain_turn(turn, last=number == len(turns) - 1)
            if turn.role == "assistant":
                spans.append((len(ids), len(ids) + scored))
            ids += part
        return Written(ids, spans)

    def _plain_turn(self, turn: Turn, last: bool = False) -> tuple[list[int], int]:
        """A turn in the plain form, and how many of its first tokens carry loss where it is the
        assistant's."""
        if turn.role != "assistant":
            return self.words(turn.content + "\n"), 0
        said = self.words(turn.content) + self.end
        return (said if self.end or last else said + self.words("\n")), len(said)

    def _in_template(self, turns: Sequence[Turn]) -> Written:
        """The form of the chat template."""
        marked, marks = self._marked(turns)
        marked, whole = self._accepted(marked)
        ids, places = self._tokens(whole, marks)
        spans = []
        for number, turn in enumerate(marked):
            if turn.role == "assistant":
                start, stop = (len(_restored(whole[:at], marks))
                               for at in self._span(whole, marked, number))
                inside = [i for i, (a, b) in enumerate(places) if start <= a and start < b <= stop]
                spans.append((inside[0], inside[-1] + 1) if inside else (len(ids), len(ids)))
        return Written(ids, spans)

    def _span(self, whole: str, turns: Sequence[Turn], number: int) -> TokenSpan:
        """Where the words of an assistant's turn, and the mark that ends them, stand in the
        rendered conversation."""
        before = self._beginning(turns[:number])
        behind = whole if number == len(turns) - 1 else self._rendered(turns[: number + 1])
        if before and whole.startswith(before) and whole.startswith(behind) and (
                len(before) < len(behind)):
            return len(before), len(behind)
        # the words' place: what is alike before and behind when others stand in their stead
        first, last = self._around(turns, number)
        _, own_last = self._around(turns[: number + 1], number)
        stop = len(whole) - len(last)
        shared = 0
        while shared < min(len(last), len(own_last)) and last[shared] == own_last[shared]:
            shared += 1
        opens = bool(before) and whole.startswith(before)
        # a blank before the words belongs to their first token
        return len(before) if opens else len(first.rstrip(" ")), stop + shared

    def _beginning(self, turns: Sequence[Turn]) -> str:
        """The turns before an assistant's with the prompt for it; empty where the template does not
        write them for themselves."""
        try:
            return self._rendered(turns, True) if turns else ""
        except DataError:
            return ""

    def _around(self, turns: Sequence[Turn], number: int) -> tuple[str, str]:
        """What the template writes before and behind the words of a turn."""
        other = [*turns[:number], Turn(turns[number].role, ANCHOR), *turns[number + 1 :]]
        first, _, last = self._rendered(other).partition(ANCHOR)
        return first, last

    def _accepted(self, turns: Sequence[Turn], answer: bool = False) -> tuple[list[Turn], str]:
        """The turns that the template takes, and what it writes of them: the turns themselves, or
        what ``merged`` makes of them.

        Raises:
            DataError: it takes neither.
        """
        try:
            return list(turns), self._rendered(turns, answer)
        except DataError:
            fewer = merged(turns)
            if not fewer or fewer == list(turns):
                raise
            return fewer, self._rendered(fewer, answer)

    def _rendered(self, turns: Sequence[Turn], answer: bool = False) -> str:
        """The conversation as the template writes it; with ``answer``, and the beginning of the
        assistant's next turn."""
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            written = str(self.tokenizer.apply_chat_template(said, tokenize=False,
                                                             add_generation_prompt=answer))
            written.encode()  # half characters, which no tokenizer takes
            return written
        # templates raise what they like; a fault of jinja is a fault of the conversation here
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            roles = ", ".join(turn.role for turn in turns)[:160]
            raise DataError(
                f"the model's chat template refuses a conversation of the turns {roles} ({reason});"
                " expected turns that it takes; change the data, or set model.template = 'plain'"
            ) from error

    @cached_property
    def _controls(self) -> list[str]:
        """Strings that the tokenizer takes for a control token, the longest first."""
        known = {str(token) for token in self.tokenizer.added_tokens_decoder.values()
                 if token.special} | set(self.tokenizer.all_special_tokens)
        return sorted(known, key=lambda mark: (-len(mark), mark))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        """What gets a stand-in: a control token, and whatever looks like a stand-in itself."""
        return re.compile(f"{self._control.pattern}|{FOUND.pattern}|{ANCHOR}")

    def _marked(self, turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
        """The turns with a stand-in for every control token that somebody spelled out, and what the
        stand-ins stand for."""
        marks: list[str] = []

        def stand_in(found: re.Match[str]) -> str:
            marks.append(found[0])
            return MARK.format(len(marks) - 1)

        marked = [Turn(turn.role, self._spelled.sub(stand_in, turn.content)) for turn in turns]
        return marked, marks

    def _tokens(self, rendered: str, marks: Sequence[str]) -> tuple[list[int], list[TokenSpan]]:
        """Tokens of a rendered conversation, and the characters that each stands for.

        Without control tokens in somebody's words the tokenizer reads it as a whole; with them, the
        stretches between the template's own control tokens are read one by one as plain words.
        """
        if not marks:
            return self._read(rendered)
        ids: list[int] = []
        places: list[TokenSpan] = []
        at = length = 0
        strip = False
        for found in [*self._control.finditer(rendered), None]:
            stretch = _restored(rendered[at : found.start() if found else None], marks)
            shift = length + (len(stretch) - len(stretch.lstrip()) if strip else 0)
            token = self._known.get(found[0]) if found else None
            inner = stretch.lstrip() if strip else stretch
            inner = inner.rstrip() if token is not None and token[1] else inner
            more, spots = self._read(inner, plain=True) if inner else ([], [])
            ids += more
            places += [(shift + a, shift + b) for a, b in spots]
            length += len(stretch)
            if found and token is not None:
                ids.append(token[0])
                places.append((length, length + len(found[0])))
                length, at, strip = length + len(found[0]), found.end(), token[2]
        return ids, places

    @cached_property
    def _known(self) -> Mapping[str, tuple[int, bool, bool]]:
        """Control token -> its number, and whether it swallows white space before and behind."""
        told = {str(token): token for token in self.tokenizer.added_tokens_decoder.values()}
        return {mark: (int(self.tokenizer.convert_tokens_to_ids(mark)),
                       bool(mark in told and told[mark].lstrip),
                       bool(mark in told and told[mark].rstrip)) for mark in self._controls}

    def _read(self, text: str, plain: bool = False) -> tuple[list[int], list[TokenSpan]]:
        """Tokens of a text and their characters; ``plain`` takes control tokens for words."""
        fast = bool(self.tokenizer.is_fast)
        coded = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False,
                               split_special_tokens=plain, return_offsets_mapping=fast)
        ids = [int(token) for token in coded["input_ids"]]
        if fast:
            return ids, [(int(a), int(b)) for a, b in coded["offset_mapping"]]
        return ids, _by_beginnings(self.tokenizer, ids)


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation as users and assistants in turn, for templates that take nothing else: the
    system's and a tool's words open the user's next turn, turns of one side in a row become one,
    and what the assistant says before anybody asks is left out."""
    found: list[Turn] = []
    for turn in turns:
        role = "assistant" if turn.role == "assistant" else "user"
        if found and found[-1].role == role:
            found[-1] = Turn(role, f"{found[-1].content}\n\n{turn.content}")
        elif found or role == "user":
            found.append(Turn(role, turn.content))
    return found


def _restored(text: str, marks: Sequence[str]) -> str:
    """The text with the control tokens that somebody spelled out."""
    return FOUND.sub(lambda found: marks[int(found[1])], text) if marks else text


def _by_beginnings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[TokenSpan]:
    """The characters of every token of a tokenizer that does not tell them, from the lengths of the
    texts of the first tokens."""
    ends = [len(tokenizer.decode(list(ids[: n + 1]), clean_up_tokenization_spaces=False))
            for n in range(len(ids))]
    return [(ends[n - 1] if n else 0, end) for n, end in enumerate(ends)]
