"""A conversation with a server of vLLM: JSON there and back, over `remote.transport`.

Left out on purpose: what is said, and when it is said again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rs_aligner.address import Address
from rs_aligner.remote.errors import BadAnswer, TransportError
from rs_aligner.remote.retry import retry_after
from rs_aligner.remote.transport import Conversation, HTTPAnswer, in_short, message_of


class VllmConnection:
    """Requests to one server, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        address: of the server, what `/v1` follows.
        token: that it wants to see; None for none.
        authority: a file with the certificates that are trusted, for TLS; None for the system's.
    """

    def __init__(self, address: Address, token: str | None = None, *, authority: str | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._conversation = Conversation(address, headers, authority)

    def get(self, path: str, timeout: float) -> Any:
        """What the server says there; None where its answer is empty.

        Raises:
            TransportError: no answer, or another status than 200.
            BadAnswer: it is no JSON.
        """
        return _read(self._conversation.exchange("GET", path, timeout))

    def post(self, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something, in words of JSON if there are any; else as `get`."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        sent = b"" if body is None else json.dumps(body).encode()
        return _read(self._conversation.exchange("POST", path, timeout, sent, headers))

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: vLLM ends what it is asked for then."""
        self._conversation.abort()


def _read(answer: HTTPAnswer) -> Any:
    if answer.status != 200:
        message = f"the server answers HTTP {answer.status}: {message_of(answer)}"
        raise TransportError(message, "refused", answer.status, retry_after(answer.headers))
    if not answer.body:
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {in_short(error)}") from None
