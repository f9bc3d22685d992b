"""The judge in the trainer's own process: no server, the same rows, answers and checks.

For notebooks, unit tests and judges that cost next to nothing. It stands where a connection to a server would
stand, so that everything around it (batches, row ids, fingerprint, what counts as a score) is the client's.
Left out on purpose: token ids, several judges at once, and a deadline for a request; `judge.time_limit` has
one for each row of a function that the config names.
"""

from __future__ import annotations

import contextlib
import json
import threading

import numpy as np

from rs_aligner.remote.kserve import Arrays
from rs_aligner.remote.triton import Offer
from rs_aligner.reward.counters import counters_of
from rs_aligner.reward.judges import ServedJudge, rows_at_once, score_rows, takes_calls_at_once
from rs_aligner.reward.protocol import bytes_column
from rs_aligner.rollout import Score, ScoreFailure

OFFER = Offer(
    inputs=frozenset({"prompts", "responses", "metadata", "row_ids"}),
    outputs=frozenset({"rewards", "errors", "row_ids", "fingerprint", "components"}),
)


class LocalJudge:
    """A judge that answers as a server does.

    Args:
        judge: which one; it is closed with this.
        max_rows: most rows of one call of the judge.
    """

    def __init__(self, judge: ServedJudge, max_rows: int) -> None:
        self._judge = judge
        self._max_rows = max_rows
        self._one_at_a_time = contextlib.nullcontext() if takes_calls_at_once(judge) else threading.Lock()

    @property
    def fingerprint(self) -> str:
        """The judge's."""
        return self._judge.fingerprint

    @property
    def rows_at_once(self) -> int | None:
        """How many rows the judge wants at once, each by itself; None for one that wants them together."""
        return rows_at_once(self._judge)

    @property
    def counters(self) -> dict[str, float]:
        """What the judge has counted."""
        return counters_of(self._judge)

    def problem(self, timeout: float) -> str | None:
        """It is always ready."""
        return None

    def offer(self, timeout: float) -> Offer:
        """The same as our server's, for texts."""
        return OFFER

    def infer(self, inputs: Arrays, timeout: float, request_id: str = "") -> Arrays:
        """Score rows."""
        prompts, responses, rows = (
            [item.decode() for item in inputs[name][:, 0].tolist()]
            for name in ("prompts", "responses", "metadata")
        )
        metadata = [json.loads(row) for row in rows]
        with self._one_at_a_time:
            scores = score_rows(self._judge.score_texts, (prompts, responses, metadata), self._max_rows)
        return {
            "rewards": np.array([[_reward(score)] for score in scores], dtype=np.float64),
            "errors": bytes_column(
                [s.reason.encode() if isinstance(s, ScoreFailure) else b"" for s in scores]
            ),
            "row_ids": inputs["row_ids"],
            "fingerprint": bytes_column([self._judge.fingerprint.encode()] * len(scores)),
            "components": bytes_column([_components(score) for score in scores]),
        }

    def abort(self) -> None:
        """End the judge: this is the only conversation that it has."""
        self._judge.close()

    close = abort


def _reward(score: Score | ScoreFailure) -> float:
    return score.reward if isinstance(score, Score) else float("nan")


def _components(score: Score | ScoreFailure) -> bytes:
    return json.dumps(score.components).encode() if isinstance(score, Score) and score.components else b""
