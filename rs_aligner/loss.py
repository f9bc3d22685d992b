"""The training objective: which tokens count, and what is minimised over them.

Everything here is in next-token space: position `t` of a row stands for predicting token `t + 1`, so a
row of `max_length` tokens has `max_length - 1` positions. The mask is made from lengths alone. Which id
ends a text or pads a batch plays no part in it, so no choice of those ids can leak padding into the loss.

The loss is a sum divided by a denominator that the caller counted over the whole global batch, before
the first backward pass. That one rule makes the loss and its gradient independent of how the batch is
cut into micro-batches and spread over ranks. Left out on purpose: computing log-probabilities (the
policy does that, perhaps over a sharded vocabulary) and any averaging over micro-batches or ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["sequence", "token"]


def response_mask(prompt_lengths: Tensor, sequence_lengths: Tensor, max_length: int) -> Tensor:
    """Marks the positions that predict a response token, the ending token included.

    Row `b` is True on `[prompt_lengths[b] - 1, sequence_lengths[b] - 1)`, so its sum is
    `sequence_lengths[b] - prompt_lengths[b]`.

    Args:
        prompt_lengths: int `[B]`, tokens of each prompt.
        sequence_lengths: int `[B]`, tokens of each prompt and response together.
        max_length: tokens a row is padded to.

    Returns:
        bool `[B, max_length - 1]`, on the device of the lengths.

    Raises:
        ValueError: the shapes or types do not fit, a prompt length is below 1, or a sequence length is
            below its prompt's or above `max_length`.
    """
    if prompt_lengths.dim() != 1 or prompt_lengths.shape != sequence_lengths.shape:
        raise ValueError(
            "prompt_lengths and sequence_lengths must both be [B], "
            f"not {list(prompt_lengths.shape)} and {list(sequence_lengths.shape)}"
        )
    if prompt_lengths.is_floating_point() or sequence_lengths.is_floating_point():
        raise ValueError(
            "prompt_lengths and sequence_lengths must be integers, "
            f"not {prompt_lengths.dtype} and {sequence_lengths.dtype}"
        )
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    for problem, is_wrong_B in (
        ("has a prompt length below 1", prompt_lengths < 1),
        ("has a sequence length below its prompt length", sequence_lengths < prompt_lengths),
        (f"has a sequence length above max_length {max_length}", sequence_lengths > max_length),
    ):
        if is_wrong_B.any():
            row = int(is_wrong_B.nonzero()[0])
            raise ValueError(
                f"row {row} {problem}: prompt length {int(prompt_lengths[row])}, "
                f"sequence length {int(sequence_lengths[row])}"
            )
    position_T = torch.arange(max_length - 1, device=prompt_lengths.device)
    first_B1, end_B1 = (prompt_lengths - 1).unsqueeze(1), (sequence_lengths - 1).unsqueeze(1)
    return (position_T >= first_B1) & (position_T < end_B1)


def masked_nll(
    log_probs: Tensor,
    mask: Tensor,
    denominator: float | Tensor,
    normalization: Normalization = "sequence",
) -> Tensor:
    """This micro-batch's share of the global batch's mean negative log-likelihood.

    With `m_b` the response tokens of row `b` and `D` the denominator:

    - `"sequence"`: `-(1 / D) * sum_b mean_{t in m_b} log_probs[b, t]`, with `D` the number of sequences
      of the whole global batch. Every response weighs the same, however long it is. This is the
      published objective of rejection sampling in NeMo-Aligner.
    - `"token"`: `-(1 / D) * sum_b sum_{t in m_b} log_probs[b, t]`, with `D` the number of response
      tokens of the whole global batch. Every token weighs the same.

    The shares of all micro-batches and data-parallel ranks add up to the loss of the global batch,
    whatever the split. An empty response adds zero. Sums are taken in float32 at least.

    Args:
        log_probs: float `[B, T]`, log-probability of each next token. Masked-out places may hold
            anything, NaN and infinity included: they change neither the value nor the gradient.
        mask: bool `[B, T]`, True on response tokens, as `response_mask` makes it.
        denominator: count over the whole global batch (not this micro-batch), above zero.
        normalization: `"sequence"` or `"token"`.

    Returns:
        A scalar; adding such scalars gives the loss in nats.

    Raises:
        ValueError: another `normalization`, a `denominator` not above zero, a mask that is not boolean
            or not of the shape of `log_probs`.
    """
    if normalization not in ("sequence", "token"):
        raise ValueError(f'normalization must be "sequence" or "token", not {normalization!r}')
    if not denominator > 0:
        raise ValueError(f"denominator must be above zero, not {denominator}")
    if log_probs.dim() != 2 or log_probs.shape != mask.shape:
        raise ValueError(
            f"log_probs and mask must both be [B, T], not {list(log_probs.shape)} and {list(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}")

    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    # Not `log_probs * mask`: NaN times zero is NaN, in the value and again in the gradient.
    nll_BT = torch.where(mask, -log_probs, 0.0)
    if normalization == "token":
        return nll_BT.sum() / denominator
    num_tokens_B = mask.sum(dim=1).clamp(min=1)
    return (nll_BT.sum(dim=1) / num_tokens_B).sum() / denominator


def bradley_terry(chosen: Tensor, rejected: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """This micro-batch's share of the global batch's mean negative log-likelihood of its preferences.

    `-(1 / D) * sum_b log sigmoid(chosen_b - rejected_b)`: the chance that the chosen answer is preferred is
    taken to be the logistic function of the difference of the rewards. Source: Bradley and Terry, "Rank
    analysis of incomplete block designs" (1952); as the loss of a reward model: Ouyang et al., "Training
    language models to follow instructions with human feedback" (2022), equation 1.

    The shares of all micro-batches and data-parallel ranks add up to the loss of the global batch.

    Args:
        chosen: float `[B]`, rewards of the better answers.
        rejected: float `[B]`, those of the worse ones.
        mask: bool `[B]`, False at places that fill up a micro-batch; they add zero, whatever stands there.
        denominator: pairs of the whole global batch (not of this micro-batch), above zero.

    Raises:
        ValueError: a `denominator` not above zero, or shapes that do not fit.
    """
    if not denominator > 0:
        raise ValueError(f"denominator must be above zero, not {denominator}")
    if chosen.dim() != 1 or not chosen.shape == rejected.shape == mask.shape:
        raise ValueError(
            "chosen, rejected and mask must all be [B], "
            f"not {list(chosen.shape)}, {list(rejected.shape)} and {list(mask.shape)}"
        )
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    # The difference is set to zero before the logarithm: NaN times zero would be NaN in the gradient.
    margins = torch.where(mask, chosen.to(dtype) - rejected.to(dtype), 0.0)
    return torch.where(mask, -torch.nn.functional.logsigmoid(margins), 0.0).sum() / denominator
