"""The site file and its limits: read strictly, and nothing above a limit gets past, whoever asks and however."""

from __future__ import annotations

import json
import math
import os
import stat
from types import SimpleNamespace, UnionType
from typing import Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from aulait.core.errors import ConfigError, DataError
from aulait.core.seeds import Seeds
from aulait.data import client_data
from aulait.data.client_data import DataConfig
from aulait.data.unit_rule import UnitRule
from aulait.engines.deployment.pki.site_template import site_file_text
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site import load_session, policy, site_file, terms_bounds
from aulait.engines.deployment.site.policy import SitePolicy, refusals, spends
from aulait.evaluation.config import EvaluateConfig
from aulait.methods import METHODS
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.config import PrivacyConfig
from aulait.training.trainer import TrainConfig

SMALL = '[site]\nname = "ward-a"\nserver = "fl.example.org:9443"\n[data]\nsource = "notes.jsonl"\n'
PROMISE = {"epsilon": 8.0, "delta": 1e-5, "relation": "add-remove"}
NUMBERS = {"steps": "steps", "batch": "batch", "rank": "rank", "rounds": "rounds", "synthesis_rounds": "rounds", "records_per_client": "records"}


def write(folder, text):
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def terms(promise=None, **changed):
    """A stand-in for the brief of a modest private run; ``promise`` changes its table [privacy]."""
    plain = {
        "run": "0" * 32, "name": "cafe", "client": "ward-a", "placement": "local", "votes": False, "exact_votes": False, "rank": 8,
        "steps": 8, "batch": 4, "rounds": 10, "synthesis_rounds": 5, "records_per_client": 30, "embedder": "minilm", "ranks": None,
        "package": "x", "tier": "gpu", "seed": 1, "adapter": AdapterConfig(), "train": TrainConfig(), "evaluate": EvaluateConfig(),
        "holdout": 0.2, "choice": "auto", "share": 1.0, "max_tokens": 128, "candidates": 300, "neighbours": 1, "cut": 2, "fingerprint": "0" * 16,
        "model": ModelConfig(dtype="float32"), "algorithm": {"name": "ffa"}, "privacy": PrivacyConfig(**(PROMISE | (promise or {})))}
    return SimpleNamespace(**(plain | changed))


# --- the file


def test_the_template_reads_back_as_the_defaults(tmp_path):
    path = write(tmp_path, site_file_text("ward-a", "fl.example.org:9443"))
    templated, small = site_file.read(path), site_file.read(write(tmp_path, SMALL))
    assert templated == small
    assert templated.limits == SitePolicy()
    for key in SitePolicy.model_fields:
        assert f"\n{key} = " in site_file_text("a", "b:1"), key


def test_paths_are_those_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    write(tmp_path / "here", SMALL.replace("notes.jsonl", "../notes.jsonl") + '[keys]\nprivate = "~/key"\nauthority = "/etc/ca.pem"\n'
          '[models]\nbrew = "brew"\n"org/name" = "org/name"\nown = "./models/own"\n')
    site = site_file.read((tmp_path / "here" / "site.toml").relative_to(tmp_path))
    assert site.site.state == tmp_path / "here" / "state"
    assert site.data.source == str(tmp_path / "notes.jsonl")
    assert (site.keys.private, str(site.keys.authority)) == (home / "key", "/etc/ca.pem")
    assert site.keys.orders == tmp_path / "here" / "order-key.pub"
    assert site.models == {"brew": "brew", "org/name": "org/name", "own": str(tmp_path / "here" / "models" / "own")}
    assert len(site_file.absent(site)) == 5
    assert site_file.read(write(tmp_path, SMALL.replace("notes.jsonl", "docstrings"))).data.source == "docstrings"


