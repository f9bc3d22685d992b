"""The policy as the trainers see it: sample, learn, save, export.

It puts together the model, the optimizer, the decoder and the tokenizer of one folder, and takes care
of who does what among the ranks: replicas share prompts and rows out by their places, never by speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rs_aligner.config import PolicyModelBase
from rs_aligner.config.objective import PLAIN, ObjectiveConfig
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.adapting import adapters_for
from rs_aligner.policy.batches import Split
from rs_aligner.policy.outcome import StepStats
from rs_aligner.policy.reference import StartingWeights, response_log_probs, with_starting_logits
from rs_aligner.policy.sampler import PLAIN_DECODING, Decoding, Sampler, load_model
from rs_aligner.policy.trainable import Optimization, Trainable
from rs_aligner.policy.training import Trainer, adam
from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.sample_request import SampleRequest


class MegatronPolicy(Trainable[Trainer, TrainingRow, StepStats]):
    """A Llama-family model on Megatron, with its optimizer and decoder.

    Args:
        folder: a Hugging Face folder, or a checkpoint folder of an earlier run.
        config: the `model` section.
        runtime: of this rank.
        tokenizer: the folder's.
        optimization: precision, clipping and rates.
        generation: how it is decoded.
        objective: what is minimised.
        keep_start: keeps a copy of the starting weights, for `reference_log_probs` and `restart`.
    """

    def __init__(
        self,
        folder: Path,
        config: PolicyModelBase,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        optimization: Optimization,
        generation: Decoding = PLAIN_DECODING,
        objective: ObjectiveConfig = PLAIN,
        keep_start: bool = False,
    ) -> None:
        model, model_config, arch, dtype, source = load_model(
            folder,
            runtime,
            optimization.precision,
            sequence_parallel=config.sequence_parallel,
            recompute=config.recompute,
            num_ids=tokenizer.num_ids,
        )
        adapters = adapters_for(model, arch, runtime, config, folder)
        optimizer = adam(config.optim, dtype=dtype, clip_grad=optimization.clip_grad)
        super().__init__(
            model,
            arch,
            Trainer(
                model,
                model_config,
                runtime,
                optimizer,
                objective,
                decay_norms_and_biases=config.optim.decay_norms_and_biases,
                overlap_grad_reduce=config.optim.overlap_grad_sync,
                offload=optimization.offload,
            ),
            source,
            batch_size=config.global_batch_size,
            learning_rate=optimization.learning_rate,
            changes=tokenizer.end_token_changes,
            adapters=adapters,
        )
        self.config = config
        self.split = Split(config.micro_batch_size, config.max_tokens_per_microbatch)
        self.sampler = Sampler(
            *(model, arch, runtime, tokenizer),
            seed=config.seed,
            config=generation.config,
            exports=None if generation.weights_at is None else self.exports(generation.weights_at),
        )
        # Taken now, before a checkpoint is loaded: a continued run has the same start.
        self._start = StartingWeights(self.trainer, objective.offload_reference) if keep_start else None
        if self._start is not None:
            self.trainer.with_starting_logits = partial(with_starting_logits, self._start)

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends.

        Adapters are in the weights from here until something is trained, and what only training needs is
        elsewhere, if it is to be.
        """
        self.trainer.ddp.eval()
        self.trainer.offload.make_room()
        if self.adapters is not None:
            self.adapters.merge()
        return self.sampler.generate(request, self.version)

    @property
    def weights_seconds(self) -> float:
        """That the last `generate` waited for servers to take the weights; 0 without servers."""
        return self.sampler.weights_seconds

    def step(self, rows: Sequence[TrainingRow], learning_rate: float) -> StepStats:
        """One optimizer step on a global batch of rows."""
        return self.trainer.step(
            rows,
            split=self.split,
            learning_rate=learning_rate,
            normalization=self.config.loss_normalization,
        )

    def reference_log_probs(self, rows: Sequence[TrainingRow]) -> list[tuple[float, ...]]:
        """The log-probability of each response token under the starting weights.

        The `rows` are the same on every rank, and so is the result. Forward passes only; the model holds the
        starting weights meanwhile and has its own again, bit for bit, at the end.

        Raises:
            ValueError: the policy was built without `keep_start`.
        """
        self.put_beside()
        with self._starting_weights().in_place():
            return response_log_probs(self.trainer, rows, self.split)

    def restart(self) -> None:
        """Go back to the starting weights, with an optimizer as new; the schedule begins again, too.

        What is trained from here equals what a new policy would be, to the last bit. The `version` stays.

        Raises:
            ValueError: the policy was built without `keep_start`.
        """
        self.put_beside()
        self.trainer.moved = True
        self._starting_weights().restore()
        self.optimizer_steps = 0

    def _starting_weights(self) -> StartingWeights:
        if self._start is None:
            raise ValueError("the starting weights were not kept: build the policy with keep_start=True")
        return self._start
