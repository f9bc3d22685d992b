"""The model card of a trained model: `README.md` in `final/`, with what Hugging Face's hub reads at its head.

It says what the model was made from, how, what came of it on held-out data, and what it was not tested for;
from the run's own files, by the readers and sentences of its page. A card travels, so folders of the machine
and what is called a secret are left out, and so are prompts and answers. Left out on purpose: what only
people know (intended use, licence of the data), results as the hub's `model-index` (nobody else can look at a
private judge's score), and when the card is written (`live`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from rs_aligner import __version__
from rs_aligner.config.changes import Kind, kind_of
from rs_aligner.files import write_whole
from rs_aligner.harmless import code_span, markdown_cell, without_places, without_secrets
from rs_aligner.peft_folder import ADAPTER_CONFIG
from rs_aligner.report.about import About, about
from rs_aligner.report.checks import Told, checked
from rs_aligner.report.facts import Facts, facts_of
from rs_aligner.report.run_data import RunData, RunKind, open_run
from rs_aligner.report.story import Verdict, verdict
from rs_aligner.report.worth import Cost, costs, selection_against_chance

NAME = "README.md"
_CACHED = re.compile(r"models--([\w.-]+)--([\w.-]+)/snapshots/")  # a model as huggingface_hub keeps it
_TAKEN_OVER = ("license", "license_name", "license_link", "language")
_TAGS: dict[RunKind, list[str]] = {
    "train_rs": ["rs-aligner", "rejection-sampling", "best-of-n"],
    "train_sft": ["rs-aligner", "sft"],
    "train_reward_model": ["rs-aligner", "reward-model"],
}
_MAIN: dict[RunKind, str] = {
    "train_rs": "model.rs.num_rollout_samples model.rs.num_rollouts_per_prompt model.rs.top_n_rollouts "
    "model.rs.sampling_params.temperature model.rs.length_params.max_length",
    "train_sft": "",
    "train_reward_model": "",
}
_HOSTS = re.compile(r"\.(endpoints|reward_model)\b|token_file$")  # whom a run asks


@dataclass(frozen=True)
class Card:
    """All that a card shows; `templates/card.md` says where.

    Attributes:
        head: what the hub reads, as YAML.
        run: whose it is.
        about: what it was made with.
        base: what the model that it started from is called.
        step: whose weights these are; None where nobody knows.
        is_best: whether it is the best of several validations, and not the last.
        verdict: did it work?
        chance: sentences on selection against chance.
        costs: what it cost.
        checks: what to worry about.
        recipe: settings that decide something, by key.
        command: that started it last.
        untested: what nobody has looked at.
    """

    head: str
    run: RunData
    about: About
    base: str
    step: int | None
    is_best: bool
    verdict: Verdict
    chance: list[str]
    costs: list[Cost]
    checks: list[Told]
    recipe: dict[str, str]
    command: str
    untested: list[str]
    version: str = __version__


def write_card(folder: Path) -> Path | None:
    """Write the card of a run's model.

    Args:
        folder: of the run.

    Returns:
        The card; None where the run has not finished, so that what is in `final/` may be of another start.

    Raises:
        ValueError: the run cannot be read.
        OSError: it cannot be written.
    """
    final = folder / "final"
    data = open_run(folder)
    if not final.is_dir() or data.status().get("state") != "finished":
        return None
    text = _templates().get_template("card.md").render(card=_card(data))
    path = final / NAME
    write_whole(path, [text.encode("utf-8", "backslashreplace")])
    return path


def _card(data: RunData) -> Card:
    found = about(data)
    facts = facts_of(data, found)
    rows = facts.rows
    step = exported_step(found, rows)
    until = replace(facts, rows=[row for row in rows if step is None or row["step"] <= step])
    is_rs = data.kind == "train_rs"
    return Card(
        _head(data, found),
        data,
        found,
        _base_name(_base(found)),
        step,
        found.setting("trainer.rs.patience") is not None,
        verdict(until, data.kind),
        selection_against_chance(facts) if is_rs else [],
        costs(facts),
        [one for one in checked(until) if one.found.state in ("amber", "red")] if is_rs else [],
        dict(_recipe(data.kind, found)),
        _command(found),
        list(_untested(data.kind, found, until)),
    )


def exported_step(found: About, rows: Sequence[Mapping[str, float]]) -> int | None:
    """Whose weights `final/` holds: the last step's, or with `patience` those of the best validation.

    Of equal ones it is the latest, as in the loop (`trainers/held_out.py`).
    """
    if found.setting("trainer.rs.patience") is not None:
        named = found.setting("exp_manager.checkpoint_callback_params.monitor")
        key = "validation/reward" if named == "val_global_rewards" else str(named)
        sign = -1 if found.setting("exp_manager.checkpoint_callback_params.mode") == "min" else 1
        looks = {int(row["step"]): sign * row[key] for row in rows if key in row}
        if looks:
            return max(looks, key=lambda step: (looks[step], step))
    return int(rows[-1]["step"]) if rows else None


def _head(data: RunData, found: About) -> str:
    """What the hub reads, as YAML; only what is known."""
    base = _base(found)
    front = _front_matter(base / NAME)
    is_adapter = (data.folder / "final" / ADAPTER_CONFIG).is_file()
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    is_reward_model = data.kind == "train_reward_model"
    head["pipeline_tag"] = "text-classification" if is_reward_model else "text-generation"
    is_ours = "rs-aligner" in (front.get("tags") or ())
    name = _hub_name(base) or (front.get("base_model") if is_ours else None)
    if isinstance(name, str):
        head |= {"base_model": name, "base_model_relation": "adapter" if is_adapter else "finetune"}
    head |= {key: front[key] for key in _TAKEN_OVER if isinstance(front.get(key), str | list)}
    head["tags"] = _TAGS[data.kind]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _base(found: About) -> Path:
    return Path(str(found.setting("pretrained_checkpoint.restore_from_path") or ""))


def _base_name(base: Path) -> str:
    """As people call it: on the hub, or the last parts of its folder that say something."""
    if (name := _hub_name(base)) is not None:
        return name
    said = base.parts[-3:] if base.name.startswith("step_") else base.parts[-2:]
    return "/".join(said if base.name.startswith("step_") or base.name == "final" else base.parts[-1:])


def _hub_name(base: Path) -> str | None:
    """The model's name on the hub, where its folder is one that was downloaded from there."""
    match = _CACHED.search(f"{base.absolute()}/")
    return f"{match[1]}/{match[2]}" if match else None


