"""What may mend it where a server cannot be asked: the keys of the config, for messages."""

from __future__ import annotations

from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.retry import UNAUTHORIZED


def hint(error: Exception, section: str, variable: str) -> str:
    """What to append to an error's message; empty where nothing is known.

    Args:
        error: of asking a server.
        section: of the config, which has `request_timeout`, `ca_file` and `token_file`.
        variable: of the environment that may hold the token.
    """
    if not isinstance(error, TransportError):
        return ""
    if error.kind == "timeout":
        return f" ({section}.request_timeout)"
    if error.kind == "unknown_authority":
        return (
            f"; set {section}.ca_file to the certificate (PEM) of the authority that signed it, if that is "
            "one of your own"
        )
    if error.status in UNAUTHORIZED:
        return (
            f"; set {section}.token_file, or the variable {variable}, to the token that the server was "
            "started with"
        )
    return ""
