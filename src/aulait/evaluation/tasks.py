"""Task metrics on held-out records: the choice that a model finds most probable, or what it writes
after a prompt.

Everything is measured with the adapter that the base wears at the time; predictions and scores are
sensitive.

Shape letters: X records · C choices · P prompts of a pass · N prompt tokens · S nodes of the tree ·
L = N + S.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from aulait.core.errors import DataError, require
from aulait.core.types import Record, Turn
from aulait.evaluation.config import TaskConfig
from aulait.models.generation import Sampling, TextModel, decode, extend
from aulait.models.loading import Base
from aulait.training.batches import Encoder, collate, scored

MOST_CHOICES = 1_000
# our names and those of the library
ROUGES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
PASS_TOKENS = 1_024  # of a packed pass: its attention mask has the square of this many entries
_PROBE = tuple(Record("", prompt) for prompt in ("a b", "c")), ("a", "a b", "b a")

Choice = tuple[int, tuple[int, ...]]  # number of the choice, token ids with the end of sequence


def fair(holdout: Mapping[str, Sequence[Record]], most: int | None) -> list[tuple[str, Record]]:
    """At most ``most`` held-out records with their clients: everyone's first, in order of name,
    then everyone's second."""
    turns = sorted((turn, name) for name in holdout for turn in range(len(holdout[name])))
    return [(name, holdout[name][turn]) for turn, name in turns[:most]]


def measure_task(
    base: Base, records: Sequence[Record], config: TaskConfig, choices: Sequence[str] = (),
    rows: int = 32,
    right: Mapping[tuple[Turn, ...], Sequence[str]] | None = None,
) -> list[dict[str, float]]:
    """The scores of every record, 0 to 1, by name: "accuracy", or "exact_match" and perhaps the
    three of ``rouge`` and the counts of ``bleu``.

    Args:
        base: with the adapter it wears.
        records: all with a prompt.
        config: which metric.
        choices: the closed set of responses, for "rank" only; their order settles nothing but ties.
        rows: prompts that are continued in one pass.
        right: what was asked -> all texts that would be right, for BLEU; a record's own text is
            one of them.

    Raises:
        DataError: a record without a prompt, or a response that is not among the choices, or too
            many choices.
    """
    require(all(record.asked for record in records), DataError,
            f"evaluate.task is '{config.task}' and a held-out record has no prompt, expected a "
            "prompt and a response; set data.prompt and data.response, or task = 'none'")
    if config.task == "rank":
        found = rank_choices(base, records, choices, config.rank_by)
        return [{"accuracy": float(guess == record.text)}
                for guess, record in zip(found, records, strict=True)]
    texts = write_answers(base, records, config.max_new_tokens, rows)
    pairs = [(record.text, text) for record, text in zip(records, texts, strict=True)]
    exact = [{"exact_match": float(normal(wanted) == normal(text))} for wanted, text in pairs]
    if config.task == "exact":
        return exact
    # loads sacrebleu, which the other metrics can do without
    from aulait.evaluation import bleu

    shared = [bleu.counts(text, sorted({record.text, *(right or {}).get(record.asked, ())}))
              for record, text in zip(records, texts, strict=True)]
    return [{**score, **other, **counts}
            for score, other, counts in zip(rouge(pairs), exact, shared, strict=True)]


def corpus_bleu(records: Sequence[Mapping[str, float]]) -> float:
    """Corpus BLEU of what ``measure_task`` counted of records; nan without records."""
    # loads sacrebleu, which the other metrics can do without
    from aulait.evaluation import bleu

    return bleu.corpus(records) if records else math.nan


def normal(text: str) -> str:
    """The text in one case, its letters composed (NFC), with single blanks."""
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))


