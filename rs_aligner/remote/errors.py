"""How asking a server can fail."""

from __future__ import annotations

from typing import Literal

Kind = Literal["unreachable", "timeout", "refused", "unreadable", "unknown_authority", "bad_certificate"]
UNTRUSTED: tuple[Kind, ...] = ("unknown_authority", "bad_certificate")
"""A server that may not be who it says it is. Waiting will not help, but for a new certificate."""


class TransportError(Exception):
    """A request without a usable answer; the message says why.

    Attributes:
        kind: `unreachable` (no connection, or it was cut), `timeout`, `refused` (another HTTP status than
            200), `unreadable` (an answer that is none), or the server's certificate is not good:
            `unknown_authority` or `bad_certificate` (its names or its time).
        status: the HTTP status, where there is one.
        retry_after: seconds after which the server wants to be asked again, where it said so.
    """

    def __init__(
        self, message: str, kind: Kind, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after


class BadAnswer(ValueError):
    """An answer that cannot be trusted in any row; the message says why."""