@pytest.mark.parametrize(("text", "expected"), [
    (SMALL + "[limits]\nepsilom = 3.0\n", "unknown key 'limits.epsilom'; did you mean 'epsilon'?"),
    (SMALL + "[limit]\nepsilon = 3.0\n", "unknown key 'limit'; did you mean 'limits'?"),
    (SMALL + 'sorce = "x"\n', "unknown key 'data.sorce'; did you mean 'source'?"),
    (SMALL.replace("name", "nmae"), "'site.name' is missing"),
    (SMALL + 'prompt = "question"\n', "only one of data.prompt and data.response"),
    (SMALL + '[limits]\nmethods = ["fa"]\n', "algorithm 'fa' is unknown; did you mean 'ffa'?"),
    (SMALL + "[limits]\nepsilon = nan\n", "limits.epsilon = nan"),
    (SMALL + "[limits]\nepsilon = inf\n", "limits.epsilon = inf"),
    (SMALL + "[limits]\nepsilon = 0\n", "limits.epsilon = 0"),
    (SMALL + "[limits]\nepsilon = true\n", "limits.epsilon = True"),
    (SMALL + '[limits]\nprivacy = "no"\n', "limits.privacy = 'no'"),
    (SMALL + "[limits]\nprivacy = 0\n", "limits.privacy = 0"),
    (SMALL + "[limits]\nsteps = 1.0\n", "limits.steps = 1.0"),
    (SMALL + '[limits]\nsteps = "9"\n', "limits.steps = '9'"),
    (SMALL + "[limits]\ndelta = 1\n", "limits.delta = 1"),
    (SMALL + '[limits]\nroles = ["lokal"]\n', "limits.roles.0 = 'lokal'"),
    (SMALL.replace("ward-a", "../ward"), "site name '../ward'"),
    (SMALL.replace("ward-a", "server"), "kept for sites of the server"),
    (SMALL.replace("fl.example.org:9443", "https://fl.example.org"), "without https://"),
    (SMALL.replace("fl.example.org:9443", "fl.example.org:99999"), "HOST:PORT"),
    (SMALL.replace("notes.jsonl", ""), "data.source = ''"),
    (SMALL + '[keys]\nprivate = "a\\u0000b"\n', "keys.private"),
    ("a = \n", "is not TOML"),
])
def test_wrong_files_are_named(tmp_path, text, expected):
    with pytest.raises(ConfigError) as told:
        site_file.read(write(tmp_path, text))
    assert expected in str(told.value)
    assert "\x00" not in str(told.value)


def test_all_problems_at_once_and_a_missing_file(tmp_path):
    with pytest.raises(ConfigError) as told:
        site_file.read(write(tmp_path, SMALL + "[limits]\nsteps = 0\nrank = -1\nx = 1\n"))
    assert len(str(told.value).splitlines()) == 3
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            site_file.read(path)


def test_a_file_that_anybody_may_change_is_refused(tmp_path):
    path = write(tmp_path, SMALL)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        site_file.read(path)


def test_whole_numbers_will_do_for_real_ones(tmp_path):
    limits = site_file.read(write(tmp_path, SMALL + "[limits]\nepsilon = 3\nidle_s = 60\n")).limits
    assert (limits.epsilon, limits.idle_s) == (3.0, 60.0)


def test_the_state_folder_is_the_owners_alone(tmp_path):
    site = site_file.read(write(tmp_path, SMALL))
    before = os.umask(0)
    try:
        path = site_file.own_state(site)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert site_file.own_state(site) == path
    path.chmod(0o750)
    with pytest.raises(ConfigError, match=r"0750.*0700"):
        site_file.own_state(site)
    path.rmdir()
    (tmp_path / "real").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="no folder"):
        site_file.own_state(site)


# --- refusals


def test_a_modest_run_is_taken():
    assert refusals(SitePolicy(), terms()) == []
    assert refusals(SitePolicy(), terms(placement="proxy", votes=True)) == []
    assert refusals(SitePolicy(), terms(votes=True)) == []
    assert refusals(SitePolicy(privacy=False), terms({"off": True, "epsilon": None})) == []
    assert refusals(SitePolicy(roles=("split",), privacy=False), terms({"off": True, "epsilon": None}, placement="split")) == []


ABOVE = st.integers(min_value=1)
NO_NUMBER = st.one_of(st.none(), st.booleans(), st.text(max_size=5), st.floats(), st.integers(max_value=-1), st.lists(st.integers(), max_size=2))


