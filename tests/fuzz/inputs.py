"""Every outer input: what is accepted of it, how it is changed, and who reads it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import torch
from safetensors.torch import save
from tests import tiny_gguf, tiny_run
from tests.flower import attacker
from tests.flower.attacker import Attacker
from tests.fuzz import mutation
from tests.fuzz.mutation import Mutator

from aulait.cli.account import recounted
from aulait.core.errors import AulaitError
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate
from aulait.data.client_data import load_clients
from aulait.data.config import DataConfig
from aulait.data.formats import conversation
from aulait.engines.deployment.coordinator.receipt_book import ReceiptBook
from aulait.engines.deployment.pki import certificates, keys
from aulait.engines.deployment.pki.site_template import site_file_text
from aulait.engines.deployment.protocol import messages, receipts, run_terms, signing
from aulait.engines.deployment.protocol.envelope import Packet, packet_bytes, packet_from
from aulait.engines.deployment.protocol.messages import Message, Stamp
from aulait.engines.deployment.site import policy, site_file
from aulait.engines.deployment.site.kept_state import KeptState, read_kept_state
from aulait.engines.deployment.site.lifetime_account import Charge, LifetimeAccount, account_path
from aulait.engines.deployment.site.old_accounts import take_over
from aulait.models.gguf_file import converted
from aulait.models.read_back import load_adapter
from aulait.models.record_form import RecordForm
from aulait.privacy.ledger import Ledger
from aulait.privacy.ledger_line import LedgerLine
from aulait.reporting.folder import read_run
from aulait.reporting.report import write_report
from aulait.resources.profiles import PRESETS, dump_profile, load_profile
from aulait.runfolder.run_folder import RunFolder
from aulait.runs.experiment_file import dump_settings, read_settings
from aulait.runs.progress import Progress
from aulait.synthesis.corpus_index import CorpusIndex
from aulait.synthesis.corpus_index import load as load_clusters
from aulait.synthesis.corpus_index import save as save_clusters

RUN = "b" * 32
LIMIT = 2**26


class Defect(Exception):  # noqa: N818
    """A reader caught what it should have refused."""


@dataclass(frozen=True)
class Input:
    """One kind of input.

    Attributes:
        seeds: that are accepted as they are.
        read: raises an AulaitError for what is not accepted.
        mutate: changes one.
        weight: how often it is tried beside the others.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], None]
    mutate: Mutator
    weight: float = 1.0


@cache
def folder() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix="aulait-fuzz-"))


