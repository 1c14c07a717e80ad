"""Retrieval by votes: cells are divided as far as their votes carry, texts are drawn from what is
left above the noise, and every level is one release."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.test_private_evolution import ON, aggregator, ask_of, site

from aulait.core.cohort import Cohort
from aulait.core.seeds import Seeds
from aulait.methods.contract import Server
from aulait.privacy.ledger import Ledger
from aulait.synthesis import retrieval, topics
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.corpus_index import open_corpus
from aulait.synthesis.population import Cell, EvolutionState, Text
from aulait.synthesis.retrieval import RetrievalContext, drawn, parts_carried, seats, weights
from aulait.synthesis.voting import VoteRule

SUBJECTS = ("ships", "bread", "stars", "horses")
TEXTS = tuple(f"{SUBJECTS[i % 4]} {i} tell of {SUBJECTS[i % 4]}" for i in range(80))
CONFIG = SynthesisConfig(source="retrieve", retrieve={"levels": 2, "cells": 12}, texts=6)
SITES = {f"s{k}": site(f"s{k}", [f"stars {8 * k + 2} shine", f"stars {k} x", "stars 6 x"])
         for k in range(5)}


class SubjectEmbedder:
    """A direction for every subject, and a little of the text's number."""

    name, width = "subjects", 8

    def embed(self, texts):
        rows = torch.zeros(len(texts), 8)
        for row, text in zip(rows, texts, strict=True):
            number = int(text.split()[1])
            row[SUBJECTS.index(text.split()[0])] = 1.0
            row[4 + number % 4] = 0.2 + 0.001 * number
        return rows / rows.norm(dim=1, keepdim=True)


def context(cells=12, bound=100.0):
    corpus = open_corpus(TEXTS, SubjectEmbedder(), 128, cells, Path("unused"))
    return RetrievalContext(Seeds(4), corpus, VoteRule(1, bound))


def through(config, own, the_door, z=0.0, ask=None):
    """The state after all levels, and what the rounds' lines say."""
    state, lines = EvolutionState(0, ()), []
    for number in range(1, config.levels + 1):
        cohort = Cohort(round=number, local=tuple(SITES), proxies={}, planned=len(SITES),
                        noise_multiplier=z, role="proxy")
        server = Server(ask or ask_of(SITES, SubjectEmbedder()), the_door)
        state, info = retrieval.step(config, own, state, cohort, server)
        lines.append(info)
    return state, lines


def test_votes_find_the_subject_of_the_clients_and_then_its_parts():
    state, lines = through(CONFIG, context(), aggregator())
    told = {TEXTS[i].split()[0] for cell in state.cells for i in cell.members}
    assert told == {"stars"}
    assert lines[1]["candidates"] > lines[0]["kept"], "the cells that won were divided"
    found = drawn(context(), state, 6, "retrieved")
    assert {text.text.split()[0] for text in found} == {"stars"}
    assert {(text.round, text.parent, text.provenance) for text in found} == {(0, None, "public")}


def test_every_level_is_one_release_of_at_most_so_many_cells():
    ledger, heard = Ledger(None), []
    own = context(bound=2.0)
    _, lines = through(CONFIG, own, aggregator(ON, ledger), z=1.5,
                       ask=ask_of(SITES, SubjectEmbedder(), heard))
    assert [(line.stage, line.round, line.role, line.sensitivity, line.sigma)
            for line in ledger.lines] == [("synthesis", k, "proxy", 2.0, 3.0) for k in (1, 2)]
    for number, line in enumerate(lines, 1):
        cells = line["candidates"]
        assert cells <= CONFIG.ballot(number, len(TEXTS)) == 12
        assert len(line["histogram"]) == cells
        assert (line["up_bytes"], line["down_bytes"]) == (5 * 4 * cells, 5 * 4 * cells * 8)
        assert line["noise_std"] == 3.0
    assert all(request.tensors.keys() == {"embeddings"} for request in heard), "no text travels"


def test_without_votes_cells_weigh_their_texts_and_nobody_is_asked():
    asked = []
    state, lines = through(CONFIG.model_copy(update={"selection": "random"}), context(),
                           aggregator(), ask=lambda requests: asked.append(requests) or [])
    assert not asked
    assert sum(cell.weight for cell in state.cells) == len(TEXTS)
    assert lines[0]["noise_std"] == 0


def test_noise_that_drowns_all_votes_leaves_the_corpus_as_it_is():
    left = weights(torch.tensor([3.0, -2.0, 1.0]), 3.0, torch.tensor([5.0, 0.0, 2.0]))
    assert left.tolist() == [5.0, 0.0, 2.0]
    assert weights(torch.tensor([3.0, -2.0, 1.0]), 0.5, torch.ones(3)).tolist() == [2.5, 0, 0.5]


