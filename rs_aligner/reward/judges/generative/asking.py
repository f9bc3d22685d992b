"""One question to the server, until there is an answer or no hope of one: a `remote.asking.Service`.

What goes wrong is the row's or the server's. A server that is gone is waited for (`remote.endpoints`), and
one that is asked too much gets the time that it wants. A row that takes too long, is refused, or makes the
server fail again and again while it answers otherwise, fails alone. Left out on purpose: streaming.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.config.openai_judge import ScoreConfig
from rs_aligner.remote.asking import PROBE_SECONDS
from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.errors import UNTRUSTED, BadAnswer, TransportError
from rs_aligner.remote.queue import Waiting
from rs_aligner.remote.retry import UNAUTHORIZED, AskError, jittered, retry_after
from rs_aligner.remote.transport import Conversation, HTTPAnswer, message_of
from rs_aligner.reward.judges.generative.completion import (
    Completion,
    NoVerdict,
    read_completion,
    usage_of,
)
from rs_aligner.reward.judges.generative.pace import Pace
from rs_aligner.reward.judges.generative.verdicts import Verdict, read_verdict
from rs_aligner.rollout import LATE, ScoreFailure

_logger = logging.getLogger("rs_aligner")

Result = Verdict | ScoreFailure
_NO_LIMIT = 86_400.0
_COUNTED = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "retries",
    "rate_limited_requests",
    "timed_out_requests",
    "unreadable_answers",
)
_LATER = (429, 503)
_AWAY = (502, 503, 504)  # nobody behind a gateway, or a model that is being loaded
_PASSING = (408, 425)  # beside 5xx: statuses that may be another at the next try
_SPENT = b"insufficient_quota"  # a 429 that no waiting mends


@dataclass(slots=True, eq=False)
class Question:
    """What is asked, how the answer is read, and how it went so far.

    Attributes:
        fields: of the request.
        reading: how a verdict is read.
        failures: answers that were errors of the server's, or none.
        holds: how often the server wanted to be asked later, and did not say when.
        held_since: when it first did; None if it did not.
    """

    fields: Mapping[str, Any]
    reading: ScoreConfig
    failures: int = 0
    holds: int = 0
    held_since: float | None = None
    body: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.body = json.dumps(self.fields).encode()


class Counters:
    """What asking has cost. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))

    def add(self, **numbers: int) -> None:
        """Count further ones."""
        with self._lock:
            self._counted.update(numbers)

    def all(self) -> dict[str, float]:
        """The numbers so far."""
        with self._lock:
            return dict(self._counted)


