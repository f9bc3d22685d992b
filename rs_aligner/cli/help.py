"""What `--help` of the commands that read a config says, and which config each reads."""

from __future__ import annotations

from typing import NamedTuple

_AHEAD = """\
usage: rs-aligner {name} COMMAND [KEY=VALUE ...]

{what}

COMMAND is one of {commands}, with the arguments that it will be called with.

Examples:
  rs-aligner {name} train --config-dir . --config-name mine
  rs-aligner {name} train --config-name recipes/raft exp_manager.explicit_log_dir=runs/raft ...
  rs-aligner {name} sft exp_manager.explicit_log_dir=runs/sft ...

It ends with status 0, or with 2 and what has to be mended.
"""
_WHAT_AHEAD = {
    "plan": """\
Print what a command would do, and end: steps, rollouts, batches, the learning rate, memory. No model is
loaded, and nothing is written.""",
    "check": """\
Check all that a command needs, as far as it can be known before a model is loaded: the config, the run's
folder and what an earlier start has left there, the model's files, the data, room on the disk and in memory,
the judge. Nothing is left behind.""",
}

_OF_CONFIG = """\
usage: rs-aligner {command} [KEY=VALUE ...] [--config-name NAME] [--config-dir FOLDER]

{what}
(In a source checkout, python examples/{config}.py is the same.)

Examples:
{examples}

Keys: {config}.yaml has each with a comment, docs/config.md its meaning, default and values.
A key that nothing reads is an error that names the nearest one.
  KEY=VALUE            sets a key, model.optim.lr=1e-5; quote lists and sections, 'KEY=[a, b]' 'KEY={{a: 1}}'
  --config-name, -cn   another config than {config}: one of yours, or of these:
{names}
  --config-dir, -cd    a folder of yours in which configs are looked for, too; they may begin with
                       defaults: [{config}, _self_]
  --config-path, -cp   a folder that is looked in first
  --cfg job            prints the whole config and ends
  --hydra-help         what else Hydra can do: several runs (-m), ...
The package's configs are in {folder}

Before it: rs-aligner plan {command} ... prints what would be done, rs-aligner check {command} ... if it can.
Statuses: 0 finished, 75 stopped on purpose (the same command goes on), 1 failed, 2 something to be mended.
"""


class OfConfig(NamedTuple):
    """A command that reads a config.

    Attributes:
        config: the name of its config.
        what: what it does, for `--help`.
        examples: of its command line.
    """

    config: str
    what: str
    examples: str


OF = {
    "train": OfConfig(
        "train_rs",
        """\
Rejection sampling: sample N answers to each prompt, have them scored by a judge, keep the best, train on
them, and again. Figures, every rollout, checkpoints and the trained model are left in the run's folder; the
same command goes on where it stopped.""",
        """\
  rs-aligner train --config-dir . --config-name mine            # what rs-aligner init has written
  rs-aligner train pretrained_checkpoint.restore_from_path=MODEL model.data.data_prefix.train=prompts.jsonl \\
      exp_manager.explicit_log_dir=runs/mine remote_rm.in_process=true \\
      remote_rm.judge.function=my_judge.py:score
  rs-aligner train --config-name recipes/raft trainer.devices=2 ...""",
    ),
    "sft": OfConfig(
        "train_sft",
        """\
Supervised training on prompts with given answers, {"prompt", "response"} a row: a warm-up for a model that
gets nothing right yet.""",
        """\
  rs-aligner sft pretrained_checkpoint.restore_from_path=MODEL model.data.data_prefix.train=rows.jsonl \\
      exp_manager.explicit_log_dir=runs/sft
  rs-aligner sft ... judge.name=exact_answer trainer.sft.stop_at_validation=0.35
  rs-aligner sft ... trainer.devices=2 model.tensor_model_parallel_size=2""",
    ),
    "reward-model": OfConfig(
        "train_reward_model",
        """\
Train a reward model from pairs of answers, {"prompt", "chosen", "rejected"} a row.""",
        """\
  rs-aligner reward-model pretrained_checkpoint.restore_from_path=MODEL \\
      model.data.data_prefix.train=pairs.jsonl exp_manager.explicit_log_dir=runs/rm
  rs-aligner reward-model ... trainer.devices=2
  rs-aligner serve judge.name=megatron_reward_model judge.kwargs.folder=runs/rm/final       # afterwards""",
    ),
    "serve": OfConfig(
        "serve_reward",
        """\
Serve a judge until Ctrl-C or SIGTERM, or examine it with check=true: a Python function of yours, a verifier,
a reward model, or a weighted sum of them.""",
        """\
  rs-aligner serve judge.function=my_judge.py:score
  rs-aligner serve judge.name=final_answer inference.port=5556
  rs-aligner serve judge.name=huggingface judge.kwargs.folder=path/to/reward_model check=true""",
    ),
    "serve-rollouts": OfConfig(
        "serve_rollouts",
        """\
Serve rollouts by vLLM until Ctrl-C or SIGTERM, for model.rs.generation.engine=vllm. In a source checkout,
bash scripts/setup_vllm.sh makes its environment. Every route wants the token, if there is one, and where
other machines can reach the server there has to be one.""",
        """\
  rs-aligner serve-rollouts pretrained_checkpoint.restore_from_path=MODEL
  rs-aligner serve-rollouts ... weights_root=runs/mine inference.port=8001
  rs-aligner serve-rollouts ... inference.host=0.0.0.0 inference.token_file=token
  rs-aligner serve-rollouts ... lora_rank=16 vllm.tensor_parallel_size=2""",
    ),
    "generate": OfConfig(
        "generate",
        """\
Write a model's answers to a file of prompts: one each, the best of N by a judge, or a majority vote.""",
        """\
  rs-aligner generate pretrained_checkpoint.restore_from_path=runs/mine/final \\
      model.data.files=prompts.jsonl output=answers.jsonl
  rs-aligner generate ... model.answers.num_rollouts_per_prompt=16 model.answers.choose=majority
  rs-aligner generate ... model.answers.num_rollouts_per_prompt=16 remote_rm.reward_model.port=5555""",
    ),
}


def of_config(command: str, names: list[str], folder: str) -> str:
    """Help of a command that reads a config.

    Args:
        command: its name.
        names: the configs of the package.
        folder: where they are.
    """
    one = OF[command]
    lines, line = [], ""
    for name in names:
        if len(line) + len(name) > 76:
            lines.append(line)
            line = ""
        line += f"{name}, "
    shown = "\n".join(f"{' ' * 23}{line.rstrip()}" for line in [*lines, line.rstrip(", ")])
    return _OF_CONFIG.format(
        command=command, what=one.what, config=one.config, examples=one.examples, names=shown, folder=folder
    )


def of_ahead(name: str) -> str:
    """Help of `plan` and `check`."""
    return _AHEAD.format(name=name, what=_WHAT_AHEAD[name], commands=", ".join(behind(name)))


def behind(ahead: str) -> list[str]:
    """The commands before which `plan` or `check` may stand."""
    return [name for name in OF if ahead == "check" or name not in ("serve", "serve-rollouts")]
