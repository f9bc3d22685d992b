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

WEIGHTS_HEADER = "x-rs-aligner-weights"
"""Of the answers that pass our guard: the word of the weights that the server took last."""


class VllmConnection:
    """Requests to one server, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        address: of the server, what `/v1` follows.
        token: that it wants to see; None for none.
        authority: a file with the certificates that are trusted, for TLS; None for the system's.

    Attributes:
        weights: the word of the weights that the server had at its last answer, where our guard tells it.
    """

    def __init__(self, address: Address, token: str | None = None, *, authority: str | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._conversation = Conversation(address, headers, authority)
        self.weights: str | None = None

    def exchange(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HTTPAnswer:
        """One request and its answer, whatever its status (`Conversation.exchange`)."""
        answer = self._conversation.exchange(method, path, timeout, body, headers)
        self.weights = answer.headers.get(WEIGHTS_HEADER)
        return answer

    def get(self, path: str, timeout: float) -> Any:
        """What the server says there; None where its answer is empty.

        Raises:
            TransportError: no answer, or another status than 200.
            BadAnswer: it is no JSON.
        """
        return _read(self.exchange("GET", path, timeout))

    def post(self, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something, in words of JSON if there are any; else as `get`."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        sent = b"" if body is None else json.dumps(body).encode()
        return _read(self.exchange("POST", path, timeout, sent, headers))

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
