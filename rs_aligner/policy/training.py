"""One optimizer step on a global batch: Megatron's schedules, DDP and optimizer, our losses.

`BaseTrainer` has what any loss needs, `Trainer` the policy's; the reward model's is in `pairs.py`. How rows
become micro-batches is in `batches.py`.

The denominator is counted over the whole global batch before the first forward and handed to every
micro-batch, so the micro-batches and the ranks simply add up (`added_up.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig

from rs_aligner.config import OptimConfig
from rs_aligner.config.objective import PLAIN, ObjectiveConfig
from rs_aligner.loss import Normalization
from rs_aligner.model.lean_megatron import build_optimizers_plainly
from rs_aligner.model.lora import Adapters
from rs_aligner.model.runtime import Runtime
from rs_aligner.objective.terms import Inputs, terms_of
from rs_aligner.policy.adam_states import whose
from rs_aligner.policy.added_up import with_gradients
from rs_aligner.policy.balancing import routers_loss
from rs_aligner.policy.batches import MicroBatch, Split, denominator, micro_batches
from rs_aligner.policy.logits import as_logits, predictions, run_line
from rs_aligner.policy.mismatch import Mismatch
from rs_aligner.policy.offload import NOTHING, Offload, Offloading
from rs_aligner.policy.outcome import NotFinite, StepStats
from rs_aligner.policy.stops import stoppable
from rs_aligner.rollout import TrainingRow

_logger = logging.getLogger("rs_aligner")

Forward = Callable[[Any, Any], tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]
"""`f(micro_batch, model)`: the model's output, and what makes of it the sums of the micro-batch, `[K]`.