@given(st.sampled_from(sorted(NUMBERS)), st.integers(1, 2**40), ABOVE)
def test_any_count_above_its_limit_is_refused(key, limit, more):
    limits = SitePolicy(**{NUMBERS[key]: limit})
    assert any(line.startswith(f"{key} is ") for line in refusals(limits, terms(**{key: limit + more})))


@given(st.sampled_from(sorted(NUMBERS)), st.integers(1, 2**40), st.integers(0, 2**40))
def test_no_count_within_its_limit_is_refused(key, limit, less):
    limits = SitePolicy(**{NUMBERS[key]: limit})
    assert not any(line.startswith(f"{key} is ") for line in refusals(limits, terms(**{key: max(1, limit - less)})))


@given(st.sampled_from(sorted(NUMBERS)), NO_NUMBER, st.sampled_from(["local", "proxy"]))
def test_what_is_no_count_is_refused(key, value, placement):
    lines = refusals(SitePolicy(), terms(**{key: value}, placement=placement, votes=True))
    assert any(line.startswith(f"{key} is ") for line in lines)


@given(st.floats(1e-3, 1e6), st.floats(min_value=0, exclude_min=True), st.booleans())
def test_any_epsilon_above_the_limit_is_refused(limit, more, votes):
    if limit + more > limit:
        assert refusals(SitePolicy(epsilon=limit), terms({"epsilon": limit + more}, votes=votes))


@given(st.floats(1e-12, 0.5), st.floats(0, 1))
def test_any_delta_above_the_limit_is_refused(limit, more):
    if limit + more > limit:
        assert refusals(SitePolicy(delta=limit), terms({"delta": limit + more, "delta_acknowledged": True}))


@given(st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, -5e-324]), st.floats(max_value=0)),
       st.sampled_from(["epsilon", "delta", "noise_multiplier"]), st.booleans())
def test_numbers_that_promise_nothing_are_refused(value, key, alone):
    changed = {key: value} | ({"epsilon": None} if key == "noise_multiplier" and alone else {})
    assert refusals(SitePolicy(), terms(changed))


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-3, 1e3), st.integers(0, 1000), st.integers(0, 1000), st.booleans(), st.sampled_from(["local", "proxy"]))
def test_a_noise_multiplier_is_worth_what_the_accountant_says(noise, rounds, synthesis_rounds, votes, placement):
    told = terms({"epsilon": None, "noise_multiplier": noise}, rounds=rounds, synthesis_rounds=synthesis_rounds, votes=votes,
                 placement=placement)
    releases = (rounds if placement == "local" else 0) + (synthesis_rounds if votes else 0)
    spent = epsilon([Event(noise)] * releases, 1e-5)
    lines = [line for line in refusals(SitePolicy(), told) if "role 'proxy' asked for without votes" not in line]
    if votes or placement != "proxy":
        assert bool(lines) == (not spent <= 10.0)
        assert all("amounts to epsilon" in line for line in lines)


