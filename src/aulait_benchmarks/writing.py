"""``aulait bench generate``: tokens a second of the generator that writes synthetic texts, beside a
loop that calls transformers' ``generate`` for one text after the other.

Both continue the same prompts with the same model object, the same sampling and the same limit of
tokens; what differs is who waits for whom. Every parent has several children, as in the evolution
of synthetic texts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch

from aulait.core.files import JsonObject
from aulait.data import builtin
from aulait.models import named
from aulait.models.generation import Sampling, TextModel, encode, extend, stops
from aulait.models.loading import ModelConfig, load_base
from aulait.resources.meters import peak_of_process
from aulait_benchmarks.clock import own_clock


@dataclass(frozen=True)
class Writing:
    """What is written.

    Attributes:
        model: as ``model.name`` has it.
        dtype: of its weights.
        parents: different prompts.
        children: texts that continue each of them.
        prompt_tokens: of a prompt.
        most_tokens: new ones of a text.
        batch: texts that aulait writes at once.
    """

    model: str = "smollm2"
    dtype: str = "float32"
    parents: int = 2
    children: int = 8
    prompt_tokens: int = 24
    most_tokens: int = 24
    batch: int = 64


QUICK = (Writing(model="brew", parents=3, children=4, prompt_tokens=8, most_tokens=8),)


def full() -> tuple[Writing, ...]:
    """brew, and SmolLM2 in both precisions where it is installed."""
    found = [Writing(model="brew", parents=4)]
    if named.package_file("smollm2") is not None:
        found += [Writing(), Writing(dtype="bfloat16")]
    return tuple(found)


def measure(works: tuple[Writing, ...], repetitions: int,
            watch: Callable[[str], None] = lambda _: None) -> JsonObject:
    """Measure every case.

    Args:
        works: one case each.
        repetitions: turns of each; medians are told.
        watch: hears one line when a case begins.

    Returns:
        The figures of the case in which aulait does worst (aulait_tokens_per_s,
        loop_tokens_per_s: new tokens a second; ratio_to_loop; tokens, loop_tokens: new tokens of
        one turn; and what the case is), all ``cases``, clock (as ``own_clock``), repetitions,
        peak_rss_bytes, device, threads.
    """
    cases = []
    for work in works:
        watch(f"{work.model} {work.dtype}, {work.parents} prompts of {work.children} texts")
        cases.append(compared(work, repetitions))
    worst = min(cases, key=lambda case: case["ratio_to_loop"])
    return {**worst, "cases": cases, "clock": own_clock().name, "repetitions": repetitions,
            "peak_rss_bytes": peak_of_process(), "device": "cpu",
            "threads": torch.get_num_threads()}


def compared(work: Writing, repetitions: int) -> JsonObject:
    """One case: a turn of each to warm up, then they take turns."""
    clock = own_clock().now
    base = load_base(ModelConfig(name=work.model, dtype=work.dtype, device="cpu"))
    writer = TextModel(base.model, base.tokenizer, base.device)
    prompts = prompts_of(writer, work)
    how = Sampling(max_tokens=work.most_tokens, batch=work.batch)
    warm = replace(how, max_tokens=2)
    one(writer, prompts[:2], warm)
    together(writer, prompts[:2], warm, 0)
    speeds: dict[str, list[float]] = {"aulait": [], "loop": []}
    written = {"aulait": 0, "loop": 0}
    for turn in range(repetitions):
        for name in ("aulait", "loop") if turn % 2 == 0 else ("loop", "aulait"):
            started = clock()
            written[name] = (together(writer, prompts, how, turn) if name == "aulait"
                             else one(writer, prompts, how))
            speeds[name].append(written[name] / (clock() - started))
    own, loop = (statistics.median(speeds[name]) for name in ("aulait", "loop"))
    return asdict(work) | {"tokens": written["aulait"], "loop_tokens": written["loop"],
                           "aulait_tokens_per_s": own, "loop_tokens_per_s": loop,
                           "ratio_to_loop": own / loop}


def prompts_of(writer: TextModel, work: Writing) -> list[list[int]]:
    """The beginnings of built-in texts, each as often as it has children."""
    texts = (encode(writer.tokenizer, row["text"]) for row in builtin.standard_library())
    beginnings = dict.fromkeys(tuple(ids[: work.prompt_tokens]) for ids in texts
                               if len(ids) >= work.prompt_tokens)
    return [list(parent) for parent in islice(beginnings, work.parents)
            for _ in range(work.children)]


def together(writer: TextModel, prompts: list[list[int]], how: Sampling, seed: int) -> int:
    """New tokens of aulait's batched generator."""
    return sum(len(found.ids) + found.ended for found in extend(writer, prompts, how, seed))


def one(writer: TextModel, prompts: list[list[int]], how: Sampling) -> int:
    """New tokens of the loop, text by text; its draws are of a generator of its own."""
    ends, count = stops(writer), 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = writer.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, eos_token_id=ends,
                temperature=how.temperature, top_p=how.top_p, top_k=how.top_k,
                max_new_tokens=how.max_tokens, pad_token_id=writer.pad)
            count += out.shape[1] - len(prompt)
    return count
