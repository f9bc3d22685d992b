"""The access token of a judge: where server and client find the same secret.

From a file or the environment, never from an override: command lines can be read by everybody on a machine.
"""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_VARIABLE = "RS_ALIGNER_JUDGE_TOKEN"


def read_token(key: str, file: str | None) -> str | None:
    """The access token, without white space around it.

    Args:
        key: the config key of `file`, for messages.
        file: a file that holds the token alone; None for the variable RS_ALIGNER_JUDGE_TOKEN.

    Returns:
        The token; None if neither is set.

    Raises:
        ValueError: the file cannot be read, or holds what cannot be a token.
    """
    if file is None:
        where, text = f"the variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
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
