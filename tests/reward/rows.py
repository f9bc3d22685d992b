"""Prompts, rollouts and ports for the tests of the judge."""

from __future__ import annotations

import socket
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
