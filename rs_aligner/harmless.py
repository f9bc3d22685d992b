"""What is shown or sent made harmless: texts of models as plain text, settings without what is secret.

Whatever a model writes does nothing in a terminal or a Markdown table. Left out on purpose: HTML, which the
templates of the report escape.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$^=:@])")
_SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
_SECRET_ARGUMENT = re.compile(
    r"((?:api_?key|token|secret|password)[\"']?[=:]\s*[\"']?)[^\s,}'\"]+", re.IGNORECASE
)
_FOLDERS = re.compile(r"(?<![\w./:~])/(?:[^/\s\"',\[\]{}=:]+/)+")
NOT_TOLD = "(not told)"
_PICTURES = {**{code: 0x2400 + code for code in range(0x20)}, 0x7F: 0x2421}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, marks that turn lines around, no characters


def one_line(text: str, most: int) -> str:
    """A text on one line: line breaks and controls as pictures, no more than `most` characters.

    What has no picture (C1 controls, marks of direction and of nothing) is spelled out by its number, so that
    none of it reaches a terminal, and nothing is left out.
    """
    cut = len(text) > most
    shown = "".join(map(_shown, text[: most - 4] if cut else text))
    return f"{shown} ..." if cut else shown


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎"
    if (code := ord(character)) in _PICTURES:
        return chr(_PICTURES[code])
    if unicodedata.category(character) in _HIDDEN:
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def markdown_cell(text: str, most: int = 1000) -> str:
    """A text as a cell of a Markdown table: one line, no markup, no HTML, no link that is followed."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text, most), quote=False))


def code_span(text: str, most: int = 300) -> str:
    """A text as code in Markdown, also in a table: one line, as it is but for back quotes."""
    shown = one_line(text, most).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown.strip() else "` `"


def without_secrets(key: str, value: Any) -> Any:
    """A setting as others may see it: what is called a key, a token or a password is not told."""
    if isinstance(value, dict):
        return {name: without_secrets(name, one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_secrets("", one) for one in value]
    return NOT_TOLD if _SECRET.search(key) and isinstance(value, str) and value else value


def without_places(text: str) -> str:
    """A text, such as a command line, without the folders of this machine, and without secrets."""
    return _SECRET_ARGUMENT.sub(rf"\1{NOT_TOLD}", _FOLDERS.sub(".../", text))
