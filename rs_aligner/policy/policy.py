"""The policy as the trainers see it: sample, learn, save, export.

It puts together the model, the optimizer, the decoder and the tokenizer of one folder, and takes care
of who does what among the ranks: replicas share prompts and rows out by their places, never by speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig

from rs_aligner.config.common import LengthParams, ModelBase, SamplingParams
from rs_aligner.files import hugging_face_part
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate, new_network
from rs_aligner.policy import checkpoint, huggingface
from rs_aligner.policy.architecture import read_architecture
from rs_aligner.policy.memory import uses_bf16
from rs_aligner.policy.model import build_model, transformer_config
from rs_aligner.policy.runtime import Runtime
from rs_aligner.policy.tokenizer import Tokenizer
from rs_aligner.policy.training import StepStats, Trainer
from rs_aligner.rollout import Prompt, Rollout, TrainingRow


class MegatronPolicy:
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

    Attributes:
        version: finished training steps; the trainer counts them.
        optimizer_steps: finished optimizer steps.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelBase,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        precision: str = "auto",
        clip_grad: float | None = 1.0,
        learning_rate: Callable[[int], float],
        kv_cache_bytes: int | None = None,
        compiled_decoder: bool = True,
    ) -> None:
        self.config, self.runtime, self.tokenizer = config, runtime, tokenizer
        self.learning_rate, self.kv_cache_bytes = learning_rate, kv_cache_bytes
        self.version = self.optimizer_steps = 0
        self.source = hugging_face_part(folder)
        self.arch = read_architecture(self.source)
        bf16 = uses_bf16(precision, runtime.device.type == "cuda")
        dtype = torch.bfloat16 if bf16 else torch.float32
        model_config = transformer_config(
            self.arch, runtime, dtype=dtype, sequence_parallel=config.sequence_parallel
        )
        model = build_model(self.arch, model_config, runtime)
        if self.source == folder:
            huggingface.load_weights(folder, model, self.arch, runtime)
        else:
            checkpoint.load_weights(folder, model, runtime)
        optimizer = OptimizerConfig(
            optimizer="adam",
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            adam_beta1=config.optim.betas[0],
            adam_beta2=config.optim.betas[1],
            adam_eps=config.optim.eps,
            clip_grad=clip_grad or 0.0,
            bf16=bf16,
            params_dtype=dtype,
            use_distributed_optimizer=config.optim.distributed,
        )
        self.trainer = Trainer(model, model_config, runtime, optimizer)
        self.network = new_network(model, self.arch, runtime, compiled=compiled_decoder)

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_rollouts: int,
        sampling: SamplingParams,
        lengths: LengthParams,
        *,
        step: int,
        wave_size: int | None = None,
    ) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends.

        Args:
            prompts: the whole step's, in data order, the same on every rank.
            num_rollouts: N for each.
            sampling, lengths: how to sample.
            step: part of the rollouts' seeds.
            wave_size: prompts decoded together on a replica; None for all of its share.
        """
        mine = list(enumerate(prompts))[self.runtime.dp_rank :: self.runtime.dp_size]
        self.trainer.ddp.eval()
        return generate(
            self.network,
            self.tokenizer,
            mine,
            num_rollouts,
            _controls(sampling, lengths),
            seed=self.config.seed,
            step=step,
            policy_version=self.version,
            wave_size=wave_size,
            kv_cache_bytes=self.kv_cache_bytes,
        )

    def train(self, rows: Sequence[TrainingRow]) -> list[StepStats]:
        """Pass once over the rows, in batches of `global_batch_size`, an optimizer step each.

        The rows are the same on every rank. A short last batch has its own true denominator.
        """
        stats = []
        size = self.config.global_batch_size
        for start in range(0, len(rows), size):
            stats.append(
                self.trainer.step(
                    rows[start : start + size],
                    micro_batch_size=self.config.micro_batch_size,
                    learning_rate=self.learning_rate(self.optimizer_steps),
                    normalization=self.config.loss_normalization,
                )
            )
            self.optimizer_steps += 1
        return stats

    def gather(self, item: Any) -> list[Any]:
        """The items of the replicas' sources, in data-parallel order, on every rank."""
        return self.runtime.gather(item)

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        """Per key the largest value over all ranks."""
        return self.runtime.maximum(values)

    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        """Write a checkpoint that `load` continues from exactly. Every rank must call it."""
        state = {"version": self.version, "optimizer_steps": self.optimizer_steps, "counters": counters}
        checkpoint.save(folder, self.trainer, self.runtime, state, self.source)

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; returns the counters that it was saved with."""
        state = checkpoint.load(folder, self.trainer, self.runtime)
        self.version, self.optimizer_steps = state["version"], state["optimizer_steps"]
        counters: dict[str, Any] = state["counters"]
        return counters

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder. Every rank must call it."""
        huggingface.save_weights(folder, self.network.model, self.arch, self.runtime, self.source)


def _controls(sampling: SamplingParams, lengths: LengthParams) -> Controls:
    return Controls(
        greedy=sampling.use_greedy,
        temperature=sampling.temperature or 1.0,  # 0 is allowed where greedy ignores it
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        end_strings=sampling.end_strings,
        max_length=lengths.max_length,
        min_length=lengths.min_length,
    )
