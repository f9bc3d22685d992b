"""Rollouts that were sampled and scored before: a run's ledger, or a file of answers with their rewards.

A row of a file has a prompt, as prompt files have it, and its answers: `"responses": [...]` with
`"rewards": [...]`, as `examples/generate.py` writes them. A reward may be null, where the judge failed. With
`"finish_reasons": [...]`, an answer that was cut at the length limit ("length") gets no end token, and with
`"reward_dtype": "float32"` rewards meet bars as numbers of that type; with `"components": [...]`, a score has
those parts. Or a row has one answer with its
`score`, as `rs-aligner dataset` writes them in any shape; successive rows of the same `group` are one. So
groups are rows, or named, and never found by comparing text. A run's ledger (its `rollouts/` folder) keeps
the very tokens that were sampled; those of a file come from the tokenizer. Left out on purpose:
log-probabilities in files, which would have to fit tokens that are made anew.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.chats import check_messages
from rs_aligner.data.prompts import row_id
from rs_aligner.data.reading import ReadingTokenizer, RowReader
from rs_aligner.data.rows import account, read_rows
from rs_aligner.data.shapes import as_prompt, in_our_shape
from rs_aligner.data_folder import is_data_folder
from rs_aligner.precision import PRECISIONS
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import LedgerRow, groups_of
from rs_aligner.rollout import FinishReason, Group, Prompt, Rollout, Score, ScoreFailure

_logger = logging.getLogger("rs_aligner")
_ANSWERS = ("responses", "rewards", "components", "finish_reasons", "reward_dtype")


def load_scored(
    sources: Sequence[str],
    tokenizer: ReadingTokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int,
) -> tuple[Group, ...]:
    """Reads scored rollouts.

    Args:
        sources: files of any format (`formats.py`), or `rollouts/` folders of runs.
        tokenizer: turns texts into tokens, and says what closes the responses of a file.
        template: a format string over a row's keys for the prompt; None for `text` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_length: rollouts of more tokens than this, prompt and response together, are left out.

    Returns:
        A group for each row of a file, and for each prompt of a ledger's step; `Prompt.row` counts them.

    Raises:
        ValueError: a row is malformed (with file and line), a ledger is of another tokenizer, or empty.
    """
    groups: list[Group] = []
    num_rollouts = num_too_long = 0
    reader = RowReader(tokenizer, template, add_bos)
    for source in sources:
        is_ledger = Path(source).is_dir() and not is_data_folder(Path(source))
        found = (
            _from_ledger(Path(source), tokenizer)
            if is_ledger
            else _from_file(source, reader, columns, has_template=template is not None)
        )
        for group in found:
            room = max_length - len(group.prompt.token_ids)
            fits = [len(rollout.token_ids) <= room for rollout in group.rollouts]
            num_rollouts, num_too_long = num_rollouts + sum(fits), num_too_long + fits.count(False)
            prompt = Prompt(
                group.prompt.id,
                group.prompt.text,
                group.prompt.token_ids,
                metadata=group.prompt.metadata,
                row=len(groups),
            )
            places = [place for place, fit in enumerate(fits) if fit]
            if places:
                rollouts = [group.rollouts[place] for place in places]
                groups.append(Group(prompt, rollouts, [group.scores[place] for place in places]))
    reader.tell()
    account(sources, "rollouts", num_rollouts, num_too_long, max_length)
    return tuple(groups)


def _from_ledger(folder: Path, tokenizer: ReadingTokenizer) -> Iterator[Group]:
    """The groups of all steps, each rollout in the first step that has it."""
    ledger = Ledger.existing(folder)
    steps = ledger.steps()
    missing = sorted(set(range(1, steps[-1])) - set(steps))
    if missing:
        _logger.warning("%s has no step %s: its rollouts are left out", folder, ", ".join(map(str, missing)))
    seen: set[tuple[Any, ...]] = set()
    num_again = 0
    for step in steps:
        new = []
        for row in ledger.read(step):
            key = _identity(row)
            if key in seen:
                num_again += 1
            else:
                seen.add(key)
                new.append(row)
        for group in groups_of(new):
            _check_tokenizer(folder, step, group.prompt, tokenizer)
            yield group
    if num_again:
        _logger.info(
            "%s: %s rollouts are there again in later steps, and are taken once", folder, f"{num_again:,}"
        )


def _identity(row: LedgerRow) -> tuple[Any, ...]:
    """What no two rollouts of a run have in common: a pool, a bank or another epoch writes one again."""
    return row.prompt_row, row.prompt_id, row.policy_version, row.index, row.seed, row.token_ids


def _check_tokenizer(folder: Path, step: int, prompt: Prompt, tokenizer: ReadingTokenizer) -> None:
    """Refuses tokens that this tokenizer would not have made of the same prompt, begin token or not."""
    bos = tokenizer.bos_id
    made, recorded = list(tokenizer.encode(prompt.text)), list(prompt.token_ids)
    made, recorded = ([i for i in ids if i != bos] for ids in (made, recorded))
    # Control tokens that a user spelled out are plain text in the prompt: the same text, but other tokens.
    if made != recorded and tokenizer.decode(made, raw=True) != tokenizer.decode(recorded, raw=True):
        raise ValueError(
            f"{folder}, step {step}: the tokens of prompt {prompt.id} are not those of this policy's "
            "tokenizer; the ledger is of a run with another one"
        )


def _from_file(
    name: str, reader: RowReader, columns: Mapping[str, str] | None, *, has_template: bool
) -> Iterator[Group]:
    items = (
        _item(where, row, reader.tokenizer, has_template)
        for where, row in _grouped(read_rows([name], columns), reader)
    )
    for (where, prompt_row, _, (row, answers)), prompt in read_batches(reader, items, "text"):
        precision = row.get("reward_dtype", "float64")
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"{where}: 'reward_dtype' is {precision!r}; known are {known}")
        rollouts = []
        for index, (response, _, _, finish_reason) in enumerate(answers):
            # A cut answer that is empty is its end token: a row without any token cannot be learnt.
            is_closed = finish_reason == "stop" or not response
            tokens = reader.response(where, prompt, response, is_closed=is_closed)
            rollouts.append(Rollout(0, index, tokens, response, finish_reason))
        scores = [
            ScoreFailure("no reward in the file")
            if reward is None
            else Score(float(reward), components, precision=precision)
            for _, reward, components, _ in answers
        ]
        told = reader.metadata(where, prompt_row, prompt)
        made = Prompt(row_id(where, row), prompt.text, prompt.token_ids, metadata=told)
        yield Group(made, rollouts, list(scores))


def _item(where: str, row: dict[str, Any], tokenizer: ReadingTokenizer, has_template: bool) -> Item:
    """The row, with its answers apart from the prompt."""
    answers = _answers(where, row, tokenizer)
    asked = {key: value for key, value in row.items() if key not in _ANSWERS}
    asked = asked if has_template else as_prompt(where, asked)
    return Item(where, asked, [text for text, *_ in answers], (row, answers))


def _grouped(
    rows: Iterable[tuple[str, dict[str, Any]]], reader: RowReader
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of groups, made of those that have one answer each."""

    def key(item: tuple[str, dict[str, Any]]) -> tuple[str, Any]:
        where, row = item
        has_one = "score" in row and "responses" not in row
        return ("group", row["group"]) if has_one and row.get("group") is not None else ("row", where)

    for _, items in groupby(rows, key):
        (where, row), *others = items
        if "score" not in row or "responses" in row:
            yield where, row
            continue
        prompt, response = _one_answer(where, row, reader)
        answered = [(response, row), *((_one_answer(at, one, reader)[1], one) for at, one in others)]
        yield (
            where,
            {
                **prompt,
                "responses": [text for text, _ in answered],
                "rewards": [one["score"] for _, one in answered],
                "components": [_parts(one.get("components")) for _, one in answered],
                "finish_reasons": [one.get("finish_reason", "stop") for _, one in answered],
            },
        )


