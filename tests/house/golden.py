"""The golden comparison: whether two checkouts of aulait make the same of the same experiments.

    python -m tests.house.golden record SOURCE OUT       # runs SOURCE/src, writes OUT/golden.json
    python -m tests.house.golden compare OUT OTHER_OUT   # every difference; exit code 1 if any
    python -m tests.house.golden both OLD NEW OUT        # two checkouts in turns, then compared

Hashes hold on one machine with one set of installed packages, so no recording is committed: check
the commit before a large change out beside it, and compare the two with ``both``.

This file never imports aulait. It uses the command line and the files of run folders, which are
public, so modules may move and change names. Recorded are every tensor of every adapter; the
settings and, without times, the numbers of a run folder; the numbers and figures of pages, not
their wording; what commands print with ``--json``; exit codes; the words of every command's help;
and a deployment of two sites.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.house import golden_deploy, golden_runs
from tests.house.golden_read import Page, content, copy_with_constants, run_folder, timeless

# Differences that are meant: a pattern of paths, whether the key must be new, and the reason. They
# are printed and do not count.
MEANT = (
    (r".+/result\.json/schema_version", True, "a run folder says which schema it follows"),
    (r"json/list/mechanisms", True, "mechanisms of noise are registered and listed"),
    (r"json/plan dplora/privacy/epsilon/local", False, "the plan knew no sampling of records"),
    (r".+/config\.toml/privacy/mechanism", True, "the mechanism of noise has a name"),
    (r".+/config\.toml/privacy/(target_ratio|noise_acknowledged)", True, "the law of size"),
    (r".+/config\.toml/adapter/auto", True, "rank and layers may be auto"),
    (r".+/result\.json/privacy/noise.*", True, "the law of size"),
    (r"json/plan .+/(noise|basis_bytes).*", True, "the law of size; what travels once"),
    (r".+/config\.toml/synthesis/(source|about|start|retrieve).*", True, "texts are retrieved"),
    (r".+/result\.json/synthesis/(source|set).*", True, "the final set is measured"),
    (r".+/(rounds|synthetic)\.jsonl/.*origin", True, "a text says how it came about"),
    (r".+/config\.toml/run/stages.*", True, "the order of the stages"),
    (r".+/config\.toml/synthesis/teach", True, "the generator may wear what was trained"),
    (r"json/plan .+/stages.*", True, "the order of the stages"),
    (r"json/list/sources.*", False, "the mixed corpus is built in"),
)
ABSENT = "absent"
FRAME = re.compile("[\u2500-\u257f]")  # lines around a panel of a help page
PAGES = ("proxies", "fdlora", "machines", "dplora", "flexlora")  # runs whose pages are compared

# Every command gets a process of its own, forked from one that has imported the large libraries and
# nothing of aulait.
WORKER = """
import contextlib, json, os, sys, traceback
for name in sys.argv[1:]:
    with contextlib.suppress(ImportError):
        __import__(name)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.chdir(order["folder"])
            for number, path in ((1, order["out"]), (2, order["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.argv = ["aulait", *order["words"]]
            import aulait
            assert aulait.__file__.startswith(order["source"] + "/"), aulait.__file__
            from aulait.cli import main
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LARGE = ("torch", "transformers", "peft", "sentence_transformers", "dp_accounting", "opacus")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
    "TERM": "dumb",
    "NO_COLOR": "1",
}


class Checkout:
    """Runs the commands of one checkout in one folder.

    Attributes:
        source: SOURCE/src.
        folder: where experiments, runs, logs and golden.json lie; commands are run from there.
        environment: of every process.
        golden: what is recorded.
        failed: labels of what should have worked and did not.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = (source / "src").resolve(), folder.resolve()
        if not (self.source / "aulait").is_dir():
            raise SystemExit(f"found no {self.source / 'aulait'}, expected a checkout of aulait")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise SystemExit(f"{self.folder} is not empty; choose another folder")
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        golden_runs.write_inputs(self.folder)
        self.golden: dict[str, Any] = {}
        self.failed: list[str] = []
        self.environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(self.source)}
        self._worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, *LARGE],
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def close(self) -> None:
        """End the worker."""
        self._worker.communicate(timeout=60)

    def run(self, label: str, words: Sequence[str]) -> tuple[int, str]:
        """Exit code and standard output of ``aulait WORDS``; both streams are kept in logs/."""
        stem = self.folder / "logs" / re.sub(r"[^\w-]+", "-", label)
        out = stem.with_suffix(".out")
        order = {
            "words": list(words),
            "folder": str(self.folder),
            "source": str(self.source),
            "out": str(out),
            "err": str(stem.with_suffix(".err")),
        }
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(order) + "\n")
        self._worker.stdin.flush()
        code = self._worker.stdout.readline()
        if not code:
            raise SystemExit("the worker has ended; its last words stand above")
        return int(code), out.read_text(encoding="utf-8") if out.exists() else ""

    def must(self, label: str, words: Sequence[str]) -> str | None:
        """Standard output of a command that should work; None where it fails, which is noted."""
        code, text = self.run(label, words)
        if code:
            self.failed.append(f"{label}: exit code {code}; see {self.folder / 'logs'}")
        return None if code else text

    def document(self, label: str, words: Sequence[str]) -> Any:
        """The JSON that a command prints, without times; None where it fails."""
        text = self.must(label, words)
        return None if text is None else timeless(json.loads(text))


def inline(checkout: Checkout, only: Sequence[str] = ()) -> Iterator[str]:
    """Record the runs of one process; yields the name of each when it is done.

    Args:
        checkout: what runs, and where it is recorded.
        only: names of runs; empty for all.
    """
    runs = checkout.golden.setdefault("runs", {})
    for name in only or golden_runs.experiments():
        secret = name in golden_runs.SECRET
        folder = f"{'secret' if secret else 'runs'}/{name}"
        done = checkout.must(f"run {name}", ["run", f"{name}.toml", "--out", folder])
        found = {} if done is None else run_folder(checkout.folder / folder)
        kept = ("files", "config.toml", "ledger.jsonl") if secret else found
        runs[name] = {key: found[key] for key in kept}
        yield f"run {name}"


def commands(checkout: Checkout) -> Iterator[str]:
    """Record a sweep, then what commands make of the runs; yields the name of what is done."""
    golden, folder = checkout.golden, checkout.folder
    printed = checkout.document("sweep", golden_runs.SWEEP)
    arms = {path.name: run_folder(path) for path in sorted((folder / "sweep").glob("*-s*"))}
    golden["sweep"] = {"printed": printed, **arms}
    yield "sweep"
    for label, words in golden_runs.COMMANDS.items():
        golden.setdefault("json", {})[label] = checkout.document(label, words)
        yield label
    for name in ("exported", "personal"):
        files = sorted((folder / name).glob("*"))
        golden.setdefault("exported", {})[name] = {path.name: content(path) for path in files}
    golden["pages"] = pages(checkout)
    yield "pages"
    for label, words in golden_runs.WRONG.items():
        golden.setdefault("exit codes", {})[label] = checkout.run(f"wrong {label}", words)[0]
        yield label
    for command in golden_runs.HELP:
        text = checkout.must(f"help {command}", [*command.split(), "--help"]) or ""
        words = FRAME.sub(" ", text).split()
        golden.setdefault("help", {})[f"aulait {command}".rstrip()] = words
        yield f"help {command}"


def pages(checkout: Checkout) -> dict[str, Any]:
    """Numbers and figures of some runs' pages, and of the page that compares these runs."""
    folder, found = checkout.folder, {}
    for name in PAGES:
        if (folder / "runs" / name).exists():
            copy_with_constants(folder / "runs" / name, folder / "pages" / name)
        checkout.must(f"page {name}", ["report", f"pages/{name}"])
    words = [*(f"pages/{name}" for name in PAGES), "--out", "pages/report.html"]
    checkout.must("page of all", ["compare", *words])
    for path in sorted((folder / "pages").rglob("report.html")):
        page = Page(path.read_text(encoding="utf-8"))
        found[path.parent.name] = {"numbers": page.numbers, "figures": page.figures}
    return found


def deployment(checkout: Checkout) -> Iterator[str]:
    """Record a run over two sites, and the same run in one process."""
    checkout.golden["deployment"] = golden_deploy.record(checkout)
    yield "deployment"


def record(
    sources: Mapping[Path, Path], only: Sequence[str] = (), deploy: bool = True
) -> list[str]:
    """Record checkouts in turns, so that both meet the same machine.

    Args:
        sources: folder to write -> checkout.
        only: names of runs; empty for everything.
        deploy: whether a deployment is part of everything.

    Returns:
        What failed, a line each.
    """
    checkouts = [Checkout(source, folder) for folder, source in sources.items()]

    def turns(checkout: Checkout) -> Iterator[str]:
        yield from inline(checkout, only)
        if not only:
            yield from commands(checkout)
        if deploy and not only:
            yield from deployment(checkout)

    began = last = time.perf_counter()
    try:
        for labels in zip_longest(*map(turns, checkouts)):
            now = time.perf_counter()
            print(f"{now - last:6.1f} s  {next(filter(None, labels))}", flush=True)
            last = now
    finally:
        for checkout in checkouts:
            checkout.close()
            text = json.dumps(checkout.golden, indent=1, ensure_ascii=False)
            (checkout.folder / "golden.json").write_text(text + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:6.1f} s  in all")
    return [line for checkout in checkouts for line in checkout.failed]


def differences(one: Any, two: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path and both values of all in which two trees differ; ``ABSENT`` where one is missing.

    Lists of texts, as the words of a help page, count once, with what only one side has.
    """
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in {**one, **two}:
            below = f"{path}/{key}".lstrip("/")
            yield from differences(one.get(key, ABSENT), two.get(key, ABSENT), below)
    elif texts(one) and texts(two) and one != two:
        parts = [part for part in difflib.ndiff(one, two) if part[0] in "-+"]
        yield path, *([part[2:] for part in parts if part[0] == side] for side in "-+")
    elif isinstance(one, list) and isinstance(two, list):
        for number, (a, b) in enumerate(zip_longest(one, two, fillvalue=ABSENT)):
            yield from differences(a, b, f"{path}/{number}")
    elif type(one) is not type(two) or one != two:
        yield path, one, two


def texts(node: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(node, list) and all(isinstance(item, str) for item in node)


def compare(one: Path, two: Path) -> int:
    """Print every difference of two recordings; how many of them are not meant."""
    goldens = [json.loads((folder / "golden.json").read_text()) for folder in (one, two)]
    count, meant = 0, Counter[str]()
    for path, before, after in differences(*goldens):
        reasons = [
            why
            for pattern, new, why in MEANT
            if re.fullmatch(pattern, path) and (before == ABSENT or not new)
        ]
        meant.update(reasons)
        if not reasons:
            count += 1
            print(f"DIFFERS  {path}\n  {short(before)}\n  {short(after)}")
    for reason, times in meant.items():
        print(f"meant, {times} times: {reason}")
    print(f"{count} difference{'' if count == 1 else 's'} between {one} and {two}")
    return count


def short(value: Any) -> str:
    """A value on one line of bounded length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 where all is equal and nothing failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, paths in (
        ("record", ("source", "out")),
        ("compare", ("one", "two")),
        ("both", ("old", "new", "out")),
    ):
        own = verbs.add_parser(verb)
        for path in paths:
            own.add_argument(path, type=Path)
        if verb != "compare":
            own.add_argument("--no-deploy", action="store_true", help="leave the deployment out")
            own.add_argument(
                "--only", nargs="+", default=[], metavar="RUN", help="these runs and nothing else"
            )
    asked = parser.parse_args(words)
    if asked.verb == "compare":
        return int(compare(asked.one, asked.two) > 0)
    sources = (
        {asked.out: asked.source}
        if asked.verb == "record"
        else {asked.out / "old": asked.old, asked.out / "new": asked.new}
    )
    failed = record(sources, asked.only, not asked.no_deploy)
    for line in failed:
        print(f"FAILED  {line}")
    differ = asked.verb == "both" and compare(*sources) > 0
    return int(differ or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
