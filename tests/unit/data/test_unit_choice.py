"""One unit more changes the training records and the hold-out by its own records, and by no
others."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aulait.core.errors import ConfigError, DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.core.units import placeholders, unit_key, unit_place, units
from aulait.data import sources, unit_rule
from aulait.data.client_data import ClientData, Corpus, DataConfig, load_clients, own, problems
from aulait.data.unit_rule import UnitRule
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.mechanisms import find_mechanism
from aulait.runs.experiment_file import build_settings, dump_settings, renewed_settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare

Row = dict[str, Any]
BY_HASH = UnitRule(by_hash=True)
BY_PATIENT = UnitRule(by_hash=True, field="patient")
HOSPITALS = ("north", "south")


def jsonl(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(source: str, **more: Any) -> DataConfig:
    return DataConfig(**({"source": source, "client": "hospital", "public": "", "min_records": 1,
                          "records_per_client": 10_000, "label": "label"} | more))


def note(hospital: str, text: str, patient: object = "p", label: str = "x") -> Row:
    return {"hospital": hospital, "text": text, "question": f"why {text[-1:]}?", "patient": patient,
            "label": label}


# --- the property, over sizes, shares, hold-outs, fields, pairs, partitions, seeds and positions

LABELS = st.sampled_from("xyz")
TEXTS = st.sampled_from([f"note {i}" for i in range(12)])
NOTE = st.builds(note, st.sampled_from(HOSPITALS), TEXTS, st.integers(0, 9), LABELS)
SETTINGS = st.fixed_dictionaries({
    "holdout": st.sampled_from([0.0, 0.1, 0.5]), "share": st.sampled_from([1.0, 0.7, 0.3])})
PARTITIONS = st.sampled_from([{}, {"partition": "iid", "clients": 2},
    {"partition": "quantity", "clients": 2},
                              {"partition": "dirichlet", "clients": 2}])
PAIRS = st.sampled_from([{}, {"prompt": "question", "response": "text"}])


def without(records: Sequence[Record], strange: set[str]) -> tuple[Record, ...]:
    return tuple(record for record in records if unit_key(record) not in strange)


def check(before: Corpus, after: Corpus, strange: set[str]) -> None:
    """What is not of the new unit is where it was, in the same order; the new unit stands in one
    part alone."""
    for name, old in before.clients.items():
        new = after.clients[name]
        assert without(new.train, strange) == old.train
        assert without(new.holdout, strange) == old.holdout
        assert not {unit_key(r) for r in new.train} & {unit_key(r) for r in new.holdout}


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(rows=st.lists(NOTE, min_size=8, max_size=40),
       copies=st.lists(st.tuples(LABELS, st.integers(0, 1000)), min_size=1, max_size=5),
       more=SETTINGS, partition=PARTITIONS, pairs=PAIRS, seed=st.integers(0, 50),
       hospital=st.sampled_from(HOSPITALS))
def test_one_record_more_moves_no_other(tmp_path, rows, copies, more, partition, pairs, seed,
        hospital):
    strange = [note(hospital, "new 1", "q", label) for label, _ in copies]
    grown = list(rows)
    for row, (_, place) in zip(strange, copies, strict=True):
        grown.insert(place % (len(grown) + 1), row)
    found = []
    for name, lines in (("a", rows), ("b", grown)):
        try:
            source = jsonl(tmp_path / f"{name}.jsonl", lines)
            found.append(load_clients(config(source, **more, **partition, **pairs), Seeds(seed),
                                      BY_HASH))
        except DataError as error:  # who takes part is public: a client without a unit is none
            assume("found" not in str(error) and "fewer" not in str(error))
            raise
    assume(len(found[0].clients) == len(HOSPITALS))
    question = "why 1?" if pairs else None
    check(found[0], found[1], {unit_key(Record("new 1", question))})


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(rows=st.lists(NOTE, min_size=8, max_size=40), more=SETTINGS, partition=PARTITIONS,
       pairs=PAIRS, seed=st.integers(0, 50),
       members=st.lists(st.tuples(st.sampled_from(HOSPITALS), TEXTS, LABELS,
                                  st.sampled_from([17, 17.0, "17", " 17 ", "17.0"]),
                                  st.integers(0, 1000)), min_size=1, max_size=12))
def test_one_patient_more_moves_no_other(tmp_path, rows, more, partition, pairs, seed, members):
    """With any number of records, which may be those of others too, in any place of the file."""
    grown = list(rows)
    for hospital, text, label, patient, place in members:
        grown.insert(place % (len(grown) + 1), note(hospital, text, patient, label))
    found = []
    for name, lines in (("a", rows), ("b", grown)):
        try:
            source = jsonl(tmp_path / f"{name}.jsonl", lines)
            found.append(load_clients(config(source, **more, **partition, **pairs), Seeds(seed),
                                      BY_PATIENT))
        except DataError as error:
            assume("found" not in str(error) and "fewer" not in str(error))
            raise
    assume(len(found[0].clients) == len(HOSPITALS))
    check(found[0], found[1], {"unit|17"})
    if not partition:
        # all of the patient's distinct records together, in one part or in none
        for name in HOSPITALS:
            own_texts = {text for hospital, text, *_ in members if hospital == name}
            parts = [sorted(r.text for r in part if r.unit == "17")
                     for part in (found[1].clients[name].train, found[1].clients[name].holdout)]
            assert sorted(parts, key=len)[0] == []
            assert sorted(parts, key=len)[1] in ([], sorted(own_texts))


@settings(max_examples=30, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(NOTE, min_size=8, max_size=40), more=SETTINGS, pairs=PAIRS,
       rule=st.sampled_from([BY_HASH, BY_PATIENT]),
       shuffle=st.randoms(use_true_random=False))
def test_a_site_alone_chooses_as_everybodys_data_would(tmp_path, rows, more, pairs, rule, shuffle):
    turned = list(rows)
    shuffle.shuffle(turned)
    everything = config(jsonl(tmp_path / "a.jsonl", rows), **more, **pairs)
    together = None
    try:
        together = load_clients(everything, Seeds(3), rule)
    except DataError as error:
        assume("found" not in str(error))
    assert together is not None
    for name, client in together.clients.items():
        alone = config(jsonl(tmp_path / f"{name}.jsonl",
            [r for r in turned if r["hospital"] == name]), client="", **more, **pairs)
        assert own(alone, name, Seeds(3), rule) == client


# --- as the hostile review measured it: 251 records removed and 251 added by one


PRIVATE = {"unit": "record", "noise_multiplier": 2.0, "delta": 1e-5, "clip": 0.5,
           "relation": find_mechanism("dp-sgd", "record").relations[0]}


def experiment(source: str, privacy: Row, **more: Any) -> Row:
    return {"run": {"name": "caps"}, "model": {"name": "brew", "context": 24, "device": "cpu"},
            "adapter": {"rank": 2, "targets": "attention", "layers": 1},
            "data": {"source": source, "client": "hospital", "public": "",
                     "too_long": "cut"} | more,
            "algorithm": {"name": "dplora"},
            "federation": {"tier": [{"name": "all", "placement": "local"}]},
            "train": {"rounds": 1, "steps": 1, "batch": 2}, "privacy": privacy}


def trained(tree: Row, cache: SharedCache) -> dict[str, tuple[Record, ...]]:
    return {name: site.train for name, site in prepare(build_settings(tree),
        cache).federation.sites.items()}


@pytest.mark.parametrize(("size", "cap", "holdout"),
                         [(100, 100, 0.1), (300, 301, 0.0), (300, 400, 0.5)])
def test_a_record_added_at_a_hospital_changes_its_training_set_by_itself(tmp_path, size, cap,
        holdout):
    rows = [note(hospital, f"note {i:05d}") for hospital in HOSPITALS for i in range(size)]
    grown = [*rows, note("north", "note 00000x")]
    cache = SharedCache()
    one, two = (trained(experiment(jsonl(tmp_path / f"{name}.jsonl", lines), PRIVATE,
        records_per_client=cap, holdout=holdout), cache)
                for name, lines in (("a", rows), ("b", grown)))
    assert one["south"] == two["south"]
    assert set(one["north"]) <= set(two["north"])
    assert set(two["north"]) - set(one["north"]) <= {Record("note 00000x")}


@pytest.mark.parametrize(("size", "cap", "holdout"), [(100, 30, 0.1), (1000, 500, 0.1)])
def test_a_cap_that_binds_is_refused_in_one_line(tmp_path, size, cap, holdout):
    rows = [note(hospital, f"note {i:05d}") for hospital in HOSPITALS for i in range(size)]
    tree = experiment(jsonl(tmp_path / "a.jsonl", rows), PRIVATE, records_per_client=cap,
                      holdout=holdout)
    with pytest.raises(DataError,
            match=rf"expected at most data.records_per_client = {cap}; raise it to \d+, or "
                  r".*data.share = ") as refused:
        prepare(build_settings(tree), SharedCache())
    assert "\n" not in str(refused.value)
    share = float(str(refused.value).rpartition("= ")[2])
    tree["data"]["share"] = share  # what the line advises will do
    assert all(0 < len(own_records) <= cap for own_records in trained(tree, SharedCache()).values())


def test_a_cap_counts_units_and_not_their_records(tmp_path):
    """How many records a patient has must decide about nothing."""
    rows = [note(h, f"note {i} {k}", patient=i) for h in HOSPITALS for i in range(20)
            for k in range(1 + 30 * (i == 3))]
    corpus = load_clients(config(jsonl(tmp_path / "a.jsonl", rows), records_per_client=20,
        holdout=0.0), Seeds(0), BY_PATIENT)
    assert {name: (len(units(c.train)), len(c.train)) for name,
            c in corpus.clients.items()} == dict.fromkeys(HOSPITALS, (20, 50))
    with pytest.raises(DataError, match=r"20 units \(values of 'patient'\)"):
        load_clients(config(str(tmp_path / "a.jsonl"), records_per_client=19, holdout=0.0),
                     Seeds(0), BY_PATIENT)
    few = [note(h, f"note {k}", patient=1) for h in HOSPITALS for k in range(9)]
    with pytest.raises(DataError, match="found no client"):
        load_clients(config(jsonl(tmp_path / "b.jsonl", few), min_records=2, holdout=0.0), Seeds(0),
                     BY_PATIENT)


# --- how many, and by what


def test_parts_have_the_sizes_that_were_asked_for_up_to_chance(tmp_path):
    rows = [note(h, f"note {i}") for h in HOSPITALS for i in range(4000)]
    corpus = load_clients(config(jsonl(tmp_path / "a.jsonl", rows), holdout=0.2, share=0.5),
                          Seeds(0), BY_HASH)
    for client in corpus.clients.values():
        for found, expected in ((len(client.train), 1600), (len(client.holdout), 400)):
            assert abs(found - expected) < 5 * math.sqrt(4000 * expected / 4000
                * (1 - expected / 4000))


def test_places_are_uniform_and_independent_of_one_another():
    """Chi-squared over 20 x 20 cells of two purposes; 399 degrees of freedom, 5 standard
    deviations."""
    cells = [0] * 400
    for i in range(40_000):
        first, second = (int(20 * unit_place(purpose, f"record|{i}")) for purpose in (1, 2))
        cells[20 * first + second] += 1
    assert abs(sum((count - 100) ** 2 / 100 for count in cells) - 399) < 5 * math.sqrt(2 * 399)
    assert all(0 <= unit_place(2**63 - 1, text) < 1 for text in ("", "é", "x" * 100_000))


def test_names_and_seeds_choose_differently(tmp_path):
    rows = [note(h, f"note {i}") for h in HOSPITALS for i in range(60)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    chosen = [frozenset(r.text for r in load_clients(config(source, holdout=0.5), Seeds(seed),
        BY_HASH).clients[name].train)
              for seed in (0, 1) for name in HOSPITALS]
    assert len(set(chosen)) == 4


def test_a_smaller_share_is_part_of_a_larger_one(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [note(h, f"note {i}") for h in HOSPITALS
        for i in range(60)])
    half, most = (load_clients(config(source, share=share), Seeds(0), BY_HASH).clients["north"]
                  for share in (0.5, 0.9))
    assert set(half.train) < set(most.train)
    assert set(half.holdout) <= set(most.holdout)


@pytest.mark.parametrize("kind", ["iid", "quantity", "dirichlet"])
def test_made_up_clients_by_hash(tmp_path, kind):
    rows = [note("", f"note {i}", i // 2, "xyz"[i % 3]) for i in range(600)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    more = {"partition": kind, "clients": 3, "holdout": 0.0, "dirichlet_alpha": 0.3
            if kind == "dirichlet" else 5.0}
    clients = load_clients(config(source, **more), Seeds(3), BY_PATIENT).clients
    assert list(clients) == ["client-0", "client-1", "client-2"]
    assert sum(len(units(c.train))
               for c in clients.values()) == 300, "no patient is at two made-up clients"
    assert sum(len(c.train) for c in clients.values()) == 600
    sizes = [len(c.train) for c in clients.values()]
    if kind == "iid":
        assert min(sizes) > 150
    else:
        assert max(sizes) - min(sizes) > 40
    with pytest.raises(DataError,
            match=rf"data.partition = '{kind}' deals by hash and gives \d of 3 clients fewer than "
                  r"data.min_records = 250"):
        load_clients(config(source, **more, min_records=250), Seeds(3), BY_PATIENT)


def test_unseen_clients_and_the_roster_do_not_hang_on_a_records_number(tmp_path):
    rows = [note(f"h{k}", f"note {i}") for k in range(6) for i in range(8)]
    corpora = [load_clients(config(jsonl(tmp_path / f"{n}.jsonl",
        [*rows, *[note("h0", f"more {i}") for i in range(n)]]),
                                   clients=5, unseen=2, records_per_client=500), Seeds(2), BY_HASH)
                                   for n in (0, 400)]
    assert list(corpora[0].clients) == list(corpora[1].clients)
    assert list(corpora[0].unseen) == list(corpora[1].unseen)


def test_a_site_with_nothing_to_train_on_says_so(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [note("north", "note 1")])
    seed = next(s for s in range(200)
        if unit_place(Seeds(s).integer("unit-holdout", client="north"),
                      unit_key(Record("note 1"))) < 0.5)
    with pytest.raises(DataError,
                       match=r"has 1 records of 'north'.*leave none to train on; raise data.share"):
        own(config(source, holdout=0.5), "north", Seeds(seed), BY_HASH)


# --- the settings


@pytest.mark.parametrize(("choice", "privacy", "by_hash"), [
    ("auto", {"off": True}, False), ("hash", {"off": True}, True), ("count", {"off": True}, False),
    ("auto", PRIVATE, True), ("hash", PRIVATE, True), ("count", PRIVATE, True),
    ("auto", PRIVATE | {"unit": "client"}, False), ("hash", PRIVATE | {"unit": "client"}, True),
    ("auto", {"off": True, "unit": "record"}, False),
])
def test_what_is_protected_decides_the_rule(choice, privacy, by_hash):
    rule = UnitRule.of(DataConfig(choice=choice), PrivacyConfig(**privacy))
    assert rule == UnitRule(by_hash)


def test_settings_that_contradict_the_rule_are_one_line_each():
    record = PrivacyConfig(**PRIVATE)
    (line,) = unit_rule.problems(DataConfig(choice="count"), record)
    assert "set data.choice = 'auto'" in line
    (line,) = unit_rule.problems(DataConfig(share=0.5), PrivacyConfig(off=True))
    assert "data.share = 0.5" in line
    assert "data.choice = 'hash'" in line
    assert unit_rule.problems(DataConfig(share=0.5), record) == []
    assert unit_rule.problems(DataConfig(share=0.5, choice="hash"), PrivacyConfig(off=True)) == []
    for share in (0.0, -1.0, 1.5, math.nan):
        assert any("data.share" in text for text in problems(DataConfig(share=share)))
    with pytest.raises(ConfigError, match=r"data.choice = 'count' found"):
        build_settings(experiment("docstrings", PRIVATE, choice="count", client="client"))


def test_the_field_of_units_is_looked_for_before_anything_is_read(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [note("north", "note 1")])
    (line,) = problems(config(source), "patent")
    assert line.startswith("privacy.unit_field: found no field 'patent'")
    assert "'patient'" in line
    with pytest.raises(ConfigError, match=r"privacy.unit_field: found no field 'patent'"):
        build_settings(experiment(source, PRIVATE | {"unit_field": "patent"}))
    with pytest.raises(DataError, match=r"privacy.unit_field: found no field 'patent'"):
        own(config(source), "north", Seeds(0), UnitRule(True, "patent"))


def test_runs_of_one_process_do_not_share_data_chosen_otherwise(tmp_path):
    rows = [note(h, f"note {i}", patient=i // 3) for h in HOSPITALS for i in range(60)]
    source, cache = jsonl(tmp_path / "a.jsonl", rows), SharedCache()
    kinds = {"patient": PRIVATE | {"unit_field": "patient"}, "record": PRIVATE,
             "off": {"off": True}}
    trees = {name: experiment(source, privacy, records_per_client=60, holdout=0.5) for name,
             privacy in kinds.items()}
    shared = {name: trained(tree, cache)["north"] for name, tree in trees.items()}
    assert shared == {name: trained(tree, SharedCache())["north"] for name, tree in trees.items()}
    assert {r.unit is None for r in shared["patient"]} == {False}
    assert {r.unit for r in shared["record"]} == {None}
    assert len(shared["off"]) == 30, "without privacy the sizes are exact, as before"


def test_a_run_without_privacy_can_use_the_records_of_a_private_one(tmp_path):
    rows = [note(h, f"note {i}", patient=i // 3) for h in HOSPITALS for i in range(60)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    for more in ({}, {"unit_field": "patient"}):
        private = trained(experiment(source, PRIVATE | more, records_per_client=60), SharedCache())
        off = {"off": True, "unit": "record", "clip": 0.5} | more
        assert trained(experiment(source, off, records_per_client=60, choice="hash"),
                       SharedCache()) == private


def test_the_plan_counts_what_is_protected(tmp_path):
    rows = [note(h, f"note {i}", patient=i // (3 if h == "north" else 6)) for h in HOSPITALS
            for i in range(60)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    cases = {"patient": (PRIVATE | {"unit_field": "patient"},
                         {"total": 30, "least": 10, "most": 20}),
             "record": (PRIVATE, {"total": 120, "least": 60, "most": 60}),
             "off": ({"off": True}, None)}
    for name, (privacy, expected) in cases.items():
        tree = experiment(source, privacy, records_per_client=60, holdout=0.0)
        found = summarise_plan(prepare(build_settings(tree), SharedCache()))["privacy"]
        assert found["units"] == expected, name
        assert (found["unit"], found["unit_field"]) == (None if name == "off" else "record",
            "patient" if name == "patient" else None)


def test_a_run_begun_when_records_were_counted_is_not_gone_on_with_others(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [note(h, f"note {i}") for h in HOSPITALS
        for i in range(9)])
    for privacy, same in ((PRIVATE, False), ({"off": True}, True)):
        now = dump_settings(build_settings(experiment(source, privacy)))
        then = "".join(line for line in now.splitlines(keepends=True)
                       if not line.startswith(("choice = ", "share = ")))
        assert then.count("choice") == 0
        assert (renewed_settings(then) == now) is same
        assert renewed_settings(now) == now


# --- the value of a field


@pytest.mark.parametrize(("written", "value"), [
    ("anna", "anna"), ("  anna\t", "anna"), (17, "17"), (17.0, "17"), ("17", "17"), (" 17 ", "17"),
    ("17.0", "17"), ("17.", "17"),
    (Decimal("17"), "17"), (Decimal("17.00"), "17"), (-3, "-3"), (-3.0, "-3"), ("-3.0", "-3"),
    (0.0, "0"), (-0.0, "0"), ("-0", "0"),
    ("017", "017"), ("1e3", "1e3"), (1e22, "10000000000000000000000"), (2.5, "2.5"), ("2.5", "2.5"),
    (2**70, str(2**70)),
    (unicodedata.normalize("NFD", "Zoé"), "Zo\u00e9"), ("١٧", "١٧"), ("a b", "a b"),
])
def test_one_form_of_a_value(written, value):
    assert sources.unit_field({"patient": written}, "patient") == value
    assert sources.unit_field({"patient": value},
                              "patient") == value, "the form of a form is itself"


@pytest.mark.parametrize(("written", "fault"), [
    (None, "is empty"), ("", "is empty"), (" \t", "is empty"), (math.nan, "is empty"),
    (Decimal("NaN"), "is empty"),
    (True, "is bool"), ([17], "is list"), ({"id": 17}, "is dict"), (b"17", "is bytes"),
    ("\ud800", "half a character"),
])
def test_a_value_that_names_no_unit_makes_the_row_malformed(written, fault):
    with pytest.raises(ValueError, match=fault):
        sources.unit_field({"patient": written}, "patient")


def test_a_row_without_its_unit_is_named_and_left_out(tmp_path):
    rows = [note(h, f"note {i}", i) for h in HOSPITALS for i in range(3)]
    lost = note("north", "lost")
    del lost["patient"]
    rows += [note("north", "lost", None), lost, note("north", "lost", "  ")]
    corpus = load_clients(config(jsonl(tmp_path / "a.jsonl", rows), holdout=0.0), Seeds(0),
                          BY_PATIENT)
    assert corpus.malformed == ("a.jsonl line 7: field 'patient' is empty",
                                "a.jsonl line 8: no field 'patient'",
                                "a.jsonl line 9: field 'patient' is empty")
    assert "lost" not in {r.text for c in corpus.clients.values() for r in c.train}


def test_the_same_text_of_two_patients_is_kept_for_both(tmp_path):
    rows = [note(h, "same", patient) for h in HOSPITALS for patient in (1, 1.0, "1", 2)]
    corpus = load_clients(config(jsonl(tmp_path / "a.jsonl", rows), holdout=0.0, label=None),
                          Seeds(0), BY_PATIENT)
    expected = {Record("same", unit="1"), Record("same", unit="2")}
    assert corpus.clients == {h: ClientData(corpus.clients[h].train, ()) for h in HOSPITALS}
    assert all(set(c.train) == expected and len(c.train) == 2 for c in corpus.clients.values())


def test_every_placeholder_is_a_unit():
    assert len(units(placeholders(7))) == 7
    assert placeholders(0) == ()


def test_by_count_without_a_field_nothing_has_changed(tmp_path):
    """The choice of all other runs, written down before units were chosen by hash."""
    rows = [note(h, f"note {i}") for h in HOSPITALS for i in range(40)]
    random.Random(1).shuffle(rows)
    client = load_clients(config(jsonl(tmp_path / "a.jsonl", rows), records_per_client=5,
        holdout=0.2), Seeds(3)).clients["north"]
    assert [r.text for r in client.train] == [f"note {i}" for i in (28, 24, 32, 27, 11)]
    assert [r.text for r in client.holdout] == ["note 12"]
