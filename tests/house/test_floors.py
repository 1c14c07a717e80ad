"""The house: a file imports from lower floors only, or along an arrow that is written here; nothing grows too large."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from aulait.core.registry import names
from aulait.runs import experiment_file as _config  # noqa: F401  (files the methods)

SOURCE = Path(__file__).resolve().parents[2] / "src" / "aulait"
FILES = {".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in sorted(SOURCE.rglob("*.py"))}

FLOORS = {
    1: "__init__ types errors seeds registry",
    2: "lora encoding product_sum singular cohort privacy.* compute.*",
    3: "model shared_linear prefix cut split data data_settings fitting fingerprint sources public docstrings partition rows stacking train private_train evaluate tasks bleu peft_format generate sampling variation prompting masking key_cache embed exported family step_parts anatomy",
    4: "algorithms.*",
    5: "config tiers placing timing forecast presets memory scoring record assemble progress proxies stage_one loop finish outlook sweep bench bench_aggregate bench_cost bench_edge edge_steps edge_devices edge_servers edge_claims tracking",
    6: "inline flower.* report.* cli.* assets.*",
}

# Between files of one floor. Inside the rooms report and cli every arrow is allowed as long as there is no cycle.
ARROWS = {
    "registry": "errors",
    "privacy.ledger": "privacy.account",
    "privacy.door": "privacy.account privacy.intake privacy.ledger privacy.noise privacy.promise privacy.records",
    "privacy.promise": "privacy.account privacy.ledger privacy.noise privacy.records",
    "privacy.records": "privacy.account",
    "privacy.intake": "privacy.clip",
    "compute.cost": "compute.block compute.quantities",
    "compute.machines": "compute.link",
    "compute.meter": "compute.energy",
    "compute.capacity": "compute.cost",
    "product_sum": "lora singular",
    "rows": "model",
    "anatomy": "model",
    "model": "prefix shared_linear",
    "prefix": "shared_linear",
    "stacking": "model",
    "cut": "model prefix rows",
    "split": "cut model rows stacking train",
    "train": "model rows stacking",
    "private_train": "rows stacking train",
    "evaluate": "bleu model rows tasks train",
    "tasks": "bleu model rows sampling",
    "exported": "model",
    "peft_format": "model",
    "data": "data_settings docstrings partition public sources",
    "data_settings": "partition sources",
    "fitting": "data rows",
    "fingerprint": "model",
    "public": "sources",
    "sampling": "key_cache",
    "variation": "sampling",
    "masking": "sampling variation",
    "prompting": "sampling variation",
    "generate": "masking model prompting sampling variation",
    "algorithms.__init__": "algorithms.alone algorithms.dplora algorithms.fdlora algorithms.fedex algorithms.fedit algorithms.fedsa algorithms.ffa algorithms.flexlora algorithms.flora algorithms.hetlora algorithms.lorafair algorithms.rolora algorithms.safedlora algorithms.splitlora",
    "algorithms.averaging": "algorithms.contract algorithms.server_optimizer algorithms.traffic",
    "algorithms.traffic": "algorithms.contract",
    "algorithms.client": "algorithms.contract",
    "algorithms.folding": "algorithms.client algorithms.contract",
    "algorithms.singles": "algorithms.averaging algorithms.contract algorithms.traffic",
    "algorithms.exchange": "algorithms.client algorithms.contract algorithms.traffic",
    "algorithms.splitlora": "algorithms.client algorithms.contract algorithms.exchange algorithms.singles",
    "algorithms.dplora": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer algorithms.traffic",
    "algorithms.evolution": "algorithms.candidates algorithms.contract algorithms.selection",
    "algorithms.alone": "algorithms.averaging algorithms.client algorithms.contract",
    "algorithms.fdlora": "algorithms.averaging algorithms.client algorithms.contract algorithms.fusion algorithms.server_optimizer",
    "algorithms.fedex": "algorithms.averaging algorithms.client algorithms.contract algorithms.folding algorithms.singles",
    "algorithms.fedit": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer",
    "algorithms.fedsa": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer",
    "algorithms.ffa": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer",
    "algorithms.flexlora": "algorithms.averaging algorithms.client algorithms.contract algorithms.singles",
    "algorithms.flora": "algorithms.averaging algorithms.client algorithms.contract algorithms.folding algorithms.singles",
    "algorithms.hetlora": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer algorithms.singles",
    "algorithms.lorafair": "algorithms.averaging algorithms.client algorithms.contract algorithms.singles",
    "algorithms.rolora": "algorithms.averaging algorithms.client algorithms.contract algorithms.server_optimizer",
    "algorithms.safedlora": "algorithms.averaging algorithms.client algorithms.contract",
    "assemble": "config placing tiers",
    "finish": "assemble progress record scoring timing",
    "progress": "assemble memory record timing",
    "proxies": "assemble",
    "stage_one": "assemble progress proxies record timing",
    "loop": "assemble config finish progress proxies record scoring stage_one timing tracking",
    "scoring": "assemble progress",
    "config": "presets tiers tracking",
    "presets": "tiers",
    "placing": "config tiers",
    "timing": "assemble placing",
    "forecast": "assemble placing timing",
    "compute.dial": "encoding",
    "compute.plan": "compute.cost compute.dial compute.link",
    "outlook": "assemble config tiers timing",
    "sweep": "assemble config loop",
    "bench": "assemble config",
    "family": "anatomy model",
    "step_parts": "model rows",
    "edge_steps": "edge_devices",
    "edge_servers": "assemble config sweep",
    "bench_edge": "edge_claims edge_devices edge_servers edge_steps",
    "cli.*": "report.* inline flower.*",
    "flower.*": "inline",
    "flower.status": "report.folder",
}

# Upward, each with its reason; the list may only become shorter.
UPWARD = {
    "finish": "report.__init__",  # a run ends with its page; the report reads files only
    "sweep": "inline",  # many runs of one process: the engine is that process
    "bench": "inline",  # measures the engine
}

HEAVY = {"transformers", "peft", "datasets", "sentence_transformers"}
HEAVY_ELSEWHERE = {"cli.export": {"peft", "transformers"}, "cli.generate": {"peft", "transformers"}}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
ROOMS = ("report", "cli", "flower")


def matches(name: str, words: str) -> bool:
    """Whether a word is the name, or "room.*" for a room that holds it."""
    return any(name == word or (word.endswith(".*") and name.startswith(word[:-1])) for word in words.split())


def floor(name: str) -> int:
    found = [number for number, words in FLOORS.items() if matches(name, words)]
    assert len(found) == 1, f"{name} has no floor; write it into FLOORS"
    return found[0]


@lru_cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def resolve(dotted: str) -> str | None:
    """The file behind ``aulait.x.y``; None where nothing of ours is meant."""
    if dotted != "aulait" and not dotted.startswith("aulait."):
        return None
    inner = dotted.partition(".")[2]
    for candidate in (inner, f"{inner}.__init__" if inner else "__init__"):
        if candidate in FILES:
            return candidate
    return None


@lru_cache
def imports(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """(our files, foreign packages) that a file imports anywhere, also inside functions."""
    ours, foreign = set(), set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write the whole name"
            for alias in node.names:
                found = resolve(f"{node.module}.{alias.name}") or resolve(node.module or "")
                (ours.add(found) if found else foreign.add((node.module or "").partition(".")[0]))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found = resolve(alias.name)
                (ours.add(found) if found else foreign.add(alias.name.partition(".")[0]))
    return frozenset(ours - {name}), frozenset(foreign)


def allowed(name: str, other: str) -> bool:
    if floor(other) < floor(name):
        return True
    words = " ".join(targets for pattern, targets in ARROWS.items() if matches(name, pattern))
    same_room = any(name.startswith(f"{room}.") and other.startswith(f"{room}.") for room in ROOMS)
    if floor(other) == floor(name):
        return same_room or matches(other, words)
    return matches(other, UPWARD.get(name, ""))


every = pytest.mark.parametrize("name", list(FILES))


def test_the_scan_sees_what_is_there():
    assert "algorithms.ffa" in FILES
    assert "algorithms.averaging" in imports("algorithms.ffa")[0]
    assert "lora" in imports("algorithms.ffa")[0]
    assert "transformers" in imports("model")[1]
    assert "report.__init__" in imports("finish")[0]


@every
def test_imports_come_from_below_or_along_an_arrow(name):
    wrong = sorted(other for other in imports(name)[0] if not allowed(name, other))
    assert not wrong, f"{name} (floor {floor(name)}) imports {[(other, floor(other)) for other in wrong]}"


def test_no_arrow_is_written_for_nothing():
    for table in (ARROWS, UPWARD):
        for source, targets in table.items():
            if "*" in source:
                continue
            for target in targets.split():
                assert target in imports(source)[0], f"{source} no longer imports {target}; take the arrow away"


def test_there_is_no_import_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join((*path[path.index(name):], name))}"
        if name not in done:
            for other in sorted(imports(name)[0]):
                visit(other, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_methods_do_not_know_each_other():
    methods = {f"algorithms.{method}" for method in names("algorithm")}
    assert methods
    for method in methods:
        assert not imports(method)[0] & (methods - {method}), method


@every
def test_the_report_stands_alone(name):
    if name.startswith("report."):
        assert {floor(other) for other in imports(name)[0]} <= {1, 6}
        assert not imports(name)[1] & {"torch", *HEAVY}
        assert all(other.startswith("report.") or floor(other) == 1 for other in imports(name)[0])


@every
def test_model_libraries_live_on_the_third_floor(name):
    heavy = imports(name)[1] & HEAVY
    if floor(name) != 3:
        assert heavy <= HEAVY_ELSEWHERE.get(name, set()), f"{name} imports {sorted(heavy)}"


@every
def test_no_file_is_too_long(name):
    method = name.startswith("algorithms.")
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= (200 if method else 300), f"{name} has {lines} lines"


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from def to the end without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@every
def test_no_function_is_too_long(name):
    long = [(node.name, body_lines(node)) for node in ast.walk(tree(name))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > 40]
    assert not long, f"{name}: {long}"


@every
def test_no_file_is_named_after_nothing(name):
    assert not set(name.split(".")) & FORBIDDEN_NAMES


def public(node: ast.AST, inside: str = "") -> list[tuple[str, bool]]:
    """(name, documented) of every public function, class and method; functions within functions are private."""
    found = []
    for child in getattr(node, "body", []):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        found.append((inside + child.name, ast.get_docstring(child) is not None))
        if isinstance(child, ast.ClassDef):
            found += public(child, f"{inside}{child.name}.")
    return found


@every
def test_everything_public_is_documented(name):
    empty = not FILES[name].read_text(encoding="utf-8").strip()
    assert empty or ast.get_docstring(tree(name)) is not None, f"{name} has no module docstring"
    bare = [thing for thing, documented in public(tree(name)) if not documented]
    assert not bare, f"{name}: {bare}"
