"""Make the built-in mixed corpus: some 20,000 short public texts of many kinds.

    python scripts/make_mixed.py PRETRAIN COMMITS [--out OUT]

PRETRAIN is a folder with ``docs.jsonl.gz``, ``ebooks.jsonl.gz``, ``openstax19.jsonl.gz`` and
``textbooks.jsonl.gz`` (rows with ``text`` and ``source``), COMMITS a file of commit messages (rows
with ``project`` and ``text``), OUT the folder of the packaged files (default:
src/aulait/data/assets). Three files are written: ``mixed.jsonl.gz`` (rows with ``kind``, ``source``
and ``text``), ``mixed.minilm.npz`` (the clusters of the texts under the built-in embedder, so that
nobody has to embed all of them before a first vote) and ``MIXED-LICENCES.txt``.

Passages are cut at the ends of sentences. Which are taken follows from their SHA-256 alone, so that
the same inputs give the same corpus on every machine.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from aulait.data.builtin import standard_library
from aulait.data.public import read_public
from aulait.data.source_row import Asked
from aulait.synthesis import corpus_index
from aulait.synthesis.embedding import load_embedder

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src/aulait/data/assets"

# Texts of a kind that are taken.
WANTED = {"docstring": 3_000, "documentation": 3_500, "commit message": 2_500,
          "fiction and essays": 5_500, "textbook": 5_500}
MIN_CHARACTERS, MAX_CHARACTERS = 20, 400
CELLS = 256
EMBEDDED_TOKENS = 128
_SENTENCE = re.compile(r"(?<=[.!?:])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_MERGE_TOOL = re.compile(r"\[svn r\d+\]\s*|\s*--HG--.*", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z]+")


class Project(NamedTuple):
    """A project whose documentation or commit messages are used."""

    licence: str
    copyright: str


# Only projects whose licence files were read. Of Apache-2.0 the text is aulait's file LICENSE.
PROJECTS = {
    "NVIDIA+NVFlare": Project("Apache-2.0", "Copyright NVIDIA Corporation"),
    "adap+flower": Project("Apache-2.0", "Copyright Flower Labs GmbH"),
    "huggingface+peft": Project("Apache-2.0", "Copyright The HuggingFace Team"),
    "huggingface+trl": Project("Apache-2.0", "Copyright The HuggingFace Team"),
    "alibaba+FederatedScope": Project("Apache-2.0", "Copyright Alibaba Group Holding Limited"),
    "Lightning-AI+litgpt": Project("Apache-2.0", "Copyright Lightning AI"),
    "EleutherAI+lm-evaluation-harness": Project("MIT", "Copyright (c) 2025 EleutherAI"),
    "pallets+flask": Project("BSD-3-Clause", "Copyright 2025 Pallets"),
    "dask": Project("BSD-3-Clause",
                    "Copyright (c) 2014-2018, Anaconda, Inc. and contributors"),
    "networkx": Project("BSD-3-Clause", "Copyright (c) 2004-2025, NetworkX Developers"),
    "pytest": Project("MIT", "Copyright (c) 2004 Holger Krekel and others"),
}
OPENSTAX = ("OpenStax, Rice University; licensed under CC BY 4.0 "
            "(https://creativecommons.org/licenses/by/4.0/); passages were cut out, formulas and "
            "white space changed")


class Passage(NamedTuple):
    """A text of the corpus."""

    kind: str
    source: str
    text: str


def passages(pretrain: Path, commits: Path) -> Iterator[Passage]:
    """Everything that may be taken."""
    for row in standard_library():
        yield Passage("docstring", row["client"], row["text"])
    for row in rows(pretrain / "docs.jsonl.gz"):
        if row["source"] in PROJECTS:
            for text in prose(row["text"]):
                yield Passage("documentation", row["source"], text)
    for line in commits.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = _MERGE_TOOL.sub("", row["text"]).strip()
        if not text.startswith("Merged in "):
            yield Passage("commit message", row["project"], text)
    for row in rows(pretrain / "ebooks.jsonl.gz"):
        for text in cut(row["text"]):
            yield Passage("fiction and essays", row["source"], text)
    for name in ("openstax19", "textbooks"):
        for row in rows(pretrain / f"{name}.jsonl.gz"):
            for text in cut(row["text"]):
                yield Passage("textbook", row["source"], text)


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a compressed file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def prose(page: str) -> Iterator[str]:
    """Paragraphs of a page in Markdown or reStructuredText, without code, tables and headings."""
    page = re.sub(r"```.*?(```|\Z)", "\n\n", page, flags=re.DOTALL)
    page = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"<[^>\n]{1,200}>", "", page)
    page = re.sub(r"^( *[-*|#=~+>`.].*|\s{4,}.*)$", "", page, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", page):
        yield from cut(paragraph)


def cut(text: str) -> Iterator[str]:
    """Passages of whole sentences, each at most ``MAX_CHARACTERS`` long; how long it is follows
    from its first sentence, so that short ones occur too. The first and the last sentence of a
    text may be torn and are left out where there are others."""
    found = [tidy(sentence) for sentence in _SENTENCE.split(tidy(text))]
    sentences = found[1:-1] if len(found) > 3 else found
    passage = ""
    for sentence in sentences:
        longer = f"{passage} {sentence}".strip()
        limit = 100 + int(hashlib.sha256(passage[:40].encode()).hexdigest(), 16) % 300
        if passage and len(longer) > limit:
            yield passage
            longer = sentence
        passage = longer if len(longer) <= MAX_CHARACTERS else ""
    if passage:
        yield passage


def tidy(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def fits(text: str) -> bool:
    """Whether a text is long and short enough and mostly words."""
    letters = sum(map(len, _WORDS.findall(text)))
    return (MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and letters >= 0.65 * len(text)
            and len(text.split()) >= 4 and "http" not in text and "@" not in text)


def chosen(found: Iterator[Passage]) -> list[Passage]:
    """Of every kind the wanted number, each text once, spread over the sources of the kind."""
    by_source: dict[str, dict[str, dict[str, Passage]]] = defaultdict(lambda: defaultdict(dict))
    for passage in found:
        if fits(passage.text):
            key = hashlib.sha256(passage.text.encode()).hexdigest()
            by_source[passage.kind][passage.source].setdefault(key, passage)
    taken: dict[str, Passage] = {}
    for kind, wanted in WANTED.items():
        ordered = [[own[key] for key in sorted(own)] for _, own in sorted(by_source[kind].items())]
        rank = {passage: place for own in ordered for place, passage in enumerate(own)}
        everyone = sorted((p for own in ordered for p in own), key=lambda p: (rank[p], p.text))
        fresh = [p for p in everyone if p.text not in taken][:wanted]
        taken.update({passage.text: passage for passage in fresh})
    return sorted(taken.values(), key=lambda p: hashlib.sha256(p.text.encode()).hexdigest())


def licences(corpus: list[Passage]) -> str:
    """The text of MIXED-LICENCES.txt."""
    used = Counter((passage.kind, passage.source) for passage in corpus)
    parts = ["Licences of aulait's built-in mixed corpus (mixed.jsonl.gz)\n\nscripts/make_mixed.py "
             "wrote this file together with the corpus. Passages were cut out of their\nsources "
             "and put on one line."]
    parts.append("docstring: from Python's standard library, PSF-2.0; see LICENCES.txt beside "
                 "this file.")
    books = sorted({urllib.parse.unquote(source.partition("+")[2]) for kind, source in used
                    if kind == "fiction and essays"})
    parts.append("fiction and essays: editions of Standard Ebooks (https://standardebooks.org), "
                 "dedicated to the public\ndomain by CC0 1.0: " + ", ".join(books))
    courses = sorted({source.removeprefix("openstax+osbooks-") for kind, source in used
                      if kind == "textbook"})
    parts.append(f"textbook: {OPENSTAX}. Books: {', '.join(courses)}")
    for kind in ("documentation", "commit message"):
        for name in sorted({source for own, source in used if own == kind}):
            project = PROJECTS[name]
            parts.append(f"{kind}: {name.replace('+', '/')}, {project.licence}. "
                         f"{project.copyright}.")
    mit = licence_text("pytest")
    bsd = licence_text("networkx")
    rule = "=" * 100
    parts.append("Apache-2.0 is the licence of aulait itself; its text is in aulait's file "
                 "LICENSE. The conditions of the\nMIT licence and of the BSD licence of three "
                 "clauses follow; the copyright notices that stand above\nbelong to them.")
    parts += [f"{rule}\nMIT\n{rule}\n\n{mit}", f"{rule}\nBSD-3-Clause\n{rule}\n\n{bsd}"]
    return "\n\n".join(parts) + "\n"


def licence_text(package: str) -> str:
    """The licence file of an installed package."""
    for file in distribution(package).files or ():
        if re.match(r"LICEN[CS]E", file.name.upper()):
            return Path(str(file.locate())).read_text(encoding="utf-8").strip()
    raise SystemExit(f"{package} is installed without its licence file")


def main(arguments: list[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pretrain", type=Path, help="folder of the four files of passages")
    parser.add_argument("commits", type=Path, help="file of commit messages")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    given = parser.parse_args(arguments)
    corpus = chosen(passages(given.pretrain, given.commits))
    lines = "".join(json.dumps(passage._asdict(), ensure_ascii=False) + "\n" for passage in corpus)
    packed = gzip.compress(lines.encode(), mtime=0)
    (given.out / "mixed.jsonl.gz").write_bytes(packed)
    (given.out / "MIXED-LICENCES.txt").write_text(licences(corpus), encoding="utf-8")
    print(Counter(passage.kind for passage in corpus), len(corpus), "texts", len(packed), "bytes")
    texts, _ = read_public(str(given.out / "mixed.jsonl.gz"), Asked(), None)
    index = corpus_index.clustered(texts, load_embedder("minilm", max_tokens=EMBEDDED_TOKENS),
                                   CELLS)
    corpus_index.save(index, given.out / "mixed.minilm.npz")


if __name__ == "__main__":
    main()
