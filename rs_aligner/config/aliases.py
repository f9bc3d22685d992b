"""What keys are called elsewhere: names of Hugging Face's trainers, TRL, verl, OpenRLHF and NeMo, and ours.

They name the key that was meant in the error about one that does not exist, and do nothing else: a run reads
its own keys only. Left out on purpose: names of things that there are no keys for.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOOPS = ("trainer.rs", "trainer.sft", "trainer.rm")
_SAMPLING = ("model.rs", "model.sft", "model.answers")


def _in(sections: tuple[str, ...], key: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for section in sections)


_MEANT: dict[tuple[str, ...], str] = {
    # The optimizer
    ("model.optim.lr",): "learning_rate lr base_lr max_lr",
    ("model.optim.sched.min_lr",): "min_learning_rate lr_min eta_min",
    ("model.optim.sched.name",): "lr_scheduler_type lr_scheduler lr_decay_style scheduler",
    ("model.optim.sched.warmup_steps",): (
        "num_warmup_steps lr_warmup_steps warmup_ratio lr_warmup_steps_ratio lr_warmup_ratio"
    ),
    ("model.optim.name",): "optimizer optim_name",
    ("model.optim.betas",): "adam_beta1 adam_beta2 adam_betas beta1 beta2",
    ("model.optim.eps",): "adam_epsilon adam_eps epsilon_adam",
    _in(_LOOPS, "gradient_clip_val"): "max_grad_norm grad_clip clip_grad max_norm gradient_clipping",
    # Batches
    ("model.global_batch_size",): (
        "batch_size train_batch_size mini_batch_size ppo_mini_batch_size effective_batch_size "
        "gradient_accumulation_steps accumulate_grad_batches"
    ),
    ("model.micro_batch_size",): (
        "per_device_train_batch_size per_device_batch_size micro_train_batch_size mbs "
        "ppo_micro_batch_size ppo_micro_batch_size_per_gpu"
    ),
    ("model.rs.num_rollout_samples", "model.data.num_prompts"): (
        "rollout_batch_size prompts_per_step num_prompts_per_step prompt_batch_size"
    ),
    # Sampling
    ("model.rs.num_rollouts_per_prompt", "model.answers.num_rollouts_per_prompt"): (
        "num_generations num_return_sequences n_samples_per_prompt samples_per_prompt num_samples "
        "num_samples_per_prompt rollouts_per_prompt rollout_n best_of n"
    ),
    ("model.rs.top_n_rollouts",): "top_n num_select keep_top_n num_keep",
    _in(_SAMPLING, "length_params.max_length"): (
        "max_new_tokens max_completion_length max_response_length response_length generate_max_len "
        "max_tokens max_gen_len"
    ),
    _in(_SAMPLING, "length_params.min_length"): "min_new_tokens min_tokens",
    ("model.rs.generation.engine", "model.answers.generation.engine"): (
        "compile rollout_engine rollout_backend inference_engine inference_backend"
    ),
    _in(_SAMPLING, "sampling_params.use_greedy"): "do_sample greedy",
    _in(_SAMPLING, "sampling_params.temperature"): "temperature",
    _in(_SAMPLING, "sampling_params.top_p"): "top_p",
    _in(_SAMPLING, "sampling_params.top_k"): "top_k",
    _in(_SAMPLING, "sampling_params.repetition_penalty"): "repetition_penalty",
    _in(_SAMPLING, "sampling_params.end_strings"): "stop stop_strings stop_sequences stop_words",
    ("model.data.seq_length",): "max_prompt_length prompt_max_len",
    ("model.encoder_seq_length",): "max_seq_length max_seq_len max_length max_model_len max_len",
    # What is minimised
    ("model.rs.objective.kl",): "kl_coef kl_coeff init_kl_coef kl_loss_coef beta kl_penalty",
    ("model.rs.objective.clip",): "cliprange clip_range clip_ratio epsilon eps_clip",
    ("model.rs.objective.clip_high",): "epsilon_high clip_ratio_high eps_clip_high",
    ("model.rs.pool.passes",): "ppo_epochs num_iterations num_ppo_epochs",
    # How long, how often
    _in(_LOOPS, "max_epochs"): "epochs num_epochs num_train_epochs n_epochs total_epochs num_episodes",
    _in(_LOOPS, "max_steps"): "steps num_steps total_steps train_steps num_train_steps total_training_steps",
    _in(
        _LOOPS, "val_check_interval"
    ): "eval_steps eval_interval eval_every eval_freq test_freq evaluation_steps",
    _in(_LOOPS, "save_interval"): "save_steps save_every save_freq checkpoint_interval ckpt_interval",
    ("exp_manager.checkpoint_callback_params.save_top_k",): "save_total_limit max_to_keep max_ckpt_num",
    ("trainer.rs.patience",): "early_stopping_patience early_stopping",
    # Files
    ("exp_manager.explicit_log_dir",): (
        "output_dir out_dir save_dir run_dir logging_dir checkpoint_dir default_local_dir save_path log_dir"
    ),
    ("pretrained_checkpoint.restore_from_path",): (
        "model_path model_name_or_path model_name model_id pretrained pretrain base_model checkpoint"
    ),
    ("model.data.data_prefix.train", "model.data.files"): (
        "train_file train_files train_data train_dataset train_path data_path dataset dataset_path "
        "dataset_name prompt_data prompts prompts_file"
    ),
    ("model.data.data_prefix.validation",): (
        "eval_dataset eval_data eval_file eval_files val_file val_files validation_file validation_data "
        "test_files"
    ),
    # The judge
    ("remote_rm.judge", "judge.function"): (
        "reward_fn reward_function reward_func reward_funcs custom_reward_function reward_fn_path"
    ),
    ("remote_rm.endpoints",): "reward_url rm_url remote_rm_url reward_urls",
    # Where
    (
        "trainer.devices",
    ): "num_gpus n_gpus gpus ngpus n_gpus_per_node nproc_per_node num_processes world_size",
    ("trainer.enable_progress_bar",): "disable_tqdm progress_bar show_progress",
    ("trainer.num_nodes",): "nnodes num_machines nodes",
    ("trainer.precision",): "bf16 fp16 dtype torch_dtype mixed_precision",
    ("trainer.accelerator",): "device use_cpu no_cuda",
    ("model.tensor_model_parallel_size",): "tensor_parallel_size tp_size tp tensor_parallel",
    ("model.pipeline_model_parallel_size",): "pipeline_parallel_size pp_size pp pipeline_parallel",
    ("model.expert_model_parallel_size",): "expert_parallel_size ep_size ep expert_parallel",
    ("model.seed",): "random_seed data_seed",
    ("exp_manager.create_wandb_logger",): "report_to use_wandb wandb log_with",
    ("exp_manager.send_rollout_texts",): "log_completions log_val_generations log_samples",
    ("exp_manager.name",): "run_name experiment_name exp_name",
    ("exp_manager.wandb_logger_kwargs",): "project_name wandb_project",
}
MEANT: Mapping[str, tuple[str, ...]] = {
    name: keys for keys, names in _MEANT.items() for name in names.split()
}
"""By a key's last name elsewhere: the keys here that are meant, of which a config has at most one."""

_STEPS = "a number of optimizer steps; null is a twentieth of the run"
_ROWS = "rows of an optimizer step, over all ranks; model.micro_batch_size of them pass through together"
NOTES: Mapping[str, str] = {
    **dict.fromkeys(("warmup_ratio", "lr_warmup_steps_ratio", "lr_warmup_ratio"), _STEPS),
    **dict.fromkeys(("batch_size", "train_batch_size"), _ROWS),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), _ROWS),
    "do_sample": "the opposite",
    "disable_tqdm": "the opposite",
}
"""What is different here, by the name elsewhere."""


def meant(name: str, keys: Mapping[str, object]) -> tuple[str, str] | None:
    """The key that a name from elsewhere stands for, and what is different; None if there is none.

    Args:
        name: the last part of the unknown key.
        keys: those that could stand in its place.
    """
    for key in MEANT.get(name.lower(), ()):
        if key in keys:
            return key, NOTES.get(name.lower(), "")
    return None