def test_a_cell_is_divided_only_as_far_as_its_votes_carry():
    assert [parts_carried(weight, 4.0) for weight in (0.5, 7.9, 8.0, 41.0)] == [1, 1, 2, 10]
    assert parts_carried(7.0, 0.0) is None
    cells = [Cell(tuple(range(50)), 40.0, 40.0, 3), Cell((1, 2), 39.0, 39.0, None)]
    assert seats(cells, 12) == [3, 2]


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40),
                                st.one_of(st.none(), st.integers(1, 6))), min_size=1, max_size=6),
       more=st.integers(0, 25))
def test_parts_are_given_one_by_one_to_the_most_votes_a_part(cells, more):
    made = [Cell(tuple(range(size)), 1.0, float(weight), parts) for size, weight, parts in cells]
    limits = [min(size, parts or size) for size, _, parts in cells]
    slow = [1] * len(made)
    for _ in range(more):
        open_ = [k for k in range(len(made)) if slow[k] < limits[k]]
        if open_:
            slow[max(open_, key=lambda k: (made[k].weight / (slow[k] + 1), -k))] += 1
    assert seats(made, len(made) + more) == slow


def test_texts_are_drawn_by_weight_and_repeated_only_when_all_are_drawn():
    own = context()
    cells = (Cell(tuple(range(40)), 30.0, 30.0), Cell(tuple(range(40, 80)), 10.0, 10.0))
    found = drawn(own, EvolutionState(2, (), cells=cells), 24, "retrieved")
    assert len({text.text for text in found}) == 24
    number = {text: i for i, text in enumerate(TEXTS)}
    many = [number[text.text] < 40 for seed in range(30) for text in drawn(
        RetrievalContext(Seeds(seed), own.corpus, own.rule), EvolutionState(2, (), cells=cells),
        24, "retrieved")]
    share = sum(many) / len(many)
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / len(many))
    few = (Cell((0, 1), 9.0, 9.0), Cell((2,), 1.0, 1.0))
    counts = Counter(text.text for text in drawn(own, EvolutionState(2, (), cells=few), 9, "x"))
    assert set(counts.values()) == {3}, "each of the three as often"


def test_words_tell_a_cell_from_the_others():
    members = [tuple(i for i in range(80) if i % 4 == k) for k in range(4)]
    found = topics.keywords(TEXTS, [Cell(own, 1.0, 1.0) for own in members])
    assert [words[0] for words in found] == list(SUBJECTS)
    assert all("tell" not in words[:1] for words in found), "a word of all cells tells nothing"


def test_topics_share_the_wanted_texts_by_their_votes():
    cells = (Cell((0, 4, 8), 30.0, 30.0), Cell((1,), 10.0, 0.0), Cell((2, 6), 10.0, 10.0))
    found = retrieval.topics_of(context(), EvolutionState(2, (), cells=cells), 400)
    assert sum(topic.wanted for topic in found) == 400
    assert [{text.text.split()[0] for text in topic.examples} for topic in found] == [
        {"ships"}, {"stars"}]
    assert abs(found[0].wanted - 300) < 5 * math.sqrt(400 * 0.75 * 0.25)


class Manner:
    """Writes in the manner of its examples and remembers them."""

    def __init__(self):
        self.asked = []

    def write(self, examples, count, seed):
        self.asked.append((list(examples), count))
        return [f"{examples[0]} again {i}" for i in range(count)]


class Described(Manner):
    """Writes what is described."""

    def write_described(self, descriptions, examples, seed):
        self.asked += zip(descriptions, examples, strict=True)
        return [None if i == 1 else f"{own.about} on {own.keywords[0]} {i}"
                for i, own in enumerate(descriptions)]

    def write_described_pairs(self, descriptions, examples, seed):
        raise AssertionError("no pairs here")


def test_texts_are_written_for_topics_in_words_where_the_generator_takes_them():
    topic = topics.Topic(("stars", "tell"), (Text("stars 1", 0), Text("stars 2", 0)), 3)
    plain = Manner()
    found = topics.write_topics(plain, [topic], "poems", 4, Seeds(1))
    assert plain.asked == [(["stars 1", "stars 2"], 3)]
    assert [(text.round, text.provenance) for text in found] == [(4, "written")] * 3
    told = Described()
    found = topics.write_topics(told, [topic], "poems", 4, Seeds(1))
    assert [text.text for text in found] == ["poems on stars 0", "poems on stars 2"]
    assert told.asked[0][0] == topics.Description("poems", ("stars", "tell"))
    assert told.asked[0][1] == ["stars 1", "stars 2", "stars 1"]
