"""Tests that start real processes run one after the other, in one worker; the others beside them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and "tests/flower/" in str(item.path).replace("\\", "/"):
            item.add_marker(pytest.mark.xdist_group("processes"))
