"""Rows as other programs write them, as ours: TRL's, OpenAI's, ShareGPT's, verl's and NeMo-Aligner's.

| theirs | ours |
|---|---|
| TRL: `completion`; messages as `prompt`, `completion`, `chosen` | `response`; `messages`, and texts |
| TRL: chats as `chosen` and `rejected` without a prompt | what is alike as `messages`, and texts |
| OpenAI: `input`, `preferred_output`, `non_preferred_output` | `messages`, `chosen`, `rejected` |
| ShareGPT: `conversations` of `from` and `value`; `chosen`, `rejected` of such | `messages`, and texts |
| verl: messages as `prompt`; `reward_model.ground_truth` | `messages`; `answer` (theirs stay) |
| NeMo-Aligner: `input` and `output`, both texts | `prompt`, `response` (theirs stay, for a template) |

A row that has none of these is left as it is. Such rows are written by `rs-aligner dataset`
(`report/shapes.py`). Left out on purpose: pairs of texts whose prompt stands in both answers, since its
end cannot be told, and images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_BY_THEIR_NAME = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


def in_our_shape(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with our keys for what it has under theirs.

    Args:
        where: its `file:line`, for messages.
        row: as it was read.

    Raises:
        ValueError: what stands under one of their keys is not in their shape.
    """
    ours = dict(row)
    if "messages" not in ours:
        if ours.get("conversations") is not None:
            ours["messages"] = _conversation(where, ours, ours.pop("conversations"))
        elif isinstance(ours.get("prompt"), list):
            ours["messages"] = ours.pop("prompt")
        elif isinstance(ours.get("input"), dict) and set(_BY_THEIR_NAME.values()) <= set(ours):
            ours |= {"messages": [], **ours.pop("input")}
    if "completion" in ours and "response" not in ours:
        completion = ours.pop("completion")
        if isinstance(completion, str):
            ours["response"] = completion
        else:
            ours["messages"] = [*ours.get("messages", []), *_list(where, completion)]
    if isinstance(ours.get("input"), str) and isinstance(ours.get("output"), str) and "response" not in ours:
        # Their template is "{input} {output}": an answer's first token has the space in it, as in a text.
        is_apart = ours["input"][-1:].isspace() or ours["output"][:1].isspace()
        ours["response"] = ours["output"] if is_apart else f" {ours['output']}"
        if not {"prompt", "messages"} & set(ours):
            ours["prompt"] = ours["input"]
    if not {"prompt", "messages", "text"} & ours.keys() and _are_chats(
        ours.get("chosen"), ours.get("rejected")
    ):
        ours |= _apart(where, ours["chosen"], ours["rejected"])
    for key, theirs in _BY_THEIR_NAME.items():
        if key not in ours and theirs in ours:
            ours[key] = ours.pop(theirs)
        if not isinstance(ours.get(key, ""), str):
            ours[key] = _answer(where, key, ours[key])
    return ours


def as_prompt(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row with its prompt as `text` or `messages`, and a reference as `answer`; what it has stays.

    An answer behind the prompt, TRL's `completion` or the last turn of `conversations`, is no part of it.

    Args:
        where: its `file:line`, for messages.
        row: as it was read; one with `text` or `messages` is ours already.

    Raises:
        ValueError: what stands under one of their keys is not in their shape.
    """
    if "text" in row or "messages" in row:
        return row
    found: dict[str, Any] = {}
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        found["text"] = prompt
    elif isinstance(prompt, list):
        found["messages"] = prompt
    elif row.get("conversations") is not None:
        turns = _conversation(where, row, row["conversations"])
        is_answered = len(turns) > 1 and turns[-1]["role"] == "assistant"
        found["messages"] = turns[:-1] if is_answered else turns
    elif isinstance(row.get("input"), dict) and set(_BY_THEIR_NAME.values()) <= row.keys():
        found |= {"messages": [], **row["input"]}
    elif isinstance(row.get("input"), str) and isinstance(row.get("output"), str):
        found["text"] = row["input"]
    elif _are_chats(row.get("chosen"), row.get("rejected")):
        found["messages"] = _apart(where, row["chosen"], row["rejected"])["messages"]
    judged = row.get("reward_model")
    if found and isinstance(judged, Mapping) and "answer" not in row:
        truth = judged.get("ground_truth")
        found |= {} if truth is None else {"answer": truth}
    return {**found, **row}


def _conversation(where: str, row: Mapping[str, Any], turns: Any) -> list[dict[str, Any]]:
    """The turns of a chat, behind the row's `system`, where that is a text of its own."""
    found = [_turn(where, turn) for turn in _list(where, turns)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and found[0]["role"] != "system":
        return [{"role": "system", "content": system}, *found]
    return found


def _are_chats(*values: Any) -> bool:
    return all(isinstance(value, list) and len(value) > 1 for value in values)


def _apart(where: str, chosen: list[Any], rejected: list[Any]) -> dict[str, Any]:
    """Two chats as what they begin with alike, and an answer each."""
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(
            f"{where}: 'chosen' and 'rejected' are chats that differ before their last message; the prompt "
            "should be the same, or stand in 'prompt'"
        )
    turns = [_turn(where, turn) for turn in chosen[:-1]]
    return {"messages": turns, "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _turn(where: str, turn: Any) -> dict[str, Any]:
    if isinstance(turn, Mapping) and "role" in turn:  # some programs keep the name and not the shape
        return dict(turn)
    if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or "value" not in turn:
        raise ValueError(f"{where}: a turn of 'conversations' should have 'from' and 'value', not {turn!r}")
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


def _answer(where: str, key: str, value: Any) -> Any:
    """The text of an answer that is a turn, or a list of one; what is neither is refused by who reads it."""
    if not isinstance(value, list | Mapping):
        return value
    turns = value if isinstance(value, list) else [value]
    if len(turns) != 1:
        raise ValueError(
            f"{where}: {key!r} should be a text or one message, with the prompt in 'prompt', not "
            f"{len(turns)} messages"
        )
    message = _turn(where, turns[0])
    if message["role"] != "assistant" or message.get("tool_calls"):
        raise ValueError(
            f"{where}: {key!r} should be a message of the assistant with a text, not {message!r}"
        )
    return message.get("content")


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: should be a list of at least one message, not {value!r}")
    return value
