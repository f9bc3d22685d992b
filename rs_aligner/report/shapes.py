"""A rollout, or two of them, as a row of the data sets that other programs read: TRL's, OpenAI's, ShareGPT's.

| | one answer | two answers |
|---|---|---|
| `trl` | `prompt`, `completion`: texts, or messages | `prompt`, `chosen`, `rejected` |
| `openai` | `messages` | `input`, `preferred_output`, `non_preferred_output` |
| `sharegpt` | `conversations` | `conversations`, `chosen`, `rejected` |

With all answers, TRL's rows have a `label`, too: whether it was kept. A prompt that was a chat stays one,
with what its template had the answer begin with in the answer; any other is a text, which is what a user says
where the shape knows chats only. `data/shapes.py` is the way back.
Left out on purpose: images, and chats in which tools were called on the way, beyond what `messages` can hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from rs_aligner.data.chats import Message, answered, tools_of
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.rollout import PREFILLED

Format = Literal["trl", "openai", "sharegpt"]
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
_OWN_COLUMNS = ("messages", "tools", "chat_template_kwargs", PREFILLED)  # of a data row, told elsewhere


class Turn(NamedTuple):
    """A prompt and its answer; texts, or a chat whose last message is the answer.

    Attributes:
        prompt, answer: the texts.
        chat: with the answer; None where the prompt was a text.
        extras: what a chat template needs besides: `tools`, `chat_template_kwargs`.
    """

    prompt: str
    answer: str
    chat: list[Message] | None
    extras: dict[str, Any]

    @property
    def messages(self) -> list[Message]:
        """The chat, or what it is taken for: the prompt is what a user says."""
        if self.chat is not None:
            return self.chat
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


def turn_of(row: LedgerRow, *, is_chat: bool) -> Turn:
    """The prompt and the answer of a rollout.

    Args:
        row: of the ledger.
        is_chat: whether chats of data rows became prompts by the tokenizer's own template.

    Raises:
        ValueError: the data row has a chat that cannot be read.
    """
    where = f"step {row.step}, prompt {row.prompt_id}"
    if not is_chat or "messages" not in row.metadata:
        return Turn(row.prompt, row.response, None, {})
    extras = {"tools": tools_of(where, row.metadata), **_arguments(row.metadata)}
    chat = answered(where, row.metadata, row.response)
    return Turn(row.prompt, row.response, chat, {key: value for key, value in extras.items() if value})


def one(shape: Format, turn: Turn) -> dict[str, Any]:
    """A row with one answer."""
    return _ONE[shape](turn)


def two(shape: Format, better: Turn, worse: Turn) -> dict[str, Any]:
    """A row with a better and a worse answer to one prompt."""
    return _TWO[shape](better, worse)


def figures(row: LedgerRow) -> dict[str, Any]:
    """What is known of a rollout, as columns beside those of the shape; docs/after_a_run.md has them all."""
    return {
        "score": row.reward,
        "reward_dtype": row.reward_dtype,
        "components": json.dumps(row.components),
        "failure": row.failure,
        "watched": row.watched,
        "kept": row.kept,
        "reason": row.reason,
        **_places(row),
        "index": row.index,
        "finish_reason": row.finish_reason,
        "num_tokens": len(row.token_ids),
        "metadata": _metadata(row),
    }


def pair_figures(better: LedgerRow, worse: LedgerRow) -> dict[str, Any]:
    """The same of a pair."""
    return {
        "chosen_score": better.reward,
        "rejected_score": worse.reward,
        "rejected_reason": worse.reason,
        **_places(better),
        "chosen_index": better.index,
        "rejected_index": worse.index,
        "metadata": _metadata(better),
    }


def _places(row: LedgerRow) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "step": row.step,
        "group": f"{row.step}/{row.group}",
        "policy_version": row.policy_version,
    }


def _metadata(row: LedgerRow) -> str:
    """As a text: the rows of a data set must all have the same types, and users' rows need not."""
    return json.dumps({key: value for key, value in row.metadata.items() if key not in _OWN_COLUMNS})


def _arguments(metadata: Mapping[str, Any]) -> dict[str, Any]:
    key = "chat_template_kwargs"
    return {key: metadata[key]} if key in metadata else {}


def _trl(turn: Turn) -> dict[str, Any]:
    if turn.chat is None:
        return {"prompt": turn.prompt, "completion": turn.answer}
    return {"prompt": turn.chat[:-1], "completion": turn.chat[-1:], **turn.extras}


def _trl_pair(better: Turn, worse: Turn) -> dict[str, Any]:
    first, second = _trl(better), _trl(worse)
    chosen, rejected = first.pop("completion"), second["completion"]
    return {**first, "chosen": chosen, "rejected": rejected}


def _openai(turn: Turn) -> dict[str, Any]:
    return {"messages": turn.messages, **_tools(turn)}


def _openai_pair(better: Turn, worse: Turn) -> dict[str, Any]:
    return {
        "input": {"messages": better.messages[:-1], **_tools(better)},
        "preferred_output": better.messages[-1:],
        "non_preferred_output": worse.messages[-1:],
    }


def _sharegpt(turn: Turn) -> dict[str, Any]:
    return {"conversations": list(map(_said, turn.messages)), **_tools_as_text(turn)}


def _sharegpt_pair(better: Turn, worse: Turn) -> dict[str, Any]:
    return {
        "conversations": list(map(_said, better.messages[:-1])),
        "chosen": _said(better.messages[-1]),
        "rejected": _said(worse.messages[-1]),
        **_tools_as_text(better),
    }


def _said(message: Message) -> dict[str, str]:
    role = message["role"]
    return {"from": _SPEAKERS.get(role, role), "value": message["content"]}


def _tools(turn: Turn) -> dict[str, Any]:
    return {"tools": turn.extras["tools"]} if "tools" in turn.extras else {}


def _tools_as_text(turn: Turn) -> dict[str, Any]:
    return {key: json.dumps(value) for key, value in _tools(turn).items()}


_ONE: dict[Format, Callable[[Turn], dict[str, Any]]] = {"trl": _trl, "openai": _openai, "sharegpt": _sharegpt}
_TWO: dict[Format, Callable[[Turn, Turn], dict[str, Any]]] = {
    "trl": _trl_pair,
    "openai": _openai_pair,
    "sharegpt": _sharegpt_pair,
}
