"""Rows for tokens that a model's embedding and output layer lack: how many, and what they begin as.

As `transformers` does it (`resize_token_embeddings`, `mean_resizing`): each new row is the mean of the old
ones, so a new token begins no likelier than the old ones are on average, and the logits of old tokens are as
they were (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Left out on purpose: the little noise that
it adds, for equal rows part as soon as one of their tokens is learnt; and taking rows away.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.layouts import Place

if TYPE_CHECKING:
    import torch

MULTIPLE = 64
"""What the number of rows becomes a multiple of: the same in every layout, since it is a part of the loss."""
_CHUNK = 4096  # rows read at once


def enlarged(arch: Architecture, num_ids: int) -> Architecture:
    """An architecture with a row for each token; as it is where it has them.

    Args:
        arch: of the model.
        num_ids: one more than the largest token.
    """
    if num_ids <= arch.vocab_size:
        return arch
    return replace(arch, vocab_size=-(-num_ids // MULTIPLE) * MULTIPLE)


def config_changes(arch: Architecture, source: Path) -> dict[str, Any]:
    """What the `config.json` of a model has to say other than that of the folder it came from."""
    return {} if read_architecture(source).vocab_size == arch.vocab_size else {"vocab_size": arch.vocab_size}


def read_rows(tensor: Any, num_old: int, place: Place) -> torch.Tensor:
    """A part of a table `[V, H]` that has fewer rows in its file: those rows, and their mean for others.

    Args:
        tensor: the table as its file has it, `[num_old, H]`, to be sliced.
        num_old: its rows.
        place: the rows that are wanted, of all V.
    """
    import torch

    rows = place[0]
    start, stop = min(rows.start, num_old), min(rows.stop, num_old)
    num_new = rows.stop - max(rows.start, num_old)
    old: torch.Tensor = tensor[start:stop]
    if num_new <= 0:
        return old
    total = torch.zeros(old.shape[1], dtype=torch.float64)
    for begin in range(0, num_old, _CHUNK):
        total += tensor[begin : min(begin + _CHUNK, num_old)].double().sum(0)
    mean = (total / num_old).to(old.dtype)
    return torch.cat([old, mean.expand(num_new, -1)])
