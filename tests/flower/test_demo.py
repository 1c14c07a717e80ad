"""The demonstration in a small form: a server and five sites as processes over TLS give what one process gives."""

from __future__ import annotations

import json

import pytest

from aulait.engines.flower.demo import SITES, demonstrate


@pytest.mark.slow
def test_a_server_and_five_sites_give_the_adapter_and_the_report_of_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "d"  # short, for the names of local sockets
    told = []
    found = demonstrate(folder, told.append, small=True)
    assert found.same, (found, told)
    assert found.loads == dict.fromkeys(SITES, 1)  # once a site and run, not once a message
    assert found.loss < json.loads((folder / "deployed" / "result.json").read_text())["base_eval"]["loss"]
    page = (folder / "deployed" / "report.html").read_text()
    assert "engine flower" in page
    assert "Measured by every site on its own held-out text" in page
    assert not (folder / "deployed" / "serve" / "superlink.db").exists()