def _one_answer(where: str, row: dict[str, Any], reader: RowReader) -> tuple[dict[str, Any], str]:
    """A row with one answer: what is of the prompt, and the answer."""
    ours = in_our_shape(where, row)
    if ours.get("prompt_id") is not None:
        ours.setdefault("id", ours["prompt_id"])
    if "response" in ours:
        if "prompt" in ours:
            ours.setdefault("text", ours.pop("prompt"))
        return ours, ours.pop("response")
    messages = check_messages(where, ours.get("messages"))
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: has a score, and neither a 'response' nor the assistant's last message")
    text = reader.answer(where, ours, messages) if messages[-1]["content"] else ""
    return {**ours, "messages": messages[:-1]}, text


def _answers(
    where: str, row: dict[str, Any], tokenizer: ReadingTokenizer
) -> list[tuple[str, float | None, dict[str, float], FinishReason]]:
    """Each answer with its reward, the parts of it, and why it ended."""
    responses, rewards = row.get("responses"), row.get("rewards")
    if not isinstance(responses, list) or not isinstance(rewards, list) or len(responses) != len(rewards):
        raise ValueError(
            f"{where}: should have 'responses' and 'rewards', lists of the same length, beside its prompt"
        )
    reasons = row.get("finish_reasons", ["stop"] * len(responses))
    known = isinstance(reasons, list) and all(reason in ("stop", "length") for reason in reasons)
    if not known or len(reasons) != len(responses):
        raise ValueError(
            f'{where}: \'finish_reasons\' should be a list of "stop" or "length", one for each response'
        )
    for response in responses:
        if not isinstance(response, str):
            raise ValueError(f"{where}: a response should be a text, not {response!r}")
        if not response and not tokenizer.eos_ids:
            raise ValueError(
                f"{where}: a response is empty, and this tokenizer has no end token to stand for it"
            )
    for reward in rewards:
        if reward is not None and not _is_number(reward):
            raise ValueError(f"{where}: a reward should be a finite number or null, not {reward!r}")
    return list(zip(responses, rewards, _components(where, row, len(responses)), reasons, strict=True))


def _components(where: str, row: dict[str, Any], number: int) -> list[dict[str, float]]:
    """The parts of each answer's score, as `rs-aligner generate` writes them; most files have none."""
    found = row.get("components", [None] * number)
    parts = [{} if one is None else one for one in found] if isinstance(found, list) else None
    if parts is None or len(parts) != number or not all(map(_are_numbers, parts)):
        raise ValueError(
            f"{where}: 'components' should be a list of objects of finite numbers, one for each response"
        )
    return [{name: float(value) for name, value in one.items()} for one in parts]


def _parts(found: Any) -> Any:
    """The components of a row with one answer: an object, or its JSON, as `rs-aligner dataset` writes it."""
    if not isinstance(found, str):
        return found
    try:
        return json.loads(found)
    except ValueError:
        return found


def _are_numbers(parts: Any) -> bool:
    return isinstance(parts, dict) and all(map(_is_number, parts.values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
