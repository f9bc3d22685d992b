"""Judges made of others: a weighted sum, and a reward that is standardised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rs_aligner.reward.counters import added, counters_of
from rs_aligner.reward.judges.base import (
    Metadata,
    ServedJudge,
    TokenJudge,
    Tokens,
    Value,
    content_hash,
    remarks_of,
    rows_at_once,
    score_rows,
    takes_calls_at_once,
)
from rs_aligner.rollout import Score, ScoreFailure

Scores = list[Score | ScoreFailure]


class WeightedJudge:
    """The weighted sum of several judges, each of them a component of the score.

    A row that one of them gives no score has none. It takes token ids if all of them do.

    Args:
        parts: weight and judge by name.
    """

    def __init__(self, parts: Mapping[str, tuple[float, ServedJudge]]) -> None:
        self._parts = dict(parts)
        said = {name: [weight, judge.fingerprint] for name, (weight, judge) in self._parts.items()}
        self.fingerprint = content_hash("weighted", said)
        if all(isinstance(judge, TokenJudge) for _, judge in self._parts.values()):
            self.score_tokens = self._score_tokens
        self.takes_calls_at_once = all(takes_calls_at_once(judge) for _, judge in self._parts.values())
        wanted = (rows_at_once(judge) for _, judge in self._parts.values())
        self.rows_at_once = max((number for number in wanted if number is not None), default=None)
        self.remarks = [
            f"{name}: {line}" for name, (_, judge) in self._parts.items() for line in remarks_of(judge)
        ]

    @property
    def counters(self) -> dict[str, float]:
        """The sums of what the parts have counted."""
        return added(counters_of(judge) for _, judge in self._parts.values())

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """The sum, and each part's reward and components under its name."""
        calls = {name: judge.score_texts for name, (_, judge) in self._parts.items()}
        return self._sum(calls, (prompts, responses, metadata))

    def close(self) -> None:
        """Close all parts."""
        for _, judge in self._parts.values():
            judge.close()

    def _score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Value]:
        calls = {
            n: judge.score_tokens for n, (_, judge) in self._parts.items() if isinstance(judge, TokenJudge)
        }
        return self._sum(calls, (tokens, lengths))

    def _sum(self, calls: Mapping[str, Callable[..., Sequence[Value]]], columns: Sequence[Any]) -> Scores:
        found = {name: score_rows(call, columns, max(1, len(columns[0]))) for name, call in calls.items()}
        return [
            self._row({name: scores[row] for name, scores in found.items()}) for row in range(len(columns[0]))
        ]

    def _row(self, scores: Mapping[str, Score | ScoreFailure]) -> Score | ScoreFailure:
        terms: list[float] = []
        components: dict[str, float] = {}
        for name, score in scores.items():
            if isinstance(score, ScoreFailure):
                return ScoreFailure(f"{name}: {score.reason}")
            terms.append(self._parts[name][0] * score.reward)
            components[name] = score.reward
            components |= {f"{name}/{key}": value for key, value in score.components.items()}
        # Rounded once: weights of 0.7, 0.1 and 0.2 come to 1, not to a little less.
        return Score(math.fsum(terms), components)


class StandardisedJudge:
    """Another judge's reward as `(reward - mean) / std`; the reward itself is the component `raw`.

    Args:
        judge: the other judge.
        mean: of its rewards on some reference responses.
        std: their standard deviation, above 0.
    """

    def __init__(self, judge: ServedJudge, mean: float, std: float) -> None:
        self._judge, self._mean, self._std = judge, mean, std
        self.fingerprint = content_hash("standardised", judge.fingerprint, mean, std)
        self.tokenizer_folder = getattr(judge, "tokenizer_folder", None)
        self.takes_calls_at_once = takes_calls_at_once(judge)
        self.rows_at_once = rows_at_once(judge)
        self.remarks = remarks_of(judge)
        if isinstance(judge, TokenJudge):
            self.score_tokens = self._score_tokens

    @property
    def counters(self) -> dict[str, float]:
        """What the other judge has counted."""
        return counters_of(self._judge)

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """The other judge's scores, standardised."""
        return self._standardised(self._judge.score_texts, (prompts, responses, metadata))

    def close(self) -> None:
        """Close the other judge."""
        self._judge.close()

    def _score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Value]:
        assert isinstance(self._judge, TokenJudge)
        return self._standardised(self._judge.score_tokens, (tokens, lengths))

    def _standardised(self, call: Callable[..., Sequence[Value]], columns: Sequence[Any]) -> Scores:
        return [
            score
            if isinstance(score, ScoreFailure)
            else Score((score.reward - self._mean) / self._std, {**score.components, "raw": score.reward})
            for score in score_rows(call, columns, max(1, len(columns[0])))
        ]
