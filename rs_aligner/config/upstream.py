"""Every config key of NeMo-Aligner's rejection sampling, in one of three lists.

Used with its old meaning; accepted with a warning that it has no effect here, and why; or refused,
with the reason and what to do instead. A key stands for all that is below it. So old launch scripts
either run and mean what they meant, or are told at once what is different.

Left out on purpose: keys of other NeMo-Aligner algorithms. They are unknown keys like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rs_aligner.config.base import problem

_logger = logging.getLogger("rs_aligner")


@dataclass(frozen=True)
class Refusal:
    """Why a key is refused.

    Attributes:
        reason: why, and what to do instead.
        harmless: values that ask for nothing and are therefore accepted; null always is.
    """

    reason: str
    harmless: tuple[Any, ...] = (False,)


@dataclass(frozen=True)
class Upstream:
    """The three lists of one upstream config file.

    Attributes:
        used: keys with their old meaning; each is in the schema.
        no_effect: keys that are accepted with a warning, and why nothing reads them.
        refused: keys that are an error unless their value is harmless.
    """

    used: frozenset[str]
    no_effect: Mapping[str, str]
    refused: Mapping[str, Refusal]

    def take_out(self, tree: dict[str, Any]) -> list[str]:
        """Removes the keys that nothing reads from `tree`, warning of each that asked for something.

        Returns:
            A line for each refused key whose value is not harmless.
        """
        problems = []
        for key, reason in self.no_effect.items():
            found, value = _pop(tree, key.split("."))
            if found and value is not None:
                _logger.warning("%s has no effect: %s", key, reason)
        for key, refusal in self.refused.items():
            found, value = _pop(tree, key.split("."))
            if found and value is not None and value not in refusal.harmless:
                problems.append(problem(key, value, refusal.reason))
        return problems


def _pop(tree: dict[str, Any], path: list[str]) -> tuple[bool, Any]:
    """Takes the value at `path` out of the tree, and sections that it leaves empty."""
    head, *rest = path
    if head not in tree:
        return False, None
    if not rest:
        return True, tree.pop(head)
    if not isinstance(tree[head], dict):
        return False, None
    found, value = _pop(tree[head], rest)
    if found and not tree[head]:
        del tree[head]
    return found, value


def _under(section: str, names: str) -> list[str]:
    return [f"{section}.{name}" for name in names.split()]


_NO_LIGHTNING = "there is no Lightning trainer underneath"
_NO_NEMO_CHECKPOINTS = "checkpoints have a format of their own, and final/ will be a Hugging Face folder"
_NO_INDEX = "prompt files are read line by line, there is no index and no packing"
_MEGATRON_CHOICE = "how the model is built in Megatron is not a setting"
_ADAPTER_FOLDER = Refusal("name an adapter folder of peft in model.peft.restore_from_path instead")

TRAIN_RS = Upstream(
    used=frozenset(
        [
            *_under("trainer", "num_nodes devices accelerator precision"),
            *_under("trainer.rs", "max_epochs max_steps val_check_interval save_interval gradient_clip_val"),
            "remote_rm.pad_to_length",
            *_under("remote_rm.reward_model", "name ip port"),
            *_under("exp_manager", "explicit_log_dir name create_wandb_logger wandb_logger_kwargs"),
            *_under("exp_manager", "resume_if_exists max_time_per_run"),
            *_under("exp_manager.checkpoint_callback_params", "monitor save_top_k mode"),
            "pretrained_checkpoint.restore_from_path",
            *_under("model.rs", "rollout_micro_batch_size num_rollout_samples num_rollouts_per_prompt"),
            *_under("model.rs", "top_n_rollouts num_val_samples offload_adam_states"),
            *_under("model.rs.sampling_params", "use_greedy temperature top_k top_p repetition_penalty"),
            "model.rs.sampling_params.end_strings",
            *_under("model.rs.length_params", "max_length min_length"),
            *_under("model", "micro_batch_size global_batch_size encoder_seq_length sequence_parallel"),
            *_under("model", "tensor_model_parallel_size pipeline_model_parallel_size seed precision"),
            *_under("model.peft", "peft_scheme restore_from_path"),
            *_under("model.peft.lora_tuning", "target_modules adapter_dim adapter_dropout alpha"),
            *_under("model.peft.lora_tuning", "column_init_method row_init_method"),
            *_under("model.optim", "name lr weight_decay betas overlap_grad_sync"),
            *_under("model.optim.sched", "name warmup_steps constant_steps min_lr"),
            *_under("model.data.data_prefix", "train validation"),
            "model.data.seq_length",
        ]
    ),
    no_effect={
        "trainer.rs.rollout_batch_seq_length": "rollouts are never padded to a constant length",
        "trainer.rs.model_gbs": "model.global_batch_size is read directly",
        "trainer.rs.model_mbs": "model.micro_batch_size is read directly",
        "trainer.max_epochs": "set trainer.rs.max_epochs",
        "trainer.max_steps": "set trainer.rs.max_steps",
        "trainer.max_time": "set exp_manager.max_time_per_run",
        "trainer.logger": "loggers are chosen in exp_manager",
        "trainer.enable_checkpointing": _NO_LIGHTNING,
        "trainer.use_distributed_sampler": _NO_LIGHTNING,
        "exp_manager.exp_dir": "exp_manager.explicit_log_dir is the run's folder",
        "exp_manager.resume_ignore_no_checkpoint": "without a checkpoint a run starts from the beginning",
        "exp_manager.create_checkpoint_callback": "checkpoints are always written",
        "exp_manager.checkpoint_callback_params.always_save_nemo": _NO_NEMO_CHECKPOINTS,
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": _NO_NEMO_CHECKPOINTS,
        "exp_manager.checkpoint_callback_params.filename": "state is in checkpoints, not in their names",
        "exp_manager.checkpoint_callback_params.model_parallel_size": _NO_NEMO_CHECKPOINTS,
        "model.rs.forward_micro_batch_size": "log-probabilities are computed in training's micro-batches",
        "model.rs.val_rollout_micro_batch_size": "validation decodes in model.rs.rollout_micro_batch_size",
        "model.rs.sampling_params.all_probs": "nothing reads the probabilities of all tokens",
        "model.rs.sampling_params.compute_logprob": "log-probabilities are always computed",
        "model.peft.lora_tuning.position_embedding_strategy": "adapters are not tied to each other",
        "model.mcore_gpt": "the policy is always Megatron's GPTModel",
        "model.megatron_amp_O2": "mixed precision follows trainer.precision",
        "model.max_position_embeddings": "it is read from the policy's own config",
        "model.ub_tp_comm_overlap_cfg": _MEGATRON_CHOICE,
        "model.optim.bucket_cap_mb": _MEGATRON_CHOICE,
        "model.optim.overlap_param_sync": _MEGATRON_CHOICE,
        "model.optim.contiguous_grad_buffer": _MEGATRON_CHOICE,
        "model.data.data_prefix.test": "there is no test pass",
        "model.data.num_workers": "prompts are read once, by the process itself",
        **dict.fromkeys(
            _under("model.data", "splits_string skip_warmup dataloader_type index_mapping_dir eod_mask_loss"),
            _NO_INDEX,
        ),
        **dict.fromkeys(_under("model.data", "reset_position_ids reset_attention_mask"), _NO_INDEX),
        "model.overwrite_base_config": "the policy's config is never merged into this one",
    },
    refused={
        "exp_manager.resume_from_checkpoint": Refusal(
            "a run goes on from the last checkpoint in its own folder; point "
            "pretrained_checkpoint.restore_from_path at other weights to start from"
        ),
        "model.peft.restore_from_ckpt.checkpoint_dir": _ADAPTER_FOLDER,
        "model.peft.restore_from_ckpt.checkpoint_name": _ADAPTER_FOLDER,
        "model.peft.lora_tuning.layer_selection": Refusal("all layers have adapters; set it to null"),
        "model.peft.lora_tuning.weight_tying": Refusal("each layer has adapters of its own; set it to false"),
        "model.peft.lora_tuning.use_dora": Refusal("DoRA is not supported; use_rslora is"),
        "model.rs.sampling_params.add_BOS": Refusal("set model.data.add_bos=true instead"),
        "model.context_parallel_size": Refusal(
            "a row is not cut over ranks; split activations along it over the tensor-parallel ranks instead, "
            "with model.sequence_parallel=true, or bound them with model.max_tokens_per_microbatch",
            (1,),
        ),
        "model.data.data_impl": Refusal(
            "files are read as they are, without an index: JSON Lines, JSON, parquet, Arrow", ("jsonl",)
        ),
    },
)

_NO_BACKWARD = "scoring keeps no activations"

SERVE_REWARD = Upstream(
    used=frozenset(
        [
            *_under("inference", "port model_name max_queue_delay_microseconds inference_micro_batch_size"),
            *_under("model.reward_standardization", "enable mean std"),
        ]
    ),
    no_effect={
        "inference.strip_sequence_length_to_multiple": "columns are never cut, the lengths tell",
        "inference.micro_batch_size": "set inference.inference_micro_batch_size",
        "model.forward_micro_batch_size": "set judge.kwargs.batch_size",
        "trainer.num_nodes": "a server has one machine; a run asks several (remote_rm.endpoints)",
        "trainer.devices": "a reward model's ranks follow from judge.kwargs, e.g. tensor_model_parallel_size",
        "trainer.accelerator": "set judge.kwargs.accelerator",
        "trainer.precision": "set judge.kwargs.precision",
        "trainer.logger": "the server shows its figures at /metrics",
        "model.precision": "set judge.kwargs.precision",
        "model.tensor_model_parallel_size": "set judge.kwargs.tensor_model_parallel_size",
        "model.pipeline_model_parallel_size": "set judge.kwargs.pipeline_model_parallel_size",
        "model.sequence_parallel": _NO_BACKWARD,
        "model.activations_checkpoint_granularity": _NO_BACKWARD,
        "model.activations_checkpoint_method": _NO_BACKWARD,
    },
    refused={
        "rm_model_file": Refusal(
            "a reward model is served by judge.name=megatron_reward_model judge.kwargs.folder=FOLDER, a "
            "Hugging Face folder (*ForSequenceClassification with one label) or a checkpoint of "
            "`rs-aligner reward-model`. A .nemo archive is not read: convert it to such a folder first, "
            "see docs/models.md"
        ),
    },
)
