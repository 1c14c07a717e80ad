"""Figures of the source tree, as the house's tests and docs/log.md use them.

``python tests/house/figures.py [ROOT]`` prints them for a checkout.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Tree:
    """The modules of one package, parsed.

    Args:
        root: of the checkout.
        package: its name below ``src``.
    """

    def __init__(self, root: Path = ROOT, package: str = "aulait") -> None:
        source = root / "src"
        found = sorted((source / package).rglob("*.py"))
        self.files = {".".join(p.relative_to(source).with_suffix("").parts): p for p in found}
        self.files = {name.removesuffix(".__init__"): p for name, p in self.files.items()}
        self.trees = {name: ast.parse(p.read_text(encoding="utf-8"))
                      for name, p in self.files.items()}

    def lines(self) -> int:
        """Physical lines."""
        return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in self.files.values())

    def code_lines(self) -> int:
        """Lines that are neither empty, comment nor docstring."""
        total = 0
        for name, path in self.files.items():
            text = path.read_text(encoding="utf-8").splitlines()
            told = {line for node in ast.walk(self.trees[name])
                    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                    and isinstance(node.value.value, str)
                    for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
            total += sum(1 for number, line in enumerate(text, 1)
                         if line.strip() and not line.strip().startswith("#")
                         and number not in told)
        return total

    def anys(self) -> int:
        """How often the word Any stands in the code."""
        return sum(len(re.findall(r"\bAny\b", p.read_text(encoding="utf-8")))
                   for p in self.files.values())

    def target(self, dotted: str) -> str | None:
        """The module of ours that a dotted name means; None for a stranger's."""
        while dotted and dotted not in self.files:
            dotted = dotted.rpartition(".")[0]
        return dotted or None

    def imports(self, name: str) -> set[str]:
        """Modules of ours that a module imports, anywhere in its text."""
        found: set[str] = set()
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.ImportFrom):
                found |= {self.target(f"{node.module}.{alias.name}") or "" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {self.target(alias.name) or "" for alias in node.names}
        return found - {"", name}

    def chain(self) -> list[str]:
        """The longest chain of imports."""
        @cache
        def longest(name: str) -> tuple[str, ...]:
            below = [longest(other) for other in sorted(self.imports(name))]
            return (name, *max(below, key=len, default=()))

        return list(max((longest(name) for name in self.files), key=len))

    def inner_import_nodes(self, name: str) -> list[ast.Import | ast.ImportFrom]:
        """The imports inside functions of a module."""
        return [inner for node in ast.walk(self.trees[name])
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]

    def inner_imports(self) -> dict[str, list[str]]:
        """Module -> what it imports inside functions."""
        found = {name: sorted({alias.name for node in self.inner_import_nodes(name)
                               for alias in node.names}) for name in self.trees}
        return {name: here for name, here in found.items() if here}

    def type_names(self) -> dict[str, list[str]]:
        """Name of a class or of a type -> modules that define it, private ones included."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    found[node.name].add(name)
            for node in tree.body:
                # a second name for a class is no second type: Config = FedITConfig
                named_again = isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
                targets = node.targets if isinstance(node, ast.Assign) and not named_again else []
                for target in targets:
                    if isinstance(target, ast.Name) and re.match(r"_?[A-Z]\w*[a-z]", target.id):
                        found[target.id].add(name)
        return {name: sorted(where) for name, where in found.items()}

    def comments(self) -> int:
        """Lines with a comment, alone or behind code."""
        return sum(1 for p in self.files.values()
                   for line in p.read_text(encoding="utf-8").splitlines()
                   if re.search(r"(^|\s)# \S", line))


def main(root: Path) -> None:
    """Print the figures of a checkout."""
    tree = Tree(root)
    chain, inner = tree.chain(), tree.inner_imports()
    twice = {name: where for name, where in tree.type_names().items() if len(where) > 1}
    print(f"files {len(tree.files)}, lines {tree.lines()}, lines of code {tree.code_lines()}, "
          f"comments {tree.comments()}")
    print(f"Any {tree.anys()}")
    print(f"longest chain {len(chain)}: {' -> '.join(chain)}")
    print(f"files with an import inside a function {len(inner)}: {' '.join(inner)}")
    print(f"types of one name {len(twice)}: {twice}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
