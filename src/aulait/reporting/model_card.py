"""The model card: README.md of an exported folder, in the form of the Hugging Face hub, made from
the run folder.

A card travels with the model, further than the run folder does. So under privacy it tells nothing
that was measured on clients' texts, and of a source in a file it tells no path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from aulait.core.files import PRIVATE, PUBLIC, replace_file
from aulait.core.places import is_there
from aulait.reporting import numbers, promise, story
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.values import value_at, words
from aulait.runfolder.schema import Scores

CARD: Final = "README.md"
CardForm = Literal["adapter", "merged", "gguf"]
LIBRARIES: Final = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_BUILT_IN = re.compile(r"[a-z0-9-]+")
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SCORES: Final = (
    ("loss", "Loss, nats a token", numbers.loss), ("perplexity", "Perplexity", numbers.perplexity),
    ("token_accuracy", "Token accuracy", numbers.percent),
    ("accuracy", "Task accuracy", numbers.percent), ("rouge_l", "ROUGE-L", numbers.percent),
    ("exact_match", "Exact match", numbers.percent))


def write_cards(run: Path) -> None:
    """Write the cards of a finished run's adapters: that of the shared one, and one for every
    client's own, which only the owner of the files may read.

    Raises:
        DataError: the path is not a run folder.
    """
    found = read_run(run)
    replace_file(run / "adapter" / CARD, model_card(found, "adapter").encode(), mode=PUBLIC)
    own = sorted((run / "personal").glob("*/adapter_config.json"))
    text = model_card(found, "adapter", personal=True).encode() if own else b""
    for config in own:
        replace_file(config.parent / CARD, text, mode=PRIVATE)


def write_card(run: Path, to: Path, form: CardForm, *, personal: bool = False) -> None:
    """Write the card of what was exported from a finished run.

    Args:
        run: its folder.
        to: where the exported files lie.
        form: what they are.
        personal: they hold a client's own adapter.

    Raises:
        DataError: the path is not a run folder.
    """
    text = model_card(read_run(run), form, personal=personal)
    replace_file(to / CARD, text.encode(), mode=PRIVATE if personal else PUBLIC)


def model_card(run: RunFiles, form: CardForm, *, personal: bool = False) -> str:
    """The text of a card; arguments as of ``write_card``."""
    what = {"adapter": "LoRA adapter", "merged": "model with its LoRA adapter merged in",
            "gguf": "model in GGUF with its LoRA adapter merged in"}[form]
    title = _plain(run.result.name or run.path.resolve().name)
    parts = [
        _front_matter(run, form),
        f"# {title}\n\nA {what} for the base {_base(run)}, trained with "
        f"[aulait](https://github.com/aulait-fl/aulait). {_plain(story.lead_sentences(run)[0])}",
        *([_PERSONAL] if personal else []),
        f"## Use\n\n{_use(run, form)}",
        f"## Data\n\n{_data(run)}",
        f"## Method\n\n{_method(run)}",
        f"## Privacy\n\n{_privacy(run)}",
        f"## Figures\n\n{_figures(run, personal)}",
    ]
    return "\n\n".join(parts) + "\n"


_PERSONAL = (
    "> **One client's own.** This adapter has seen the text of one client without noise. No ε "
    "covers it: it is as sensitive as that text, and belongs to that client alone.")


def _front_matter(run: RunFiles, form: CardForm) -> str:
    tags = ["lora", "federated-learning", *([] if story.is_off(run) else ["differential-privacy"])]
    base = words(value_at(run.config, "model", "name")) or ""
    kind = "text2text-generation" if _is_seq2seq(run) else "text-generation"
    lines = [f"library_name: {LIBRARIES[form]}", f"pipeline_tag: {kind}",
             *([f"base_model: {base}"] if _is_hub_id(base) else []),
             "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _base(run: RunFiles) -> str:
    """The base by its name, or by the last part of its path."""
    name = words(value_at(run.config, "model", "name")) or "brew"
    own = name if _is_hub_id(name) or "/" not in name else Path(name).name
    hashed = run.result.base_fingerprint
    return f"`{_code(own)}`" + (f" (fingerprint `{_code(hashed)}`)" if hashed else "")


def _is_seq2seq(run: RunFiles) -> bool:
    return value_at(run.config, "model", "kind") == "seq2seq"


def _use(run: RunFiles, form: CardForm) -> str:
    if form == "gguf":
        return ("With Ollama: `ollama create NAME -f Modelfile` in this folder, then `ollama run "
                "NAME`. With llama.cpp: `llama-cli -m model.gguf`.")
    auto = "AutoModelForSeq2SeqLM" if _is_seq2seq(run) else "AutoModelForCausalLM"
    if form == "merged":
        lines = [f"from transformers import {auto}, AutoTokenizer", "",
                 f'model = {auto}.from_pretrained("THIS-FOLDER")',
                 'tokenizer = AutoTokenizer.from_pretrained("THIS-FOLDER")']
        return _block(lines)
    name = words(value_at(run.config, "model", "name")) or "brew"
    lines = ["from peft import PeftModel", f"from transformers import {auto}", "",
             f'base = {auto}.from_pretrained("{_code(name) if _is_hub_id(name) else "BASE"}")',
             'model = PeftModel.from_pretrained(base, "THIS-FOLDER")']
    built_in = _BUILT_IN.fullmatch(name) is not None
    more = ("\n\nThe base comes with aulait: `aulait export RUN --merge --to DIR` writes the whole "
            "model, which needs no aulait." if built_in else "")
    return _block(lines) + more


def _block(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _data(run: RunFiles) -> str:
    result = run.result
    found = [f"Texts of {numbers.counted(result.clients, 'client')}, from "
             f"{_source(words(value_at(run.config, 'data', 'source')))}."]
    public = value_at(run.config, "data", "public")
    if isinstance(public, str) and public:
        found.append(f"Public texts beside them: {_source(public)}.")
    made = result.synthesis
    if made is not None and made.texts:
        origin = (f"written by `{_code(made.generator)}`" if made.generator
                  else "taken word for word from public texts")
        chosen = ("at random" if not made.voters
                  else f"by the votes of {numbers.counted(made.voters, 'client')}")
        found.append(f"{numbers.counted(made.texts, 'text')} stood for clients that did not train "
                     f"themselves, {origin} and chosen {chosen}.")
    return " ".join(found)


def _source(name: str | None) -> str:
    """A source as a card may tell it: what everyone has by its name, a file without its path."""
    if name and _BUILT_IN.fullmatch(name):
        return f"the packaged source `{name}`"
    if name and name.startswith("hf:") and not name[3:].startswith(("/", ".", "~")):
        return f"`{_code(name[3:])}` on the Hugging Face hub"
    return "files that are not part of this folder"


def _method(run: RunFiles) -> str:
    rounds = numbers.counted(story.rounds_done(run), "training round")
    rows = [f"- Method: `{_code(run.result.algorithm or numbers.NOT_RECORDED)}`, {rounds}.",
            f"- Adapter: rank {_setting(run, 'adapter', 'rank')}, alpha "
            f"{_setting(run, 'adapter', 'alpha')}, layers {_setting(run, 'adapter', 'targets')}.",
            f"- Local training: {_setting(run, 'train', 'steps')} steps of "
            f"{_setting(run, 'train', 'batch')} texts a round, learning rate "
            f"{_setting(run, 'train', 'lr')}."]
    if run.synthesis:
        facts = run.result.synthesis
        what = ("votes on public texts" if facts is not None and facts.source == "retrieve"
                else "private evolution of synthetic texts")
        rows.append(f"- Before it: {numbers.counted(len(run.synthesis), 'round')} of {what}.")
    packages = ", ".join(f"{_code(name)} {_code(str(value))}"
                         for name, value in sorted(run.result.versions.items()))
    return "\n".join([*rows, *([f"- Versions: {packages}."] if packages else [])])


def _setting(run: RunFiles, table: str, key: str) -> str:
    found = value_at(run.config, table, key)
    return "as by default" if found is None else f"`{_code(str(found))}`"


def _privacy(run: RunFiles) -> str:
    alarms = [f"**{_plain(text)}**" for kind, text in story.warning_banners(run)
              if kind == "alarm"]
    if story.is_off(run):
        return "\n\n".join(alarms)
    privacy = run.result.privacy
    roles = [f"- {role}: ε = {numbers.epsilon(privacy.epsilon.value(role))}"
             for role in ("local", "proxy") if privacy.epsilon.value(role) is not None
             and story.has_role(run, role)]
    claim = (
        f"(ε, δ)-differential privacy with ε = {numbers.epsilon(privacy.epsilon.max)} and δ = "
        f"{numbers.delta(privacy.delta)}. The unit is {_plain(promise.unit_explained(run))}; two "
        f"runs are compared {_plain(promise.relation_explained(run))}.")
    sentences = (" ".join(story.attack_sentences(run)), promise.unit_limits(run))
    parts = [*alarms, claim, "\n".join(roles), *map(_plain, sentences)]
    return "\n\n".join(part for part in parts if part)


def _figures(run: RunFiles, personal: bool) -> str:
    before, after, read = run.result.base_eval, run.result.eval, run.result.exported
    public = after.measured_on is not None
    if personal:
        found = "What was measured of this client is not told here."
    elif story.is_off(run) or public:
        found = _score_table(before, after, "public texts" if public else
                             "held-out texts of the clients, never trained on")
    else:
        found = ("Losses on the clients' held-out texts are not told here: no ε covers them. They "
                 "stand in the report of the run.")
    if run.result.tasks and not personal:
        found += f"\n\n{_task_table(run)}"
    if read is None or personal:
        return found
    checked = (
        f"The exported adapter was read back by PEFT: {numbers.counted(read.layers, 'layer')}, "
        f"loss {numbers.loss(read.peft_loss)} nats a token on {read.measured_on}, measured in "
        f"training as {numbers.loss(read.loss)}"
        + (f"; merged {numbers.loss(read.merged_loss)}." if read.merged_loss is not None else "."))
    return f"{found}\n\n{checked}"


def _task_table(run: RunFiles) -> str:
    """Scores of lm-eval's tasks."""
    told = value_at(run.result.tasks, "adapted")
    tasks = told if isinstance(told, dict) else {}
    rows = [f"| {_plain(str(task))} | {_plain(str(metric))} | "
            f"{numbers.significant(value_at(run.result.tasks, 'base', task, metric), 4)} | "
            f"{numbers.significant(value, 4)} |"
            for task, scores in tasks.items() if isinstance(scores, dict)
            for metric, value in scores.items()]
    return "\n".join(["On tasks of lm-eval:", "", "| task | metric | base | with the adapter |",
                      "|---|---|---|---|", *rows])


def _score_table(before: Scores, after: Scores, where: str) -> str:
    rows = [f"| {name} | {numbers.or_dash(before.value(key), style)} | "
            f"{numbers.or_dash(after.value(key), style)} |"
            for key, name, style in _SCORES if after.value(key) is not None]
    if not rows:
        return f"No score was {numbers.NOT_RECORDED}."
    return "\n".join([f"On {where}:", "", "| | base | with the adapter |", "|---|---|---|", *rows])


def _is_hub_id(name: str) -> bool:
    """Whether a base's name is an id of the hub and no folder's."""
    return _HUB.fullmatch(name) is not None and not is_there(name)


def _plain(text: str) -> str:
    """A text in which nothing is markup: names may be anything."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A text that cannot end the code span it stands in."""
    return " ".join(text.replace("`", "'").split())