def _front_matter(file: Path) -> dict[str, Any]:
    """What the base model's own card has at its head; nothing where there is none that can be read."""
    try:
        text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _recipe(kind: RunKind, found: About) -> Iterator[tuple[str, str]]:
    """The settings that decide something, by key: the main ones, and all that are not as by default."""
    if found.latest is None:
        return
    main = f"{_MAIN[kind]} model.optim.lr model.global_batch_size model.seed".split()
    changed = [one.key for one in found.settings if kind_of(one.key) not in (Kind.FREE, Kind.ALIAS)]
    for key in dict.fromkeys([*main, *changed]):
        if key in found.latest.settings and not _HOSTS.search(key):
            if found.latest.settings[key] in (None, "", [], {}):  # of a section that is not there by default
                continue
            value = without_secrets(key.rpartition(".")[2], found.latest.settings[key])
            value = _by_name(value)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield key, without_places(text)


def _by_name(value: Any) -> Any:
    """A setting with the names of files only, wherever they lie."""
    if isinstance(value, list):
        return [_by_name(one) for one in value]
    is_path = isinstance(value, str) and value.startswith("/")
    return f".../{value.rpartition('/')[2]}" if is_path else value


def _command(found: About) -> str:
    """The command line of the newest start, without the interpreter."""
    if found.latest is None:
        return ""
    words = found.latest.command.split(" ")
    while len(words) > 1 and (words[0].rpartition("/")[2].startswith("python") or words[0] == "-u"):
        words = words[1:]
    if words[:2] == ["-m", "rs_aligner"]:
        words = ["rs-aligner", *words[2:]]
    return without_places(" ".join([words[0].rpartition("/")[2], *words[1:]]))


def _untested(kind: RunKind, found: About, facts: Facts) -> Iterator[str]:
    """What nobody has looked at."""
    looked = any(key.startswith("validation/") for row in facts.rows for key in row)
    if not looked:
        yield "Nothing held out was looked at: nobody knows what it does with data it was not trained on."
    if kind == "train_reward_model":
        yield "How it scores answers of another kind than those of its pairs, longer ones or other languages."
        yield "What a policy makes of it that is trained against it: a reward model is easily fooled there."
        yield "Whether its scores mean anything but an order: they have no zero and no unit."
        return
    if kind == "train_rs" and found.setting("watched_rm") is None and looked:
        yield "No second judge has looked: the scores are of the judge that it was selected by."
    yield "Prompts of another kind than those it was trained on, and what it was good at before."
    yield "Safety, bias, truth, and whatever else the judge does not score."


@cache
def _templates() -> jinja2.Environment:
    """The card's template: Markdown, in which values from outside are code or escaped by its filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code_span, "words": markdown_cell}
    return environment
