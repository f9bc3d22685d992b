"""One optimizer step on a global batch: Megatron's schedules, DDP and optimizer, our losses.

`BaseTrainer` has what any loss needs, `Trainer` the policy's; the reward model's is in `pairs.py`.

The denominator is counted over the whole global batch before the first forward and handed to every
micro-batch, so the micro-batches and the ranks simply add up. Megatron would divide by micro-batches
(schedules), by data-parallel ranks (DDP) and by tokens (`finalize_model_grads`): the config's
`calculate_per_token_loss` switches the first two off and `_finalize` the third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

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

from rs_aligner.config.common import OptimConfig
from rs_aligner.loss import Normalization, masked_nll, response_mask
from rs_aligner.policy.runtime import Runtime
from rs_aligner.rollout import TrainingRow

Row = TypeVar("Row", bound=Sized)
Forward = Callable[[Any, Any], tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]
"""`f(micro_batch, model)`: the model's output, and what makes of it the sums of the micro-batch, `[K]`.

The sums are added up over the global batch; the first of them is the loss.
"""


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

    Where they do not suffice, a micro-batch without any response token fills the place. Lengths are
    padded to a `multiple` (sequence parallelism cuts them evenly).
    """
    return [_collate(chunk, multiple) for chunk in deal(rows, size, dp_rank, dp_size)]


def deal(rows: Sequence[Row], size: int, dp_rank: int, dp_size: int) -> list[list[Row]]:
    """This replica's chunks of at most `size` rows of similar length; as many as any other's, if empty."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    chunks = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    per_rank = -(-len(chunks) // dp_size)
    chunks += [[] for _ in range(per_rank * dp_size - len(chunks))]
    return chunks[dp_rank::dp_size]


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


class BaseTrainer:
    """The optimizer of a model, and the parts of a step that do not depend on the loss.

    Args:
        model: this rank's part of the model.
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

    @property
    def multiple(self) -> int:
        """What the lengths of rows must be multiples of."""
        return self.runtime.tp_size if self.config.sequence_parallel else 1

    def update(self, learning_rate: float) -> float:
        """Let the optimizer use the gradient that lies in the parameters; return its norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.runtime.cuda_stand_in():
            _, grad_norm, _ = self.optimizer.step()
        return float(grad_norm)

    def accumulate(
        self, batches: Sequence[Any], forward: Forward, *, micro_batch_size: int, num_sums: int = 1
    ) -> list[float]:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its sums, on every rank.

        Args:
            batches: this replica's micro-batches, with `tokens`, as many as any other replica's.
            forward: what is done with each.
            micro_batch_size: rows of a micro-batch, at most.
            num_sums: K of `forward`.

        Raises:
            FloatingPointError: loss or gradient is not finite; on every rank, before any weight is touched.
        """
        device = self.runtime.device

        def forward_step(batches: Iterator[Any], model: Any) -> Any:
            output, sums_of = forward(next(batches), model)

            def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                sums = sums_of(output)
                return sums[0], torch.zeros((), dtype=torch.int, device=device), sums.detach()

            return output, loss

        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.ddp.train()
        found = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[self.ddp],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens.shape[1] for batch in batches),
            micro_batch_size=micro_batch_size,
            forward_only=False,
        )
        mine = self.runtime.is_last_stage and self.runtime.tp_rank == 0
        sums = torch.stack(found).sum(0) if mine else torch.zeros(num_sums, device=device)
        finite = [torch.isfinite(buffer.grad_data.sum()) for buffer in self.ddp.buffers]
        total = torch.cat([sums, (~torch.stack(finite)).sum().to(sums.dtype)[None]])
        dist.all_reduce(total)
        if not torch.isfinite(total[0]) or total[-1] > 0:
            gradient = "not finite" if total[-1] else "finite"
            raise FloatingPointError(
                f"the loss is {float(total[0])} and the gradient {gradient}; the weights were left as they "
                "were. A lower model.optim.lr or gradient_clip_val may help"
            )
        return [float(value) for value in total[:-1]]


class Trainer(BaseTrainer):
    """The policy's optimizer step, on rows of prompt and response."""

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
        return StepStats(loss, self.update(learning_rate), learning_rate)

    def gradients(
        self, rows: Sequence[TrainingRow], *, micro_batch_size: int, normalization: Normalization = "sequence"
    ) -> float:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss."""
        batches = micro_batches(
            rows, micro_batch_size, self.runtime.dp_rank, self.runtime.dp_size, multiple=self.multiple
        )
        divisor = denominator(rows, normalization)
        forward = partial(self._forward, divisor=divisor, normalization=normalization)
        return self.accumulate(batches, forward, micro_batch_size=micro_batch_size)[0]

    def _forward(self, batch: MicroBatch, model: Any, *, divisor: int, normalization: Normalization) -> Any:
        device = self.runtime.device
        tokens, mask = batch.tokens.to(device), batch.mask.to(device)
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        labels = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)  # the last is masked out

        def sums(output: torch.Tensor) -> torch.Tensor:
            return masked_nll(-output[:, :-1].float(), mask, divisor, normalization)[None]

        return model(tokens, positions, None, labels=labels), sums


def adam(config: OptimConfig, *, dtype: torch.dtype, clip_grad: float | None) -> OptimizerConfig:
    """Megatron's optimizer config for the `model.optim` section."""
    return OptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_eps=config.eps,
        clip_grad=clip_grad or 0.0,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=config.distributed,
    )
