"""Turn the E2E NLG challenge into three clients and one that is only measured.

    python scripts/e2e_nlg.py dev.jsonl test.jsonl e2e.jsonl

Input: JSON lines with mr (meaning representation) and ref (its text). The first file is dealt to
three clients, all texts of one meaning to the same client; the second becomes the client "test",
for data.unseen = ["test"].
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path


def in_words(meaning: str) -> str:
    """ "name[Blue Spice], eatType[pub]" becomes "name: Blue Spice | eatType: pub"."""
    return " | ".join(part.strip().rstrip("]").replace("[", ": ", 1)
                      for part in meaning.split("],"))


def dealt(meaning: str) -> str:
    """One of three clients, by the meaning."""
    return f"client-{int(hashlib.sha256(meaning.encode()).hexdigest(), 16) % 3}"


def rows(path: Path, client: str | None) -> list[dict[str, str]]:
    """Rows with prompt, text and client."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
             if line.strip()]
    return [{"prompt": in_words(row["mr"]), "text": row["ref"].strip(),
             "client": client or dealt(row["mr"])} for row in found]


def main() -> None:
    """Read, deal, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("train", type=Path, help="JSON lines with mr and ref")
    parser.add_argument("test", type=Path, help="JSON lines with mr and ref")
    parser.add_argument("out", type=Path, help="where to write")
    asked = parser.parse_args()
    made = rows(asked.train, None) + rows(asked.test, "test")
    asked.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made),
                         encoding="utf-8")
    print(f"{asked.out}: {len(made)} rows, {len({row['client'] for row in made})} clients")


if __name__ == "__main__":
    main()
