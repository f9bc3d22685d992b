"""What a row has under our names, by where it stands in it: `model.data.columns`, and advice on what to set.

Left out on purpose: the shapes that are known without being told (`shapes.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rs_aligner.config.template import example

PROMPTS = ("text", "prompt", "messages", "conversations")
"""Names under which a row may have its prompt."""
Wanted = Literal["prompt", "response", "chosen", "rejected"]
_MISSING = object()
_KNOWN: Mapping[Wanted, tuple[str, ...]] = {
    "prompt": (
        *("question", "problem", "instruction", "query", "input", "user", "task", "goal", "prompt", "text"),
        *("content", "context", "source", "article", "document"),
    ),
    "response": (
        *("response", "answer", "output", "completion", "solution", "target", "reply", "assistant"),
        *("chosen", "label"),
    ),
    "chosen": ("chosen", "preferred", "better", "accepted", "winner", "response_a", "response_0", "answer_0"),
    "rejected": ("rejected", "dispreferred", "worse", "loser", "response_b", "response_1", "answer_1"),
}
"""What others call it; the likeliest first."""


def renamed(where: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row, with what `columns` names under our names; where it names a prompt, no other stays one.

    Args:
        where: its `file:line`, for messages.
        row: as it was read.
        columns: by our name, a key of the row or a path into it, such as `reward_model.ground_truth`.

    Raises:
        ValueError: the row has nothing there.
    """
    found = {name: _at(where, row, name, path) for name, path in columns.items()}
    if found.keys() & set(PROMPTS):
        row = {key: value for key, value in row.items() if key not in PROMPTS}
    return {**row, **found}


def _at(where: str, row: Mapping[str, Any], name: str, path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    passed: list[str] = []
    for part in path.split("."):
        inside = _inside(value, part)
        if inside is _MISSING:
            has = _shown(value)
            above = ".".join(passed)
            whose = f"{above!r} has" if above else "the row has"
            raise ValueError(f"{where}: model.data.columns.{name} is {path!r}, but {whose} {has}")
        value = inside
        passed.append(part)
    return value


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _MISSING)
    if isinstance(value, list) and re.fullmatch(r"-?\d+", part) and -len(value) <= int(part) < len(value):
        return value[int(part)]
    return _MISSING


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(map(repr, value)) or "no keys"
    return f"{len(value)} places" if isinstance(value, list) else f"{value!r}, which has no keys"


def advice(row: Mapping[str, Any], *wanted: Wanted) -> str:
    """The setting that would make a row fit, as far as what it has tells; empty where it does not.

    Args:
        row: that lacks what is wanted, or has it under names that are not known.
        wanted: what a row of its kind needs.
    """
    found: dict[str, str] = {}
    for name in wanted:
        if name in row or (name == "prompt" and "messages" in row):
            continue
        if name == "prompt" and (chat := next(_chats(row), None)) is not None:
            found[chat[0]] = chat[1]
        elif (path := _likeliest(row, _KNOWN[name], {*wanted, *found.values()} - {name})) is not None:
            found[name] = path
        else:
            return ""
    inside = ", ".join(f"{name}: {_quoted(path)}" for name, path in found.items())
    return f'"model.data.columns={{{inside}}}"' if found else ""


def prompt_advice(row: Mapping[str, Any]) -> str:
    """The settings that would make a prompt of a row that has none: the end of a sentence."""
    key = _text_key(row)
    ways = [advice(row, "prompt")]
    if key is not None:
        ways.append(f'model.data.prompt_template, for example "{example(key)}"')
    known = ", or ".join(filter(None, ways))
    return f"; set {known}" if known else "; no text or chat in it could be the prompt"


def _text_key(row: Mapping[str, Any]) -> str | None:
    """The key whose text is likely the prompt, or asks for it; None where no key has a text."""
    texts = {key: value for key, value in row.items() if key.isidentifier()}
    return _likeliest(
        {key: value for key, value in texts.items() if isinstance(value, str)}, _KNOWN["prompt"], set()
    )


def is_turned(row: Mapping[str, Any]) -> bool:
    """Whether it is a whole table as `pandas` writes one unless told otherwise: a mapping for each column."""
    for value in row.values():
        if not isinstance(value, dict) or "0" not in value:
            return False
    return bool(row)


def _likeliest(row: Mapping[str, Any], names: tuple[str, ...], taken: set[str]) -> str | None:
    texts = [path for path, value in _leaves(row) if isinstance(value, str) and value.strip()]
    free = [path for path in texts if path not in taken]
    for name in names:
        for path in free:
            if path.rpartition(".")[2].lower() == name:
                return path
    return None


def _chats(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lists of turns in a row: as what they can be read, and where they stand."""
    for path, value in _leaves(row):
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            if all(isinstance(turn.get("role"), str) and "content" in turn for turn in value):
                yield "messages", path
            elif all(isinstance(turn.get("from"), str) and "value" in turn for turn in value):
                yield "conversations", path


def _leaves(value: Mapping[str, Any], above: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(item, Mapping) and depth > 1:
            yield from _leaves(item, path, depth - 1)
        else:
            yield path, item


def _quoted(path: str) -> str:
    """As Hydra reads it in a list of keys."""
    if re.fullmatch(r"[A-Za-z_][\w.\-]*", path, re.ASCII):
        return path
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