def rouge(pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    """F1 by name of (reference, text), English words stemmed: ROUGE-1 and -2 (single words and
    pairs of words in common) and ROUGE-L (the longest common sequence, as
    Super-NaturalInstructions, Wang et al., EMNLP 2022, scores).
    """
    # loads a stemmer, which the other metrics can do without
    from rouge_score import rouge_scorer

    # the same stemmer
    from aulait.evaluation.words import UnicodeWords

    scorer = rouge_scorer.RougeScorer(list(ROUGES.values()), tokenizer=UnicodeWords())
    found = [scorer.score(wanted, text) for wanted, text in pairs]
    return [{name: float(score[kind].fmeasure) for name, kind in ROUGES.items()} for score in found]


@torch.no_grad()
def write_answers(base: Base, records: Sequence[Record], max_new_tokens: int,
                  rows: int = 32) -> list[str]:
    """The greedy text after every prompt. A prompt that leaves no room for the text loses its
    beginning, not its first token."""
    encode, seq2seq = Encoder(base), base.config.kind == "seq2seq"
    most = max_new_tokens if seq2seq else min(max_new_tokens, base.config.context // 2)
    prompts = [encode.asked(record, base.config.context - most) for record in records]
    how = Sampling(max_tokens=most, temperature=0.0, batch=rows)
    found = extend(TextModel(base.model, base.tokenizer, base.device, base.config.template),
                   prompts, how, 0)
    return [decode(base.tokenizer, continuation.ids) for continuation in found]


@torch.no_grad()
def rank_choices(base: Base, records: Sequence[Record], choices: Sequence[str],
         by: Literal["mean", "sum"] = "mean") -> list[str]:
    """The most probable choice after every record's prompt; of equals the first in alphabetical
    order.

    Raises:
        DataError: a response is not among the choices, or there are too many.
    """
    names = sorted(set(choices))
    missing = sum(record.text not in names for record in records)
    require(not missing, DataError,
        f"evaluate.task is 'rank' and {missing} of {len(records)} held-out responses are not among "
        f"the {len(names)} choices, expected a closed set; give all responses as choices, or use "
        "task = 'rouge' or 'exact'")
    require(len(names) <= MOST_CHOICES, DataError,
            f"evaluate.task is 'rank' and the data have {len(names)} different responses, expected "
            f"at most {MOST_CHOICES}; use task = 'rouge' or 'exact'")
    if not records:
        return []
    likelihood = packed if packs(base) else whole
    sum_XC, tokens_XC = likelihood(base, Encoder(base), records, names)
    best = (sum_XC / tokens_XC if by == "mean" else sum_XC).argmax(dim=1).tolist()
    return [names[i] for i in best]


def whole(base: Base, encode: Encoder, records: Sequence[Record],
          choices: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Log-probability in nats and number of tokens of every choice after every prompt, both (X, C):
    a sequence for each.

    An encoder reads a prompt once for 32 choices.
    """
    sums, tokens = [], []
    for record in records:
        for i in range(0, len(choices), 32):
            some = [replace(record, text=choice) for choice in choices[i : i + 32]]
            coded, told = collate(base, encode, some, last=True), None
            if coded.source is not None and coded.mask is not None:
                told = base.model.get_encoder()(input_ids=coded.source[:1],
                    attention_mask=coded.mask[:1])[0].expand(len(some), -1, -1)
            out, target, row = (t.cpu() for t in scored(base, coded, told))
            each = -torch.nn.functional.cross_entropy(out, target, reduction="none").double()
            sums.append(each.new_zeros(len(some)).index_add(0, row, each))
            tokens.append(torch.bincount(row, minlength=len(some)).double())
    shape = (len(records), len(choices))
    return torch.cat(sums).view(shape), torch.cat(tokens).view(shape)


def packed(base: Base, encode: Encoder, records: Sequence[Record],
           choices: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What ``whole`` returns, with a prompt and the common beginnings of its choices read once.

    The choices follow the prompt in one sequence as a tree, in which every token sees the prompt
    and its own ancestors.
    """
    sum_XC = torch.zeros(len(records), len(choices), dtype=torch.float64)
    tokens_XC = torch.zeros_like(sum_XC)
    jobs: dict[tuple[Choice, ...], list[tuple[list[int], int]]] = {}
    for number, group in enumerate(_prefixes(base, encode, records, choices)):
        for prefix, parts in group:
            for part in parts:
                jobs.setdefault(part, []).append((prefix, number))
    for part, members in jobs.items():
        tree = _tree([ids for _, ids in part], base.device)
        columns = torch.tensor([choice for choice, _ in part])
        members.sort(key=lambda member: (len(member[0]), member[1]))
        at_once = max(1, PASS_TOKENS // (len(members[-1][0]) + len(tree.tokens)))
        for i in range(0, len(members), at_once):
            some = members[i : i + at_once]
            rows = torch.tensor([number for _, number in some])
            sum_XC[rows[:, None], columns] = _pass(base, [prefix for prefix, _ in some], tree)
            tokens_XC[rows[:, None], columns] = torch.tensor([float(len(ids)) for _, ids in part],
                dtype=torch.float64)
    return sum_XC, tokens_XC


def packs(base: Base) -> bool:
    """Whether ``packed`` equals ``whole`` on this model; not so for encoder-decoders and models
    with masks of their own."""
    text = base.model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if base.config.kind == "seq2seq" or (window is not None and window < base.config.context):
        return False
    try:
        found, _ = packed(base, Encoder(base), *_PROBE)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False
    wanted, _ = whole(base, Encoder(base), *_PROBE)
    return bool(torch.allclose(found, wanted, rtol=min(100 * torch.finfo(base.model.dtype).eps,
        0.05), atol=0.0))


def _prefixes(
    base: Base, encode: Encoder, records: Sequence[Record], choices: Sequence[str]
) -> list[list[tuple[list[int], list[tuple[Choice, ...]]]]]:
    """For every record, the tokens before a choice and the choices they stand before: one group
    unless the prompt is cut."""
    coded = [_answer(encode, Record(choice, "a")) for choice in choices]
    common, longest = _parts(list(enumerate(coded))), max(map(len, coded))
    found = []
    for record in records:
        prompt = encode.asked(record, base.config.context)
        if len(prompt) + longest <= base.config.context:
            found.append([(prompt, common)])
            continue
        # how much of the prompt is kept depends on the choice
        apart: dict[tuple[int, ...], list[Choice]] = {}
        for number, choice in enumerate(choices):
            own = encode.coded(replace(record, text=choice))
            start = own.spans[-1][0]
            apart.setdefault(tuple(own.ids[:start]), []).append((number, tuple(own.ids[start:])))
        found.append([(list(prefix), _parts(own)) for prefix, own in apart.items()])
    return found


def _answer(encode: Encoder, record: Record) -> tuple[int, ...]:
    """The tokens of a record's last answer."""
    coded = encode.coded(record)
    return tuple(coded.ids[coded.spans[-1][0] :])


def _parts(choices: Sequence[Choice]) -> list[tuple[Choice, ...]]:
    """The choices in parts of at most half a pass, those with common beginnings together."""
    parts: list[list[Choice]] = [[]]
    total = 0
    for choice in sorted(choices, key=lambda choice: choice[1]):
        total += len(choice[1])
        if parts[-1] and total > PASS_TOKENS // 2:
            parts.append([])
            total = len(choice[1])
        parts[-1].append(choice)
    return [tuple(part) for part in parts]


@dataclass(frozen=True)
class _Tree:
    """Choices with their common beginnings once: S tokens that are read; the last token of a choice
    is only predicted.

    Attributes:
        tokens: ids of the nodes 1 to S; node 0 is the end of the prompt.
        depth: (S,) tokens of its choice up to and with a node.
        sees: (S, S) whether the second node is the first or one of its ancestors.
        scored: (3, number of scored tokens): the node a token is predicted from, the token, the
            number of its choice.
        choices: how many there are.
    """

    tokens: list[int]
    depth: Tensor
    sees: Tensor
    scored: Tensor
    choices: int


def _tree(choices: Sequence[Sequence[int]], device: torch.device) -> _Tree:
    nodes: dict[tuple[int, ...], int] = {(): 0}
    found = []
    for number, ids in enumerate(choices):
        for i, token in enumerate(ids):
            found.append((nodes.setdefault(tuple(ids[:i]), len(nodes)), token, number))
    inner = list(nodes)[1:]
    sees_SS = torch.eye(len(inner), dtype=torch.bool)
    for row, start in enumerate(inner):
        if len(start) > 1:
            sees_SS[row] |= sees_SS[nodes[start[:-1]] - 1]
    depth_S = torch.tensor([len(start) for start in inner], dtype=torch.long, device=device)
    return _Tree([start[-1] for start in inner], depth_S, sees_SS.to(device),
                 torch.tensor(found, device=device).T, len(choices))


def _pass(base: Base, prefixes: Sequence[Sequence[int]], tree: _Tree) -> Tensor:
    """Log-probability in nats (P, C), on the CPU, of every choice after every prefix."""
    device, pad, width = base.device, base.pad, max(map(len, prefixes))
    ids_PL = torch.tensor([[*prefix, *[pad] * (width - len(prefix)), *tree.tokens]
                           for prefix in prefixes], device=device)
    length_P = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    place_N = torch.arange(width, device=device)
    place_PL = torch.cat([place_N.expand(len(prefixes), -1), length_P[:, None] + tree.depth - 1],
                         dim=1)
    sees_PLL = torch.zeros(*ids_PL.shape, ids_PL.shape[1], dtype=torch.bool, device=device)
    sees_PLL[:, :width, :width] = place_N <= place_N[:, None]
    sees_PLL[:, width:, :width] = (place_N < length_P[:, None])[:, None]
    sees_PLL[:, width:, width:] = tree.sees
    mask_PLL = torch.zeros(sees_PLL.shape, dtype=base.model.dtype,
                           device=device).masked_fill(~sees_PLL, torch.finfo(base.model.dtype).min)
    at_PS = torch.cat([length_P[:, None] - 1,
        (width + torch.arange(len(tree.tokens), device=device)).expand(len(prefixes), -1)], dim=1)
    own_P1 = torch.arange(len(prefixes), device=device)[:, None]
    given: dict[str, object] = {"input_ids": ids_PL, "attention_mask": mask_PLL[:, None],
                             "position_ids": place_PL, "use_cache": False}
    if base.split_head:
        out = base.model.get_output_embeddings()(base.model.get_decoder()(**given)[0][own_P1,
            at_PS]).float()
    else:
        out = base.model(**given).logits[own_P1, at_PS].float()
    node, token, choice = tree.scored
    each = (out[:, node, token] - out.logsumexp(dim=-1)[:, node]).double()
    sum_PC: Tensor = each.new_zeros(len(prefixes), tree.choices).index_add(1, choice, each).cpu()
    return sum_PC
