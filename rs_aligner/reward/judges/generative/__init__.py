"""A judge that is asked in words, behind any server that speaks OpenAI's chat completions."""

from rs_aligner.reward.judges.generative.judge import OpenAIJudge

__all__ = ["OpenAIJudge"]
