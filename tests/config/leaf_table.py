"""For each leaf of every config a value that a user might set, and what shows that it was heard.

To add a leaf, put a row into its section here, or in `leaf_rows.py` where several commands have the section.
Where nothing that is noted shows the effect, let `leaf_world.py` note it. A leaf of a list's elements has
brackets (`model.rs.selection[topk].k`), one of a dict's values a star (`judge.parts.*.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.config.leaf_rows import (
    CHATS,
    EXP_MANAGER,
    GENERATION,
    LAYOUT,
    LENGTHS,
    LOOP,
    SAMPLING,
    SENDS_TEXTS,
    SYNCHRONIZED,
    TRAINED,
    TRAINER,
    Row,
    Rows,
    held_out,
    judge,
    remote_judge,
    shown_by,
    under,
    with_given,
)

_RUN = {
    "exp_manager.explicit_log_dir": "@/out/run",
    "exp_manager.report": False,  # it is a fifth of what such a run costs
    "pretrained_checkpoint.restore_from_path": "@/policy",
}
_TRAINING = {**_RUN, "model.global_batch_size": 2}
_SHORT = {"max_epochs": 2, "val_check_interval": 1}
_PREFIX = "model.data.data_prefix"


def _loop(name: str) -> dict[str, Any]:
    return {f"trainer.{name}.{key}": value for key, value in _SHORT.items()}


def selector(
    name: str,
    needs: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Rows:
    """Rows of a selector with the settings that it needs, and others."""
    base, chain = {"name": name, **(needs or {})}, "model.rs.selection"
    rows = {"name": Row([base], "rows", {chain: [] if name == "all" else [{"name": "all"}]}, at=chain)}
    for key, value in settings.items():
        rows[key] = Row([{**base, key: value}], "rows", {chain: [base]}, at=chain)
    return with_given({f"{chain}[{name}].{key}": row for key, row in rows.items()}, given or {})


_WATCHED = {"watched_rm.max_wait_seconds": 0.05}  # as it is by default: the section is there
_VIEWS = {"remote_rm.in_process": True, "remote_rm.judge.function": "@/judges.py:views"}
_UNTIL = {"until.accepted": 1, "until.at_least": 0.2, "until.max_rollouts": 8}
_ANCHOR = {"anchor.files": "@/sft.jsonl", "anchor.share": 0.4}
_ADVANTAGE = {"advantage": "group", "/model.rs.selection": [{"name": "all"}]}

TRAIN_RS_BASE = {
    **_TRAINING,
    **_loop("rs"),
    f"{_PREFIX}.train": "@/prompts.jsonl",
    f"{_PREFIX}.validation": "@/held_out.jsonl",
    "model.rs.num_rollout_samples": 3,
    "model.rs.length_params.max_length": 8,
}
TRAIN_RS: Rows = {
    **under("trainer", TRAINER, under("rs", LOOP, {"patience": Row(1, "metrics")})),
    **under("exp_manager", EXP_MANAGER, SENDS_TEXTS),
    "exp_manager.checkpoint_callback_params.mode": Row("min", "files"),
    "exp_manager.checkpoint_callback_params.monitor": Row(
        "validation/watched", "files", {"watched_rm.reward_model.port": 5556}
    ),
    "pretrained_checkpoint.restore_from_path": Row("@/other_policy", "model"),
    "pretrained_checkpoint.resize_token_embeddings": Row(
        True, "error", {"pretrained_checkpoint.restore_from_path": "@/more_tokens"}
    ),
    **under("model", TRAINED),
    "model.loss_normalization": Row("token", "batches"),
    "model.data.judge_special_tokens": Row(True, "shown"),
    f"{_PREFIX}.train": Row("@/more.jsonl", "rows"),
    f"{_PREFIX}.validation": Row("@/more.jsonl", "sampled"),
    "model.data.overlap": Row("refuse", "error", {f"{_PREFIX}.validation": "@/prompts.jsonl"}),
    **under(
        "model.rs",
        shown_by(
            "sampled",
            {
                "num_rollout_samples": 2,
                "rollout_micro_batch_size": 1,
                "num_rollouts_per_prompt": 3,
                "num_val_samples": 2,
                "num_val_rollouts_per_prompt": 2,
            },
        ),
        shown_by("rows", {"top_n_rollouts": 2, "min_reward": 0.4}),
        shown_by("metrics", {"passed_above": 0.5, "kl_samples": 0}),
        shown_by("offload", {"offload_adam_states": True}),
        {
            "selection": Row([{"name": "all"}], "rows"),
            "offline": Row("@/scored.jsonl", "rows", also={f"/{_PREFIX}.train": []}),
        },
        under("sampling_params", SAMPLING),
        under("val_sampling_params", held_out(SAMPLING | {"use_greedy": Row(False, "controls")})),
        under("length_params", LENGTHS),
        under("generation", {**GENERATION, **SYNCHRONIZED}),
        under(
            "objective",
            {
                "advantage": Row("leave_one_out", "rows", {"/model.rs.selection": [{"name": "all"}]}),
                "positives_only": Row(True, "rows", _ADVANTAGE),
                "clip": Row(0.2, "objective", _ADVANTAGE),
                "clip_high": Row(0.3, "objective", {"clip": 0.2, **_ADVANTAGE}),
                "kl": Row(0.1, "objective"),
                "kl_estimator": Row("k3+", "objective", {"kl": 0.1}),
                "offload_reference": Row(False, "starting weights", {"kl": 0.1}),
                "anchor.files": Row("@/more_sft.jsonl", "rows", _ANCHOR),
                "anchor.share": Row(0.6, "rows", _ANCHOR),
                "anchor.weight": Row(0.5, "rows", _ANCHOR),
            },
        ),
        under(
            "pool",
            {
                "improve_steps": Row(2, "sampled"),
                "max_staleness": Row(1, "rows"),
                "restart": Row(True, "restart"),
                "passes": Row(2, "batches"),
            },
        ),
        shown_by(
            "sampled",
            {
                "until.accepted": 2,
                "until.at_least": 0.9,
                "until.rollouts_a_round": 3,
                "until.max_rollouts": 2,
                "until.max_tokens": 4,
                "until.tokens_per_prompt": 3,
            },
            given=_UNTIL,
        ),
        under(
            "rft",
            {
                "gen_kwargs": Row({"temperature": 0.5}, "controls", {"n_generations_per_prompt": 5}),
                "start_percentile": Row(0.1, "rows", {"n_generations_per_prompt": 5}),
                "end_percentile": Row(0.7, "rows", {"start_percentile": 0.1, "n_generations_per_prompt": 5}),
                "n_improve_steps": Row(3, "sampled", {"n_generations_per_prompt": 5}),
                "n_generations_per_prompt": Row(5, "sampled", {"n_generations_per_prompt": 4}),
            },
        ),
    ),
    **selector("topk", k=2),
    **selector(
        "percentile",
        {"start": 0.0, "end": 0.6, "over": "run"},
        start=0.5,
        end=0.9,
        over="improve_steps",
        above_lowest=True,
    ),
    **selector("threshold", {"at_least": 0.1}, at_least=0.6),
    **selector("positive", above=0.5),
    **selector("top_fraction", {"fraction": 0.2}, fraction=0.7),
    **selector("median"),
    **selector("all"),
    **selector("truncated"),
    **selector("length", {"min_tokens": 2, "max_tokens": 6}, min_tokens=4, max_tokens=3),
    **selector("duplicates", given={"model.rs.num_rollouts_per_prompt": 12}, normalized=True, against="both"),
    **selector("near_duplicates", {"similarity": 0.4, "n": 1}, similarity=0.9, measure="edit", n=2),
    **selector("distinct_answers", k=2, pattern="^(\\w+)"),
    **selector("pass_rate", min=0.5, max=0.5, above=0.5),
    **selector(
        "function",
        {"function": "@/judges.py:keep_short"},
        function="@/judges.py:keep_none",
        kwargs={"most": 12},
    ),
    **selector("diverse", {"k": 2}, k=3, n=1),
    **selector("pessimistic", {"disagreement": "second"}, _VIEWS, disagreement="third", coefficient=0),
    **selector(
        "pessimistic",
        {"components": ["first", "second"]},
        _VIEWS,
        k=2,
        components=["first", "third"],
        scale="none",
    ),
    **under("remote_rm", remote_judge("metrics")),
    "remote_rm.max_failed_fraction": Row(0.1, "error", {f"{_PREFIX}.train": "@/failing.jsonl"}),
    **with_given(under("watched_rm", remote_judge("metrics")), _WATCHED),
    "watched_rm.max_failed_fraction": Row(0.1, "warnings", _WATCHED),  # without effect: it ends no run
}

TRAIN_SFT_BASE = {
    **_TRAINING,
    **_loop("sft"),
    f"{_PREFIX}.train": "@/sft.jsonl",
    f"{_PREFIX}.validation": "@/held_out.jsonl",
    "model.sft.length_params.max_length": 8,
    "judge.function": "@/judges.py:one",
}
TRAIN_SFT: Rows = {
    **under("trainer", TRAINER, under("sft", LOOP, {"stop_at_validation": Row(0.0, "metrics")})),
    **under("exp_manager", EXP_MANAGER, SENDS_TEXTS),
    "exp_manager.checkpoint_callback_params.mode": Row("min", "files"),
    "exp_manager.checkpoint_callback_params.monitor": Row("validation/watched", "error"),
    "pretrained_checkpoint.restore_from_path": Row("@/other_policy", "model"),
    "pretrained_checkpoint.resize_token_embeddings": Row(
        True, "error", {"pretrained_checkpoint.restore_from_path": "@/more_tokens"}
    ),
    **under("model", TRAINED),
    "model.loss_normalization": Row("token", "batches"),
    "model.data.judge_special_tokens": Row(True, "shown"),
    f"{_PREFIX}.train": Row("@/more_sft.jsonl", "rows"),
    f"{_PREFIX}.validation": Row("@/more.jsonl", "sampled"),
    "model.data.overlap": Row("refuse", "error", {f"{_PREFIX}.validation": "@/prompts.jsonl"}),
    "model.sft.num_val_samples": Row(2, "sampled"),
    **under("model.sft.sampling_params", held_out(SAMPLING | {"use_greedy": Row(False, "controls")})),
    **under("model.sft.length_params", held_out(LENGTHS)),
    **under("judge", judge("metrics")),
}

TRAIN_REWARD_MODEL_BASE = {
    **_TRAINING,
    **_loop("rm"),
    f"{_PREFIX}.train": "@/pairs.jsonl",
    f"{_PREFIX}.validation": "@/more_pairs.jsonl",
}
TRAIN_REWARD_MODEL: Rows = {
    **under("trainer", TRAINER, under("rm", LOOP)),
    **under("exp_manager", EXP_MANAGER),
    "exp_manager.checkpoint_callback_params.mode": Row(
        *("min", "files", {"trainer.rm.max_epochs": 5}),
        also={"/exp_manager.checkpoint_callback_params.monitor": "validation/loss"},
    ),
    "exp_manager.checkpoint_callback_params.monitor": Row(
        *("validation/loss", "files", {"trainer.rm.max_epochs": 5}),
        also={"/exp_manager.checkpoint_callback_params.mode": "min"},
    ),
    "pretrained_checkpoint.restore_from_path": Row("@/other_policy", "model"),
    "pretrained_checkpoint.resize_token_embeddings": Row(
        True, "error", {"pretrained_checkpoint.restore_from_path": "@/more_tokens"}
    ),
    **under("model", TRAINED),
    f"{_PREFIX}.train": Row("@/more_pairs.jsonl", "rows"),
    f"{_PREFIX}.validation": Row("@/pairs.jsonl", "metrics"),
    "model.data.overlap": Row("refuse", "error", {f"{_PREFIX}.validation": "@/more_pairs.jsonl"}),
}

GENERATE_BASE = {
    "output": "@/out/answers.jsonl",
    "pretrained_checkpoint.restore_from_path": "@/policy",
    "model.data.files": "@/prompts.jsonl",
    "model.answers.num_rollouts_per_prompt": 3,
    "model.answers.length_params.max_length": 8,
    "remote_rm.max_wait_seconds": 0.05,  # as it is by default: the section is there
}
GENERATE: Rows = {
    **under("trainer", TRAINER),
    **under("model.data", CHATS, {"judge_special_tokens": Row(True, "shown")}),
    **under("remote_rm", remote_judge("answers")),
    "remote_rm.max_failed_fraction": Row(0.1, "error", {"model.data.files": "@/failing.jsonl"}),
    "pretrained_checkpoint.restore_from_path": Row("@/other_policy", "model"),
    "pretrained_checkpoint.resize_token_embeddings": Row(
        True, "error", {"pretrained_checkpoint.restore_from_path": "@/more_tokens"}
    ),
    "model.peft.restore_from_path": Row("@/adapter", "adapters"),
    "output": Row("@/out/others.jsonl", "files"),
    "overwrite": Row(True, "error", again=True),
    **under("model", LAYOUT),
    **under(
        "model",
        shown_by("sampled", {"encoder_seq_length": 24, "seed": 7}),
        shown_by(
            "sampled",
            {
                "data.files": "@/more.jsonl",
                "data.num_prompts": 2,
                "data.seq_length": 10,
                "data.prompt_template": "Q{n}:",
                "data.add_bos": True,
                "answers.num_rollouts_per_prompt": 2,
                "answers.rollout_micro_batch_size": 1,
            },
        ),
        {
            "data.columns": Row({"n": "o"}, "sampled", {"data.prompt_template": "Q{n}:"}),
            "data.answer_key": Row("right", "printed"),
            "answers.choose": Row("majority", "answers"),
        },
    ),
    **under("model.answers.sampling_params", held_out(SAMPLING)),
    **under("model.answers.length_params", held_out(LENGTHS)),
    **under("model.answers.generation", GENERATION),
}

_STANDARD = {"enable": True, "mean": 0.0, "std": 1.0}
_CHECK = {"check": True, "judge.function": "@/judges.py:one"}
SERVE_REWARD_BASE = {"judge.function": "@/judges.py:together"}
SERVE_REWARD: Rows = {
    "inference.host": Row("127.0.0.2", "address"),
    "inference.port": Row(6000, "address"),
    "inference.model_name": Row("other", "served"),
    "inference.max_queue_delay_microseconds": Row(100, "served"),
    "inference.inference_micro_batch_size": Row(2, "texts"),
    "inference.max_request_bytes": Row(10, "texts"),
    "inference.token_file": Row("@/token", "texts"),
    "inference.metrics_host": Row("127.0.0.2", "metrics address"),
    "inference.metrics_port": Row(7777, "metrics address"),
    **under("judge", judge("texts")),
    **under(
        "model.reward_standardization",
        {
            "enable": Row(True, "texts", also={"mean": 1.0, "std": 2.0}),
            "mean": Row(5.0, "texts", _STANDARD),
            "std": Row(5.0, "texts", _STANDARD),
        },
    ),
    "tokenizer": Row("@/policy", "tokens"),
    "log_dir": Row("@/out/log", "log"),
    "check": Row(True, "printed", {"judge.function": "@/judges.py:one"}),
    "check_policy": Row("@/policy", "printed", _CHECK),
    "check_data": Row("@/check.jsonl", "printed", _CHECK),
}

SERVE_ROLLOUTS_BASE = {"pretrained_checkpoint.restore_from_path": "@/policy", "log_dir": "@/out/log"}
SERVE_ROLLOUTS: Rows = {
    "pretrained_checkpoint.restore_from_path": Row("@/other_policy", "vllm"),
    "inference.host": Row("127.0.0.2", "address"),
    "inference.port": Row(6000, "vllm"),
    "inference.model_name": Row("other", "vllm"),
    "inference.token_file": Row("@/token", "vllm variables"),
    "weights_root": Row("@/policy", "vllm variables"),
    "lora_rank": Row(8, "vllm"),
    **under(
        "vllm",
        {
            "dtype": Row("bfloat16", "vllm"),
            "max_length": Row(64, "vllm"),
            "max_num_seqs": Row(2, "vllm"),
            "tensor_parallel_size": Row(2, "vllm"),
            "gpu_memory_utilization": Row(0.5, "vllm on a GPU"),
            "cpu_cache_gib": Row(2, "vllm variables"),
            "threads": Row(3, "vllm variables"),
            "seed": Row(2, "vllm"),
            "arguments": Row(["--block-size", "64"], "vllm"),
        },
    ),
    "startup_timeout": Row(5.0, "startup"),
    "log_dir": Row("@/out/other", "files"),
}

TABLE: dict[str, tuple[Mapping[str, Any], Rows]] = {
    "train_rs": (TRAIN_RS_BASE, TRAIN_RS),
    "train_sft": (TRAIN_SFT_BASE, TRAIN_SFT),
    "train_reward_model": (TRAIN_REWARD_MODEL_BASE, TRAIN_REWARD_MODEL),
    "generate": (GENERATE_BASE, GENERATE),
    "serve_reward": (SERVE_REWARD_BASE, SERVE_REWARD),
    "serve_rollouts": (SERVE_ROLLOUTS_BASE, SERVE_ROLLOUTS),
}
"""By script: the smallest config that runs, and a row for each leaf."""
