"""What a stranger does with texts of his own and the README's commands, from `init` to PEFT.

    python scripts/stranger.py           # prints the transcript
    python scripts/stranger.py --write   # also writes docs/transcript.md

A test runs it in a fresh copy of the repository and compares what it prints with the page, but for
times and losses.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "transcript.md"
COMMANDS = (
    "aulait init texts.jsonl --strong 1",
    "aulait plan experiment.toml --not-here",
    "aulait run experiment.toml --out runs/mine --set train.rounds=2",
    "aulait report runs/mine",
    "aulait export runs/mine --to adapter",
)
LOAD = """\
from importlib.resources import files
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(str(files("aulait") / "models" / "brew"))
model = PeftModel.from_pretrained(base, "adapter")
print(type(model).__name__, model.peft_config["default"].r)
"""
VERBS = ("fix", "add", "drop", "test", "speed up", "document", "rename", "move")
THINGS = ("overflow in i0 for large inputs", "the sparse solver", "docs of the FFT",
          "a race in the pool", "an off-by-one in histogram", "the build on arm")
HEAD = """\
# A stranger's transcript

Somebody with a file of texts, the commands of the README, and nothing else: what is typed stands
after `$`, what is shown below it. `scripts/stranger.py` typed it; a test does so again in a fresh
copy of the repository, and fails when something else is shown (times, losses and bytes may differ).
Here everybody trains (`--strong 1`) and there are two rounds, so that it takes a minute.

"""


def texts() -> str:
    """A file such as a stranger has: 32 users with four texts each."""
    rows = [{"user": f"u{k:02}", "text": f"BUG: {VERBS[(k + i) % len(VERBS)]} "
             f"{THINGS[(k * 5 + i * 2) % len(THINGS)]} ({k}.{i})"}
            for k in range(32) for i in range(4)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def transcript() -> str:
    """What is typed and shown, in a folder of its own."""
    from aulait.cli import app

    before = Path.cwd()
    told = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("texts.jsonl").write_text(texts(), encoding="utf-8")
            first = texts().splitlines()[0]
            told.append(f"$ head -1 texts.jsonl\n{first}\n")
            for command in COMMANDS:
                done = CliRunner().invoke(app, shlex.split(command)[1:])
                if done.exit_code:
                    raise SystemExit(f"{command}: {done.output}")
                told.append(f"$ {command}\n{done.stdout}")
            Path("load.py").write_text(LOAD, encoding="utf-8")
            shown = io.StringIO()
            with redirect_stdout(shown):
                exec(compile(LOAD, "load.py", "exec"), {})  # nosec B102  # a constant of this file
            told.append(f"$ cat load.py\n{LOAD}\n$ python load.py\n{shown.getvalue()}")
        finally:
            os.chdir(before)
    return "\n".join("\n".join(line.rstrip() for line in part.splitlines()) + "\n" for part in told)


def page(text: str) -> str:
    """The page of the site."""
    return f"{HEAD}```text\n{text}```\n"


def settled(text: str) -> str:
    """A transcript without what differs from one machine, or one draw of noise, to the next."""
    lines = []
    for line in text.replace("\u00a0", " ").splitlines():
        if re.match(r"(held-out loss|perplexity|token accuracy|time, )", line):
            line = line[:24]
        line = re.sub(r"\d[\d.,]* (ms|s|min|h|kB|MB|GB|B|GFLOP|TFLOP)\b", r"# \1", line)
        lines.append(" ".join(line.split()))
    return "\n".join(lines) + "\n"


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["COLUMNS"] = "100"
    text = transcript()
    sys.stdout.write(text)
    if "--write" in sys.argv:
        PAGE.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
