"""Turn BANKING77 rows into rows whose answer is the intent in words.

"card_arrival" becomes "card arrival":

    python scripts/banking77.py train.jsonl banking77.jsonl

A language model can rank words; the underscored names fall into many tokens. Input: JSON lines with
text and category.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def in_words(row: dict[str, str]) -> dict[str, str]:
    """The row with its category in lower-case words."""
    intent = row["category"].replace("_", " ").strip().lower()
    return {"text": row["text"].strip(), "category": intent}


def main() -> None:
    """Read, turn, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="JSON lines with text and category")
    parser.add_argument("out", type=Path, help="where to write")
    asked = parser.parse_args()
    rows = [in_words(json.loads(line))
            for line in asked.source.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
                         encoding="utf-8")
    print(f"{asked.out}: {len(rows)} rows, {len({row['category'] for row in rows})} intents")


if __name__ == "__main__":
    main()
