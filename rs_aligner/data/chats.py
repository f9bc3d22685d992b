"""Chats of data rows, in the forms that other programs write them, as a chat template wants them.

Content may be a text, a list of text parts, or nothing where tools are called. Left out on purpose: images
and sounds, and functions as tools (a row has their JSON schemas).
"""

from __future__ import annotations

import json
from typing import Any

from rs_aligner.rollout import PREFILLED

Message = dict[str, Any]


def check_messages(where: str, value: Any) -> list[Message]:
    """The chat, if it is one, each content a text.

    Raises:
        ValueError: it is none; with the row's file and line.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: 'messages' should be a list of at least one message, not {value!r}")
    return [_message(where, message) for message in value]


def answered(where: str, row: dict[str, Any], response: str) -> list[Message]:
    """The row's chat with a response as its last turn, for a judge that has a template of its own.

    What the policy's prompt began the answer with belongs to it.

    Raises:
        ValueError: the row has no chat that can be read.
    """
    messages = check_messages(where, row.get("messages"))
    if messages[-1]["role"] == "assistant":
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + response}]
    return [*messages, {"role": "assistant", "content": row.get(PREFILLED, "") + response}]


def tools_of(where: str, row: dict[str, Any]) -> list[Any] | None:
    """The row's `tools`, for the chat template; None without any.

    Raises:
        ValueError: they are no list of JSON schemas.
    """
    tools = row.get("tools")
    if isinstance(tools, str):  # as some data sets keep them, whose rows must all have the same shape
        tools = _parsed(tools)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: 'tools' should be a list of JSON schemas, not {tools!r}")
    return tools


def arguments_of(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row's own `chat_template_kwargs`, beside those of the config.

    Raises:
        ValueError: they are no object.
    """
    arguments = row.get("chat_template_kwargs")
    if arguments is not None and not isinstance(arguments, dict):
        raise ValueError(f"{where}: 'chat_template_kwargs' should be an object, not {arguments!r}")
    return arguments or {}


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"{where}: a message should have the texts 'role' and 'content', not {message!r}")
    kept = {key: value for key, value in message.items() if value is not None}
    calls = kept.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise ValueError(f"{where}: 'tool_calls' should be a list, not {calls!r}")
    if calls:
        kept["tool_calls"] = [_call(call) for call in calls]
    content = kept.get("content")
    if content is None and (calls or kept.get("reasoning_content")):
        content = ""  # most templates add it to other texts
    if isinstance(content, list):
        content = "\n".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where}: a message should have the texts 'role' and 'content', not {message!r}")
    return {**kept, "content": content}


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", part) if isinstance(part, dict) else part
    raise ValueError(
        f"{where}: a part of a message's content is {kind!r}; what can be read is "
        '{"type": "text", "text": ...}'
    )


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates want them; some programs write them as JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _parsed(function["arguments"])
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
