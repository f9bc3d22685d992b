"""Which tokens may come next: not ids that the tokenizer lacks, and none that ends a response too early.

A model's vocabulary can be larger than its tokenizer's: it is padded, or has holes. Such ids have no text, so
nobody could see them in a response.

Left out on purpose: which ids these are (whoever builds the decoder knows the tokenizer), and filters such as
top-k, which depend on the logits (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

NEVER, LATE, ALWAYS = 0, 1, 2  # as in kernels/choose.h


def check_allowed(allowed: torch.Tensor | None, vocab_size: int) -> torch.Tensor | None:
    """The mask of ids that may be sampled, on the CPU; None where that is all of them.

    Args:
        allowed: bool `[V]`, or None for all.
        vocab_size: V, the number of the model's ids.

    Raises:
        ValueError: the mask is no bool `[V]`, or allows nothing.
    """
    if allowed is None:
        return None
    if allowed.dtype != torch.bool or allowed.shape != (vocab_size,):
        raise ValueError(
            f"the mask of ids that may be sampled is {allowed.dtype} {tuple(allowed.shape)}: it should be "
            f"bool ({vocab_size},), one for each id of the model"
        )
    if not allowed.any():
        raise ValueError(
            f"none of the model's {vocab_size} ids may be sampled: is the tokenizer that of another model?"
        )
    return None if allowed.all() else allowed.cpu()


class AllowedTokens:
    """Which tokens may come, by how long the response is.

    Args:
        vocab_size: V.
        eos_ids: the tokens that end a response.
        min_length: in shorter responses these do not come.
        allowed: bool `[V]`, the ids that may be sampled at all; None for all.

    Attributes:
        kinds: uint8 `[V]`: `NEVER`, `LATE` (once a response has `min_length` tokens) or `ALWAYS`.

    Raises:
        ValueError: an end token that the model does not have, or no token may come.
    """

    def __init__(
        self, vocab_size: int, eos_ids: Sequence[int], min_length: int, allowed: torch.Tensor | None = None
    ) -> None:
        unknown = [token for token in eos_ids if not 0 <= token < vocab_size]
        if unknown:
            raise ValueError(f"end token {unknown[0]} is none of the model's {vocab_size} ids")
        allowed = check_allowed(allowed, vocab_size)
        self.min_length = min_length
        self.kinds = np.full(vocab_size, ALWAYS, dtype=np.uint8)
        if min_length > 0:
            self.kinds[list(eos_ids)] = LATE
        if allowed is not None:
            self.kinds[~allowed.numpy()] = NEVER
        if not (self.kinds == ALWAYS).any():
            raise ValueError(
                f"length_params.min_length={min_length}: no token may come before that, since each "
                f"of the {int((self.kinds == LATE).sum())} that may be sampled ends a response; set it to 0"
            )
        self._never, self._late = ((self.kinds == kind).any() for kind in (NEVER, LATE))
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def restrict(self, logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits with minus infinity where a token must not come; the very same tensor where all may.

        Args:
            logits: float `[B, V]`.
            lengths: int `[B]` or `[1]`, on the CPU: tokens of the responses so far.
        """
        short = lengths < self.min_length
        if not (self._never or (self._late and short.any())):
            return logits
        if logits.device not in self._on_device:
            self._on_device[logits.device] = torch.from_numpy(self.kinds).to(logits.device)
        bar = torch.where(short, ALWAYS, LATE).unsqueeze(1).to(logits.device)
        return logits.masked_fill(self._on_device[logits.device] < bar, -torch.inf)
