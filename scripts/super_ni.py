"""Join Super-NaturalInstructions task and instance files into one .jsonl of prompts and responses,
a client a task.

    python scripts/super_ni.py tasks.jsonl instances.jsonl super_ni.jsonl \\
        --instruction-words 24 --max-words 120

TASKS has the fields task and definition, INSTANCES task, category, input and output (a list; the
first one is taken). A row of OUT has client (the task), category, prompt and response. A prompt is
the first sentences of the definition, a newline and the input. It is made to fit a small context
here, because training keeps the end of a prompt that is too long and would lose the instruction: a
long input loses its middle, and instances whose response takes more than half of the words are left
out. Then: data.source = OUT, data.client = "client" (or "category"), data.prompt = "prompt",
data.response = "response".
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORD = re.compile(r"\S+")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")


def instruction(definition: str, most: int) -> str:
    """Whole sentences from the beginning, at most ``most`` words; where they make less than half of
    that, words of the next one too."""
    words, kept = definition.split(), 0
    for sentence in SENTENCE.split(definition.strip()):
        if kept + len(sentence.split()) > most:
            return " ".join(words[: kept if 2 * kept >= most else most])
        kept += len(sentence.split())
    return " ".join(words)


def shorten(text: str, most: int) -> str:
    """The text with at most ``most`` words: what is too much is taken from the middle, because
    questions come last."""
    words = list(WORD.finditer(text))
    if len(words) <= most:
        return text.strip()
    last = (most + 1) // 2
    first = most - last
    head = text[: words[first - 1].end()] if first else ""
    return f"{head} ... {text[words[-last].start() :]}".strip()


def joined(tasks: Path, instances: Path, instruction_words: int,
           max_words: int) -> Iterator[dict[str, str] | None]:
    """A row for every instance, None where the response leaves less than half of ``max_words`` to
    the prompt."""
    definitions = {task["task"]: instruction(_text(task["definition"]), instruction_words)
                   for task in _rows(tasks)}
    for row in _rows(instances):
        if row["task"] not in definitions:
            raise SystemExit(
                f"{instances} has the task '{row['task']}', expected one of the {len(definitions)} "
                f"in {tasks}; give its file")
        response, asked = _text(row["output"]).strip(), definitions[row["task"]]
        room = max_words - len(asked.split()) - len(response.split())
        if not response or not row["input"].strip() or len(
            response.split()) > max_words // 2 or room < 1:
            yield None
            continue
        prompt = f"{asked}\n{shorten(row['input'], room)}"
        yield {"client": row["task"], "category": row["category"], "prompt": prompt,
               "response": response}


def _text(value: str | list[str]) -> str:
    """A text, or the first of several."""
    return value if isinstance(value, str) else (value or [""])[0]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, write the file, print what was kept."""
    parser = argparse.ArgumentParser(description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--instruction-words", type=int, default=24, help="longest instruction")
    parser.add_argument("--max-words", type=int, default=120,
                        help="longest prompt and response together")
    asked = parser.parse_args(argv)
    if not 1 <= asked.instruction_words < asked.max_words:
        raise SystemExit(
            f"--instruction-words is {asked.instruction_words}, expected 1 to "
            f"{asked.max_words - 1}; lower it")
    found = list(joined(asked.tasks, asked.instances, asked.instruction_words, asked.max_words))
    kept = [row for row in found if row is not None]
    asked.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept),
                         encoding="utf-8")
    clients = len({row["client"] for row in kept})
    print(f"{asked.out}: {len(kept)} rows of {clients} tasks; {len(found) - len(kept)} left out "
          "(empty, or the response is too long)")


if __name__ == "__main__":
    main()
