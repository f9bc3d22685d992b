"""A conversation with a Triton server: is the model ready, what does it take, answer this.

Speaks the KServe v2 protocol (its bodies are in `kserve`). PyTriton's own client is left out on purpose: it
is built on gevent, which does not mix with threads, and when its server is killed it waits out its whole
timeout, where a plain socket is told at once. What the arrays of an answer mean is for who asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from rs_aligner.address import Address
from rs_aligner.remote.errors import UNTRUSTED, TransportError
from rs_aligner.remote.kserve import Arrays, json_object, pack_request, unpack_answer
from rs_aligner.remote.transport import Conversation, error_text, in_short, not_http

_HEADER_LENGTH = "Inference-Header-Content-Length"
# PyTriton restricts inference to requests with this header (`TritonSecurityConfig`).
TOKEN_HEADER = "triton-access-token"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model takes and gives: the names of its inputs and outputs."""

    inputs: frozenset[str]
    outputs: frozenset[str]


class Connection(Protocol):
    """One conversation with a model."""

    def problem(self, timeout: float) -> str | None:
        """None if the model is ready, else what is wrong."""

    def offer(self, timeout: float) -> Offer:
        """What the model takes and gives."""

    def infer(self, inputs: Arrays, timeout: float, request_id: str = "") -> Arrays:
        """Ask for the model's outputs."""

    def abort(self) -> None:
        """Let whoever waits wait no longer; may come from another thread."""


class TritonConnection:
    """Requests to one model, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        address: of the server.
        model: the model's name there.
        token: what a server with restricted inference wants to see; None for none.
        called: what the server is called in messages.
        authority: a file with the certificates that are trusted, for TLS; None for the system's.
    """

    def __init__(
        self,
        address: Address,
        model: str,
        token: str | None = None,
        *,
        called: str = "server",
        authority: str | None = None,
    ) -> None:
        headers = {} if token is None else {TOKEN_HEADER: token}
        self._conversation = Conversation(address, headers, authority)
        self._model = model
        self._called = called
        self._path = f"/v2/models/{quote(model, safe='')}"

    def problem(self, timeout: float) -> str | None:
        """Ask whether the model is ready.

        Returns:
            None if it is, else what is wrong, with the models that are there as far as the server tells.

        Raises:
            TransportError: its certificate is not good, which time does not mend.
        """
        try:
            status, _, body = self._exchange("GET", f"{self._path}/ready", timeout)
        except TransportError as error:
            if error.kind in UNTRUSTED:
                raise
            return str(error)
        if status == 200:
            return None
        return f"the server answers HTTP {status}: {error_text(body)}{self._others(timeout)}"

    def offer(self, timeout: float) -> Offer:
        """What the model declares to take and to give.

        Raises:
            TransportError: no usable answer.
        """
        status, _, body = self._exchange("GET", self._path, timeout)
        if status != 200:
            raise self._refused(status, body)
        try:
            found = json_object(body)
            inputs, outputs = (
                frozenset(str(tensor["name"]) for tensor in found.get(side, []))
                for side in ("inputs", "outputs")
            )
            return Offer(inputs, outputs)
        except Exception as error:
            message = f"what the {self._called} says of itself cannot be read: {error!r}"
            raise TransportError(message, "unreadable") from error

    def infer(self, inputs: Arrays, timeout: float, request_id: str = "") -> Arrays:
        """Send one request and wait for its answer.

        Args:
            inputs: arrays by name, `[B, ...]` of numbers, or of `bytes` as objects.
            timeout: seconds for all of it, from connecting to the last byte.
            request_id: comes back with the answer if the server is Triton; an answer to another request is
                refused.

        Returns:
            All outputs of the model by name.

        Raises:
            TransportError: not reached, no answer in time, refused, or an answer that cannot be read.
        """
        packed, json_length = pack_request(inputs, request_id)
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(json_length)}
        status, header_length, body = self._exchange("POST", f"{self._path}/infer", timeout, packed, headers)
        if status != 200:
            raise self._refused(status, body)
        try:
            return unpack_answer(body, header_length, self._model, request_id)
        except Exception as error:  # whatever bytes can do to a parser, it is the answer's fault
            message = f"the {self._called}'s answer cannot be read: {in_short(error)}"
            raise TransportError(message, "unreadable") from error

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: whoever waits gets a `TransportError`."""
        self._conversation.abort()

    def _refused(self, status: int, body: bytes) -> TransportError:
        message = f"the {self._called} answers HTTP {status}: {error_text(body)}"
        return TransportError(message, "refused", status)

    def _others(self, timeout: float) -> str:
        """Name the models of a server that has not ours, if it tells."""
        with contextlib.suppress(TransportError, ValueError, TypeError, KeyError):
            status, _, body = self._exchange("POST", "/v2/repository/index", timeout)
            if status == 200:
                return f"; models there: {', '.join(model['name'] for model in json.loads(body)) or 'none'}"
            # Our own server keeps its index to itself, but carries its model in its name.
            _, _, body = self._exchange("GET", "/v2", timeout)
            return f"; the server there is called {json_object(body)['name']}"
        return ""

    def _exchange(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, int | None, bytes]:
        """One request and its answer: status, length of the JSON part if told, body."""
        answer = self._conversation.exchange(method, path, timeout, body, headers)
        length = answer.headers.get(_HEADER_LENGTH.lower())
        try:
            return answer.status, None if length is None else int(length), answer.body
        except ValueError as error:
            raise not_http(error) from error