@pytest.mark.parametrize(("changed", "expected"), [
    ({"promise": {"off": True, "epsilon": None}}, "this site demands privacy"),
    ({"promise": {"noise_seed": 0}}, "noise_seed"),
    ({"promise": {"relation": None}}, "relation"),
    ({"promise": {"delta": None}}, "delta"),
    ({"promise": {"epsilon": None}}, "neither epsilon nor noise_multiplier"),
    ({"promise": {"noise_multiplier": 5.0}}, "epsilon and noise_multiplier"),
    ({"promise": {"trust": "secure"}}, "secure"),
    ({"promise": {"trust": "secure", "relation": "replace"}}, "nothing of secure sums"),
    ({"promise": {"unit": "record"}}, "privacy.unit"),
    ({"promise": {"epsilon": None, "noise_multiplier": 1e-3}}, "amounts to epsilon"),
    ({"promise": {"epsilon": None, "noise_multiplier": 1e-300}}, "cannot be counted"),
    ({"votes": True, "exact_votes": True}, "votes of the run are exact"),
    ({"votes": True, "exact_votes": None}, "votes of the run are exact"),
    ({"votes": None}, "votes is nothing"),
    ({"votes": "exact"}, "votes is 'exact'"),
    ({"votes": 1}, "votes is 1"),
    ({"placement": "proxy"}, "without votes"),
    ({"placement": "split"}, "role 'split' asked for"),
    ({"placement": "server"}, "placement is 'server'"),
    ({"placement": ["local"]}, "placement is ['local']"),
    ({"placement": None}, "placement is nothing"),
    ({"privacy": None}, "says nothing about privacy"),
    ({"privacy": SimpleNamespace(off=False, epsilon=1.0)}, "says nothing about privacy"),
    ({"run": "../../etc"}, "32 hexadecimal digits"),
    ({"run": "0" * 31 + "\n"}, "32 hexadecimal digits"),
    ({"run": "0" * 32 + "\n"}, "32 hexadecimal digits"),
    ({"name": "a\x1b[2J"}, "printable"),
    ({"name": "a" * 201}, "printable"),
    ({"algorithm": None}, "algorithm is nothing"),
    ({"algorithm": {"name": "fa"}}, "did you mean 'ffa'"),
    ({"algorithm": {"name": "flora"}}, "method 'flora' is refused"),
    ({"algorithm": {"name": "ffa", "nonsense": 1}}, "settings of method 'ffa'"),
    ({"algorithm": {"name": "dplora"}}, "give every record its own protection"),
    ({"promise": {"unit": "record", "relation": "zero-out", "clip": 1.0}, "algorithm": {"name": "dplora", "noise": "none"}}, "is a control and not private"),
    ({"promise": {"unit": "record", "clip": 1.0}, "algorithm": {"name": "dplora"}}, "null record"),
    ({"promise": {"unit": "record", "relation": "zero-out", "clip": 1.0}, "algorithm": {"name": "hetlora"}}, "cannot be protected"),
    ({"ranks": {"q_proj": 10**6}}, "ranks is 1000000"),
    ({"ranks": {"q_proj": math.nan}}, "ranks is nan"),
    ({"adapter": SimpleNamespace(rank=10**6)}, "adapter.rank is 1000000"),
    ({"adapter": SimpleNamespace()}, "adapter.rank is nothing"),
    ({"steps": 10**5000}, "steps is something of type int"),
])
def test_attacks_are_refused_in_one_line_each(changed, expected):
    promise = changed.pop("promise", None)
    lines = refusals(SitePolicy(), terms(promise, **changed))
    changed["promise"] = promise
    assert any(expected in line for line in lines), lines
    assert all(line.isprintable() and len(line) < 500 for line in lines)


def test_limits_of_roles_methods_and_units():
    assert refusals(SitePolicy(roles=("proxy",)), terms())
    assert refusals(SitePolicy(roles=("local",)), terms(votes=True))
    assert refusals(SitePolicy(roles=()), terms())
    assert refusals(SitePolicy(methods=("fedit",)), terms())
    assert refusals(SitePolicy(methods=("fedit", "ffa")), terms()) == []
    assert "limits.units" in refusals(SitePolicy(units=("record",)), terms())[0]
    assert refusals(SitePolicy(roles=("split",), privacy=True), terms({"off": True, "epsilon": None}, placement="split"))
    assert refusals(SitePolicy(privacy=False), terms({"epsilon": 11.0}))  # a site that allows no privacy still refuses a weaker promise
    assert refusals(SitePolicy(privacy=False), terms({"noise_seed": 1})) == []


def test_a_search_for_the_servers_step_is_a_release_of_its_own_and_counts():
    plain = {"epsilon": None, "noise_multiplier": 1.0, "delta": 1e-5, "relation": "add-remove"}
    told = terms(plain, algorithm={"name": "ffa", "server": "search"}, rounds=10)
    assert spends(told, 1.0) == epsilon([Event(1.0)] * 20, 1e-5)
    assert spends(terms(plain, rounds=10), 1.0) == epsilon([Event(1.0)] * 10, 1e-5)
    told.placement = "split"  # it is never asked to search
    assert spends(told, 1.0) == epsilon([Event(1.0)] * 10, 1e-5)


