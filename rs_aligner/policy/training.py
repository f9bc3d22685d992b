"""One optimizer step on a global batch: Megatron's schedules, DDP and optimizer, our loss.

The denominator is counted over the whole global batch before the first forward and handed to every
micro-batch, so the micro-batches and the ranks simply add up. Megatron would divide by micro-batches
(schedules), by data-parallel ranks (DDP) and by tokens (`finalize_model_grads`): the config's
`calculate_per_token_loss` switches the first two off and `_finalize` the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig

from rs_aligner.loss import Normalization, masked_nll, response_mask
from rs_aligner.policy.runtime import Runtime
from rs_aligner.rollout import TrainingRow


@dataclass(frozen=True, slots=True)
class StepStats:
    """What an optimizer step reports.

    Attributes:
        loss: of the global batch.
        grad_norm: of the global gradient, before clipping.
        learning_rate: that the step was made with.
    """

    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows: `tokens` int64 `[B, S]`, `mask` bool `[B, S - 1]` in next-token space."""

    tokens: torch.Tensor
    mask: torch.Tensor


def micro_batches(
    rows: Sequence[TrainingRow], size: int, dp_rank: int, dp_size: int, *, multiple: int = 1
) -> list[MicroBatch]:
    """This replica's share of a global batch, rows of similar length together.

    Rows are sorted by length, cut into micro-batches of `size`, and dealt out so that every
    replica gets as many; where they do not suffice, a micro-batch without any response token
    fills the place. Lengths are padded to a `multiple` (sequence parallelism cuts them evenly).
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    chunks = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    per_rank = -(-len(chunks) // dp_size)
    chunks += [[] for _ in range(per_rank * dp_size - len(chunks))]
    return [_collate(chunk, multiple) for chunk in chunks[dp_rank::dp_size]]


def _collate(rows: Sequence[TrainingRow], multiple: int) -> MicroBatch:
    if not rows:
        width = max(2, multiple)
        return MicroBatch(
            torch.zeros(1, width, dtype=torch.long), torch.zeros(1, width - 1, dtype=torch.bool)
        )
    width = -(-max(2, *(len(row) for row in rows), 2) // multiple) * multiple
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row.prompt + row.response)
    prompt_lengths = torch.tensor([len(row.prompt) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return MicroBatch(tokens, response_mask(prompt_lengths, lengths, width))


def denominator(rows: Sequence[TrainingRow], normalization: Normalization) -> int:
    """What the global batch's loss is divided by: its sequences, or its response tokens."""
    return len(rows) if normalization == "sequence" else sum(len(row.response) for row in rows)


def _finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    finalize_model_grads(model, None, **kwargs)


class Trainer:
    """The optimizer of a model, and the step that uses it.

    Args:
        model: this rank's part of the policy.
        config: the model's Megatron config; its `finalize_model_grads_func` is set here.
        runtime: this rank's place.
        optimizer_config: Megatron's; `use_distributed_optimizer` shards the state over replicas.
    """

    def __init__(
        self, model: GPTModel, config: TransformerConfig, runtime: Runtime, optimizer_config: OptimizerConfig
    ) -> None:
        self.runtime = runtime
        self.config = config
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=optimizer_config.use_distributed_optimizer,
        )
        config.finalize_model_grads_func = _finalize
        self.ddp = DistributedDataParallel(config, ddp, model)
        with runtime.cuda_stand_in():
            self.optimizer: MegatronOptimizer = get_megatron_optimizer(optimizer_config, [self.ddp])

    def step(
        self,
        rows: Sequence[TrainingRow],
        *,
        micro_batch_size: int,
        learning_rate: float,
        normalization: Normalization = "sequence",
    ) -> StepStats:
        """One optimizer step on a global batch, the same `rows` on every rank."""
        loss = self.gradients(rows, micro_batch_size=micro_batch_size, normalization=normalization)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.runtime.cuda_stand_in():
            _, grad_norm, _ = self.optimizer.step()
        return StepStats(loss, float(grad_norm), learning_rate)

    def gradients(
        self, rows: Sequence[TrainingRow], *, micro_batch_size: int, normalization: Normalization = "sequence"
    ) -> float:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss.

        Raises:
            FloatingPointError: loss or gradient is not finite; on every rank, before any weight is touched.
        """
        multiple = self.runtime.tp_size if self.config.sequence_parallel else 1
        batches = micro_batches(
            rows, micro_batch_size, self.runtime.dp_rank, self.runtime.dp_size, multiple=multiple
        )
        divisor = denominator(rows, normalization)
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.ddp.train()
        losses = get_forward_backward_func()(
            forward_step_func=partial(self._forward, divisor=divisor, normalization=normalization),
            data_iterator=iter(batches),
            model=[self.ddp],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens.shape[1] for batch in batches),
            micro_batch_size=micro_batch_size,
            forward_only=False,
        )
        mine = self.runtime.is_last_stage and self.runtime.tp_rank == 0
        loss = torch.stack(losses).sum() if mine else torch.zeros((), device=self.runtime.device)
        finite = [torch.isfinite(buffer.grad_data.sum()) for buffer in self.ddp.buffers]
        total = torch.stack([loss, (~torch.stack(finite)).sum().to(loss.dtype)])
        dist.all_reduce(total)
        if not torch.isfinite(total[0]) or total[1] > 0:
            gradient = "not finite" if total[1] else "finite"
            raise FloatingPointError(
                f"the loss is {float(total[0])} and the gradient {gradient}; the weights were left as they "
                "were. A lower model.optim.lr or gradient_clip_val may help"
            )
        return float(total[0])

    def _forward(
        self, batches: Iterator[MicroBatch], model: Any, *, divisor: int, normalization: Normalization
    ) -> Any:
        batch = next(batches)
        device = self.runtime.device
        tokens, mask = batch.tokens.to(device), batch.mask.to(device)
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        labels = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)  # the last is masked out
        output = model(tokens, positions, None, labels=labels)

        def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            value = masked_nll(-output[:, :-1].float(), mask, divisor, normalization)
            return value, torch.zeros((), dtype=torch.int, device=device), value.detach()

        return output, loss
