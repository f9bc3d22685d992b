"""The training objective: which tokens count, and what is minimised over them.

Everything here is in next-token space: position `t` of a row stands for predicting token `t + 1`, so a
row of `max_length` tokens has `max_length - 1` positions. The mask is made from lengths alone. Which id
ends a text or pads a batch plays no part in it, so no choice of those ids can leak padding into the loss.

The loss is a sum divided by a denominator that the caller counted over the whole global batch, before
the first backward pass. That one rule makes the loss and its gradient independent of how the batch is
cut into micro-batches and spread over ranks. The plain recipe is `masked_nll`; weights, clipped ratios and a
KL term make the others of it, by the same rules. Left out on purpose: computing log-probabilities (the
policy does that, perhaps over a sharded vocabulary) and any averaging over micro-batches or ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rs_aligner.log_ratio import MAX_LOG_RATIO, clip, in_bounds, kl_estimate

__all__ = [
    "MAX_LOG_RATIO",
    "Normalization",
    "bradley_terry",
    "clipped_surrogate",
    "clipped_tokens",
    "kl_to_reference",
    "masked_nll",
    "normalized",
    "response_mask",
]

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
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """This micro-batch's share of the global batch's mean negative log-likelihood.

    With `m_b` the response tokens of row `b` and `D` the denominator:

    - `"sequence"`: `-(1 / D) * sum_b mean_{t in m_b} log_probs[b, t]`, with `D` the number of sequences
      of the whole global batch. Every response weighs the same, however long it is. This is the
      published objective of rejection sampling in NeMo-Aligner.
    - `"token"`: `-(1 / D) * sum_b sum_{t in m_b} log_probs[b, t]`, with `D` the number of response
      tokens of the whole global batch. Every token weighs the same.

    With `weights`, row `b`'s summand is multiplied by `weights[b]`, and `D` stays a plain count. Where the
    weight is an advantage this is REINFORCE (Williams, 1992), whose gradient may push a response away.

    The shares of all micro-batches and data-parallel ranks add up to the loss of the global batch,
    whatever the split. An empty response adds zero. Sums are taken in float32 at least.

    Args:
        log_probs: float `[B, T]`, log-probability of each next token. Masked-out places may hold
            anything, NaN and infinity included: they change neither the value nor the gradient.
        mask: bool `[B, T]`, True on response tokens, as `response_mask` makes it.
        denominator: count over the whole global batch (not this micro-batch), above zero.
        normalization: `"sequence"` or `"token"`.
        weights: float `[B]`, finite, of either sign; None for 1 each.

    Returns:
        A scalar; adding such scalars gives the loss in nats.

    Raises:
        ValueError: another `normalization`, a `denominator` not above zero, a mask that is not boolean
            or not of the shape of `log_probs`, weights that are not `[B]`.
    """
    _check(mask, denominator, normalization, log_probs=log_probs)
    log_probs = _at_least_float32(log_probs)
    # Not `log_probs * mask`: NaN times zero is NaN, in the value and again in the gradient.
    nll_BT = torch.where(mask, -log_probs, 0.0)
    if weights is not None:
        nll_BT = nll_BT * _column(weights, mask, "weights")
    return normalized(nll_BT, mask, denominator, normalization)


def clipped_surrogate(
    log_probs: Tensor,
    sampled_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: float | Tensor,
    normalization: Normalization = "sequence",
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """This micro-batch's share of the clipped policy-gradient loss against the sampling policy.

    `-(1 / D) * sum_b mean_{t in m_b} min(r A_b, clip(r, 1 - clip_low, 1 + clip_high) A_b)` for `"sequence"`,
    with the sum in the place of the mean for `"token"`; `r = exp(log_probs - sampled_log_probs)` at `[b, t]`.
    As long as the policy is the one that sampled, `r` is 1 and the gradient is that of `masked_nll` with
    `A` as weights.

    Sources: Schulman et al., "Proximal policy optimization algorithms" (2017), equation 7; with a group's
    advantage, a ratio for each token and the mean over a response: Shao et al., "DeepSeekMath" (2024),
    equation 3 (GRPO); with two bounds and `"token"`: Yu et al., "DAPO" (2025).

    Args:
        log_probs: float `[B, T]`, under the policy that is trained.
        sampled_log_probs: float `[B, T]`, under the policy that sampled; no gradient flows into them.
        advantages: float `[B]`, finite, of either sign.
        mask, denominator, normalization: as in `masked_nll`, the same freedom at masked-out places included.
        clip_low, clip_high: how far the ratio may fall below and rise above 1 before a token stops counting.

    Raises:
        ValueError: as `masked_nll`, or a bound that is not above zero.
    """
    _check(mask, denominator, normalization, log_probs=log_probs, sampled_log_probs=sampled_log_probs)
    raw_BT, clipped_BT = _surrogates(log_probs, sampled_log_probs, advantages, mask, clip_low, clip_high)
    return normalized(-torch.minimum(raw_BT, clipped_BT), mask, denominator, normalization)


def clipped_tokens(
    log_probs: Tensor,
    sampled_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """The response tokens that `clipped_surrogate` clips, those without a gradient: bool `[B, T]`."""
    with torch.no_grad():
        raw_BT, clipped_BT = _surrogates(log_probs, sampled_log_probs, advantages, mask, clip_low, clip_high)
        return mask & (clipped_BT < raw_BT)


def kl_to_reference(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    mask: Tensor,
    denominator: float | Tensor,
    normalization: Normalization = "sequence",
    *,
    estimator: str = "k3",
) -> Tensor:
    """This micro-batch's share of the estimated KL divergence of the policy from a reference policy.

    `(1 / D) * sum_b mean_{t in m_b} k(d)` for `"sequence"`, with the sum in the place of the mean for
    `"token"`; `d = reference_log_probs - log_probs` at `[b, t]`, and k of the estimator:

    - `k1` (`kl`): `-d`. `k2` (`mse`): `d^2 / 2`. `k3` (`low_var_kl`): `exp(d) - d - 1`. `abs`: `|d|`.
    - One of these with a `+` behind it: its value, with the gradient of k2.

    On tokens that the policy samples, the mean of k1 and of k3 is the divergence KL(policy || reference) in
    nats a token, and so is the mean of k2 where the two are near each other. The mean of the gradients is
    another matter: that of k2 is the gradient of KL(policy || reference), that of k3 the one of the reverse,
    KL(reference || policy), and that of k1 is zero. None of this holds of tokens that were selected
    (docs/objective.md).

    The exponential goes on along its tangent beyond `MAX_LOG_RATIO`, so that the gradient stays finite and
    does not vanish.

    Sources: Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html), the estimators;
    Shao et al., "DeepSeekMath" (2024), equation 4, k3 as a term of the loss; Tang and Munos, "On a few
    pitfalls in KL divergence gradient estimation for RL" (2025), their gradients. The other names are verl's.

    Args:
        log_probs: float `[B, T]`, under the policy that is trained.
        reference_log_probs: float `[B, T]`, under the reference; no gradient flows into them.
        mask, denominator, normalization: as in `masked_nll`, the same freedom at masked-out places included.
        estimator: one of `log_ratio.KL_ESTIMATORS`, or one of those that are not k2 with a `+`.

    Raises:
        ValueError: as `masked_nll`, or another `estimator`.
    """
    _check(mask, denominator, normalization, log_probs=log_probs, reference_log_probs=reference_log_probs)
    difference_BT = _log_ratio(reference_log_probs.detach(), log_probs, mask)
    value_BT = kl_estimate(difference_BT, estimator)
    return normalized(value_BT, mask, denominator, normalization)


def _check(mask: Tensor, denominator: float | Tensor, normalization: str, **values: Tensor) -> None:
    if normalization not in ("sequence", "token"):
        raise ValueError(f'normalization must be "sequence" or "token", not {normalization!r}')
    if not denominator > 0:
        raise ValueError(f"denominator must be above zero, not {denominator}")
    for name, value_BT in values.items():
        if value_BT.dim() != 2 or value_BT.shape != mask.shape:
            raise ValueError(
                f"{name} and mask must both be [B, T], not {list(value_BT.shape)} and {list(mask.shape)}"
            )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}")


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _column(values: Tensor, mask: Tensor, name: str) -> Tensor:
    """A number for each row, `[B]`, as `[B, 1]`."""
    if values.shape != mask.shape[:1]:
        raise ValueError(f"{name} must be [B] = {list(mask.shape[:1])}, not {list(values.shape)}")
    return _at_least_float32(values).unsqueeze(1)


def _log_ratio(of: Tensor, to: Tensor, mask: Tensor) -> Tensor:
    """`of - to` on the mask, zero elsewhere."""
    return torch.where(mask, _at_least_float32(of) - _at_least_float32(to), 0.0)


def _surrogates(
    log_probs: Tensor,
    sampled_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """`r A` and `clip(r) A`, zero where masked out: `[B, T]` each."""
    if not (clip_low > 0 and clip_high > 0):
        raise ValueError(f"clip_low and clip_high must be above zero, not {clip_low} and {clip_high}")
    low_BT, beyond_BT = in_bounds(_log_ratio(log_probs, sampled_log_probs.detach(), mask))
    # The value ends at the bound; the gradient does not, since a bad response is pushed away from there, too.
    ratio_BT = low_BT.exp() * (1 + beyond_BT - beyond_BT.detach())
    advantage_BT = torch.where(mask, _column(advantages, mask, "advantages"), 0.0)
    return ratio_BT * advantage_BT, clip(ratio_BT, 1 - clip_low, 1 + clip_high) * advantage_BT


def normalized(
    values: Tensor, mask: Tensor, denominator: float | Tensor, normalization: Normalization
) -> Tensor:
    """The sum of `[B, T]`, zero where masked out, as `normalization` says, over the denominator.

    What all losses of tokens here end with; `masked_nll` says what it means.
    """
    if normalization == "token":
        return values.sum() / denominator
    num_tokens_B = mask.sum(dim=1).clamp(min=1)
    return (values.sum(dim=1) / num_tokens_B).sum() / denominator


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