def test_records_that_are_sampled_cost_less_but_never_on_the_coordinators_word():
    told = terms({"epsilon": None, "noise_multiplier": 1.0, "unit": "record", "relation": "zero-out", "clip": 1.0}, algorithm={"name": "dplora"}, rounds=10)
    whole = spends(told, 1.0)
    assert whole == epsilon([Event(1.0, 1.0, 80)], 1e-5)
    sampled = spends(told, 1.0, records=100)
    assert sampled == pytest.approx(epsilon([Event(1.0, 0.04, 80)], 1e-5))
    assert sampled < 10 < whole
    assert refusals(SitePolicy(), told)
    assert refusals(SitePolicy(), told, records=100) == []
    assert spends(told, 1.0, records=4) == whole
    literal = terms({"epsilon": None, "noise_multiplier": 1.0, "unit": "record", "relation": "zero-out", "clip": 1.0}, rounds=10,
                    algorithm={"name": "dplora", "mode": "literal"})
    assert spends(literal, 1.0, records=100) == whole


def test_counting_a_strangers_numbers_takes_neither_time_nor_memory():
    told = terms({"epsilon": None, "noise_multiplier": 0.3, "unit": "record", "relation": "zero-out", "clip": 1.0}, algorithm={"name": "dplora"}, rounds=1000,
                 steps=1000)
    assert refusals(SitePolicy(), told, records=10**6)  # a million sampled steps would take gigabytes to count


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3),
                     st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


@given(st.dictionaries(st.sampled_from([*vars(terms())]), anything, min_size=1))
def test_nothing_that_comes_raises(changed):
    for line in refusals(SitePolicy(), terms(**changed)):
        assert line.isprintable()
    assert refusals(SitePolicy(), SimpleNamespace())
    assert refusals(SitePolicy(), None)


def test_what_a_site_does_not_know(tmp_path):
    site = site_file.read(write(tmp_path, SMALL))
    assert policy.unknown_names(site, terms(votes=True)) == []
    assert policy.unknown_names(site, terms(embedder="")) == []
    for changed in ({"client": "ward-b"}, {"model": SimpleNamespace(name="/etc")}, {"model": None}, {"votes": True, "embedder": "../x"},
                    {"votes": True, "embedder": ["minilm"]}, {"model": SimpleNamespace(name=["brew"])}):
        assert len(policy.unknown_names(site, terms(**changed))) == 1, changed


# --- bounds


