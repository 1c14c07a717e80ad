"""MTS-Dialog as conversations of one turn each, for experiments/smol-mtsdialog.toml.

    python scripts/mts_dialog.py PATH/train.jsonl mts-train.jsonl

Reads rows with "dialogue", "section_text" and "section_header" and writes rows with "messages" (the
user gives the dialogue, the assistant answers with the section of the note) and "section_header".
Source: Ben Abacha et al., "An Empirical Study of Clinical Note Generation from Doctor-Patient
Encounters", EACL 2023, CC BY 4.0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ASK = "Write the section of the clinical note that this dialogue belongs to.\n\n"


def main(source: Path, target: Path) -> int:
    """Write the conversations and return how many there are."""
    rows = [json.loads(line) for line in source.read_text("utf-8").split("\n") if line]
    made = [{"section_header": row["section_header"],
             "messages": [{"role": "user", "content": ASK + row["dialogue"].replace("\r", "")},
                          {"role": "assistant", "content": row["section_text"]}]} for row in rows]
    target.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    return len(made)


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]), Path(sys.argv[2]))} conversations")
