"""The report says what the run folder says: no more and no less."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import gaussian_epsilon, write_run

from aulait.reporting import (
    comparison,
    guarantee,
    numbers,
    privacy,
    report,
    sections,
    story,
    synthesis,
)
from aulait.reporting.folder import RunFiles, read_run


def plain(text: str) -> str:
    """A sentence with ordinary spaces."""
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "cafe"))


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None], **options: Any) -> RunFiles:
    return read_run(write_run(tmp_path / "run", change=change, **options))


# the three sentences


def test_sentences_carry_the_numbers(run: RunFiles) -> None:
    who, gain, cost = map(plain, story.lead_sentences(run))
    assert who == (
        "50 clients took part in 10 rounds of ffa: 10 trained on their own machines and 40 were stood for on the server "
        "by synthetic text that they chose by private votes."
    )
    assert gain == (
        "The loss on held-out text fell from 4.207 to 3.412 (perplexity 67.2 → 30.3) and the share of tokens guessed right "
        "rose from 28.1 % to 35.3 %; the client that fares worst ends at a loss of 4.032."
    )
    epsilon = gaussian_epsilon(math.sqrt(10) / 4.9)
    up, down = run.result.traffic.up_bytes / 1e6, run.result.traffic.down_bytes / 1e6
    assert cost == (
        f"It cost a client at most ε = {epsilon:.2f} at δ = 10⁻⁵; {up:.1f} MB went up to the server and {down:.0f} MB "
        "came down, in 8 min 32 s."
    )


def test_a_loss_that_rises_is_said_to_rise(tmp_path: Path) -> None:
    gain = story.lead_sentences(read_run(write_run(tmp_path / "run", loss=4.5)))[1]
    assert "rose from 4.207 to 4.500" in gain
    assert "fell from 28.1" in plain(gain)


def test_all_three_placements_and_singulars(tmp_path: Path) -> None:
    def mix(result: dict[str, Any]) -> None:
        result["tiers"] = [
            {"placement": place, "clients": n} for place, n in (("proxy", 7), ("split", 2), ("local", 1))
        ]

    who = story.lead_sentences(changed(tmp_path, mix))[0]
    assert "1 trained on its own machine, 2 ran the front" in who
    assert "and 7 were stood for" in who


def test_votes_are_called_private_only_when_they_are(tmp_path: Path) -> None:
    for name, options in (("off", {"off": True}), ("seeded", {"seeded": True}), ("exact", {"exact_votes": True})):
        who = story.lead_sentences(read_run(write_run(tmp_path / name, **options)))[0]
        assert who.endswith("chose by votes.")


# warnings


def test_an_honest_run_has_no_banner(run: RunFiles) -> None:
    assert story.warning_banners(run) == []


@pytest.mark.parametrize(
    ("options", "kind", "start"),
    [
        ({"off": True}, "alarm", "Privacy was off."),
        ({"seeded": True}, "alarm", "Not private: the noise was seeded."),
        ({"exact_votes": True}, "alarm", "The votes were exact."),
        ({"stopped_early": True}, "remark", "The privacy budget stopped the run early after 7 of 10 rounds"),
    ],
)
def test_banner(tmp_path: Path, options: dict[str, Any], kind: str, start: str) -> None:
    folder = write_run(tmp_path / "run", **options)
    found = story.warning_banners(read_run(folder))
    assert [(k, text.startswith(start)) for k, text in found] == [(kind, True)]
    assert f'<p class="banner {kind}" role="alert">{start[:20]}' in report.write_report(folder).read_text(encoding="utf-8")


def test_seeded_noise_in_one_release_alone_is_enough(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    ledger[3]["private"] = False
    (folder / "ledger.jsonl").write_text("\n".join(map(json.dumps, ledger)), encoding="utf-8")
    assert story.is_seeded(read_run(folder))


def test_exact_votes_with_seeded_updates_are_both_said(tmp_path: Path) -> None:
    found = story.warning_banners(read_run(write_run(tmp_path / "run", exact_votes=True, seeded=True)))
    starts = [text[:11] for _, text in found]
    assert starts == ["Not private", "The votes w"]


def test_sampling_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    assert privacy.privacy_section(read_run(folder)).body.count(">everyone<") == 15
    line = text.splitlines()[0].replace('{"kind": "all"}', '{"kind": "poisson", "rate": 0.125}')
    (folder / "ledger.jsonl").write_text(line, encoding="utf-8")
    assert ">poisson, rate 0.125<" in privacy.privacy_section(read_run(folder)).body


def test_exact_updates_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "ledger.jsonl").write_text('{"stage": "train", "sigma": 0.0}\n', encoding="utf-8")
    assert story.exact_releases(read_run(folder)) == (False, True)


# epsilon


def test_null_epsilon_is_infinite_and_missing_is_not_recorded(tmp_path: Path) -> None:
    assert numbers.epsilon(None) == "∞"
    assert numbers.epsilon(math.inf) == "∞"
    assert numbers.epsilon("7") == "not recorded"
    shown = {}
    for name, spent in (("null", {"max": None}), ("missing", {}), ("text", {"max": "7"})):
        run = changed(tmp_path / name, lambda result, spent=spent: result["privacy"].update(epsilon=spent))
        shown[name] = story.epsilon_text(run, "max")
    assert shown == {"null": "∞", "missing": "not recorded", "text": "not recorded"}
    assert numbers.epsilon(7.98123) == "7.98"
    assert numbers.epsilon(0.01234) == "0.0123"


def test_null_epsilon_on_the_page(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "run", exact_votes=True))
    body = privacy.privacy_section(found).body
    assert re.search(r"<td[^>]*>proxy</td><td[^>]*>[^<]*</td><td[^>]*>∞</td>", body)
    assert re.search(r"<td[^>]*>max</td><td[^>]*>[^<]*</td><td[^>]*>∞</td>", body)
    assert not re.search(r"<td[^>]*>split</td>", body)  # nobody has this role
    assert "no finite bound (ε = ∞)" in story.lead_sentences(found)[2]
    assert "assume that an attacker can tell with certainty" in body


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 2.5, 4.0, 8.0, 50.0, math.inf])
@pytest.mark.parametrize("alarm", [0.0, 0.01, 0.3, 1.0])
def test_detection_against_the_two_defining_inequalities(epsilon: float, alarm: float) -> None:
    """The largest t with t <= e^ε α + δ and 1 - α <= e^ε (1 - t) + δ, found on a grid."""
    delta = 1e-3
    factor = math.exp(min(epsilon, 500.0))
    steps = 20_000
    allowed = [
        k / steps
        for k in range(steps + 1)
        if k / steps <= factor * alarm + delta and 1 - alarm <= factor * (1 - k / steps) + delta
    ]
    slow = max(allowed) if epsilon < 300 else 1.0
    assert guarantee.detection(epsilon, delta, alarm) == pytest.approx(slow, abs=1 / steps)


def test_gaussian_delta_matches_the_fixture_and_detection_never_exceeds_the_general_bound() -> None:
    for mu in (0.2, 0.645, 1.6, 4.0):
        epsilon = gaussian_epsilon(mu)
        assert guarantee.gaussian_delta(epsilon, mu) == pytest.approx(1e-5, rel=1e-6)
        assert guarantee.gaussian_detection(mu) <= guarantee.detection(epsilon, 1e-5)


def test_the_attackers_sentence(tmp_path: Path) -> None:
    def one(result: dict[str, Any]) -> None:
        result["privacy"]["epsilon"]["max"] = 1.0

    # e · 0.01 + 1e-5 = 0.02729; the ledger's noise is too small for ε = 1, so it must not sharpen the sentence
    text = plain(" ".join(story.attack_sentences(changed(tmp_path, one))))
    assert "about 1 % of those that were not there, it recognises at most 2.7 % of those that were" in text


def test_a_large_epsilon_is_called_useless_and_the_ledger_sharpens_it(tmp_path: Path, run: RunFiles) -> None:
    def eight(result: dict[str, Any]) -> None:
        result["privacy"]["epsilon"]["max"] = 8.0

    text = plain(" ".join(story.attack_sentences(changed(tmp_path, eight))))
    assert "at most 99.97 %" in text  # 1 - e^-8 · 0.98999
    assert "practically always: taken alone, ε = 8.00 promises nothing" in text
    assert "sharper" not in text  # the ledger's releases explain 2.65, not 8: lines may be missing
    text = plain(" ".join(story.attack_sentences(run)))
    assert "at most 14.2 %" in text  # e^2.654 · 0.01 + 1e-5
    assert "recognises at most 4.6 %" in text  # Φ(-2.3263 + √10 / 4.9)


def test_one_hundred_percent_is_said_in_full(tmp_path: Path) -> None:
    def huge(result: dict[str, Any]) -> None:
        result["privacy"]["epsilon"]["max"] = 1000.0

    assert "at most 100 % of those" in plain(" ".join(story.attack_sentences(changed(tmp_path, huge))))


@pytest.mark.parametrize("broken", ['{"release": 16', '{"mechanism": "discrete", "noise_multiplier": 4.0}'])
def test_a_ledger_that_cannot_tell_sharpens_nothing(tmp_path: Path, run: RunFiles, broken: str) -> None:
    assert guarantee.gaussian_mu(run) == pytest.approx(math.sqrt(10) / 4.9)
    folder = write_run(tmp_path / "run")
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write(broken + "\n")
    assert guarantee.gaussian_mu(read_run(folder)) is None


def test_trust_names_who_sees_bare_contributions(run: RunFiles, tmp_path: Path) -> None:
    assert "before the noise is added" in privacy.privacy_section(run).body
    folder = write_run(tmp_path / "run")
    text = (folder / "config.toml").read_text(encoding="utf-8").replace('trust = "server"', 'trust = "secure"')
    (folder / "config.toml").write_text(text, encoding="utf-8")
    body = privacy.privacy_section(read_run(folder)).body
    assert "only the sum over the cohort" in body
    assert "before the noise is added" not in body


# sections


def test_votes_count_what_stands_out_of_the_noise(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    histogram = [100.0, 21.0, 19.0, -30.0] + [0.0] * 96
    line = {"stage": "synthesis", "round": 1, "noise_std": 10.0, "kept": 2, "histogram": histogram}
    (folder / "rounds.jsonl").write_text(json.dumps(line), encoding="utf-8")
    section = synthesis.votes_section(read_run(folder))
    assert "100 candidates, 2 kept. 2 lie more than 2 noise deviations above zero" in section.body
    assert "about 2.3 that far" in section.body  # 100 · (1 - Φ(2)) = 2.275
    kept, others = section.charts["votes-0"].bars
    assert (kept.at, kept.values) == ([1, 2], [100.0, 21.0])
    assert (others.at[0], others.values[0], others.values[-1]) == (3, 19.0, -30.0)
    (band,) = section.charts["votes-0"].bands
    assert (band.low, band.high) == (-10.0, 10.0)


def test_only_ranked_votes_mark_the_kept(tmp_path: Path) -> None:
    found = changed(tmp_path, lambda result: result["synthesis"].update(selection="sample"))
    assert synthesis.votes_section(found).charts["votes-0"].bars[0].values == []


def test_base_is_a_dashed_line_and_the_curve_has_the_evaluated_rounds(run: RunFiles) -> None:
    chart = sections.learning_section(run).charts["curve-loss"]
    assert chart.lines[0].x == [1, 2, 4, 6, 8, 10]
    assert chart.lines[0].y[-1] == pytest.approx(3.412)
    assert [(rule.at, rule.label) for rule in chart.rules] == [(4.207, "base model 4.207")]


def test_costs_add_up_by_stage(run: RunFiles) -> None:
    body = plain(sections.cost_section(run).body)
    assert re.search(r"1 · synthesis</td>.*?>5<.*?96.0 kB.*?36.9 MB.*?1 min 54 s", body)  # 5 · 40 · 120 · 4 and · 384
    assert re.search(r"2 · training</td>.*?>10<.*?88.5 MB.*?88.5 MB.*?5 min 31 s", body)  # 100 · 884,736
    assert re.search(r"down, each round</td>.*?184 kB.*?4 · J · 384", body)


# several runs


def test_arms_are_grouped_over_seeds_with_exact_mean_and_deviation(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"c{s}", seed=s, loss=loss) for s, loss in ((0, 3.0), (1, 3.1), (2, 3.5))]
    folders.append(write_run(tmp_path / "single", arm="alone", loss=3.3, off=True))
    cafe, alone = report.comparison_rows(folders)
    assert (cafe["arm"], cafe["n"], cafe["seeds"], cafe["unfinished"]) == ("cafe", 3, [0, 1, 2], 0)
    assert cafe["loss"] == pytest.approx(3.2)
    assert cafe["loss_std"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))  # n - 1 in the denominator
    assert cafe["worst_client_loss"] == pytest.approx(3.82)
    assert cafe["perplexity"] == pytest.approx((math.exp(3.0) + math.exp(3.1) + math.exp(3.5)) / 3)
    assert cafe["wall_s"] == pytest.approx(513.3)
    assert cafe["epsilon_max"] == pytest.approx(gaussian_epsilon(math.sqrt(10) / 4.9))
    assert cafe["private"] is True
    assert cafe["up_bytes"] == 5 * 40 * 120 * 4 + 100 * 884_736
    assert (alone["n"], alone["loss_std"], alone["epsilon_max"], alone["private"]) == (1, None, None, False)
    json.dumps([cafe, alone], allow_nan=False)
    text = plain(report.write_comparison(folders, tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "3.200 ± 0.265" in text
    assert "The lowest loss on held-out text is that of cafe" in text
    assert "No privacy guarantee in: alone." in text


def test_unfinished_runs_enter_no_mean(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", loss=3.0)
    half = write_run(tmp_path / "half", seed=1, change=lambda result: result.pop("eval"))
    (row,) = report.comparison_rows([done, half])
    assert (row["n"], row["unfinished"], row["seeds"], row["loss"]) == (1, 1, [0], 3.0)


def test_epsilon_of_an_arm_is_the_worst_of_its_runs(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good")
    bare = write_run(tmp_path / "bare", seed=1, exact_votes=True)
    seeded = write_run(tmp_path / "seeded", seed=2, arm="seeded", seeded=True)
    mixed, nominal = report.comparison_rows([good, bare, seeded])
    assert (mixed["epsilon_max"], mixed["private"]) == (None, False)
    assert nominal["epsilon_max"] is not None
    assert nominal["private"] is False
    assert "(void)" in comparison.comparison_sections([read_run(seeded)])[0].body
