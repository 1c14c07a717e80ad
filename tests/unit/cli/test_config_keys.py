"""``aulait config``, the pages made from the code, and the JSON schema for editors."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from typer.testing import CliRunner

from aulait.cli import app
from aulait.runs import key_reference
from aulait.runs.experiment_file import Settings, build_settings

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))
KEYS = key_reference.keys()
SCHEMA = key_reference.schema()


def _writer() -> ModuleType:
    path = ROOT / "scripts" / "write_reference.py"
    spec = importlib.util.spec_from_file_location("write_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _called(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["config", *words])
    return result.exit_code, result.output


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_described(key: key_reference.Key) -> None:
    assert len(key.description.split()) > 2, f"{key.name}: write it under Attributes: of its model"
    assert key.description.endswith((".", ")", "!")), f"{key.name}: its description is cut off"
    assert key.kind
    assert key.default


def test_every_field_is_among_the_keys() -> None:
    """By walking the resolved settings, which is another way to the same names."""
    settings = Settings()
    tree = settings.model_dump()
    tree["algorithm"] = {"name": "ffa", **settings.method_config.model_dump()}

    def names(node: object, place: str) -> set[str]:
        if isinstance(node, dict) and node:
            return {name for key, value in node.items()
                    for name in names(value, f"{place}.{key}" if place else key)}
        if isinstance(node, list | tuple) and node and isinstance(node[0], dict):
            return names(node[0], f"{place}[]")
        return {place}

    assert names(tree, "") <= {key.name for key in KEYS}


@pytest.mark.parametrize("name", ["docs/config.md", "docs/cli.md", "docs/experiment.schema.json",
                                  "src/aulait/cli/built_in.json"])
def test_the_pages_are_those_that_the_code_makes(name: str) -> None:
    made = _writer().PAGES[name]()
    assert (ROOT / name).read_text(encoding="utf-8") == made, (
        "run: python scripts/write_reference.py")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_schema_takes_every_experiment(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("#:schema ../docs/experiment.schema.json\n")
    jsonschema.validate(tomllib.loads(text), SCHEMA)


@pytest.mark.parametrize("file", sorted((ROOT / "src" / "aulait" / "cli").glob("*.toml")),
                         ids=lambda file: file.stem)
def test_the_schema_takes_the_demonstrations(file: Path) -> None:
    jsonschema.validate(tomllib.loads(file.read_text(encoding="utf-8")), SCHEMA)


@pytest.mark.parametrize(("adapter", "taken"), [
    ({"rank": "auto", "layers": "auto", "alpha": "auto"}, True), ({"rank": 2, "layers": 1}, True),
    ({"rank": "all"}, False), ({"rank": 0}, False), ({"alpha": 0}, False),
    ({"layers": "some"}, False)])
def test_the_schema_knows_auto(adapter: dict[str, object], taken: bool) -> None:
    tree = {"adapter": adapter, "privacy": {"off": True}}
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(tree) == taken
    if taken:
        build_settings(tree)


@pytest.mark.parametrize("wrong", [
    {"train": {"round": 3}}, {"train": {"rounds": -1}}, {"algorithm": {"name": "ffa", "mass": "B"}},
    {"federation": {"tier": [{"name": "a", "placement": "near"}]}}, {"training": {}}])
def test_the_schema_refuses_what_the_settings_refuse(wrong: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_the_schema_lets_methods_of_third_parties_through() -> None:
    jsonschema.validate({"algorithm": {"name": "theirs", "own": 1}}, SCHEMA)


def test_a_key_is_told_in_full() -> None:
    code, out = _called("train.schedule")
    assert code == 0
    assert "train.schedule" in out
    assert '"linear" or "cosine"' in out
    assert "default:" in out


@pytest.mark.parametrize(("asked", "words"), [
    ("lr", "did you mean 'train.lr'?"), ("train.rouns", "did you mean 'train.rounds'?"),
    ("nothing_such", "or one of the tables run, model,")])
def test_an_unknown_key_is_one_short_line(asked: str, words: str) -> None:
    code, out = _called(asked)
    assert code == 2
    assert words in " ".join(out.split())
    assert len(out) < 300


def test_a_key_of_several_methods_is_told_for_each_default() -> None:
    _, out = _called("algorithm.server_lr")
    assert "default: 1.0" in out
    assert "default: 0.1" in out
    assert "fdlora" in out


def test_a_table_is_listed_and_json_has_the_same_keys() -> None:
    _, out = _called("evaluate")
    _, document = _called("evaluate", "--json")
    listed = [line.partition(" = ")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert listed == [key["name"] for key in json.loads(document)]
    assert len(listed) == sum(key.name.startswith("evaluate.") for key in KEYS)


def test_an_unknown_key_is_one_line_with_a_hint() -> None:
    code, out = _called("trian.rounds")
    assert code == 2
    assert "did you mean 'train.rounds'" in out


def test_the_schema_is_printed() -> None:
    code, out = _called("--schema")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(SCHEMA))


def test_arguments_keep_their_help() -> None:
    result = CliRunner().invoke(app, ["run", "--help"])
    assert "The experiment, a TOML file." in result.output
