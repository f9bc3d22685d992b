"""What a model does to embeddings as they come in and to logits as they go out, in training and decoding.

Left out on purpose: embedding and output layer themselves, which are Megatron's.
"""

from __future__ import annotations

import torch

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.attending import bent


def scaled_embedding(arch: Architecture, hidden: torch.Tensor) -> torch.Tensor:
    """What layers are given of what comes out of the embedding, `[..., H]`.

    The factor is rounded to the type of the weights, as `transformers` does it.
    """
    if arch.scales.embedding == 1:
        return hidden
    return hidden * float(torch.tensor(arch.scales.embedding, dtype=hidden.dtype))


def finished_logits(arch: Architecture, logits: torch.Tensor) -> torch.Tensor:
    """The model's logits, `[..., V]`, from what its output layer puts out."""
    if arch.scales.logits != 1:
        logits = logits * arch.scales.logits
    return logits if arch.scales.logit_cap is None else bent(logits, arch.scales.logit_cap)