def placed(name: str, raw: bytes) -> Path:
    """A file with this content, its owner's alone."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    path.chmod(0o600)
    return path


# --- messages


class Site:
    """A site that answers, and begins anew after a while."""

    def __init__(self) -> None:
        self.enemy: Attacker | None = None
        self.left = 0

    def ready(self) -> Attacker:
        """It has accepted terms."""
        if self.enemy is None or not self.left:
            self.left = 300
            self.enemy = Attacker(
                Path(tempfile.mkdtemp(dir=folder())), keyed=True, steps=4, batch=4, rounds=50
            )
            assert self.enemy.tell().kind == "accepted"
        self.left -= 1
        return self.enemy


SITE = Site()


def requests() -> list[bytes]:
    enemy = SITE.ready()
    found = [
        enemy.hello(),
        enemy.request(),
        enemy.evaluation(),
        enemy.evaluation(what="adapter", alpha=2.0, rank=1),
        attacker.made(
            {"kind": "terms", **enemy.stamp().fields, "client": "ward", "told": attacker.told()}
        ),
    ]
    return [packet_bytes(packet) for packet in found]


def read_request(raw: bytes) -> None:
    """As the worker of a site: any packet, signed by a coordinator without scruples and with a
    new number."""
    enemy, packet = SITE.ready(), packet_from(raw, LIMIT)
    try:
        head = json.loads(packet.head)
    except (ValueError, RecursionError):
        head = None
    if isinstance(head, dict) and "number" in head:
        packet = Packet(
            json.dumps(
                head
                | {"number": enemy.stamp().number}
                | ({"terms": enemy.terms} if "terms" in head else {})
            ).encode(),
            packet.body,
        )
    answer = enemy.handler.answer(enemy.signed(packet))
    told = messages.read_answer(answer).head
    if isinstance(told, messages.RefusalAnswer):
        if "defect" in told.reason:
            SITE.left = 0
            raise Defect(enemy.lines[-1]["reason"])
        raise AulaitError(told.reason)


@cache
def ward_keys() -> tuple[Path, str]:
    keys.site(folder() / "ward-key", "ward")
    return folder() / "ward-key", keys.public_line(folder() / "ward-key" / "site-key.pub")


def answers() -> list[bytes]:
    stamp, own = Stamp(RUN, 1, 1), receipts.identity("ward", ward_keys()[0] / "site-key")
    receipt = own.signed("a" * 32, 3, "c" * 64)
    update = ClientUpdate(
        "ward", {"blocks.0.A": torch.randn(2, 3), "n": torch.arange(3)}, 3.0, {"loss": 2.5}
    )
    coded = messages.update_message(
        ClientUpdate("ward", {"x.B": torch.randn(4, 2)}, 1.0), stamp, "int8"
    )
    heads = [
        messages.FactsAnswer(
            **stamp.fields,
            client="ward",
            receipt=receipt,
            version=run_terms.VERSION,
            package="x",
            roles=("local",),
            methods=("ffa",),
            privacy=True,
            models=("brew",),
            embedders=("words",),
            profile=json.loads(dump_profile(PRESETS["laptop"])),
        ),
        messages.AcceptedAnswer(**stamp.fields, client="ward", records=3),
        messages.ScoresAnswer(
            **stamp.fields, client="ward", sums=(1.0, 2.0, 3.0), task={"rouge": 0.5}
        ),
        messages.RefusalAnswer(**stamp.fields, reason="no"),
    ]
    return [packet_bytes(Message(head).packet()) for head in heads] + [
        packet_bytes(messages.update_message(update, stamp).packet()),
        packet_bytes(coded.packet()),
    ]


def read_answer(raw: bytes) -> None:
    """As the coordinator."""
    packet = packet_from(raw, LIMIT)
    messages.stamp_of(packet)
    told = messages.read_answer(packet)
    if isinstance(told.head, messages.UpdateAnswer):
        messages.client_update(told)
    if isinstance(told.head, messages.FactsAnswer) and told.head.profile is not None:
        load_profile(placed("told.json", json.dumps(told.head.profile).encode()))
    if isinstance(told.head, messages.AnswerHead):
        placed("serve/log.jsonl", b"")
        placed("book/nothing", b"")
        ReceiptBook(folder() / "book", folder() / "serve", {"ward": ward_keys()[1]}).take(
            "ward", None, told.head.receipt
        )


def read_terms(raw: bytes) -> None:
    """As a site that knows the run from its disk, under limits that refuse or not."""
    terms = run_terms.read_terms(raw)
    run_terms.check_method(terms)
    assert terms.digest
    policy.refusals(SITE.ready().file.limits, terms, 3)


# --- what users write


def settings() -> list[bytes]:
    tiny_run.write_data(folder())
    private = {"noise_multiplier": 4.0, "delta": 1e-4, "relation": "add-remove"}
    made = [
        tiny_run.settings(folder()),
        tiny_run.settings(folder(), privacy=private),
        tiny_run.settings(folder(), algorithm={"name": "cores"}, synthesis={"source": "retrieve"}),
    ]
    return [dump_settings(one).encode() for one in made]


def read_experiment(raw: bytes) -> None:
    dump_settings(read_settings(placed("experiment.toml", raw)))


def site_files() -> list[bytes]:
    text = site_file_text("ward", "localhost:9443")
    return [
        text.encode(),
        (folder() / "none").name.encode()
        and SITE.ready().file.site.state.parent.joinpath("site.toml").read_bytes(),
    ]


def read_site(raw: bytes) -> None:
    site_file.absent(site_file.read(placed("site.toml", raw)))


@cache
def server_keys() -> Path:
    keys.server(folder() / "server", ["localhost"])
    return folder() / "server"


def key_files() -> list[bytes]:
    own = ward_keys()[0]
    names = [server_keys() / name for name in ("server.pem", "order-key.pub", "order-key.pem")] + [
        own / "site-key",
        own / "site-key.pub",
    ]
    return [path.read_bytes() for path in names]


def read_key(raw: bytes) -> None:
    """Some reader accepts it."""
    path, refused = placed("key", raw), []
    readers = [
        lambda: certificates.hosts_of(certificates.load(raw, "a file")),
        lambda: keys.as_pem(keys.public_line(path)),
        lambda: receipts.identity("ward", path),
        lambda: signing.load_private(path),
        lambda: signing.load_public(path),
    ]
    for read in readers:
        try:
            read()
        except AulaitError as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]


ROWS = [
    {
        "client": f"c{k % 2}",
        "text": f"A text of some words, number {k}.",
        "label": k % 3,
        "prompt": f"Question {k}?",
        "response": f"Answer number {k}.",
        "messages": [
            {"role": "user", "content": f"Question {k}?"},
            {"role": "assistant", "content": [{"type": "text", "text": f"Answer {k}."}]},
        ],
    }
    for k in range(8)
]


def table(columns: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def columns() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(
        arrow.table({name: [row[name] for row in ROWS] for name in ("client", "text", "label")}),
        sink,
        compression="none",
    )
    return sink.getvalue()


def read_rows(ending: str) -> Callable[[bytes], None]:
    """As data and as public text."""

    def read(raw: bytes) -> None:
        path, public = (
            placed(f"rows{ending}", raw),
            placed("public.txt", b"A text.\nAnother one.\n"),
        )
        for form in ("auto", "chat"):
            try:
                load_clients(
                    DataConfig(source=str(path), public=str(public), format=form, min_records=1),
                    Seeds(1),
                )
                return
            except AulaitError:
                if form == "chat":
                    raise

    return read


@cache
def tokenizer() -> object:
    from transformers import AutoTokenizer

    from aulait.models.named import folder_of

    return AutoTokenizer.from_pretrained(folder_of("brew"))


TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def read_template(raw: bytes) -> None:
    """A chat template and a conversation in one JSON object."""
    try:
        tree = json.loads(raw)
        template, fields = str(tree["template"]), dict(tree["row"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AulaitError("no pair of a template and a row") from error
    if len(template) > 2000 or "range" in template:
        raise AulaitError("a template may loop as long as it likes")
    try:
        record = conversation(fields, "messages")
    except ValueError as error:
        raise AulaitError(str(error)) from error
    form = RecordForm(tokenizer(), "auto")
    form.tokenizer.chat_template, form.chat = template, True
    form.conversation(record.turns)
    form.asked(record.asked)


def templates() -> list[bytes]:
    return [json.dumps({"template": TEMPLATE, "row": ROWS[0]}).encode()]


# --- models


@cache
def gguf() -> bytes:
    tiny_gguf.write(folder() / "seed.gguf")
    return (folder() / "seed.gguf").read_bytes()


def of_gguf(raw: bytes, dice: random.Random) -> bytes:
    """Mostly within the head, which is what is parsed."""
    head = min(len(raw), dice.choice((64, 600, 6000)))
    return (
        mutation.of_bytes(raw[:head], dice) + raw[head:]
        if dice.random() < 0.9
        else mutation.of_bytes(raw, dice)
    )


def read_gguf(raw: bytes) -> None:
    os.environ["AULAIT_CACHE"] = str(folder() / "cache")
    converted(placed("model.gguf", raw))


def adapters() -> list[bytes]:
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    return [
        save(
            {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}
        )
    ]


def read_adapter(raw: bytes) -> None:
    path = placed("adapter/adapter_model.safetensors", raw)
    placed("adapter/adapter_config.json", b'{"lora_alpha": 4, "use_rslora": true}')
    load_adapter(path.parent)


def clusters() -> list[bytes]:
    save_clusters(
        CorpusIndex(torch.tensor([0, 1, 0]), torch.eye(2, 4), "d", "e", 2), folder() / "seed.npz"
    )
    np.savez(folder() / "plain.npz", **dict(np.load(folder() / "seed.npz")))
    return [(folder() / "seed.npz").read_bytes(), (folder() / "plain.npz").read_bytes()]


# --- what runs and sites keep

LINE = {
    "stage": "train",
    "role": "local",
    "mechanism": "gaussian",
    "sensitivity": 1.0,
    "sigma": 2.0,
    "noise_multiplier": 2.0,
    "planned": 3,
    "sampling": {"kind": "all"},
    "epsilon": {"local": 1.0},
    "delta": 1e-5,
    "relation": "add-remove",
    "unit": "client",
    "time": "",
    "private": True,
}
KINDS = [
    {},
    {"sampling": {"kind": "poisson", "rate": 0.5}},
    {
        "mechanism": "banded:3",
        "sampling": {"kind": "turns", "turn": 1, "cohorts": 3},
        "relation": "zero-out",
    },
    {
        "mechanism": "dp-sgd",
        "unit": "record",
        "relation": "zero-out",
        "steps": 4,
        "sampling": {"kind": "poisson", "rate": 0.2},
    },
]


def ledgers() -> list[bytes]:
    found = []
    for kind in KINDS:
        path = folder() / "seed" / "ledger.jsonl"
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.iterdir():
            old.unlink()
        ledger = Ledger(path)
        ledger._run = "0" * 32
        ledger._links = [mutation.first_link("0" * 32)]
        for release in (1, 2, 3):
            line = LINE | kind | {"release": release, "round": release}
            if kind.get("mechanism") == "banded:3":
                line["sampling"] = kind["sampling"] | {"turn": (release - 1) % 3}
            ledger.append(LedgerLine.model_validate(line))
        found.append(path.read_bytes())
    return found


def read_ledger(raw: bytes) -> None:
    """Read, counted, and repaired."""
    head = json.dumps({"run": "0" * 32, "lines": 0, "hash": mutation.first_link("0" * 32)}).encode()
    whole = raw.count(b"\n")
    for repair in (False, True):
        path = placed("ledger/ledger.jsonl", raw)
        placed("ledger/ledger.head", head)
        if whole > 1:
            (path.parent / "ledger.head").write_bytes(_head(raw))
        ledger = Ledger(path, repair=repair)
        assert len(ledger.lines) >= whole - 1, "a line was taken for none"
        for role in {role for line in ledger.lines for role in line.roles}:
            ledger.events(role)


def _head(raw: bytes) -> bytes:
    """A head that knows all but the last line, as after a crash between the two."""
    import hashlib

    lines = raw.splitlines()[:-1]
    return json.dumps(
        {"run": "0" * 32, "lines": len(lines), "hash": hashlib.sha256(lines[-1]).hexdigest()}
    ).encode()


def checkpoints() -> list[bytes]:
    run = RunFolder(folder() / "checkpointed")
    run.begin("", {}, True)
    progress = Progress(
        stage="train",
        place=1,
        memory={"c0": {"x": torch.ones(2), "n": {"y": torch.arange(3)}, "k": 3}},
        totals={"wall_s": 1.0},
        base_eval={"loss": 2.0},
    )
    progress.save(run)
    first = (run.path / "checkpoint" / "state.safetensors").read_bytes()
    tiny = save(
        {"none": torch.zeros(1), "state/x.A": torch.ones(2, 2), "noise/train/x": torch.ones(1)},
        metadata={
            "progress": json.dumps(
                {
                    "lines": 0,
                    "schema_version": 3,
                    "stage": "train",
                    "place": 1,
                    "round": 2,
                    "texts": [[{"text": "a", "round": 1}]],
                    "totals": {},
                    "base_eval": {},
                    "last_eval": {},
                    "stopped": None,
                    "trained": True,
                    "memory": {},
                    "synthesis": {
                        "round": 1,
                        "pool": [{"text": "b", "round": 0, "votes": 2.0}],
                        "winners": [],
                        "cells": [{"members": [0], "votes": 1.0, "weight": 1.0, "parts": 1}],
                    },
                    "ledger": {"run": "0" * 32, "lines": 0, "hash": "0" * 64},
                }
            )
        },
    )
    return [first, tiny]


def read_checkpoint(raw: bytes) -> None:
    placed("run/rounds.jsonl", b"")
    placed("run/checkpoint/state.safetensors", raw)
    Progress.load(RunFolder(folder() / "run"))


def kept_states() -> list[bytes]:
    kept = KeptState(
        folder() / "runs" / "kept",
        memory={"x": torch.arange(4.0), "n": {"y": 2}},
        before={(0, 1): {"x": torch.ones(2)}},
        key=(0, 1),
    )
    kept.done(Stamp(RUN, 1, 3), "asked", Packet(b"{}"))
    return [(kept.folder / "kept.safetensors").read_bytes()]


def read_kept(raw: bytes) -> None:
    placed("runs/fuzzed/kept.safetensors", raw)
    found = read_kept_state(folder(), "fuzzed")
    found.admit(Stamp(RUN, 2, 1), found.key, "other")


def accounts() -> list[bytes]:
    found = []
    for number, charge in enumerate(
        (
            Charge(
                run=RUN,
                unit="record",
                delta=1e-5,
                noise_multiplier=2.0,
                rate=0.5,
                steps=4,
                stage="train",
            ),
            Charge(run=RUN, unit="client", epsilon=3.0, delta=1e-5),
        )
    ):
        account = LifetimeAccount(folder() / "accounts", f"source {number}")
        if not account.sequence:
            account.add(charge)
            account.add(charge)
        found.append(account_path(folder() / "accounts", f"source {number}").read_bytes())
    return found


def of_account(raw: bytes, dice: random.Random) -> bytes:
    """Lines changed; at times their hashes are made right again."""
    from aulait.engines.deployment.site.lifetime_account import AccountLine

    found = mutation.of_lines(raw, dice)
    if dice.random() < 0.3:
        return found
    linked, last = [], "0" * 64
    for number, line in enumerate(found.splitlines(), 1):
        try:
            sealed = (
                AccountLine.model_validate_json(line)
                .model_copy(update={"previous": last, "sequence": number})
                .sealed()
            )
        except ValueError:
            return found
        last = sealed.head
        linked.append(sealed.model_dump_json().encode() + b"\n")
    return b"".join(linked)


def read_account(raw: bytes) -> None:
    path = account_path(folder() / "read", "s")
    placed(str(path.relative_to(folder())), raw)
    account = LifetimeAccount(folder() / "read", "s")
    assert account.sequence == raw.count(b"\n"), "a charge was taken for none"
    for unit in ("record", "client"):
        account.spent(unit)


def old_terms() -> list[bytes]:
    privacy = {"off": False, "unit": "client", "epsilon": 3.0, "delta": 1e-5}
    return [
        json.dumps({"privacy": own}).encode()
        for own in (privacy, privacy | {"unit": "record"}, {"off": True})
    ]


def read_old_terms(raw: bytes) -> None:
    place = f"old{random.random()}"
    placed(f"{place}/runs/{RUN}/terms.json", raw)
    placed(
        f"{place}/runs/{RUN}/account.jsonl", b'{"noise_multiplier": 2.0, "rate": 0.5, "steps": 3}\n'
    )
    placed(f"{place}/runs/{RUN}/kept.safetensors", b"")
    take_over(folder() / place, "s")
    assert (folder() / place / "account").exists(), "what was spent was taken for nothing"


@cache
def finished() -> Path:
    from tests.fixture_run import write_run  # a made-up folder

    return write_run(folder() / "finished")


def folder_files() -> list[bytes]:
    """One file of a run folder: its name, a zero byte, its content."""
    return [
        name.encode() + b"\0" + (finished() / name).read_bytes()
        for name in ("result.json", "rounds.jsonl", "ledger.jsonl", "machine.json", "config.toml")
        if (finished() / name).is_file()
    ]


def of_folder_file(raw: bytes, dice: random.Random) -> bytes:
    name, _, content = raw.partition(b"\0")
    change = (
        mutation.of_lines
        if name.endswith(b"jsonl")
        else mutation.of_toml
        if name.endswith(b"toml")
        else mutation.of_json
    )
    return name + b"\0" + change(content, dice)


def read_folder(raw: bytes) -> None:
    """The report of a folder is written whatever stands in it; its epsilon is counted, or
    refused."""
    name, _, content = raw.partition(b"\0")
    if name.decode(errors="replace") not in (
        "result.json",
        "rounds.jsonl",
        "ledger.jsonl",
        "machine.json",
        "config.toml",
    ):
        raise AulaitError("no file of a run")
    place = finished() / name.decode()
    whole = place.read_bytes()
    try:
        place.write_bytes(content)
        read_run(finished())
        write_report(finished())
        recounted(finished())
    finally:
        place.write_bytes(whole)


def packed(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The same of a gzip file."""
    return lambda raw: read(gzip.compress(raw, 1))


