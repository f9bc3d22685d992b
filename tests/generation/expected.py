"""What plain torch says of a response's first two tokens, and whether rollouts came as often as that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rs_aligner.generation.sampling import Controls
from rs_aligner.rollout import Rollout
from tests.generation.test_sampling import p_value


@dataclass(frozen=True)
class Expected:
    """What plain torch says of the first two tokens behind a prompt, of V each.

    Attributes:
        prompt: token ids.
        first_V, second_VV: logits of the first token, and of the second behind each first one, float64.
    """

    prompt: tuple[int, ...]
    first_V: torch.Tensor
    second_VV: torch.Tensor
    _known: dict[Any, torch.Tensor] = field(default_factory=dict)  # several engines are held to the same

    def probs(self, controls: Controls, eos: Sequence[int], never: Sequence[int] = ()) -> torch.Tensor:
        """`[V, V + 1]`: the probability of each two tokens, and in the last column of one that ends."""
        key = controls, tuple(eos), tuple(never)
        if key not in self._known:
            self._known[key] = self._probs(*key)
        return self._known[key]

    def _probs(self, controls: Controls, eos: Sequence[int], never: Sequence[int]) -> torch.Tensor:
        size = len(self.first_V)
        seen_V = torch.zeros(1, size, dtype=torch.bool)
        seen_V[0, list(self.prompt)] = True
        bars = [[*never, *(eos if length < controls.min_length else ())] for length in (0, 1)]
        first_V = next_probs(self.first_V[None], seen_V, controls, bars[0])[0]
        second_VV = next_probs(self.second_VV, seen_V | torch.eye(size, dtype=torch.bool), controls, bars[1])
        found = torch.zeros(size, size + 1, dtype=torch.float64)
        found[:, :-1] = first_V[:, None] * second_VV
        found[list(eos), :-1], found[list(eos), -1] = 0.0, first_V[list(eos)]
        return found


def next_probs(
    logits_BV: torch.Tensor, seen_BV: torch.Tensor, controls: Controls, barred: Sequence[int]
) -> torch.Tensor:
    """What follows with which probability, step by step: penalty, bars, temperature, top-k, top-p."""
    penalty = controls.repetition_penalty
    penalized_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = torch.where(seen_BV, penalized_BV, logits_BV)
    logits_BV[:, list(barred)] = -torch.inf
    ordered_BV, index_BV = (logits_BV / controls.temperature).sort(-1, descending=True)
    if controls.top_k:
        ordered_BV[:, controls.top_k :] = -torch.inf
    probs_BV = ordered_BV.softmax(-1)
    probs_BV[probs_BV.cumsum(-1) - probs_BV >= controls.top_p] = 0.0
    return torch.zeros_like(probs_BV).scatter_(-1, index_BV, probs_BV / probs_BV.sum(-1, keepdim=True))


def fits(found: Sequence[Rollout], probs: torch.Tensor) -> float:
    """The p-value of the first two tokens; outcomes that are rarely expected are counted together."""
    counts = torch.zeros_like(probs)
    for one in found:
        counts[one.token_ids[0], one.token_ids[1] if len(one.token_ids) > 1 else -1] += 1
    common = probs * len(found) >= 10
    seen, wanted = counts[common].tolist(), probs[common].tolist()
    seen.append(len(found) - sum(seen))
    wanted.append(max(1 - sum(wanted), 0.0))
    assert not counts[probs == 0].any(), "a token came that cannot"
    if wanted[-1] * len(found) < 5:
        seen[0], wanted[0] = seen[0] + seen.pop(), wanted[0] + wanted.pop()
    return p_value(np.array(seen), wanted)
