"""The access token of a server: where those who ask it find the secret.

From a file or the environment, never from an override: command lines can be read by everybody on a machine.
"""

from __future__ import annotations

import os
from pathlib import Path


def read_token(key: str, file: str | None, variable: str) -> str | None:
    """The access token, without white space around it.

    Args:
        key: the config key of `file`, for messages.
        file: a file that holds the token alone; None for the variable.
        variable: of the environment.

    Returns:
        The token; None if neither is set.

    Raises:
        ValueError: the file cannot be read, or holds what cannot be a token.
    """
    if file is None:
        where, text = f"the variable {variable}", os.environ.get(variable, "")
        if not text:
            return None
    else:
        where = f"{key}={file}"
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{where} cannot be read: {error}") from None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{where} should hold one token of printable ASCII characters without spaces")
    return token
