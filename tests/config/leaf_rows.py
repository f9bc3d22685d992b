"""What a row of the table of leaves is, and the rows of sections that several commands have.

A row says: set this value, run the command in the world of fakes (`leaf_world.py`), and what was noted under
`shows` is another than without it. The rows of a command are in `leaf_table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a leaf is set to, and what shows it.

    Attributes:
        value: other than the default. Texts with `@/` name files of the world.
        shows: the name of the note that has to differ.
        given: what else is set, with and without the value.
        also: what else is set with the value only, where one goes with the other.
        at: the key to be set, where that is not the leaf's own name.
        again: the command runs a second time in the same folder.
        ranks: how many ranks `torchrun` says that it started.
    """

    value: Any
    shows: str
    given: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, Any] = field(default_factory=dict)
    at: str | None = None
    again: bool = False
    ranks: int = 1


Rows = dict[str, Row]


def shown_by(note: str, values: Mapping[str, Any], **how: Any) -> Rows:
    """Rows that the same note shows."""
    return {key: Row(value, note, **how) for key, value in values.items()}


def with_given(rows: Rows, keys: Mapping[str, Any]) -> Rows:
    """The same rows where these keys are set besides."""
    return {key: replace(row, given={**keys, **row.given}) for key, row in rows.items()}


def under(section: str, *groups: Rows) -> Rows:
    """Rows of a section below another; their keys are relative, but for those that begin with a slash."""

    def absolute(keys: Mapping[str, Any]) -> dict[str, Any]:
        return {key if key.startswith("/") else f"{section}.{key}": value for key, value in keys.items()}

    return {
        f"{section}.{key}": replace(
            row,
            given=absolute(row.given),
            also=absolute(row.also),
            at=None if row.at is None else f"{section}.{row.at}",
        )
        for rows in groups
        for key, row in rows.items()
    }


def tree_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Nested, of dotted keys; a null takes its key out."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *path, last = key.removeprefix("/").split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


# Sections that several commands have.

