"""PubMedQA as public pairs of question and answer, for experiments/cafe-hospitals.toml.

    python scripts/pubmedqa.py PATH/data.jsonl pubmedqa.jsonl

Reads rows with "question" and "long_answer" (the conclusion of the abstract) and writes rows with
"question" and "answer". Source: Jin et al., "PubMedQA: A Dataset for Biomedical Research Question
Answering", EMNLP 2019; the expert labelled part, 1,000 rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(source: Path, target: Path) -> int:
    """Write the pairs and return how many there are."""
    rows = [json.loads(line) for line in source.read_text("utf-8").split("\n") if line]
    pairs = [{"question": row["question"], "answer": row["long_answer"]} for row in rows]
    target.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return len(pairs)


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]), Path(sys.argv[2]))} pairs")
