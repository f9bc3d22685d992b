"""Prompts and rollouts for the tests of the judge."""

from __future__ import annotations

from typing import Any

from rs_aligner.rollout import Prompt, Rollout


def row(
    response: str = "4", *, prompt: str = "2 + 2 =", tokens: int = 5, **metadata: Any
) -> tuple[Prompt, Rollout]:
    """A prompt of three tokens and a response of `tokens` tokens."""
    return (
        Prompt(id="p", text=prompt, token_ids=(1, 2, 3), metadata=metadata),
        Rollout(group=0, index=0, token_ids=tuple(range(4, 4 + tokens)), text=response, finish_reason="stop"),
    )
