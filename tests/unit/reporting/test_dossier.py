"""The dossier: its figures are those of the ledger, its risks follow from the settings, its page
stands alone."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from datetime import date
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from tests.fixture_run import write_run
from tests.unit.reporting.test_promise import record_run

from aulait.reporting import dossier, dossier_risks
from aulait.reporting.finished_run import finished_run

NORMAL = NormalDist()
DAY = date(2026, 11, 30)


def page_of(folder: Path) -> str:
    return dossier.write_dossier(finished_run(folder), folder / "dossier.html",
        DAY).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader sees, on one line."""
    text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page,
        flags=re.S)))
    return re.sub(r"\s+", " ", text)


def settings(folder: Path, text: str) -> None:
    with (folder / "config.toml").open("a", encoding="utf-8") as file:
        file.write(text)


def risk(folder: Path, name: str) -> str | None:
    """What the page says of one risk."""
    found = {first: here for first, here, _ in dossier_risks.risks(finished_run(folder).run,
        finished_run(folder).personal)}
    return next((text.replace("\u00a0", " ") for key, text in found.items() if name in key), None)


def test_the_figures_are_those_of_the_ledger(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = dossier.figures(finished_run(folder))
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert found["from"] == "ledger"
    assert (found["unit"], found["delta"], found["relation"]) == ("client", 1e-5, "add-remove")
    for role, clients in {"proxy": 40, "local": 10}.items():
        own = [line for line in lines if line["role"] == role]
        mu = math.sqrt(sum(line["noise_multiplier"] ** -2 for line in own))
        told = found["roles"][role]
        assert (told["clients"], told["releases"], told["steps"]) == (clients, len(own), len(own))
        assert told["epsilon"] == own[-1]["epsilon"][role]
        assert told["best_success"] == pytest.approx(NORMAL.cdf(mu / 2))
    text = words_of(page_of(folder))
    assert f"{100 * NORMAL.cdf(math.sqrt(10) / 4.9 / 2):.1f} %" in text
    assert "After the run, from its ledger" in text
    assert "1–5 synthesis 1–5 proxy" in text
    assert "6–15 train 1–10 local" in text


def test_the_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run",
                       change=lambda result: result.update(base_fingerprint="0123456789abcdef"))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"factors")
    told = dict(finished_run(folder).hashes)
    last = (folder / "ledger.jsonl").read_bytes().splitlines()[-1]
    assert told["config.toml (SHA-256)"] == hashlib.sha256(
        (folder / "config.toml").read_bytes()).hexdigest()
    assert told["head of the ledger (SHA-256)"] == hashlib.sha256(last).hexdigest()
    assert told["adapter (SHA-256)"] == hashlib.sha256(b"factors").hexdigest()
    assert told["base model (fingerprint)"] == "0123456789abcdef"
    assert all(value in page_of(folder) for value in told.values())


def test_bytes_are_those_of_the_rounds(tmp_path: Path) -> None:
    votes, updates = finished_run(write_run(tmp_path / "run")).sent
    assert (votes.clients, votes.up_round, votes.up_all) == (40, 480, 5 * 40 * 480)
    assert (updates.clients, updates.up_round, updates.up_all) == (10, 884_736, 10 * 10 * 884_736)


def test_a_missing_purpose_is_said_with_how_to_add_it_and_a_given_one_is_shown(
    tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert 'purpose = "what the model is for' in words_of(page_of(folder))
    text = (folder / "config.toml").read_text().replace('name = "cafe"',
        'name = "cafe"\npurpose = "Drafts <b> letters"')
    (folder / "config.toml").write_text(text)
    page = page_of(folder)
    assert "Drafts &lt;b&gt; letters" in page
    assert "No purpose is stated" not in page


@pytest.mark.parametrize(("options", "said"), [
    ({"seeded": True}, "drawn from a seed"), ({"off": True}, "privacy is off"),
    ({"exact_votes": True}, "votes are released without noise")])
def test_a_run_without_a_guarantee_says_so_in_red_and_promises_no_success(tmp_path: Path,
        options: dict[str, Any], said: str) -> None:
    folder = write_run(tmp_path / "run", **options)
    page = page_of(folder)
    assert re.search(rf'<p class="banner" role="alert">Not private: [^<]*{said}', page)
    assert all(told["best_success"] == 1.0
               for told in dossier.figures(finished_run(folder))["roles"].values())
    assert "assume that an attacker can tell with certainty" in page
    assert "best guess is right in up to" not in page


def test_the_promise_of_a_client_level_run_has_no_alarm(tmp_path: Path) -> None:
    assert 'class="banner"' not in page_of(write_run(tmp_path / "run"))


def test_risks_follow_from_the_unit(tmp_path: Path) -> None:
    client = write_run(tmp_path / "client")
    assert risk(client, "records at a site") is None
    mu = math.sqrt(10) / 4.9
    # a group of two
    assert f"up to {100 * NORMAL.cdf(mu):.1f} %" in (risk(client, "two clients") or "")
    record_run(tmp_path / "record")
    assert f"up to {100 * NORMAL.cdf(5 * mu / 2):.1f} %" in (risk(tmp_path / "record",
        "records at a site") or "")
    assert f"up to {100 * NORMAL.cdf(math.sqrt(2) * mu / 2):.1f} %" in (risk(tmp_path / "record",
        "two sites") or "")
    assert "numbers of records are public" in (risk(tmp_path / "record", "takes part") or "")
    record_run(tmp_path / "field", field="patient")
    assert risk(tmp_path / "field", "records at a site") is None
    assert risk(tmp_path / "field", "two values of “patient”") is not None


def test_risks_follow_from_the_settings(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert risk(folder, "held-out scores") is not None
    for name in ("personal", "closed set", "generator", "δ is large", "secret sampling", "budget"):
        assert risk(folder, name) is None, name
    (folder / "personal").mkdir()
    settings(folder, '[evaluate]\ntask = "rank"\n')
    assert risk(folder, "personal") is not None
    assert risk(folder, "closed set") is not None
    record_run(tmp_path / "record")
    (tmp_path / "record" / "personal").mkdir()
    assert risk(tmp_path / "record", "personal") is None  # they are made of noised steps
    deployed = write_run(tmp_path / "deployed",
        change=lambda result: (result.update(engine="flower"),
                               result["eval"].update(measured_on="public text")))
    assert risk(deployed, "held-out scores") is None
    assert "order key" in page_of(deployed)
    assert "order key" not in page_of(folder)


def test_of_a_generator_service_the_host_alone_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text = (folder / "config.toml").read_text().replace("[synthesis]",
        '[synthesis]\ngenerator = "https://me:secret@models.example.org:8443/v1"')
    (folder / "config.toml").write_text(text)
    page = page_of(folder)
    assert "models.example.org reads candidate texts" in page
    assert "the generator service at models.example.org" in page
    assert "secret@" not in page
    assert "8443" not in page


def test_the_page_needs_no_script_and_asks_for_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert "default-src 'none'" in page
    assert "@page { size: A4" in page
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 620px" in page


def test_a_text_of_the_run_cannot_become_markup(tmp_path: Path) -> None:
    nasty = '<img src=x onerror=alert(1)>'

    def change(result: dict[str, Any]) -> None:
        result.update(name=nasty, algorithm=nasty, base_fingerprint=nasty)
        result["tiers"][0].update(name=nasty)

    page = page_of(write_run(tmp_path / "run", change=change))
    assert "<img" not in page
    assert "&lt;img" in page
