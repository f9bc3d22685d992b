"""One optimizer step on a global batch: Megatron's schedules, DDP and optimizer, our losses.

`BaseTrainer` has what any loss needs, `Trainer` the policy's; the reward model's is in `pairs.py`. How rows
become micro-batches is in `batches.py`.

The denominator is counted over the whole global batch before the first forward and handed to every
micro-batch, so the micro-batches and the ranks simply add up. Megatron would divide by micro-batches
(schedules), by data-parallel ranks (DDP) and by tokens (`finalize_model_grads`): the config's
`calculate_per_token_loss` switches the first two off and `_finalize` the third.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

from rs_aligner.config import OptimConfig
from rs_aligner.config.objective import PLAIN, ObjectiveConfig
from rs_aligner.loss import Normalization, clipped_surrogate, clipped_tokens, kl_to_reference, masked_nll
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import MicroBatch, denominator, micro_batches
from rs_aligner.rollout import TrainingRow

_logger = logging.getLogger("rs_aligner")

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
        figures: what the objective adds, where its terms play a part. `kl`: the estimated divergence from the
            reference policy, mean over the response tokens that have one, in nats; `clip_fraction`: share of
            the response tokens with a ratio that were clipped. Both before the step.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    figures: dict[str, float] = field(default_factory=dict)


def _finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    finalize_model_grads(model, None, **kwargs)


class BaseTrainer:
    """The optimizer of a model, and the parts of a step that do not depend on the loss.

    Args:
        model: this rank's part of the model.
        config: the model's Megatron config; its `finalize_model_grads_func` is set here.
        runtime: this rank's place.
        optimizer_config: Megatron's; `use_distributed_optimizer` shards the state over replicas.
        decay_norms_and_biases: whether weight decay takes these, too, and not matrices only.
    """

    def __init__(
        self,
        model: GPTModel,
        config: TransformerConfig,
        runtime: Runtime,
        optimizer_config: OptimizerConfig,
        *,
        decay_norms_and_biases: bool = False,
    ) -> None:
        self.runtime = runtime
        self.config = config
        self._has_told = False
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=optimizer_config.use_distributed_optimizer,
        )
        config.finalize_model_grads_func = _finalize
        self.ddp = DistributedDataParallel(config, ddp, model)
        self._weight_decay, self._decays_all = optimizer_config.weight_decay, decay_norms_and_biases
        with runtime.cuda_stand_in():
            self.optimizer: MegatronOptimizer = get_megatron_optimizer(optimizer_config, [self.ddp])

    @property
    def multiple(self) -> int:
        """What the lengths of rows must be multiples of."""
        return self.runtime.tp_size if self.config.sequence_parallel else 1

    def _use_threads(self, tokens: int) -> None:
        """Torch's threads for micro-batches of so many tokens at most; the first such number is told."""
        used, most = self.runtime.use_threads(self.ddp, tokens), self.runtime.threads.most
        if used is not None and not self._has_told and self.runtime.rank == 0 and most > 1:
            why = "" if used == most else ": one is kept to for so little work"
            _logger.info("training: %d of %d threads%s", used, most, why)
        self._has_told = True

    def update(self, learning_rate: float) -> float:
        """Let the optimizer use the gradient that lies in the parameters; return its norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            # Megatron marks 1-D tensors and biases with a factor of 0, which only its own scheduler reads.
            group["weight_decay"] = self._weight_decay * (1.0 if self._decays_all else group["wd_mult"])
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

        self._use_threads(max(batch.tokens.numel() for batch in batches))
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
    """The policy's optimizer step, on rows of prompt and response.

    Rows with the sampler's log-probabilities have the clipped surrogate for a loss, others the weighted
    negative log-likelihood; rows with a reference's have the KL term besides. All may share a batch.

    Args:
        model, config, runtime, optimizer_config, decay_norms_and_biases: as `BaseTrainer`.
        objective: its `clip` and `kl`. With `kl` 0 a reference is only measured.
    """

    def __init__(
        self,
        model: GPTModel,
        config: TransformerConfig,
        runtime: Runtime,
        optimizer_config: OptimizerConfig,
        objective: ObjectiveConfig = PLAIN,
        *,
        decay_norms_and_biases: bool = False,
    ) -> None:
        super().__init__(
            model, config, runtime, optimizer_config, decay_norms_and_biases=decay_norms_and_biases
        )
        self.objective = objective

    def step(
        self,
        rows: Sequence[TrainingRow],
        *,
        micro_batch_size: int,
        learning_rate: float,
        normalization: Normalization = "sequence",
    ) -> StepStats:
        """One optimizer step on a global batch, the same `rows` on every rank."""
        loss, figures = self._accumulate(rows, micro_batch_size, normalization)
        return StepStats(loss, self.update(learning_rate), learning_rate, figures)

    def gradients(
        self, rows: Sequence[TrainingRow], *, micro_batch_size: int, normalization: Normalization = "sequence"
    ) -> float:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss."""
        return self._accumulate(rows, micro_batch_size, normalization)[0]

    def _accumulate(
        self, rows: Sequence[TrainingRow], micro_batch_size: int, normalization: Normalization
    ) -> tuple[float, dict[str, float]]:
        """The gradient, as `gradients` leaves it; the loss and the figures.

        Which figures there are is decided by the whole batch, so that all ranks add up the same ones.

        Raises:
            ValueError: rows for clipped ratios, but no bounds to clip them to.
        """
        if self.objective.bounds is None and any(row.sampled_log_probs for row in rows):
            raise ValueError("rows have the sampler's log-probabilities: set model.rs.objective.clip")
        divisors = {
            "kl": sum(len(row.reference_log_probs) for row in rows),
            "clip_fraction": sum(len(row.sampled_log_probs) for row in rows),
        }
        used = {name: number for name, number in divisors.items() if number}
        batches = micro_batches(
            rows, micro_batch_size, self.runtime.dp_rank, self.runtime.dp_size, multiple=self.multiple
        )
        divisor = denominator(rows, normalization)

        def forward(batch: MicroBatch, model: Any) -> Any:
            batch = batch.to(self.runtime.device)

            def sums(output: torch.Tensor) -> torch.Tensor:
                log_probs = -output[:, :-1].float()
                loss = self._loss(batch, log_probs, divisor, normalization)
                return torch.stack([loss, *self._figures(batch, log_probs, used).values()])

            return model(batch.tokens, batch.positions, None, labels=batch.labels), sums

        loss, *figures = self.accumulate(
            batches, forward, micro_batch_size=micro_batch_size, num_sums=1 + len(used)
        )
        return loss, dict(zip(used, figures, strict=True))

    def _loss(
        self, batch: MicroBatch, log_probs: torch.Tensor, divisor: int, normalization: Normalization
    ) -> torch.Tensor:
        """This micro-batch's share of the loss, from `[B, S - 1]`."""
        bounds, kl = self.objective.bounds, self.objective.kl
        sampled_BT, reference_BT, weights_B = batch.sampled, batch.reference, batch.weights
        learnt_BT = batch.mask if sampled_BT is None else batch.mask & sampled_BT.isnan()
        loss = masked_nll(log_probs, learnt_BT, divisor, normalization, weights=weights_B)
        if sampled_BT is not None:
            assert bounds is not None
            assert weights_B is not None
            loss = loss + clipped_surrogate(
                *(log_probs, sampled_BT, weights_B, ~sampled_BT.isnan(), divisor, normalization),
                clip_low=bounds[0],
                clip_high=bounds[1],
            )
        if reference_BT is not None and kl:
            mask_BT = ~reference_BT.isnan()
            loss = loss + kl * kl_to_reference(
                *(log_probs, reference_BT, mask_BT, divisor, normalization),
                estimator=self.objective.kl_estimator,
            )
        return loss

    @torch.no_grad()
    def _figures(
        self, batch: MicroBatch, log_probs: torch.Tensor, divisors: dict[str, int]
    ) -> dict[str, torch.Tensor]:
        """This micro-batch's share of the figures, each with a divisor that counts the whole batch."""
        found = {name: log_probs.new_zeros(()) for name in divisors}
        if (reference_BT := batch.reference) is not None:
            mask_BT = ~reference_BT.isnan()
            found["kl"] = kl_to_reference(log_probs, reference_BT, mask_BT, divisors["kl"], "token")
        if (sampled_BT := batch.sampled) is not None:
            assert self.objective.bounds is not None
            assert batch.weights is not None
            low, high = self.objective.bounds
            clipped_BT = clipped_tokens(
                *(log_probs, sampled_BT, batch.weights, ~sampled_BT.isnan()), clip_low=low, clip_high=high
            )
            found["clip_fraction"] = clipped_BT.sum() / divisors["clip_fraction"]
        return found


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
