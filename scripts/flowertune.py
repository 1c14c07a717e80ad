"""Data and both scorers for FlowerTune's settings with SmolLM2 (experiments/flowertune-*.toml).

    python scripts/flowertune.py data PAIRS.jsonl OUT.jsonl --prompt question --response answer
    python scripts/flowertune.py score PUBMEDQA/data.jsonl SCORES.jsonl --run RUN --questions 100

"data" deals pairs to twenty clients, as the leaderboard's settings do, by a seeded shuffle; rows
longer than --words are left out. "score" asks the expert-labelled test questions of PubMedQA (yes,
no or maybe, after the beginning of the abstract) and scores an adapter, or the base without --run,
twice:

    generated   the first word of a greedy text is the answer, as the leaderboard scores
    likelihood  the answer is the most probable of the three, by the sum of its tokens' logarithms

A line of SCORES.jsonl is one question; the same command again goes on where it stopped. The
majority's share stands beside, because a score below it says nothing for a model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

CLIENTS = 20
ANSWERS = ("yes", "no", "maybe")
ABSTRACT_WORDS = 120


def rows_of(path: Path) -> list[dict[str, object]]:
    """The objects of a file of lines."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def deal(args: argparse.Namespace) -> None:
    """Write pairs with a client each."""
    pairs = [{"prompt": str(row[args.prompt]), "response": str(row[args.response])}
             for row in rows_of(args.pairs)]
    short = [pair for pair in pairs
             if pair["response"].strip() and len(" ".join(pair.values()).split()) <= args.words]
    random.Random(args.seed).shuffle(short)  # nosec B311  # an order, no secret
    with args.out.open("w", encoding="utf-8") as out:
        for number, pair in enumerate(short[: args.most]):
            out.write(json.dumps({"client": f"client-{number % CLIENTS:02d}", **pair}) + "\n")
    print(f"{min(len(short), args.most or len(short))} pairs of {len(pairs)} for {CLIENTS} clients")


def asked(row: dict[str, object]) -> str:
    """The prompt of a question: the beginning of the abstract, and what may be answered."""
    contexts = row["contexts"]
    abstract = " ".join(contexts) if isinstance(contexts, list) else str(contexts)
    words = " ".join(abstract.split()[:ABSTRACT_WORDS])
    return f"{words}\n\nQuestion: {row['question']}\nAnswer with one word: yes, no or maybe."


def score(args: argparse.Namespace) -> None:
    """Score the questions that are not scored yet, and print the means."""
    # torch and the package load when something is scored
    from aulait.core import lora
    from aulait.core.types import Record
    from aulait.evaluation.tasks import rank_choices, write_answers
    from aulait.models.loading import ModelConfig, folded, load_base
    from aulait.models.read_back import load_adapter

    questions = [row for row in rows_of(args.questions_file) if row["split"] == "test"]
    questions = questions[: args.questions]
    done = {str(row["pmid"]): row for row in rows_of(args.out)} if args.out.exists() else {}
    base = load_base(ModelConfig(name="smollm2", context=512))
    update = None if args.run is None else lora.dense(load_adapter(args.run / "adapter"))
    with folded(base, update), args.out.open("a", encoding="utf-8") as out:
        for row in questions:
            if str(row["pmid"]) in done:
                continue
            record = Record(str(row["final_decision"]), asked(row))
            (likely,) = rank_choices(base, [record], ANSWERS, "sum")
            (text,) = write_answers(base, [record], 6, 1)
            found = {"pmid": row["pmid"], "right": record.text, "likely": likely, "text": text}
            done[str(row["pmid"])] = found
            out.write(json.dumps(found) + "\n")
            out.flush()
    print(json.dumps(means(list(done.values()))))


def means(rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """Percent right by both scorers, and of who always gives the most frequent answer."""
    first = [(str(row["text"]).casefold().split() or [""])[0].strip(".,:;!\"'*()") for row in rows]
    right = [str(row["right"]) for row in rows]
    return {
        "questions": len(rows),
        "generated": 100 * sum(a == b for a, b in zip(first, right, strict=True)) / len(rows),
        "an answer at all": 100 * sum(word in ANSWERS for word in first) / len(rows),
        "likelihood": 100 * sum(row["likely"] == row["right"] for row in rows) / len(rows),
        "majority": 100 * max(Counter(right).values()) / len(rows),
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    data = commands.add_parser("data")
    data.add_argument("pairs", type=Path)
    data.add_argument("out", type=Path)
    data.add_argument("--prompt", default="prompt")
    data.add_argument("--response", default="response")
    data.add_argument("--words", type=int, default=300)
    data.add_argument("--most", type=int, default=None)
    data.add_argument("--seed", type=int, default=0)
    data.set_defaults(do=deal)
    scoring = commands.add_parser("score")
    scoring.add_argument("questions_file", type=Path)
    scoring.add_argument("out", type=Path)
    scoring.add_argument("--run", type=Path, default=None)
    scoring.add_argument("--questions", type=int, default=500)
    scoring.set_defaults(do=score)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
