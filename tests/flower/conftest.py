"""Tests that start real processes run one after the other, in one worker; the others beside them.

The demonstration, the processes themselves, refusals and plain Flower belong to every run of the tests. The long ones (faults,
sites that mean harm, a slow link, large adapters, the benchmark) run with AULAIT_DEPLOY=1: make test-deploy.
"""

from __future__ import annotations

import os

import pytest

ALWAYS = ("test_demo.py", "test_processes.py", "test_status.py", "test_refusals_processes.py", "test_plain_flower.py")
SKIP = pytest.mark.skip(reason="a long test of a deployment with real processes; run it by: make test-deploy")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and "tests/flower/" in str(item.path).replace("\\", "/"):
            item.add_marker(pytest.mark.xdist_group("processes"))
            if item.path.name not in ALWAYS and os.environ.get("AULAIT_DEPLOY") != "1":
                item.add_marker(SKIP)
