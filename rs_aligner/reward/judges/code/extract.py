"""The program in a response, and what the row's prompt has to do with it."""

from __future__ import annotations

import ast
import re

_FENCE = re.compile(
    r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*\2[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("python", "py", "python3")


def program_in(response: str) -> str:
    """The last block that is fenced as Python, else the last fenced one, else all of the response.

    A block that is not closed goes to the end; one that is indented, as in lists, loses as much on each line.
    "" where there is nothing.
    """
    blocks = [
        (language.lower(), re.sub(f"^{indent}", "", body, flags=re.MULTILINE))
        for indent, _, language, body in _FENCE.findall(response)
    ]
    chosen = [body for language, body in blocks if language in _PYTHON] or [body for _, body in blocks]
    program = chosen[-1] if chosen else response
    return program.rstrip() if program.strip() else ""


def completed(program: str, prompt: str, entry: str) -> str:
    """A program with the code that its prompt begins with.

    What has the function that was asked for comes behind the prompt, whose imports and helpers it may use;
    what does not continues the prompt, as models do that were not made for chats.

    Args:
        program: of the response.
        prompt: code that ends within a function, or "".
        entry: the function's name.
    """
    if not prompt or "from __future__" in program:
        return program
    if re.search(rf"^(async[ \t]+)?(def|class)[ \t]+{re.escape(entry)}\b", program, re.MULTILINE):
        return f"{prompt}\n\n{program}"
    return prompt + program


def code_of_prompt(prompt: object) -> str:
    """A prompt that is code, as those of HumanEval are; "" for one that is not."""
    if not isinstance(prompt, str):
        return ""
    try:
        ast.parse(prompt)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return prompt
