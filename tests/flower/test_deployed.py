"""The same run, here and at sites: messages as bytes, everything else as in a deployment, no network."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run
from tests.closeness import assert_learnt_alike, assert_same_adapters, products, relative_error
from tests.flower import wire
from tests.flower.local_transport import LocalTransport, deploy, site

from aulait.core.errors import AulaitError, ConfigError
from aulait.core.seeds import Seeds
from aulait.engines.deployment.coordinator.deployed_run import planned_by
from aulait.engines.deployment.protocol import messages, tensor_codec
from aulait.engines.deployment.protocol.envelope import packet_bytes
from aulait.engines.deployment.site.handler import SiteHandler
from aulait.engines.inline import InlineEngine
from aulait.federation import tiers
from aulait.resources import profiles
from aulait.runs import loop
from aulait.runs.prepared import SharedCache

CACHE = SharedCache()


def logger(lines):
    return lambda event, **fields: lines.append({"event": event, **fields})


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def tables(**more):
    tiers = [{"name": "gpu", "clients": ["c0", "c1"], "placement": "local"}, {"name": "laptop", "clients": ["c2", "c3"], "placement": "proxy"},
             {"name": "half", "clients": ["c4"], "placement": "split"}]
    return {"federation": {"tier": tiers}, "algorithm": {"name": "fedit"}, "compute": {"cut": 2}, "adapter": {"rank": 2, "targets": "attention", "layers": "all"}} | more


def five(folder):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["client"] in {"c0", "c1", "c2", "c3", "c4"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: [row for row in rows if row["client"] == name] for name in sorted({row["client"] for row in rows})}


def handlers(folder, own, lines=None, **limits):
    lines = [] if lines is None else lines
    return {name: SiteHandler(site(folder, name, rows, **limits), logger(lines)) for name, rows in own.items()}


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(first, second):
    assert_same_adapters(adapter(first), adapter(second))


def same_products(first, second):
    """Whatever the basis of directions that have no weight, as in FLoRA's sums."""
    assert_learnt_alike(products(adapter(first)), products(adapter(second)), 2e-3)


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "hetlora", "flora", "flexlora", "cores"])
def test_sites_give_the_adapter_and_scores_of_one_process(places, method):
    own = five(places)
    alone = {"rounds": 3, "steps": 2, "batch": 2, "rows_at_once": 2}  # every site in a pass of its own, as on its own machine
    plain = tiny_run.settings(places, **tables(algorithm={"name": method}, train=alone))
    here = loop.run(plain, places / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    away_settings = tiny_run.settings(places, **tables(algorithm={"name": method}, engine=engine, train=alone))
    post = LocalTransport(handlers(places, own))
    away = deploy(post, away_settings, places, places / "away")
    (same_products if method == "flora" else same)(places / "here", places / "away")
    for key in ("loss", "token_accuracy", "worst_client_loss", "mean_client_loss"):
        assert away["eval"][key] == pytest.approx(here["eval"][key], rel=1e-5), key
        assert away["base_eval"][key] == pytest.approx(here["base_eval"][key], rel=1e-5), key
    assert away["traffic"] == here["traffic"]
    assert all(handler.facts.loads == 1 for handler in post.handlers.values())
    kinds = {packet.kind for name, packet in post.asked if name == "c2"}
    assert kinds == {"hello", "terms", "vote", "evaluate"}
    assert not any(packet.kind == "train" for name, packet in post.asked if name in ("c2", "c3"))
    assert {packet.kind for name, packet in post.asked if name == "c4"} == {"hello", "terms", "split_begin", "split_step", "evaluate"}


def test_under_privacy_nothing_of_a_site_is_told_but_what_the_aggregator_releases(places):
    own = five(places)
    tiers = [{"name": "gpu", "clients": ["c0", "c1", "c4"], "placement": "local"}, {"name": "laptop", "clients": ["c2", "c3"], "placement": "proxy"}]
    privacy = {"noise_multiplier": 1.0, "delta": 1e-5, "relation": "add-remove"}
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    lines = []
    answers = []

    def seen(name, asked, answer):
        answers.append((name, asked.kind, wire.seen(answer)))
        return answer

    post = LocalTransport(handlers(places, own, lines, privacy=True, epsilon=100.0), seen)
    result = deploy(post, tiny_run.settings(places, **tables(federation={"tier": tiers}, algorithm={"name": "ffa"}, privacy=privacy, engine=engine)), places, places / "away")
    for _, kind, answer in answers:
        allowed = {"hello": {"facts"}, "terms": {"accepted"}, "train": {"update"}, "vote": {"update"}, "evaluate": {"scores"}}[kind]
        assert answer.kind in allowed
        if kind == "terms":
            assert answer.head["records"] is None
        if kind in ("train", "vote"):
            assert answer.head["info"] == {}
            assert answer.head["weight"] == 1.0
        if kind == "evaluate":
            assert (answer.head["sums"], answer.head["shared"], answer.head["task"]) == (None, None, None)
            assert not answer.body
    assert {line["event"] for line in lines} >= {"measured", "answered"}  # at the sites
    assert result["eval"]["measured_on"] == "public texts"
    assert "worst_client_loss" not in result["eval"]
    assert set(result["time"].values()) == {None}
    rounds = [json.loads(line) for line in (places / "away" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["wall_s"] is None and line.get("client_s") is None for line in rounds)
    assert result["privacy"]["private"] is True
    page = (places / "away" / "report.html").read_text()
    assert "public text" in page


def test_a_run_goes_on_where_the_coordinator_died_and_sites_stand_where_they_stood(places):
    """FedSA keeps factors at the sites; the coordinator dies after the sites answered and before its checkpoint."""
    own = five(places)
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    tiers = [{"name": "gpu", "placement": "local"}]
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, algorithm={"name": "fedsa"}, engine=engine))
    whole = deploy(LocalTransport(handlers(places, own)), settings, places, places / "whole")
    for name in own:
        shutil.rmtree(places / name)

    class Died(BaseException):
        pass

    def dies(name, asked, answer):
        if asked.kind == "train" and asked.head["round"] == 2 and name == "c3":
            raise Died
        return answer

    with pytest.raises(Died):
        deploy(LocalTransport(handlers(places, own), dies), settings, places, places / "torn")
    lines = []
    post = LocalTransport(handlers(places, own, lines))  # the sites were restarted too: all they know is on their disks
    again = deploy(post, settings, places, places / "torn", epoch=2, resume=True)
    same(places / "whole", places / "torn")
    assert again["eval"]["loss"] == pytest.approx(whole["eval"]["loss"], rel=1e-5)
    rounds = [json.loads(line)["round"] for line in (places / "torn" / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3]


def test_a_message_that_comes_twice_gets_the_same_bytes_and_an_older_one_is_refused(places):
    own = five(places)
    lines, first = [], {}

    def twice(name, asked, answer):
        if asked.kind in ("train", "evaluate"):
            again = packet_bytes(post.handlers[name].answer(asked.packet))
            assert again == answer
            old = first.setdefault(name, asked)
            if old is not asked:
                late = wire.Seen(post.handlers[name].answer(old.packet))
                assert late.kind == "refusal"
                assert late.head["why"] == "past"
        return answer

    post = LocalTransport(handlers(places, own, lines), twice)
    tiers = [{"name": "gpu", "placement": "local"}]
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, train={"rounds": 2, "steps": 1, "batch": 2}, engine=engine))
    deploy(post, settings, places, places / "away")
    assert any(line["event"] == "repeated" for line in lines)