def fields(model, before=""):
    """Every quantity of a model: its path, unless it is closed by its type (few words, or yes and no)."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{before}{name}.")
        elif not closed(field.annotation):
            yield f"{before}{name}"


def closed(annotation):
    if get_origin(annotation) is Literal or annotation in (bool, type(None)):
        return True
    return bool(get_args(annotation)) and get_origin(annotation) in (Union, UnionType) and all(closed(own) for own in get_args(annotation))


def test_every_quantity_of_the_terms_has_a_bound():
    """A new field: give it a line in site/terms_bounds.py; one that is gone: take its line away."""
    assert sorted(fields(RunTerms)) == sorted(terms_bounds.BOUNDS)
    for path, bound in [*terms_bounds.BOUNDS.items(), *terms_bounds.ALGORITHM.items(), *terms_bounds.SETTINGS.items()]:
        if isinstance(bound, terms_bounds.Bound):
            most = getattr(SitePolicy(), bound.most) if isinstance(bound.most, str) else bound.most
            assert bound.least <= most < math.inf, path
        elif isinstance(bound, terms_bounds.Elsewhere) and bound.where.startswith("policy."):
            assert hasattr(policy, bound.where.removeprefix("policy.")), path


@pytest.mark.parametrize("path", [path for path, bound in terms_bounds.BOUNDS.items() if not isinstance(bound, terms_bounds.Elsewhere)])
def test_what_is_beyond_its_bound_is_refused(path):
    bound, told = terms_bounds.BOUNDS[path], terms()
    keys = path.split(".")
    wrong = [[1], {}, object(), "x" * 10_001, "a\n"]
    if isinstance(bound, terms_bounds.Bound):
        most = getattr(SitePolicy(), bound.most) if isinstance(bound.most, str) else bound.most
        wrong += [bound.least - 1, most * 2 + 1, math.nan, math.inf, -math.inf, True, "y"]
    for value in wrong:
        if (path, value) in (("ranks", {}), ("adapter.targets", [1])):
            continue
        place = told
        if len(keys) == 2:
            place = SimpleNamespace(**dict(getattr(told, keys[0])))
        setattr(place, keys[-1], value)
        changed = terms(**{keys[0]: place if len(keys) == 2 else value})
        assert any(line.startswith(f"{path} is ") for line in terms_bounds.terms_problems(SitePolicy(), changed)), (path, value)


def test_the_settings_of_every_method_are_within_the_bounds():
    for name in METHODS.names():
        config = METHODS.find(name).Config().model_dump(mode="json")
        assert terms_bounds.terms_problems(SitePolicy(), terms(algorithm={"name": name, **config})) == [], name
# --- what a site protects together


PATIENTS = {"unit": "record", "unit_field": "patient", "clip": 1.0}


def test_a_site_that_protects_patients_refuses_runs_that_protect_records(tmp_path):
    plain = site_file.read(write(tmp_path, SMALL))
    own = site_file.read(write(tmp_path, SMALL + 'unit_field = "mrn"\n'))
    assert (plain.data.unit_field, own.data.unit_field) == (None, "mrn")
    record = terms(PATIENTS | {"unit_field": None}, choice="auto")
    (line,) = policy.unit_refusals(own, record)
    assert "set privacy.unit_field" in line
    assert policy.unit_refusals(plain, record) == []
    for taken in (terms(PATIENTS, choice="auto"), terms(PATIENTS, choice="hash"), terms(choice="count"), terms({"off": True}, choice="count")):
        assert policy.unit_refusals(own, taken) == []
    for choice in ("count", None, 7):
        (line,) = policy.unit_refusals(plain, terms(PATIENTS, choice=choice))
        assert "set data.choice = 'auto'" in line
    assert len(policy.unit_refusals(own, terms(PATIENTS | {"unit_field": None}, choice="count"))) == 2


def test_the_sites_own_name_of_the_field_wins_and_the_records_are_those_of_a_simulation(tmp_path):
    def rows(field):
        return [{"client": c, "text": f"note {i} of {c}", field: float(i // 4)} for c in ("ward-a", "ward-b") for i in range(60)]

    def lines(name, found):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found))
        return str(tmp_path / name)

    limits = {"records_per_client": 60, "holdout": 0.3}
    told = PrivacyConfig(**(PROMISE | PATIENTS))
    run = SimpleNamespace(privacy=told, pairs=False, choice="auto", share=0.8, too_long="cut", **limits)
    together = client_data.load_clients(
        DataConfig(source=lines("all.jsonl", rows("patient")), public="", share=0.8, **limits), Seeds(5), UnitRule(True, "patient"))
    for field, named in (("patient", ""), ("mrn", 'unit_field = "mrn"\n'), ("mrn", "")):
        source = lines("notes.jsonl", [row for row in rows(field) if row["client"] == "ward-a"])
        file = site_file.read(write(tmp_path, SMALL.replace("notes.jsonl", source) + named))
        data, rule = load_session._data(run, file), load_session._rule(run, file)
        assert rule == UnitRule(True, "mrn" if named else "patient")
        if field == "mrn" and not named:
            with pytest.raises(DataError, match=r"privacy.unit_field: found no field 'patient'"):
                client_data.own(data, "ward-a", Seeds(5), rule)
        else:
            found = client_data.own(data, "ward-a", Seeds(5), rule)
            assert found == together.clients["ward-a"]
            assert {r.unit for r in found.train} | {r.unit for r in found.holdout} <= {str(i) for i in range(15)}
    # without privacy the field of the file is nobody's
    off = SimpleNamespace(**(vars(run) | {"privacy": PrivacyConfig(off=True)}))
    assert load_session._rule(off, file) == UnitRule()
