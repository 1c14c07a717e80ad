"""docs/privacy.md names the file and the function that keeps each assumption; they exist, and the
product's modes are on the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from aulait.privacy.accounting import epsilon
from aulait.privacy.mechanisms import MECHANISMS
from aulait.reporting import guarantee

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "aulait"
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[":".join(pair) for pair in NAMED])
def test_what_keeps_an_assumption_exists(file, name):
    path = SOURCE / file
    assert path.exists(), f"{file} is named on the page and does not exist"
    if name:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body
                   if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} has no {name}"


def test_every_row_of_assumptions_names_its_keeper_or_says_that_it_is_trusted():
    tables = re.findall(r"^\| it assumes \| kept by \|\n\|[-| ]+\n((?:\|.*\n)+)", PAGE, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"`[\w/]+\.py:\w+`|\*\*trusted\*\*", row), row


def test_every_promise_of_the_product_has_its_theorem():
    assert set(re.findall(r"^## (?:Client|Record): (.+)$", PAGE, re.M)) == {
        "sums of updates and of votes", "sums that the server does not see", "noise that remembers",
        "a bound that follows the norms", "a public schedule", "one sum over all sites",
        "DP-SGD at the site", "the literal batch rule",
        "votes of a site"}
    built_in = {"gaussian": "Client: sums", "distributed-gaussian": "the server does not see", "dp-sgd": "DP-SGD at the site",
                "gaussian-batch": "literal batch rule", "gaussian-votes": "votes of a site",
                "banded": "noise that remembers", "distributed-records": "one sum over all sites"}
    assert set(MECHANISMS.built_in) <= set(built_in), "a mechanism without a theorem"


def test_the_pages_figures_are_those_of_the_product():
    """Of a single Gaussian with epsilon 8 at delta 1e-5: mu, and the attacker's best success."""
    mu, told = 1.7, re.search(r"has μ = ([\d.]+), and the second is (\d+) %", PAGE)
    low, high = 0.1, 5.0
    for _ in range(60):
        mu = (low + high) / 2
        low, high = (mu, high) if guarantee.gaussian_delta(8.0, mu) < 1e-5 else (low, mu)
    assert told is not None
    assert (float(told[1]), int(told[2])) == (round(mu, 1),
        round(100 * guarantee.gaussian_success(mu)))
    assert f"{100 * guarantee.success(8.0, 1e-5):.2f} %" in PAGE
    from aulait.privacy.mechanisms import find_mechanism

    literal = find_mechanism("gaussian-batch")
    sigma_over_sensitivity = 2.0 / literal.sensitivity(1.0, "replace")
    assert f"ε = {epsilon([literal.event(sigma_over_sensitivity, 1.0, 50)], 1e-5):.0f} at δ = 1e-5" in PAGE
