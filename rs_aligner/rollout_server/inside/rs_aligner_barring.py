"""Ids that may not come, barred in vLLM's process: minus infinity is their logit where a request wants it.

vLLM loads it by `--logits-processors rs_aligner_barring:Barring`. Which ids they are a variable says, which
`serve-rollouts` makes of the model's tokenizer; a request shows their word in `vllm_xargs`. They are barred
before temperature and filters, and behind the log-probabilities that are told. vLLM has two interfaces for
this, of its runner on a CPU (V1) and of its newer one on GPUs (V2), whose `allowed_token_ids` takes 1,024 ids
at most. The class has both, and only the first was run where vLLM decodes.

Left out on purpose: ids that differ from request to request.
"""

from __future__ import annotations

import functools
import os
from collections.abc import MutableSequence
from importlib import import_module
from typing import Any

import torch

VARIABLE = "RS_ALIGNER_BARRED_IDS"
"""The word, a space, and ids and ranges of them."""
KEY = "rs_aligner_barred"
"""Of `vllm_xargs`: the word, in a request that wants them barred."""


class Rows:
    """What both interfaces share, and each of their methods; `Barring` is derived from them, too.

    Args:
        vllm_config: vLLM's.
        where: the device and whether memory is pinned (V1), or the states of requests (V2).
    """

    def __init__(self, vllm_config: Any, *where: Any) -> None:
        word, _, ranges = os.environ.get(VARIABLE, "").partition(" ")
        device = where[0] if len(where) == 2 else where[0].device
        most = vllm_config.scheduler_config.max_num_seqs if len(where) == 2 else where[0].max_num_reqs
        self._word, self._barred = word, torch.tensor(ids_of(ranges), dtype=torch.int64, device=device)
        self._wanted: MutableSequence[bool] = [False] * most  # of a row of the batch (V1), or a slot (V2)
        self._on_device = torch.zeros(0, dtype=torch.bool, device=device)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Let no request through that means other ids.

        Raises:
            ValueError: it does.
        """
        word = os.environ.get(VARIABLE, "").partition(" ")[0]
        if _shown(sampling_params) not in (None, word):
            raise ValueError(f"{KEY} is not the word of the ids that this server bars")

    def is_argmax_invariant(self) -> bool:
        """Greedy tokens change, too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Who is in which row now (V1)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._wanted[row] = False
        for row, params, *_ in batch_update.added:
            self._wanted[row] = self._wants(params)
        for one, other, direction in batch_update.moved:
            is_swap = direction.name == "SWAP"
            self._wanted[one], self._wanted[other] = is_swap and self._wanted[other], self._wanted[one]
        self._place(batch_update.batch_size)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Who is in a slot from now on (V2)."""
        self._wanted[req_idx] = self._wants(sampling_params)
        return self._wanted[req_idx]

    def apply_staged_writes(self) -> None:
        """Let the device know of it (V2)."""
        self._place(len(self._wanted))

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """The logits `[B, V]`, barred in the rows that want it, in place."""
        if not any(self._wanted):
            return logits
        wanted = self._on_device if ctx is None else self._on_device[ctx.expanded_idx_mapping]
        barred = logits.index_select(1, self._barred).masked_fill_(wanted[:, None], -torch.inf)
        return logits.index_copy_(1, self._barred, barred)

    def _wants(self, params: Any) -> bool:
        return bool(self._word) and _shown(params) == self._word

    def _place(self, number: int) -> None:
        wanted = torch.tensor(self._wanted[:number], dtype=torch.bool)
        self._on_device = wanted.to(self._barred.device, non_blocking=True)


def ids_of(ranges: str) -> list[int]:
    """The ids of `3,151665-151935`."""
    pairs = [one.partition("-") for one in ranges.split(",") if one]
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]


def _shown(params: Any) -> Any:
    return (params.extra_args or {}).get(KEY)


@functools.cache
def _barring() -> type:
    interfaces = ("vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor")
    bases = [import_module(f"{one}.interface").LogitsProcessor for one in interfaces]
    return type("Barring", (Rows, *bases), {})


def __getattr__(name: str) -> Any:
    """`Barring`, made where it is asked for: vLLM's classes are in its own process only."""
    if name == "Barring":
        return _barring()
    raise AttributeError(name)
