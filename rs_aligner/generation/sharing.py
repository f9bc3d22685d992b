"""Attention of rollouts to their prompts, each held once, and to tokens of their own.

The queries of a prompt's rollouts stand side by side, as if they were positions, so that all attend to it
in one product. On a GPU one softmax goes over the scores of both parts, which takes the fewest launches. A
CPU has an operator that writes no scores to memory: there each part has its own, merged by log-sum-exps.

Left out on purpose: one operator that reads both parts, as FlashInfer and `flex_attention` have. It needs a
GPU to be written on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rs_aligner.model.attending import Rule


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which rollouts share a prompt: R rollouts, P prompts of at most W tokens.

    Attributes:
        most: rollouts of the prompt that has most.
        slots: int64 `[P * most]`, the rollout at each place beside others; None where that is its own number.
            A prompt with fewer repeats its last one, to no effect.
        back: int64 `[R]`, the place of each rollout.
        mask: float `[P, 1, W]`, minus infinity at what is out of sight, as padding is; None where
            nothing is.
    """

    most: int
    slots: torch.Tensor | None
    back: torch.Tensor | None
    mask: torch.Tensor | None

    @classmethod
    def of(cls, owners: Sequence[int], lengths: Sequence[int], like: torch.Tensor) -> Sharing:
        """The plan for rollouts in the order of their prompts.

        Args:
            owners: the number of each rollout's prompt; each has one.
            lengths: of the prompts.
            like: of the keys' type, where they are.
        """
        counts = [owners.count(p) for p in range(len(lengths))]
        most, width, device = max(counts), max(lengths), like.device
        slots = back = mask = None
        if min(counts) < most:
            starts = [sum(counts[:p]) for p in range(len(counts))]
            places = [starts[p] + min(i, counts[p] - 1) for p in range(len(counts)) for i in range(most)]
            slots = torch.tensor(places, device=device)
            back = torch.tensor(
                [owner * most + row - starts[owner] for row, owner in enumerate(owners)], device=device
            )
        if min(lengths) < width:
            ends = torch.tensor(lengths, device=device)[:, None, None]
            padding = torch.arange(width, device=device) >= ends
            mask = like.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)
        return cls(most, slots, back, mask)

    def from_places(self, firsts: Sequence[int], prompts: torch.Tensor) -> Sharing:
        """The same plan with what stands before a place of each of P prompts out of sight.

        Args:
            firsts: the places.
            prompts: `[2, heads, P, W, dim]`, their keys and values.
        """
        places = torch.arange(prompts.shape[3], device=prompts.device)
        hidden = places < torch.tensor(firsts, device=prompts.device)[:, None, None]
        mask = prompts.new_zeros(hidden.shape) if self.mask is None else self.mask
        return replace(self, mask=mask.masked_fill(hidden, -torch.inf))

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """`[heads, R, group, ...]` as `[heads, P, most * group, ...]`."""
        if self.slots is not None:
            x = x.index_select(1, self.slots)
        return x.unflatten(1, (-1, self.most)).flatten(2, 3)

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        """`[heads, P, most * group, ...]` as `[heads, R, group, ...]`."""
        x = x.unflatten(2, (self.most, -1)).flatten(1, 2)
        return x if self.back is None else x.index_select(1, self.back)


def attend_in_parts(
    query: torch.Tensor,
    prompts: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sharing: Sharing,
    rule: Rule,
) -> torch.Tensor:
    """Softmax attention to prompts and own tokens, merged; on a CPU.

    Args:
        query: `[heads, R, group, dim]`, contiguous.
        prompts: `[2, heads, P, W, dim]`, their keys and values.
        keys, values: `[heads, R, S, dim]`, the rollouts' own.
        sharing: which rollouts share a prompt.
        rule: of the layer, which bends no scores.

    Returns:
        `[heads, R, group, dim]`.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own, own_lse = flash(query, keys, values, scale=rule.scale)
    mask = None if sharing.mask is None else sharing.mask.unsqueeze(0)
    found = flash(sharing.together(query), prompts[0], prompts[1], attn_mask=mask, scale=rule.scale)
    prompt, prompt_lse = (sharing.apart(x) for x in found)
    share = torch.sigmoid(prompt_lse - own_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, prompt, share)


def attend_at_once(
    query: torch.Tensor,
    prompts: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sharing: Sharing,
    rule: Rule,
) -> torch.Tensor:
    """As `attend_in_parts`, with one softmax, for any rule; anywhere.

    The scores lie as `[heads, R, group, W + S]`. With as many rollouts at each prompt, that is
    `[heads, P, most * group, W + S]`, too, so each product writes and reads its part of them in place.
    """
    (heads, rows, group, dim), width = query.shape, prompts.shape[3]
    scores = query.new_empty(heads, rows, group, width + keys.shape[2])
    own_scores = scores[..., width:].view(heads * rows, group, -1)
    own_scores.baddbmm_(query.view(heads * rows, group, dim), _flat(keys).mT, beta=0, alpha=rule.scale)
    if rule.cap is not None:
        _bend(own_scores, rule.cap)
    _score_prompts(scores[..., :width], query, prompts[0], rule, sharing)
    probs = scores.softmax(-1)
    out = torch.bmm(probs[..., width:].view(heads * rows, group, -1), _flat(values)).view(query.shape)
    weights = sharing.together(probs[..., :width])
    if sharing.back is None:
        _flat(sharing.together(out)).baddbmm_(_flat(weights), _flat(prompts[1]))
        return out
    found = torch.bmm(_flat(weights), _flat(prompts[1])).view(*weights.shape[:3], dim)
    return out.add_(sharing.apart(found))


def _score_prompts(
    scores: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, rule: Rule, sharing: Sharing
) -> None:
    """Write the scores at the prompts, `[heads, R, group, W]`."""
    queries = sharing.together(query)
    if sharing.back is None:
        found = sharing.together(scores)
    else:
        found = scores.new_empty(*queries.shape[:3], scores.shape[3])
    _flat(found).baddbmm_(_flat(queries), _flat(keys).mT, beta=0, alpha=rule.scale)
    if rule.cap is not None:
        _bend(found, rule.cap)
    if sharing.mask is not None:
        found.add_(sharing.mask)
    if sharing.back is not None:
        scores.copy_(sharing.apart(found))


def _bend(scores: torch.Tensor, cap: float) -> None:
    """As `attending.bent`, in place."""
    scores.div_(cap).tanh_().mul_(cap)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """`[a, b, ...]` as `[a * b, ...]`, never a copy: products write through it."""
    return x.view(-1, *x.shape[2:])