INPUTS: dict[str, Input] = {
    "request": Input(requests, read_request, mutation.of_packet, 2.0),
    "answer": Input(answers, read_answer, mutation.of_packet),
    "terms": Input(
        lambda: [
            json.dumps(attacker.told(**own)).encode()
            for own in ({}, {"privacy": attacker.PRIVATE, "algorithm": {"name": "ffa"}})
        ],
        read_terms,
        mutation.of_json,
    ),
    "settings": Input(settings, read_experiment, mutation.of_toml, 2.0),
    "site-file": Input(site_files, read_site, mutation.of_toml),
    "key": Input(key_files, read_key, mutation.of_bytes),
    "rows-jsonl": Input(
        lambda: [b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)],
        read_rows(".jsonl"),
        mutation.of_lines,
    ),
    "rows-json": Input(lambda: [json.dumps(ROWS).encode()], read_rows(".json"), mutation.of_json),
    "rows-csv": Input(
        lambda: [table(["client", "text", "label"]), table(["client", "prompt", "response"])],
        read_rows(".csv"),
        mutation.of_bytes,
    ),
    "rows-gz": Input(
        lambda: [table(["client", "text"])], packed(read_rows(".csv.gz")), mutation.of_bytes, 0.3
    ),
    "rows-parquet": Input(lambda: [columns()], read_rows(".parquet"), mutation.of_bytes),
    "template": Input(templates, read_template, mutation.of_json),
    "gguf": Input(lambda: [gguf()], read_gguf, of_gguf, 0.15),
    "adapter": Input(adapters, read_adapter, mutation.of_tensors),
    "profile": Input(
        lambda: [dump_profile(PRESETS[name]).encode() for name in ("laptop", "h100")],
        lambda raw: load_profile(placed("profile.json", raw)) and None,
        mutation.of_json,
    ),
    "clusters": Input(
        clusters, lambda raw: load_clusters(placed("clusters.npz", raw)) and None, mutation.of_bytes
    ),
    "ledger": Input(ledgers, read_ledger, mutation.of_ledger),
    "checkpoint": Input(checkpoints, read_checkpoint, mutation.of_tensors),
    "kept-state": Input(kept_states, read_kept, mutation.of_tensors),
    "account": Input(accounts, read_account, of_account),
    "old-terms": Input(old_terms, read_old_terms, mutation.of_json),
    "folder": Input(folder_files, read_folder, of_folder_file, 0.5),
}
"""Name -> kind of input."""
