"""The policy as the trainers see it: sample, learn, save, export.

It puts together the model, the optimizer, the decoder and the tokenizer of one folder, and takes care
of who does what among the ranks: replicas share prompts and rows out by their places, never by speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from rs_aligner.config import PolicyModelBase
from rs_aligner.config.objective import PLAIN, ObjectiveConfig
from rs_aligner.generation.waves import generate, new_network
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.reference import StartingWeights, response_log_probs
from rs_aligner.policy.sampler import controls, load_model
from rs_aligner.policy.trainable import Trainable
from rs_aligner.policy.training import StepStats, Trainer, adam
from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.sample_request import SampleRequest


class MegatronPolicy(Trainable[Trainer, TrainingRow, StepStats]):
    """A Llama-family model on Megatron, with its optimizer and decoder.

    Args:
        folder: a Hugging Face folder, or a checkpoint folder of an earlier run.
        config: the `model` section.
        runtime: this rank's place.
        tokenizer: the folder's.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        clip_grad: largest norm of the global gradient; None or 0 does not clip.
        learning_rate: the rate of an optimizer step, by the number of steps made before it.
        kv_cache_bytes: most bytes of the decoder's cache on this rank; None for no bound.
        compiled_decoder: whether the decoder's kernels may be compiled on a CPU.
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
        precision: str = "auto",
        clip_grad: float | None = 1.0,
        learning_rate: Callable[[int], float],
        kv_cache_bytes: int | None = None,
        compiled_decoder: bool = True,
        objective: ObjectiveConfig = PLAIN,
        keep_start: bool = False,
    ) -> None:
        model, model_config, arch, dtype, source = load_model(
            folder, runtime, precision, sequence_parallel=config.sequence_parallel
        )
        optimizer = adam(config.optim, dtype=dtype, clip_grad=clip_grad)
        super().__init__(
            model,
            arch,
            Trainer(
                *(model, model_config, runtime, optimizer, objective),
                decay_norms_and_biases=config.optim.decay_norms_and_biases,
            ),
            source,
            batch_size=config.global_batch_size,
            learning_rate=learning_rate,
            changes=tokenizer.end_token_changes,
        )
        self.config, self.tokenizer, self.kv_cache_bytes = config, tokenizer, kv_cache_bytes
        allowed = torch.from_numpy(tokenizer.known_ids(arch.vocab_size))
        self.network = new_network(model, arch, runtime, compiled=compiled_decoder, allowed=allowed)
        # Taken now, before a checkpoint is loaded: a continued run has the same start.
        self._start = StartingWeights(self.trainer, objective.offload_reference) if keep_start else None

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends."""
        mine = list(enumerate(request.prompts))[self.runtime.dp_rank :: self.runtime.dp_size]
        self.trainer.ddp.eval()
        return generate(
            self.network,
            self.tokenizer,
            mine,
            request.num_rollouts,
            controls(request),
            seed=self.config.seed,
            step=request.step,
            policy_version=self.version,
            wave_size=request.wave_size,
            first_index=request.first_index,
            kv_cache_bytes=self.kv_cache_bytes,
        )

    def step(self, rows: Sequence[TrainingRow], learning_rate: float) -> StepStats:
        """One optimizer step on a global batch of rows."""
        return self.trainer.step(
            rows,
            micro_batch_size=self.config.micro_batch_size,
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
        with self._starting_weights().in_place():
            return response_log_probs(self.trainer, rows, self.config.micro_batch_size)

    def restart(self) -> None:
        """Go back to the starting weights, with an optimizer as new; the schedule begins again, too.

        What is trained from here equals what a new policy would be, to the last bit. The `version` stays.

        Raises:
            ValueError: the policy was built without `keep_start`.
        """
        self._starting_weights().restore()
        self.optimizer_steps = 0

    def _starting_weights(self) -> StartingWeights:
        if self._start is None:
            raise ValueError("the starting weights were not kept: build the policy with keep_start=True")
        return self._start
