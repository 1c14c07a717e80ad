"""What the golden comparison records: small experiments and commands with a ``--json`` output.

Every run takes seconds on one core. The texts are written by this file, so that nothing depends on
the built-in data, and all noise is seeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

Tree = dict[str, Any]

NOUNS = ("nurse", "engine", "river", "letter", "garden", "teacher", "valley", "market")
VERBS = ("finds", "opens", "paints", "reads", "moves", "closes", "keeps", "writes")
THINGS = ("a door", "the list", "an old map", "the file", "a window", "the table")
ANSWERS = ("yes", "no", "later")


def rows(client: int, count: int = 8) -> list[Tree]:
    """The rows of one made-up client: a text, a question with its answer, and a label."""
    found = []
    for number in range(count):
        noun = NOUNS[(client + number) % len(NOUNS)]
        verb = VERBS[(client * 3 + number * 5) % len(VERBS)]
        thing = THINGS[(client + number * (1 + client % 3)) % len(THINGS)]
        told = f"The {noun} {verb} {thing} at {client + 1} and {number + 2}."
        asked = f"Does the {noun} of row {number} {verb.removesuffix('s')} {thing}?"
        answer = ANSWERS[(client * 2 + number) % len(ANSWERS)]
        found.append({"client": f"c{client}", "text": told, "question": asked, "answer": answer,
                      "label": answer})
    return found


def public_texts() -> list[str]:
    """Texts from which stage 1 starts."""
    return [f"Every {noun} {verb} {thing}." for noun in NOUNS[:5] for verb in VERBS[:4]
            for thing in THINGS[:2]]


def lines(items: list[Tree]) -> str:
    """The text of a JSON-lines file."""
    return "".join(json.dumps(item) + "\n" for item in items)


def local(**more: Any) -> Tree:
    """A tier of clients that train at their own machine."""
    return {"name": "local", "placement": "local", **more}


def some(name: str, count: int, placement: str, **more: Any) -> Tree:
    """A tier of so many clients."""
    return {"name": name, "count": count, "placement": placement, **more}


def experiment(name: str, **tables: Tree) -> Tree:
    """The common experiment with keys changed; "algorithm" and "privacy" are replaced whole."""
    tree: Tree = {
        "run": {"name": name, "seed": 3},
        "model": {"name": "brew", "context": 24, "device": "cpu"},
        "adapter": {"rank": 2, "targets": "attention", "layers": 2},
        "data": {"source": "rows.jsonl", "public": "public.txt", "holdout": 0.25,
                 "records_per_client": 6, "too_long": "cut"},
        "federation": {"tier": [local()]},
        "synthesis": {"rounds": 2, "candidates": 4, "variations": 1, "texts": 8, "proxy_count": 2,
                      "generate": {"max_tokens": 12, "min_words": 1}},
        "algorithm": {"name": "fedit"},
        "train": {"rounds": 2, "steps": 2, "batch": 2, "lr": 3e-3},
        "evaluate": {"records_per_client": 1},
        "privacy": {"off": True},
        "engine": {"threads": 1},
    }
    for key, table in tables.items():
        whole = key in ("algorithm", "privacy") or "preset" in table
        tree[key] = table if whole else tree.get(key, {}) | table
    return tree


def seeded(**more: Any) -> Tree:
    """Privacy with noise that can be repeated: it protects nobody, and serves comparisons alone."""
    epsilon = {} if "noise_multiplier" in more else {"epsilon": 8.0}
    return {**epsilon, "delta": 1e-3, "relation": "add-remove", "noise_seed": 11, **more}


THREE_LOCAL = [some("gpu", 3, "local"), {"name": "laptop", "placement": "proxy"}]
RANKS = [some("small", 3, "local", rank=1), some("middle", 3, "local", rank=4, attention_rank=2),
         local(name="large")]
MIXED_RANKS = {"adapter": {"rank": 4, "targets": "all-linear", "layers": 1},
               "federation": {"tier": RANKS}}
MACHINES = [
    some("workstation", 2, "local", machine="workstation", link="office", spread=0.3),
    some("laptop", 2, "split", machine="laptop", link="home", availability=0.8),
    some("board", 2, "auto", machine="raspberry-pi-5", dropout=0.2, spread=0.2),
    {"name": "phone", "placement": "proxy", "machine": "phone", "link": "4g"},
]
STRAGGLERS = [some("fast", 4, "local", machine="workstation", link="fibre", spread=0.2),
              local(name="slow", machine="laptop", link="4g", dropout=0.3, availability=0.7)]


def experiments() -> dict[str, Tree]:
    """Name of a run -> its experiment."""
    pairs = {"prompt": "question", "response": "answer", "label": "label", "public": ""}
    record = {"unit": "record", "relation": "zero-out", "clip": 0.5}
    room = {"records_per_client": 8}  # for all: a cap that binds is refused for single records
    poisson = {"tier": [local()], "sampling": "poisson", "rate": 0.5}
    more = {
        "fedit": {"algorithm": {"name": "fedit", "weights": "size"}},
        "fedit-adam": {"algorithm": {"name": "fedit", "server": "adam"},
                       "train": {"schedule": "cosine", "optimizer": "sgd", "weight_decay": 0.1}},
        "fedit-fixed": {"federation": {"tier": [local()], "sampling": "fixed", "rate": 0.5}},
        "ffa-noise": {"algorithm": {"name": "ffa", "server": "momentum"},
                      "privacy": seeded(clip=0.1, shrink="whole")},
        "poisson": {"algorithm": {"name": "ffa"}, "federation": poisson},
        "poisson-secret": {"algorithm": {"name": "ffa"}, "federation": poisson,
                           "privacy": seeded(clip=0.1)},
        "fedit-replace": {"privacy": seeded(relation="replace", epsilon=20.0, clip=0.1,
                                            subspace=2, shrink="blocks")},
        "proxies": {"algorithm": {"name": "ffa", "local_weight": 0.5}, "privacy": seeded(),
                    "federation": {"tier": THREE_LOCAL}},
        "proxies-vote-all": {"algorithm": {"name": "fedit"}, "federation": {"tier": THREE_LOCAL},
                             "synthesis": {"voters": "all", "selection": "sample",
                                           "expansion": "nearest"},
                             "privacy": seeded(vote_fraction=0.3, subspace=2,
                                               subspace_mode="wiener")},
        "proxies-open": {"federation": {"tier": THREE_LOCAL},
                         "synthesis": {"selection": "geometry", "expansion": "write",
                                       "lookahead": 2}},
        "split": {"federation": {"tier": [some("front", 3, "split"), local()]}},
        "splitlora": {"federation": {"tier": [local(name="front", placement="split")]},
                      "adapter": {"layers": "all"}, "algorithm": {"name": "splitlora"},
                      "compute": {"cut": 2, "wire": "float16"}},
        "dplora": {"algorithm": {"name": "dplora"}, "data": room, "privacy": seeded(**record)},
        "dplora-literal": {"algorithm": {"name": "dplora", "mode": "literal"},
                           "train": {"steps": 1}, "data": room,
                           "privacy": seeded(**record, noise_multiplier=2.0)},
        "dplora-ffa": {"algorithm": {"name": "dplora", "mode": "ffa"}, "data": room,
                       "privacy": seeded(**record)},
        "flora": {"algorithm": {"name": "flora"}, **MIXED_RANKS},
        "flexlora": {"algorithm": {"name": "flexlora"}, **MIXED_RANKS},
        "flexlora-noise": {"algorithm": {"name": "flexlora"}, **MIXED_RANKS,
                           "privacy": seeded(clip=0.1)},
        "flexlora-preset": {"algorithm": {"name": "flexlora", "partition": True},
                            "adapter": {"rank": 20}, "federation": {"preset": "uniform"}},
        "fdlora": {"algorithm": {"name": "fdlora", "copy_every": 1, "shots": 1,
                                 "fusion_tries": 4}},
        "hetlora": {"algorithm": {"name": "hetlora"}, **MIXED_RANKS},
        "fedsa": {"algorithm": {"name": "fedsa"}},
        "fedex": {"algorithm": {"name": "fedex"}},
        "lorafair": {"algorithm": {"name": "lorafair"}},
        "rolora": {"algorithm": {"name": "rolora"}, "privacy": seeded(clip=0.1)},
        "safedlora": {"algorithm": {"name": "safedlora"}, "train": {"rounds": 3}},
        "alone": {"algorithm": {"name": "alone"}},
        "pairs": {"data": {**pairs, "partition": "dirichlet", "clients": 4, "unseen": 1},
                  "evaluate": {"task": "rank"}, "model": {"context": 40}},
        "pooled": {"data": {"pooled": True}},
        "machines": {"federation": {"tier": MACHINES}, "compute": {"round_s": 5.0}},
        "stragglers": {"federation": {"tier": STRAGGLERS, "sampling": "fixed", "rate": 0.5},
                       "compute": {"over_selection": 0.5, "deadline_s": 20.0}},
    }
    return {name: experiment(name, **tables) for name, tables in more.items()}


# Runs in which the system's entropy chooses who takes part: settings and ledger are compared, not
# what is learnt.
SECRET = ("poisson-secret",)

SWEEP = ("sweep", "proxies.toml", "--arm", "one: algorithm.local_weight=0.5",
         "--arm", "two: algorithm.name=fedit", "--seeds", "3", "--out", "sweep", "--json")

# Name -> words of a command that is run after all runs; what it prints is JSON.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "list": ("list", "--json"),
    "account to noise": ("account", "--epsilon", "8", "--delta", "1e-5", "--releases", "10",
                         "--json"),
    "account to epsilon": ("account", "--noise-multiplier", "1.5", "--delta", "1e-5",
                           "--releases", "12", "--rate", "0.2", "--json"),
    "account proxies": ("account", "runs/proxies", "--json"),
    "account dplora": ("account", "runs/dplora", "--json"),
    "account poisson-secret": ("account", "secret/poisson-secret", "--json"),
    "compare": ("compare", "runs", "--json"),
    "compare virtual": ("compare", "runs/machines", "runs/stragglers", "--target-loss", "9",
                        "--json"),
    "export": ("export", "runs/fedit", "--to", "exported", "--json"),
    "export personal": ("export", "runs/fdlora", "--client", "c1", "--to", "personal", "--merge",
                        "--json"),
    "generate": ("generate", "runs/fedit", "The nurse", "--tokens", "8", "--json"),
    "status": ("status", "runs/proxies", "--json"),
    "plan fedit": ("plan", "fedit.toml", "--json"),
    "plan proxies": ("plan", "proxies.toml", "--json"),
    "plan proxies-vote-all": ("plan", "proxies-vote-all.toml", "--json"),
    "plan poisson-secret": ("plan", "poisson-secret.toml", "--json"),
    "plan dplora": ("plan", "dplora.toml", "--json"),
    "plan flexlora": ("plan", "flexlora.toml", "--json"),
    "plan splitlora": ("plan", "splitlora.toml", "--json"),
    "plan machines": ("plan", "machines.toml", "--json"),
}

# Name -> words of a command that must end with an error; its exit code is recorded.
WRONG: Mapping[str, tuple[str, ...]] = {
    "no file": ("run", "none.toml"),
    "unknown key": ("plan", "fedit.toml", "--set", "train.stepps=3"),
    "unknown method": ("plan", "fedit.toml", "--set", "algorithm.name=fedid"),
    "method without privacy": ("plan", "flora.toml", "--set", "privacy={epsilon=8.0,delta=1e-3}"),
    "folder in use": ("run", "fedit.toml", "--out", "runs/fedit"),
    "no run": ("report", "data"),
    "both of two": ("account", "--epsilon", "1", "--noise-multiplier", "1"),
    "unknown command": ("walk",),
}

HELP = (
    "", "demo", "run", "plan", "sweep", "compare", "report", "generate", "export", "serve", "join",
    "status", "keys", "keys server", "keys site", "keys enrol", "keys list", "list", "probe",
    "account", "bench",
)


def write_inputs(folder: Path) -> None:
    """Write the experiments and their data into the folder from which all commands are run."""
    own = [row for client in range(8) for row in rows(client)]
    (folder / "rows.jsonl").write_text(lines(own), encoding="utf-8")
    (folder / "public.txt").write_text("\n".join(public_texts()) + "\n", encoding="utf-8")
    for name, tree in experiments().items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
