"""A judge of tone: cheap, without a model, and good enough to see a policy change."""

from __future__ import annotations

import functools
from typing import Any

from rs_aligner.reward.judges.base import BadSetting, Metadata


def sentiment(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> list[float]:
    """Reward a positive tone: VADER's compound score of the response, in [-1, 1].

    Source: Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis" (2014).

    Raises:
        BadSetting: the optional package is not installed.
    """
    analyzer = _vader()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]


@functools.cache
def _vader() -> Any:
    """The analyzer, made once: it reads its lexicon from a file."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise BadSetting(
            "judge.name: 'sentiment' needs the vaderSentiment package; install rs-aligner[sentiment]"
        ) from None
    return SentimentIntensityAnalyzer()
