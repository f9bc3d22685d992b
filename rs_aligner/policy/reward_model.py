"""A reward model on Megatron as its trainer and its judge see it: learn from pairs, score, save, export.

The trunk is a policy's, read from a Hugging Face folder or a checkpoint; the output layer gives way to a
linear head of one output, read at a sequence's last token. It is saved as a `*ForSequenceClassification`
folder with one label, which `transformers` loads with the same scores; a folder or checkpoint of that kind is
started from with its head. Left out on purpose: regression to given scores, and heads of several outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.config import ModelBase
from rs_aligner.config.recompute import Recompute
from rs_aligner.files import SETTINGS, hugging_face_part
from rs_aligner.loss import bradley_terry
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import as_reward_model, family_of, read_architecture
from rs_aligner.model.memory import uses_bf16
from rs_aligner.model.new_rows import enlarged
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.adapting import adapters_for
from rs_aligner.policy.batches import Split
from rs_aligner.policy.pairs import PairStats, PairTrainer
from rs_aligner.policy.scoring import SequenceScorer
from rs_aligner.policy.trainable import Optimization, Trainable
from rs_aligner.policy.training import adam
from rs_aligner.policy.weights import load_into
from rs_aligner.rollout import PreferencePair


def load_reward_model(
    folder: Path,
    runtime: Runtime,
    *,
    precision: str = "auto",
    sequence_parallel: bool = False,
    recompute: Recompute | None = None,
    seed: int = 0,
    num_ids: int = 0,
) -> tuple[GPTModel, Architecture]:
    """This rank's part of a reward model.

    Args:
        folder: a Hugging Face folder or a checkpoint, of a reward model or of a language model, whose head
            is then drawn anew.
        runtime: of this rank.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        sequence_parallel: splits activations along the sequence over the tensor-parallel ranks.
        recompute: what a backward pass computes again; None: nothing.
        seed: of a new head.
        num_ids: of the tokenizer; the embedding has a row for each, whether the folder has or not.
    """
    source = hugging_face_part(folder)
    arch = as_reward_model(enlarged(read_architecture(source), num_ids))
    bf16 = uses_bf16(precision, runtime.device.type == "cuda")
    config = transformer_config(
        arch,
        runtime,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        sequence_parallel=sequence_parallel,
        recompute=recompute,
    )
    model = build_model(arch, config, runtime)
    if runtime.is_last_stage:
        model.output_layer.initialise(seed)
    load_into(model, folder, arch, runtime)
    return model, arch


def config_changes(
    arch: Architecture,
    tokenizer: Tokenizer,
    add_bos: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What makes the `config.json` of a policy that of its reward model, and how texts are to be scored.

    `transformers` reads the head at the last token that is not padding, so the token that pads must not be
    one that ends a text. Where a tokenizer has no other, the begin token pads (it stands at the front only);
    where there is none either, nothing does, and `transformers` scores one text at a time.
    """
    reading = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    return {
        "architectures": [f"{family_of(arch).classes}ForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_id,
        SETTINGS: {"add_bos": add_bos, **reading},
    }


class MegatronRewardModel(Trainable[PairTrainer, PreferencePair, PairStats]):
    """A reward model with its optimizer.

    Args:
        folder: what to start from, as for `load_reward_model`.
        config: the `model` section; batch sizes count pairs.
        runtime: of this rank.
        tokenizer: the folder's.
        optimization: precision, clipping and rates.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelBase,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        optimization: Optimization,
    ) -> None:
        model, arch = load_reward_model(
            folder,
            runtime,
            precision=optimization.precision,
            sequence_parallel=config.sequence_parallel,
            recompute=config.recompute,
            seed=config.seed,
            num_ids=tokenizer.num_ids,
        )
        adapters = adapters_for(model, arch, runtime, config, folder)
        optimizer = adam(config.optim, dtype=model.config.params_dtype, clip_grad=optimization.clip_grad)
        super().__init__(
            model,
            arch,
            PairTrainer(
                model,
                model.config,
                runtime,
                optimizer,
                decay_norms_and_biases=config.optim.decay_norms_and_biases,
                overlap_grad_reduce=config.optim.overlap_grad_sync,
                offload=optimization.offload,
            ),
            hugging_face_part(folder),
            batch_size=config.global_batch_size,
            learning_rate=optimization.learning_rate,
            changes=config_changes(arch, tokenizer, config.data.add_bos, config.data.chat_template_kwargs),
            adapters=adapters,
        )
        self.split = Split(config.micro_batch_size, config.max_tokens_per_microbatch)
        self.score = SequenceScorer(self.trainer.ddp, runtime, 2 * config.micro_batch_size)

    def step(self, rows: Sequence[PreferencePair], learning_rate: float) -> PairStats:
        """One optimizer step on a global batch of pairs."""
        return self.trainer.step(rows, split=self.split, learning_rate=learning_rate)

    def evaluate(self, pairs: Sequence[PreferencePair]) -> dict[str, float]:
        """How well held-out pairs are ordered, the same on every rank.

        Returns:
            `loss` (Bradley-Terry, nats a pair), `accuracy` (share of pairs whose chosen answer has the higher
            reward), and `reward_mean` and `reward_std` over all their answers.
        """
        rewards = self.score([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
        chosen, rejected = torch.tensor(rewards, dtype=torch.float64).chunk(2)
        everyone = torch.ones(len(pairs), dtype=torch.bool)
        return {
            "loss": float(bradley_terry(chosen, rejected, everyone, len(pairs))),
            "accuracy": float((chosen > rejected).double().mean()),
            "reward_mean": fmean(rewards),
            "reward_std": pstdev(rewards),
        }