TRAINER: Rows = {
    **shown_by("error", {"num_nodes": 2, "devices": 2}),
    **shown_by("ranks", {"accelerator": "cpu", "timeout_minutes": 5}),
    **shown_by("model", {"precision": "bf16"}),
    **shown_by("threads", {"threads": 3}),
    **shown_by("bars", {"enable_progress_bar": False}),
}
LOOP: Rows = {
    **shown_by("metrics", {"max_epochs": 3, "max_steps": 1, "val_check_interval": 2}),
    **shown_by("saved", {"save_interval": 3}),
    **shown_by("optimizer", {"gradient_clip_val": 0.5}),
    **shown_by("bad steps", {"max_bad_steps": 7}),
}
EXP_MANAGER: Rows = {
    **shown_by("files", {"explicit_log_dir": "@/out/elsewhere", "max_time_per_run": "00:00:00:05"}),
    **shown_by("loggers", {"create_tensorboard_logger": False, "create_wandb_logger": True}),
    **shown_by("loggers", {"create_mlflow_logger": True, "create_trackio_logger": True}),
    "mlflow_logger_kwargs": Row({"tracking_uri": "http://mine"}, "loggers", {"create_mlflow_logger": True}),
    "trackio_logger_kwargs": Row({"space_id": "my/space"}, "loggers", {"create_trackio_logger": True}),
    **shown_by("signals", {"stop_within": 90}),
    **shown_by(
        "loggers",
        {"name": "mine", "wandb_logger_kwargs": {"project": "mine"}},
        given={"create_wandb_logger": True},
    ),
    **shown_by("error", {"resume_if_exists": False, "allow_changes": ["model.optim.rl"]}, again=True),
    **shown_by("files", {"checkpoint_callback_params.save_top_k": 3, "report": True}),
}
SENDS_TEXTS: Rows = {"send_rollout_texts": Row(True, "loggers", {"create_wandb_logger": True})}
OPTIM: Rows = {
    **shown_by(
        "optimizer", {"name": "adam", "lr": 1e-3, "weight_decay": 0.5, "betas": [0.8, 0.9], "eps": 1e-6}
    ),
    **shown_by("decay", {"decay_norms_and_biases": True}),
    **shown_by("overlap", {"overlap_grad_sync": True}),
    **shown_by("offload", {"offload_fraction": 0.5}),
    **shown_by(
        "rates",
        {"sched.name": "constant", "sched.warmup_steps": 2, "sched.constant_steps": 2, "sched.min_lr": 1e-7},
        given={"sched.warmup_steps": 1, "sched.constant_steps": 1},
    ),
}
_LORA = {"peft_scheme": "lora"}
PEFT: Rows = {
    "peft_scheme": Row("lora", "adapters"),
    "restore_from_path": Row("@/adapter", "adapters", _LORA),
    "export": Row("adapter", "exported", _LORA),
    **shown_by(
        "adapters",
        {
            "lora_tuning.target_modules": ["attention_qkv", "down_proj"],
            "lora_tuning.adapter_dim": 4,
            "lora_tuning.alpha": 16,
            "lora_tuning.use_rslora": True,
            "lora_tuning.column_init_method": "kaiming",
            "lora_tuning.row_init_method": "normal",
        },
        given=_LORA,
    ),
    "lora_tuning.adapter_dropout": Row(0.1, "error", _LORA),
}
ON_TWO_RANKS: dict[str, Any] = {"given": {"/trainer.devices": 2}, "ranks": 2}
LAYOUT: Rows = shown_by(
    "ranks", {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, **ON_TWO_RANKS
) | {"expert_model_parallel_size": Row(2, "error")}  # the policy of the world has no experts
COLUMNS: Rows = {"columns": Row({"n": "o"}, "rows", {"prompt_template": "Q{n}:"})}
CHATS: Rows = {"chat_template_kwargs": Row({"mood": "sad"}, "error")}  # the template of the world reads none
TRAINED: Rows = {
    **LAYOUT,
    **shown_by("batches", {"micro_batch_size": 2, "global_batch_size": 3}),
    **shown_by("batches", {"max_tokens_per_microbatch": 30}),
    **shown_by("rows", {"seed": 7, "encoder_seq_length": 24}),
    "sequence_parallel": Row(
        True, "model", {"/trainer.devices": 2, "tensor_model_parallel_size": 2}, ranks=2
    ),
    **shown_by("error", {"precision": "bf16"}),  # another name of trainer.precision, and has to agree
    "activations_checkpoint_granularity": Row("full", "model"),
    **shown_by(
        "model",
        {"activations_checkpoint_method": "block", "activations_checkpoint_num_layers": 2},
        given={"activations_checkpoint_granularity": "full"},
    ),
    **under("peft", PEFT),
    **under("optim", OPTIM),
    **under(
        "data",
        shown_by("rows", {"seq_length": 10, "prompt_template": "Q{n}:", "add_bos": True}),
        CHATS,
        COLUMNS,
    ),
}
SAMPLING: Rows = {
    "use_greedy": Row(True, "controls"),
    **shown_by("controls", {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}),
    "end_strings": Row(["END"], "controls"),
}
LENGTHS: Rows = shown_by("controls", {"max_length": 6, "min_length": 2})
_SERVED: dict[str, Any] = {"engine": "vllm", "endpoints": ["10.0.0.6:8000"]}
GENERATION: Rows = {
    "kv_cache_bytes": Row(1 << 20, "sampled"),
    "engine": Row("torch", "decoder"),
    "endpoints": Row(["10.0.0.7:8000", "https://engine.example.com/a"], "servers", _SERVED),
    **with_given(
        {
            "servers.token_file": Row("@/token", "servers"),
            "servers.ca_file": Row("@/authority.pem", "servers", {"endpoints": ["https://10.0.0.6"]}),
            "servers.startup_timeout": Row(3, "startup"),
            "servers.request_timeout": Row(7, "requests"),
            "servers.give_up_after": Row(30, "patience"),
            "servers.max_in_flight": Row(2, "in flight"),
        },
        _SERVED,
    ),
}


SYNCHRONIZED: Rows = with_given(
    {"sync_interval": Row(2, "versions", {"max_version_lag": 1}), "max_version_lag": Row(2, "lag")}, _SERVED
)


def held_out(rows: Rows) -> Rows:
    """The same, where the policy answers held-out prompts."""
    return {key: replace(row, shows=f"held-out {row.shows}") for key, row in rows.items()}


def judge(shows: str) -> Rows:
    """What gives responses their scores, which `shows` shows."""
    one, two = "@/judges.py:one", "@/judges.py:two"
    part = {"function": None, "parts.a.function": one}
    return {
        "function": Row(two, shows, {"function": one}),
        "name": Row("length", shows, {"function": one}, {"function": None, "kwargs": {"at_most": 4}}),
        "kwargs": Row({"scale": 3.0}, shows, {"function": one}),
        "time_limit": Row(2.5, "time limits", {"function": one}),
        "workers": Row(3, "time limits", {"function": one}),
        "parts.*.function": Row(two, shows, part, at="parts.a.function"),
        "parts.*.name": Row(
            "length",
            shows,
            part,
            {"parts.a.function": None, "parts.a.kwargs": {"at_most": 4}},
            at="parts.a.name",
        ),
        "parts.*.kwargs": Row({"scale": 3.0}, shows, part, at="parts.a.kwargs"),
        "parts.*.time_limit": Row(2.5, "time limits", part, at="parts.a.time_limit"),
        "parts.*.workers": Row(3, "time limits", part, at="parts.a.workers"),
        "parts.*.weight": Row(2.0, shows, part, at="parts.a.weight"),
    }


def server(**other: Any) -> Row:
    """An element of a list of servers that is another one."""
    one = {"ip": "10.0.0.1", "port": 6001}
    return Row([{**one, **other}], "servers", {"endpoints": [one]}, at="endpoints")


def remote_judge(shows: str) -> Rows:
    """A judge as a client sees it; `shows` is where its scores show."""
    return {
        **shown_by(
            "servers",
            {
                "reward_model.name": "other",
                "reward_model.ip": "10.0.0.2",
                "reward_model.port": 6000,
                "reward_model.https": True,
                "reward_model.path": "/rm",
            },
        ),
        "endpoints": Row(["10.0.0.3:6003", "10.0.0.4:6004"], "servers"),
        "endpoints[].name": server(name="other"),
        "endpoints[].ip": server(ip="10.0.0.5"),
        "endpoints[].port": server(port=6005),
        "endpoints[].https": server(https=True),
        "endpoints[].path": server(path="/rm"),
        "ca_file": Row("@/authority.pem", "servers", {"reward_model.https": True}),
        "in_process": Row(True, shows, also={"judge.function": "@/judges.py:one"}),
        **with_given(under("judge", judge(shows)), {"in_process": True}),
        "token_file": Row("@/token", "servers"),
        "mode": Row("tokens", "requests"),
        "pad_to_length": Row(100, "requests", {"mode": "tokens"}),
        **shown_by("queue", {"max_batch_size": 5, "max_queued": 100}),
        "max_wait_seconds": Row(1.5, "due"),
        "max_in_flight": Row(2, "in flight"),
        "startup_timeout": Row(3, "startup"),
        "request_timeout": Row(7, "requests"),
        "on_failure": Row("drop", "patience", {"on_failure": "retry"}),
        "give_up_after": Row(30, "patience", {"on_failure": "retry"}),
        "max_attempts": Row(9, "patience", {"on_failure": "drop"}),
    }