def test_a_silent_site_is_left_out_and_nobody_at_all_stops_the_run_with_one_line(places):
    own = five(places)
    tiers = [{"name": "gpu", "placement": "local"}]
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0, "deadline_s": 0.3}
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, train={"rounds": 2, "steps": 1, "batch": 2}, engine=engine))

    def lost(name, asked, answer):
        return None if asked.kind == "train" and (name == "c1" or asked.head["round"] == 2) else answer

    with pytest.raises(AulaitError, match="none of 5 sites answered") as caught:
        deploy(LocalTransport(handlers(places, own), lost), settings, places, places / "away")
    assert "\n" not in str(caught.value)
    rounds = [json.loads(line) for line in (places / "away" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1]
    sites = json.loads((places / "away" / "serve" / "sites.json").read_text())
    assert sites["c1"]["state"] == "silent"
    patient = settings.model_copy(update={"engine": settings.engine.model_copy(update={"deadline_s": 1.0, "least_sites": 3})})
    done = deploy(LocalTransport(handlers(places, own)), patient, places, places / "away", epoch=2, resume=True)
    assert done["rounds"] == 2, "how long sites are waited for may change"


@pytest.mark.parametrize("name_of_it", ["c1", "c4"])
def test_a_site_that_missed_its_terms_is_told_and_asked_again(places, name_of_it):
    """One that trains, and one that is split."""
    own = five(places)
    tiers = [{"name": "half", "clients": ["c4"], "placement": "split"}, {"name": "gpu", "placement": "local"}]
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0, "deadline_s": 2.0}
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, train={"rounds": 2, "steps": 1, "batch": 2}, engine=engine))
    missed = set()

    class Late(LocalTransport):
        def send(self, address, sent, body, wait_s):
            name = sorted(self.handlers)[address]
            if wire.Seen(sent).kind == "terms" and name == name_of_it and name not in missed:
                missed.add(name)
                return None
            return super().send(address, sent, body, wait_s)

    deploy(Late(handlers(places, own)), settings, places, places / "late")
    for name in own:
        shutil.rmtree(places / name)
    deploy(LocalTransport(handlers(places, own)), settings, places, places / "prompt")
    assert missed == {name_of_it}
    same(places / "late", places / "prompt")