The sums are added up over the global batch; the first of them is the loss.
"""


class BaseTrainer:
    """The optimizer of a model, and the parts of a step that do not depend on the loss.

    Args:
        model: this rank's part of the model.
        config: the model's Megatron config; its `finalize_model_grads_func` is set here.
        runtime: of this rank.
        optimizer_config: Megatron's; `use_distributed_optimizer` shards the state over replicas.
        decay_norms_and_biases: whether weight decay takes these, too, and not matrices only.
        overlap_grad_reduce: whether gradients are added up over replicas during the backward pass.
        offload: what of the optimizer waits in the CPU's memory.

    Attributes:
        moved: whether the weights are other than behind the last finished step of the loop, which sets it
            back: a stop then ends a step only where no time is left to finish and to save it.
        adapters: what is trained of the model, if it is not all of its weights.
    """

    def __init__(
        self,
        model: GPTModel,
        config: TransformerConfig,
        runtime: Runtime,
        optimizer_config: OptimizerConfig,
        *,
        decay_norms_and_biases: bool = False,
        overlap_grad_reduce: bool = False,
        offload: Offloading = NOTHING,
    ) -> None:
        self.moved = False
        self.adapters: Adapters | None = None
        self.runtime = runtime
        self.config = config
        self._has_told = False
        self.ddp = with_gradients(
            model,
            config,
            runtime,
            distributed=optimizer_config.use_distributed_optimizer,
            overlap=overlap_grad_reduce,
        )
        self._weight_decay, self._decays_all = optimizer_config.weight_decay, decay_norms_and_biases
        self.offload = Offload(self.ddp, offload, runtime)
        build_optimizers_plainly()
        with runtime.cuda_stand_in():
            self.optimizer: MegatronOptimizer = get_megatron_optimizer(optimizer_config, [self.ddp])
        if runtime.rank == 0 and runtime.device.type == "cuda":
            _logger.info("Adam: that of %s", whose(self.optimizer))
        self.offload.take(self.optimizer)

    @property
    def trained(self) -> Any:
        """What a checkpoint has of the model: all of it, or its adapters where these alone are trained."""
        return self.ddp.module if self.adapters is None else self.adapters

    @property
    def multiple(self) -> int:
        """What the lengths of lines must be multiples of."""
        return self.runtime.tp_size if self.config.sequence_parallel else 1

    @property
    def _has_sums(self) -> bool:
        """Whether this rank brings what it read off its replica's last stage."""
        return self.runtime.is_last_stage and self.runtime.tp_rank == 0

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
            if "fused" in group and self.runtime.device.type == "cpu":  # torch's Adam, in one pass, not ten
                group["fused"], group["foreach"] = True, False
        self.offload.states_here(changes=True)
        with self.runtime.cuda_stand_in():
            self.moved = True
            _, grad_norm, _ = self.optimizer.step()
        return float(grad_norm)

    def accumulate(self, batches: Sequence[Any], forward: Forward, *, num_sums: int = 1) -> list[float]:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its sums, on every rank.

        Args:
            batches: this replica's micro-batches, with `tokens` `[1, S]`, as many as any other replica's.
            forward: what is done with each.
            num_sums: K of `forward`.

        Raises:
            NotFinite: loss, gradient or its norm is not finite; on every rank, before any weight is touched.
            Stopped: a stop was asked for and is possible here; on every rank.
        """
        device = self.runtime.device

        def forward_step(batches: Iterator[Any], model: Any) -> Any:
            output, sums_of = forward(next(batches), model)

            def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                sums = sums_of(output)
                return sums[0], torch.zeros((), dtype=torch.int, device=device), sums.detach()

            return output, loss

        self._use_threads(max(batch.tokens.numel() for batch in batches))
        self.offload.gradients_here()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.ddp.train()
        found = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=stoppable(batches, self.runtime, moved=self.moved),
            model=[self.ddp],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens.shape[1] for batch in batches),
            micro_batch_size=1,  # a line
            forward_only=False,
        )
        sums = torch.stack(found).sum(0) if self._has_sums else torch.zeros(num_sums, device=device)
        # Squares that do not fit into float32 make a norm that does not, by which clipping would divide.
        buffers = self.ddp.buffers + self.ddp.expert_parallel_buffers
        squares = sum(buffer.grad_data.norm().float() ** 2 for buffer in buffers)
        total = torch.cat([sums, torch.as_tensor(squares, device=device).to(sums.dtype)[None]])
        dist.all_reduce(total)
        if not torch.isfinite(total[0]) or not torch.isfinite(total[-1]):
            raise NotFinite(float(total[0]), "finite" if torch.isfinite(total[-1]) else "not finite")
        return [float(value) for value in total[:-1]]


class Trainer(BaseTrainer):
    """The policy's optimizer step, on rows of prompt and response.

    What is minimised, and on which rows, the terms of the objective say. Rows of all kinds may share a batch.

    Args:
        model, config, runtime, optimizer_config, decay_norms_and_biases, overlap_grad_reduce, offload: as
            `BaseTrainer`.
        objective: what is minimised.

    Attributes:
        with_starting_logits: adds the starting policy's logits to micro-batches; None where its weights were
            not kept. Called where a term needs them.
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
        overlap_grad_reduce: bool = False,
        offload: Offloading = NOTHING,
    ) -> None:
        super().__init__(
            *(model, config, runtime, optimizer_config),
            decay_norms_and_biases=decay_norms_and_biases,
            overlap_grad_reduce=overlap_grad_reduce,
            offload=offload,
        )
        self.terms = terms_of(objective)
        self.with_starting_logits: Callable[[Sequence[MicroBatch]], list[MicroBatch]] | None = None

    def step(
        self,
        rows: Sequence[TrainingRow],
        *,
        split: Split,
        learning_rate: float,
        normalization: Normalization = "sequence",
    ) -> StepStats:
        """One optimizer step on a global batch, the same `rows` on every rank."""
        loss, figures = self.gradients(rows, split=split, normalization=normalization)
        return StepStats(loss, self.update(learning_rate), learning_rate, figures)

    def gradients(
        self, rows: Sequence[TrainingRow], *, split: Split, normalization: Normalization = "sequence"
    ) -> tuple[float, dict[str, float]]:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss and figures.

        Which figures there are is decided by the whole batch, so that all ranks add up the same ones. The
        decoder's log-probabilities are compared as long as no weight has moved since it noted them.

        Raises:
            ValueError: rows that a term cannot be applied to as it is set.
        """
        counts = {name: number for term in self.terms for name, number in term.counts(rows).items() if number}
        batches = micro_batches(
            rows, split, self.runtime.dp_rank, self.runtime.dp_size, multiple=self.multiple
        )
        if any(term.needs_reference_logits for term in self.terms):
            if self.with_starting_logits is None:
                raise ValueError("a term needs the starting policy: build the policy with keep_start=True")
            batches = self.with_starting_logits(batches)
        mismatch = Mismatch([] if self.moved else rows, self.runtime.device)
        added = partial(
            self._added,
            mismatch=mismatch,
            counts=counts,
            divisor=denominator(rows, normalization),
            normalization=normalization,
        )

        def forward(batch: MicroBatch, model: Any) -> Any:
            batch = batch.to(self.runtime.device)
            needs_logits = any(term.needs_logits for term in self.terms)
            # With labels the model makes log-probabilities of its logits, and lets these go.
            output = run_line(model, batch, labels=None if needs_logits else batch.labels)
            return output, partial(added, batch, needs_logits=needs_logits)

        balance = routers_loss(self.ddp, self.runtime, batches)
        loss, *figures = self.accumulate(batches, forward, num_sums=1 + len(counts))
        compared = mismatch.figures(counts=self._has_sums)
        return loss + sum(balance.values()), dict(zip(counts, figures, strict=True)) | compared | balance

    def _added(
        self,
        batch: MicroBatch,
        output: torch.Tensor,
        *,
        needs_logits: bool,
        mismatch: Mismatch,
        counts: dict[str, int],
        divisor: int,
        normalization: Normalization,
    ) -> torch.Tensor:
        """What a micro-batch adds to the loss and to each figure, from the model's output."""
        losses_1N, logits = predictions(output, batch) if needs_logits else (output, None)
        inputs = Inputs(
            -batch.by_row(losses_1N[0].float()),
            batch.mask,
            divisor,
            normalization,
            counts,
            batch.weights,
            batch.sampled,
            batch.reference,
            logits,
            None if batch.reference_logits is None else as_logits(batch.by_row(batch.reference_logits)),
        )
        mismatch.add(inputs.log_probs, batch.noted)
        shares = [term.share(inputs) for term in self.terms]
        loss = reduce(torch.add, [share.loss for share in shares if share.loss is not None])
        figures = {name: value.detach() for share in shares for name, value in share.figures.items()}
        zero = loss.new_zeros(())
        return torch.stack([loss, *(figures.get(name, zero) for name in counts)])


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
