"""How the next token is chosen: filters, the random number, the choice.

Every token of every rollout has one uniform number of its own, a hash of (seed, position), and is
found by inverting the cumulative distribution. So a rollout does not depend on which others are
decoded beside it, in which order, or on which rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rs_aligner.config import LengthParams, SamplingParams

BLOCK = 64  # tokens of the vocabulary whose probabilities are summed up first
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): uint64 to well-mixed uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, such as (run seed, step, prompt position, rollout index)."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix(state + _GOLDEN + np.uint64(part % 2**64))
    return int(state[0] >> np.uint64(1))


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """One number in [0, 1) for each (seed, token position): float64 `[B]`, 53 random bits."""
    with np.errstate(over="ignore"):
        x = np.asarray(seeds, dtype=np.uint64) + _GOLDEN * (
            np.asarray(positions, dtype=np.uint64) + np.uint64(1)
        )
        return (_mix(_mix(x)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Controls:
    """How to sample. The names are the field's; `top_k=0`, `top_p=1` and `temperature=1` change nothing.

    Raises:
        ValueError: a value out of range, named with the range.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    end_strings: tuple[str, ...] = ()
    max_length: int = 256
    min_length: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature > 0, "above 0 (for the likeliest token use use_greedy=true)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is off"),
            "max_length": (self.max_length >= 1, "at least 1"),
            "min_length": (0 <= self.min_length <= self.max_length, "between 0 and max_length"),
            "end_strings": (all(self.end_strings), "without empty strings"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {wanted}")

    @classmethod
    def of(cls, sampling: SamplingParams, lengths: LengthParams) -> Controls:
        """The decoder's settings from the config's."""
        return cls(
            greedy=sampling.use_greedy,
            temperature=sampling.temperature or 1.0,  # 0 is allowed where greedy ignores it
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            end_strings=sampling.end_strings,
            max_length=lengths.max_length,
            min_length=lengths.min_length,
        )

    @property
    def inverse_temperature(self) -> float:
        """One over the temperature, at most what a float32 holds: near zero the likeliest token is left."""
        return min(1.0 / self.temperature, float(np.finfo(np.float32).max))


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make seen tokens less likely (Keskar et al., 2019): positive logits are divided, negative multiplied.

    Args:
        logits: float `[B, V]`.
        seen: bool `[B, V]`, the tokens of the prompt and of the response so far.
        penalty: above 1 discourages.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(
    logits: torch.Tensor,
    controls: Controls,
    uniform: torch.Tensor,
    log_probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: float32 `[B, V]`; minus infinity where a token must not come.
        controls: temperature, then top-k, then top-p, in that order. As elsewhere in the field, tokens
            that tie with the k-th likeliest stay, so top-k may leave more than k; top-p keeps the token
            that reaches p.
        uniform: float64 `[B]` in [0, 1).
        log_probs: the logits' log-softmax, where it is known already.

    Returns:
        int64 `[B]`. A token of probability zero is never chosen.
    """
    if controls.greedy:
        return logits.argmax(-1)
    if controls.temperature != 1.0:
        most = logits.amax(-1, keepdim=True)  # taken off first: it stays finite at any temperature
        logits, log_probs = (logits - most) * controls.inverse_temperature, None
    if 0 < controls.top_k < logits.shape[-1]:
        least = logits.topk(controls.top_k, dim=-1).values[:, -1:]
        logits, log_probs = logits.masked_fill(logits < least, -torch.inf), None
    probs = logits.softmax(-1) if log_probs is None else log_probs.exp()
    if controls.top_p < 1:
        ordered, index = probs.double().sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        dropped = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, index, before >= controls.top_p)
        probs = probs.masked_fill(dropped, 0.0)
    return _invert(probs, uniform)


def _invert(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution passes `uniform`, for weights that need not add up to 1.

    In two steps, first among blocks of the vocabulary and then within one, so that only sums of blocks are
    accumulated over the whole vocabulary; both in double precision.
    """
    vocab = probs.shape[-1]
    if vocab % BLOCK:
        probs = torch.nn.functional.pad(probs, (0, BLOCK - vocab % BLOCK))
    blocks = probs.unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(-1).double().cumsum_(-1)
    target = uniform.unsqueeze(-1) * ends[:, -1:]
    block = _first_above(ends, target)
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, BLOCK)).squeeze(1).double().cumsum_(-1)
    return (block * BLOCK + _first_above(inside, target - start)).squeeze(-1)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place where a row's cumulative weights exceed the target: int64 `[B, 1]`.

    Where rounding puts the target at or above the total, the last place that has any weight.
    """
    first = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(first, last)