def test_a_run_does_not_begin_without_the_least_number_of_sites_and_says_who_would_not(places):
    own = five(places)
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0, "deadline_s": 0.3, "least_sites": 4}
    tiers = [{"name": "gpu", "placement": "local"}]
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, train={"rounds": 1, "steps": 1, "batch": 2}, engine=engine))

    def forgetful(name, asked, answer):
        return None if asked.kind == "terms" and name in ("c0", "c3") else answer

    def older(name, asked, answer):
        if asked.kind != "hello" or name not in ("c0", "c3"):
            return answer
        return packet_bytes(messages.refusal(asked.stamp, "messages of version 1 found, this site speaks 9").packet())

    with pytest.raises(AulaitError, match=r"3 sites took their terms within 0\.3 s, expected at least 4"):
        deploy(LocalTransport(handlers(places, own), forgetful), settings, places, places / "terms")
    assert not (places / "terms" / "rounds.jsonl").exists()
    with pytest.raises(AulaitError, match=r"missing: c0 \(messages of version 1 found, this site speaks 9\), c3"):
        deploy(LocalTransport(handlers(places, own), older), settings, places, places / "hello")


def test_a_split_round_that_was_cut_off_leaves_nothing_in_the_base(places):
    """FLoRA folds a merge into the base of a split site for as long as its round goes on; then the coordinator dies."""
    own = five(places)
    tiers = [{"name": "half", "clients": ["c3", "c4"], "placement": "split"}, {"name": "gpu", "placement": "local"}]
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0}
    settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, algorithm={"name": "flora"},
                                                  train={"rounds": 3, "steps": 2, "batch": 2}, engine=engine))

    class Dies(LocalTransport):
        def send(self, address, sent, body, wait_s):
            if wire.Seen(sent).kind == "split_step" and wire.Seen(sent).head["round"] == 2:
                raise KeyboardInterrupt
            return super().send(address, sent, body, wait_s)

    there = handlers(places, own)
    with pytest.raises(KeyboardInterrupt):
        deploy(Dies(there), settings, places, places / "away")
    deploy(LocalTransport(there), settings, places, places / "away", epoch=2, resume=True)
    for name in own:
        shutil.rmtree(places / name)
    deploy(LocalTransport(handlers(places, own)), settings, places, places / "calm")
    same_products(places / "away", places / "calm")


def test_tiers_that_measured_their_machines_leave_the_others_their_shares(tmp_path):
    tiny_run.write_data(tmp_path)
    told = {"name": "gpu", "placement": "local", "machine": "measured", "share": 0.5}, {"name": "old", "placement": "local", "machine": "laptop", "share": 0.5}
    settings = tiny_run.settings(tmp_path, federation={"tier": list(told)}, engine={"name": "flower"})
    profile = json.loads(profiles.dump_profile(profiles.profile("laptop")))
    roll = {f"c{k}": {"profile": profile} for k in range(8)}
    before = tiers.members(settings.federation.tier, sorted(roll), Seeds(settings.run.seed))
    planned = planned_by(settings, roll, tmp_path)
    after = tiers.members(planned.federation.tier, sorted(roll), Seeds(settings.run.seed))
    assert sorted(name for tier, names in after.items() if tier.startswith("gpu:") for name in names) == sorted(before["gpu"])
    assert sorted(after["old"]) == sorted(before["old"])
    assert all(len(names) == 1 for tier, names in after.items() if tier.startswith("gpu:"))
    with pytest.raises(ConfigError, match="told no profile"):
        planned_by(settings, roll | {before["gpu"][0]: {}}, tmp_path)


