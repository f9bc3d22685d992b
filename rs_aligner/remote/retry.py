"""Asking again: which failures may pass by themselves, how long to wait in between, and when to give up.

A dead, frozen or overloaded server may be back in a minute, and another one may answer meanwhile. A request
that the server refuses for what is in it will be refused again. Left out on purpose: who asks whom
(`endpoints`, `asking`), and what becomes of a row that was given up.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from rs_aligner.remote.errors import BadAnswer, TransportError

AskError = TransportError | BadAnswer
"""Why a request has no answer that can be used."""

FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0
# How long to wait while no server can be asked at all, where patience is counted in attempts.
SHORT_OUTAGE = 5.0
UNAUTHORIZED = (401, 403)
_HALVE_AFTER = 3
_TOO_MANY_REQUESTS = 429


def is_transient(error: AskError) -> bool:
    """Whether the same request may succeed later, or at another server.

    So it is with all but what the server refuses (HTTP 4xx): servers that are gone, late, out of order (5xx)
    or overloaded, and answers that are none.
    """
    if isinstance(error, BadAnswer) or error.kind != "refused" or error.status is None:
        return True
    return error.status >= 500 or error.status == _TOO_MANY_REQUESTS


def is_worth_halving(error: AskError, failures: int, *, last: bool) -> bool:
    """Whether a part of a batch may fare better alone.

    Which rows travel together is an accident, and neither a row that the server cannot take, nor one that
    takes for ever, nor one that breaks the server may cost the others their answers. Answers that are none
    are another matter: a server that gets the number of rows wrong is right by accident for some halves.

    Args:
        error: what came of the batch.
        failures: of the batch so far; errors within the server (5xx) often pass by themselves.
        last: the batch is not asked again as it is.
    """
    if isinstance(error, BadAnswer) or error.status in UNAUTHORIZED:
        return False
    if error.kind == "timeout":
        return not last  # each part may take as long again
    if not is_transient(error):
        return True
    return error.kind == "refused" and (last or failures >= _HALVE_AFTER)


def jittered(round_: int) -> float:
    """Seconds before asking for the n-th time again: doubling, half of it at random.

    Without the random part, all that one failure hit would come back at one moment, and hit again.
    """
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(round_, 16))
    return longest * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which a server wants to be asked again (RFC 9110, 10.2.3); None where it does not say."""
    said = headers.get("retry-after", "")
    with suppress(ValueError):
        seconds = float(said)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    with suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    return None


class Patience:
    """How often, or how long, one request is asked again.

    Args:
        seconds: it is given up so long after its first failure; None to count attempts.
        attempts: it is given up after so many of them, where there are no `seconds`.
    """

    def __init__(self, *, seconds: float | None, attempts: int) -> None:
        self._seconds = seconds
        self._attempts = attempts
        self._since: float | None = None
        self.failures = 0

    @property
    def outage(self) -> float:
        """Seconds to wait while there is no server to ask."""
        return SHORT_OUTAGE if self._seconds is None else self._seconds

    def failed(self, wanted: float | None = None) -> float | None:
        """Count a failure; returns how long to wait before the next attempt, None to give up.

        Args:
            wanted: seconds that the server wants to be left alone, where it said so.
        """
        self.failures += 1
        if self._since is None:
            self._since = time.monotonic()
        delay = max(jittered(self.failures - 1), wanted or 0.0)
        if self._seconds is None:
            return delay if self.failures < self._attempts else None
        left = self._since + self._seconds - time.monotonic()
        return min(delay, left) if left > 0 else None
