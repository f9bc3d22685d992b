"""From the requests that Triton merged to rows for the judge, and from scores to answers.

What is wrong with one request must not reach the others that travel with it, and what is wrong with a row
must not reach its neighbours: both are answered with NaN and the reason in `errors`. Only where nothing of a
merged batch can be read is it refused as a whole, so that a client that looks at no `errors` is told, too.

The access token is looked at here and not by Triton, which wants it on its command line, for all to see.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_aligner.remote.kserve import Arrays
from rs_aligner.reward.counters import counters_of
from rs_aligner.reward.judges import (
    Metadata,
    ServedJudge,
    TokenJudge,
    score_rows,
    takes_calls_at_once,
)
from rs_aligner.reward.protocol import JUDGE_TOKEN
from rs_aligner.reward.server.statistics import Statistics
from rs_aligner.rollout import Score, ScoreFailure
from rs_aligner.users_code import describe

TOKEN_HEADER = "triton-access-token"
"""The header in which PyTriton's own client sends its access token, too."""

Decode = Callable[[list[int]], str]


class RequestError(ValueError):
    """A request of which no row can be scored, and why."""


@dataclass(slots=True)
class _Rows:
    """The rows of one request: what can be asked of the judge, and why some cannot.

    Attributes:
        scores: one for each row; None where the judge has to be asked.
        texts: prompt, response and metadata of the rows to ask for.
        tokens: token ids and lengths instead, for a judge that takes them.
    """

    scores: list[Score | ScoreFailure | None]
    texts: list[tuple[str, str, Metadata]] = field(default_factory=list)
    tokens: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def fill(self, found: Sequence[Score | ScoreFailure]) -> None:
        """Put the judge's scores into the open places."""
        open_places = [place for place, score in enumerate(self.scores) if score is None]
        for place, score in zip(open_places, found, strict=True):
            self.scores[place] = score


