"""A conversation with a server of vLLM: JSON there and back, over `remote.transport`.

An answer comes whole, or as a stream of events, each of which is JSON. Left out on purpose: what is said, and
when it is said again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rs_aligner.address import Address
from rs_aligner.remote.errors import BadAnswer, TransportError
from rs_aligner.remote.events import MEDIA_TYPE, Event, events_of
from rs_aligner.remote.retry import retry_after
from rs_aligner.remote.transport import Arriving, Conversation, HTTPAnswer, in_short, message_of

WEIGHTS_HEADER = "x-rs-aligner-weights"
"""Of the answers that pass our guard: the word of the weights that the server took last. Streams have it in a
comment of each event, too, or other words there, where weights were taken since they began."""
_JSON = {"Content-Type": "application/json"}
_LAST = b"[DONE]"  # of a stream


class VllmConnection:
    """Requests to one server, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        address: of the server, what `/v1` follows.
        token: that it wants to see; None for none.
        authority: a file with the certificates that are trusted, for TLS; None for the system's.

    Attributes:
        weights: the word of the weights that the server had at its last answer, or at the last event of one
            that is streamed, where our guard tells it; none's where it took some meanwhile.
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

    @contextlib.contextmanager
    def stream(self, path: str, timeout: float, body: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
        """Ask for something in words of JSON; yields what each event of the answer says, as soon as it comes.

        The request ends with the context, whether or not its answer has.

        Raises:
            TransportError: as `get`; or the server breaks off with an error.
            BadAnswer: an event is no JSON, or they end before the last one.
        """
        sent = json.dumps(body).encode()
        with self._conversation.begin("POST", path, timeout, sent, _JSON) as answer:
            self.weights = answer.headers.get(WEIGHTS_HEADER)
            if answer.status != 200:
                raise _refused(HTTPAnswer(answer.status, answer.headers, b"".join(answer.pieces)))
            if not answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
                raise BadAnswer("the answer is no stream of events")
            yield self._said(answer)

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: vLLM ends what it is asked for then."""
        self._conversation.abort()

    def _said(self, answer: Arriving) -> Iterator[Any]:
        for event in events_of(answer.pieces):
            self.weights = _word(event)
            if event.data == _LAST:
                return
            found = _json(event.data)
            if isinstance(found, dict) and (error := found.get("error")):
                status = error.get("code") if isinstance(error, dict) else None
                raise _refused(HTTPAnswer(status if isinstance(status, int) else 500, {}, event.data))
            yield found
        raise BadAnswer("the answer ends before its last event")


def _word(event: Event) -> str | None:
    """The word in an event's comments."""
    words = [text.removeprefix(f"{WEIGHTS_HEADER} ") for text in event.comments if WEIGHTS_HEADER in text]
    return words[-1] if words else None


def _read(answer: HTTPAnswer) -> Any:
    if answer.status != 200:
        raise _refused(answer)
    return _json(answer.body) if answer.body else None


def _refused(answer: HTTPAnswer) -> TransportError:
    message = f"the server answers HTTP {answer.status}: {message_of(answer)}"
    return TransportError(message, "refused", answer.status, retry_after(answer.headers))


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {in_short(error)}") from None