@pytest.mark.parametrize(("narrow", "slack"), [("float16", 0.05), ("int8", 0.15)])
def test_narrower_adapters_arrive_within_their_error_and_fewer_bytes(places, narrow, slack):
    own = five(places)
    tiers = [{"name": "gpu", "placement": "local"}]
    sizes = {}
    for form in ("float32", narrow):
        engine = {"name": "flower", "threads": 1, "wait_s": 1.0, "wire": form}
        settings = tiny_run.settings(places, **tables(federation={"tier": tiers}, train={"rounds": 2, "steps": 1, "batch": 2}, engine=engine))
        post = LocalTransport(handlers(places, own))
        deploy(post, settings, places, places / form)
        sizes[form] = sum(tensor_codec.data_bytes(asked.body) for _, asked in post.asked if asked.kind == "train")
        for name in own:
            shutil.rmtree(places / name)
    assert sizes[narrow] < 0.55 * sizes["float32"]
    one, two = products(adapter(places / "float32")), products(adapter(places / narrow))
    assert 0 < relative_error(two, one) < slack


def test_a_site_with_another_base_says_so_before_any_work(places):
    own = five(places)
    post = LocalTransport(handlers(places, own))
    for handler in post.handlers.values():
        handler._cache.base = changed(handler._cache.base)
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0}
    with pytest.raises(AulaitError, match="site 'c0': failed"):
        deploy(post, tiny_run.settings(places, **tables(engine=engine)), places, places / "away")
    assert not (places / "away" / "rounds.jsonl").exists()


def changed(load):
    def base(config):
        found = load(config)
        with torch.no_grad():
            next(iter(found.model.parameters())).view(-1)[0] += 1.0
        return found

    return base


def test_sites_with_conversations_do_what_one_process_does(places):
    """Two exchanges a record, read by brew plainly; proxies breed from public conversations."""
    rows = [json.loads(line) for line in (places / "data.jsonl").read_text().splitlines()]
    talks = [{"client": row["client"], "messages": [
        {"role": "user", "content": row["text"][:9]}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and?"}, {"role": "assistant", "content": row["text"]}]} for row in rows]
    (places / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    (places / "public.jsonl").write_text("".join(json.dumps({"conversations": [
        {"from": "human", "value": f"read {n} of it"}, {"from": "gpt", "value": f"the line {n} is a name"}]}) + "\n" for n in range(12)))
    own = five(places)
    tiers = [{"name": "gpu", "clients": ["c0", "c1", "c4"], "placement": "local"}, {"name": "laptop", "clients": ["c2", "c3"], "placement": "proxy"}]
    data = {"public": str(places / "public.jsonl"), "format": "chat"}
    alone = {"rounds": 2, "steps": 2, "batch": 2, "rows_at_once": 2}
    given = tables(federation={"tier": tiers}, train=alone, data=data, model={"context": 40})
    here = loop.run(tiny_run.settings(places, **given), places / "here", InlineEngine(), cache=tiny_run.fresh(CACHE))
    engine = {"name": "flower", "threads": 1, "wait_s": 5.0}
    post = LocalTransport(handlers(places, own))
    away = deploy(post, tiny_run.settings(places, **given, engine=engine), places, places / "away")
    same(places / "here", places / "away")
    assert away["eval"]["loss"] == pytest.approx(here["eval"]["loss"], rel=1e-5)
    assert here["eval"]["loss"] != here["base_eval"]["loss"]


def test_a_site_whose_rows_are_of_another_kind_refuses(places):
    own = five(places)
    engine = {"name": "flower", "threads": 1, "wait_s": 1.0}
    lines = []
    post = LocalTransport(handlers(places, own, lines))
    data = {"format": "chat", "public_plain": True}
    with pytest.raises(AulaitError):
        deploy(post, tiny_run.settings(places, **tables(data=data, engine=engine)), places, places / "away")
    assert any("the run learns answers to prompts and [data] of the site file has plain texts" in json.dumps(line) for line in lines)