class Scorer:
    """The function that PyTriton calls.

    Args:
        judge: what scores the rows.
        max_rows: most rows of one call of the judge.
        decode: how token ids become text for a judge that reads text; None refuses them.
        token: what a request has to carry in the header `triton-access-token`; None for nothing.
        max_bytes: most bytes of a request's inputs.
        statistics: where rows, failures and times are counted.
    """

    def __init__(
        self,
        judge: ServedJudge,
        max_rows: int,
        decode: Decode | None = None,
        token: str | None = None,
        max_bytes: int = 1 << 26,
        statistics: Statistics | None = None,
    ) -> None:
        self._judge = judge
        self._max_rows = max_rows
        self._decode = decode
        self._token = token
        self._max_bytes = max_bytes
        self.statistics = statistics or Statistics()
        self._fingerprint = judge.fingerprint.encode()
        # The threads of a Triton that ends and of the one after it, and of one with several at once.
        self._one_at_a_time = contextlib.nullcontext() if takes_calls_at_once(judge) else threading.Lock()
        self.takes_calls_at_once = takes_calls_at_once(judge)

    def counters(self) -> dict[str, float]:
        """What the judge itself has counted."""
        return counters_of(self._judge)

    def __call__(self, requests: Sequence[Any]) -> list[Arrays]:
        """Answer each of PyTriton's requests.

        Raises:
            RequestError: none of them can be scored; Triton answers all with the message.
        """
        with self._one_at_a_time:
            batch = [self._read(request) for request in requests]
            refusals = [rows for rows in batch if isinstance(rows, RequestError)]
            if len(refusals) == len(batch):
                self.statistics.count_refused(len(refusals))
                raise RequestError(" ".join(str(refusals[0]).split()))  # `serving` takes it from one line
            readable = [rows for rows in batch if isinstance(rows, _Rows)]
            self._ask([rows for rows in readable if rows.texts])
            for rows in readable:
                if rows.tokens is not None:
                    rows.fill(self._timed(self._score_tokens, rows.tokens))
            return [self._answer(request, rows) for request, rows in zip(requests, batch, strict=True)]

    def _ask(self, batch: list[_Rows]) -> None:
        """Score the texts of several requests together."""
        if not batch:
            return
        columns = [
            list(column) for column in zip(*(row for rows in batch for row in rows.texts), strict=True)
        ]
        scores = self._timed(self._judge.score_texts, columns)
        for rows in batch:
            rows.fill(scores[: len(rows.texts)])
            scores = scores[len(rows.texts) :]

    def _timed(self, call: Callable[..., Any], columns: Sequence[Any]) -> list[Score | ScoreFailure]:
        began = time.monotonic()
        scores = score_rows(call, columns, self._max_rows)
        self.statistics.count_call(scores, time.monotonic() - began)
        return scores

    def _score_tokens(self, tokens: Any, lengths: Any) -> Any:
        assert isinstance(self._judge, TokenJudge)
        return self._judge.score_tokens(tokens, lengths)

    def _answer(self, request: Any, rows: _Rows | RequestError) -> Arrays:
        num_rows = _num_rows(request.data)
        scores: list[Score | ScoreFailure | None]
        if isinstance(rows, RequestError):
            self.statistics.count_refused(1)
            scores = [ScoreFailure(str(rows))] * num_rows
        else:
            scores = rows.scores
        rewards = [score.reward if isinstance(score, Score) else np.nan for score in scores]
        errors = [score.reason.encode() if isinstance(score, ScoreFailure) else b"" for score in scores]
        components = [
            json.dumps(score.components).encode() if isinstance(score, Score) and score.components else b""
            for score in scores
        ]
        return {
            "rewards": np.array(rewards, dtype=np.float64)[:, None],
            "errors": _column(errors),
            "row_ids": request.data["row_ids"] if "row_ids" in request.data else _column([b""] * num_rows),
            "fingerprint": _column([self._fingerprint] * num_rows),
            "components": _column(components),
        }

    def _read(self, request: Any) -> _Rows | RequestError:
        """The request's rows, or why none of them can be scored."""
        try:
            self._admit(request)
            rows = self._rows(request.data)
        except RequestError as refusal:
            return refusal
        reasons = [score.reason for score in rows.scores if isinstance(score, ScoreFailure)]
        return RequestError(reasons[0]) if len(reasons) == len(rows.scores) else rows

    def _admit(self, request: Any) -> None:
        if self._token is not None:
            shown = str((request.parameters or {}).get(TOKEN_HEADER, ""))
            if not hmac.compare_digest(shown.encode(), self._token.encode()):
                raise RequestError(
                    f"the access token is {'wrong' if shown else 'missing'}: set remote_rm.token_file, or "
                    f"the variable {JUDGE_TOKEN}, to the token that the server was started with"
                )
        size = sum(_num_bytes(array) for array in request.data.values())
        if size > self._max_bytes:
            raise RequestError(
                f"the request has {size:,} bytes, and the server takes {self._max_bytes:,} "
                "(inference.max_request_bytes): send fewer rows, remote_rm.max_batch_size"
            )

    def _rows(self, data: Arrays) -> _Rows:
        if "prompts" in data and "responses" in data:
            metadata = data["metadata"] if "metadata" in data else _column([b"{}"] * _num_rows(data))
            return self._texts(data["prompts"], data["responses"], metadata)
        if "sentences" in data:
            nothing = _num_rows(data)
            return self._texts(_column([b""] * nothing), data["sentences"], _column([b"{}"] * nothing))
        if "tokens" in data and "sequence_lengths" in data:
            return self._tokens(data["tokens"], data["sequence_lengths"])
        raise RequestError(
            "a request needs prompts and responses (with metadata), or tokens and sequence_lengths, or "
            f"sentences; this one has {', '.join(sorted(data)) or 'nothing'}"
        )

    def _texts(self, prompts: Any, responses: Any, metadata: Any) -> _Rows:
        rows = _Rows([])
        for prompt, response, row in zip(prompts[:, 0], responses[:, 0], metadata[:, 0], strict=True):
            try:
                text = (_text("prompt", prompt), _text("response", response), _object(row))
            except ValueError as error:
                rows.scores.append(ScoreFailure(str(error)))
            else:
                rows.scores.append(None)
                rows.texts.append(text)
        return rows

    def _tokens(self, tokens: Any, sequence_lengths: Any) -> _Rows:
        """Token ids as they are, or decoded: then all of the sequence is the response.

        The contract does not say where the prompt ends.
        """
        lengths = sequence_lengths[:, 0]
        width = tokens.shape[1]
        takes_tokens = isinstance(self._judge, TokenJudge)
        if not takes_tokens and self._decode is None:
            raise RequestError(
                "this judge reads text and was sent tokens: start it with tokenizer=<folder of the policy's "
                "tokenizer>, or let the client send text (remote_rm.mode=text)"
            )
        rows = _Rows([])
        fits = (lengths >= 0) & (lengths <= width)
        for row, length, fitting in zip(tokens, lengths.tolist(), fits, strict=True):
            try:
                if not fitting:
                    raise ValueError(
                        f"sequence_lengths is {length}: must be in [0, {width}], the width of tokens"
                    )
                if not takes_tokens:
                    assert self._decode is not None
                    rows.texts.append(("", self._decode(row[:length].tolist()), {}))
                rows.scores.append(None)
            except Exception as error:  # what a tokenizer raises for ids that it does not know
                reason = str(error) if isinstance(error, ValueError) else describe(error)
                rows.scores.append(ScoreFailure(f"the tokens cannot be read: {reason}"))
        if takes_tokens:
            rows.tokens = tokens[fits], lengths[fits]
        return rows


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the {name} is not UTF-8: {error}") from None


def _object(value: bytes) -> Metadata:
    try:
        row = json.loads(_text("metadata", value))
    except ValueError as error:
        raise ValueError(f"the metadata is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"the metadata is a {type(row).__name__}, not a JSON object")
    return row


def _num_rows(data: Arrays) -> int:
    return next((len(array) for array in data.values()), 0)


def _num_bytes(array: npt.NDArray[Any]) -> int:
    return sum(map(len, array.ravel())) if array.dtype == object else array.nbytes


def _column(items: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """A `[B, 1]` array of bytes; of type object, because numpy's own bytes drop trailing zeros."""
    column = np.empty((len(items), 1), dtype=object)
    column[:, 0] = items
    return column