class Chat:
    """A server of chat completions.

    Args:
        pace: when a request may begin.
        time_limit: seconds of a request; None for no limit.
        retries: as `OpenAIConfig.retries`.
        give_up_after: as `OpenAIConfig.give_up_after`.
        secret: the token, which no message may show; None for none.
    """

    def __init__(
        self, pace: Pace, *, time_limit: float | None, retries: int, give_up_after: float, secret: str | None
    ) -> None:
        self._pace, self._limit, self._secret = pace, time_limit, secret
        self._retries, self._give_up_after = retries, give_up_after
        self._said_held = False
        self.counters = Counters()

    def try_out(self, endpoint: Endpoint[Conversation], link: Conversation, ready_timeout: float) -> None:
        """Whether there is a server that answers at all."""
        answer = link.exchange("GET", "/models", min(ready_timeout, PROBE_SECONDS))
        if answer.status in _AWAY:
            raise self._refused(answer)

    def ask(
        self,
        endpoint: Endpoint[Conversation],
        link: Conversation,
        batch: Sequence[Waiting[Question, Result]],
    ) -> list[Result]:
        """The verdict on the only question of a batch."""
        [waiting] = batch
        question = waiting.row
        try:
            return [read_verdict(self.complete(link, question), question.reading)]
        except NoVerdict as error:
            self.counters.add(unreadable_answers=1)
            return [ScoreFailure(str(error))]
        except TransportError as error:
            return [self._failed(endpoint, link, question, error)]
        except BadAnswer as error:
            return [self._again(question, str(error))]

    def models(self, link: Conversation) -> list[str]:
        """The names of the models there, as far as the server tells."""
        with suppress(TransportError, ValueError, KeyError, TypeError, RecursionError):
            answer = link.exchange("GET", "/models", PROBE_SECONDS)
            return [str(one["id"]) for one in json.loads(answer.body)["data"]]
        return []

    def complete(self, link: Conversation, question: Question) -> Completion:
        """Ask once, or later where the server wants that.

        Raises:
            TransportError, BadAnswer, NoVerdict: there is no completion.
        """
        while True:
            self._pace.wait()
            self.counters.add(requests=1)
            answer = link.exchange(
                "POST",
                "/chat/completions",
                _NO_LIMIT if self._limit is None else self._limit,
                question.body,
                {"Content-Type": "application/json"},
            )
            if answer.status == 200:
                return self._counted(answer)
            if not self._is_held(answer):
                raise self._refused(answer)
            self.counters.add(rate_limited_requests=1)
            self._hold(question, answer)

    def explained(self, endpoint: Endpoint[Conversation], error: AskError) -> str:
        """With its address, and the key that may mend it."""
        hint = ""
        if isinstance(error, TransportError) and error.status in UNAUTHORIZED:
            hint = "; see judge.kwargs.token_file and judge.kwargs.token_variable"
        elif isinstance(error, TransportError) and error.status == 404:
            hint = "; see judge.kwargs.url and judge.kwargs.model"
        elif isinstance(error, TransportError) and error.kind == "timeout":
            hint = " (judge.time_limit)"
        elif isinstance(error, TransportError) and error.kind == "unknown_authority":
            hint = "; set judge.kwargs.ca_file to the certificate (PEM) of an authority of your own"
        return f"{endpoint.url}: {error}{hint}"

    def failure(self, reason: str) -> Result:
        """Never a number."""
        return ScoreFailure(reason)

    def _counted(self, answer: HTTPAnswer) -> Completion:
        """The completion in an answer; what it cost counts whatever it is worth."""
        try:
            usage = usage_of(json.loads(answer.body))
        except (ValueError, RecursionError):
            usage = {}
        self.counters.add(**usage)
        return read_completion(answer.body)

    def _is_held(self, answer: HTTPAnswer) -> bool:
        """Whether the server wants to be asked later."""
        if answer.status not in _LATER or _SPENT in answer.body:
            return False
        return answer.status == 429 or retry_after(answer.headers) is not None

    def _hold(self, question: Question, answer: HTTPAnswer) -> None:
        """Let all requests wait as long as the server wants.

        Raises:
            TransportError: that is too long.
        """
        now = time.monotonic()
        question.held_since = now if question.held_since is None else question.held_since
        said = retry_after(answer.headers)
        seconds = jittered(question.holds) if said is None else said
        question.holds += said is None  # so that it is asked ever less often
        if now + seconds > question.held_since + self._give_up_after:
            later = f"{self._refused(answer)}; it wants to be asked again in {seconds:.3g} s"
            raise TransportError(f"{later}, after judge.kwargs.give_up_after", "refused", answer.status)
        if not self._said_held:
            self._said_held = True
            _logger.info("the judge's server wants to be asked less: all wait %.3g s (said once)", seconds)
        self._pace.hold(seconds)

    def _refused(self, answer: HTTPAnswer) -> TransportError:
        said = message_of(answer)
        if self._secret:
            said = said.replace(self._secret, "***")
        if 300 <= answer.status < 400 and "location" in answer.headers:
            said = f"it sends on to {answer.headers['location']}, which is not followed"
        return TransportError(f"the server answers HTTP {answer.status}: {said}", "refused", answer.status)

    def _failed(
        self, endpoint: Endpoint[Conversation], link: Conversation, question: Question, error: TransportError
    ) -> ScoreFailure:
        """What comes of a question without an answer, if it is the question's fault.

        Raises:
            TransportError, BadAnswer: it is not, or may be asked again.
        """
        status = error.status or 0
        if error.kind == "refused" and status not in _AWAY:
            if status < 500 and status not in _PASSING:
                return ScoreFailure(self.explained(endpoint, error))
            return self._again(question, str(error))
        if error.kind in UNTRUSTED:
            raise error
        try:
            self.try_out(endpoint, link, PROBE_SECONDS)
        except TransportError:
            raise error from None  # it answers nobody: it is waited for
        if error.kind == "timeout":
            self.counters.add(timed_out_requests=1)
            assert self._limit is not None
            return ScoreFailure(f"the judge took more than {self._limit:g} s over this row {LATE}")
        return self._again(question, str(error))

    def _again(self, question: Question, why: str) -> ScoreFailure:
        """Let it be asked again, unless that was done often enough.

        Raises:
            BadAnswer: to be asked again; the server is there for others.
        """
        question.failures += 1
        if question.failures <= self._retries:
            self.counters.add(retries=1)
            raise BadAnswer(why)
        return ScoreFailure(f"{why} (judge.kwargs.retries)")
