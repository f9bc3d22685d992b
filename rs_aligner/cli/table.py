"""The commands of `rs-aligner`: a line each.

A command is a function that takes its arguments as a list of texts and returns a status (`exit_status`), or
nothing for 0. It is imported when it is called and not before, so that `--help` stays fast. Left out on
purpose: what a command takes, which it says itself with `--help`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

Function = Callable[[Sequence[str]], int | None]


class Command(NamedTuple):
    """A command.

    Attributes:
        name: as it is typed.
        target: `package.module:function`.
        sentence: what it does, for `rs-aligner --help`.
    """

    name: str
    target: str
    sentence: str

    def load(self) -> Function:
        """Import the function."""
        module, _, function = self.target.partition(":")
        return cast(Function, getattr(importlib.import_module(module), function))


COMMANDS = (
    Command("init", "rs_aligner.cli.init:main", "Write a config for your model, prompts and judge."),
    Command("train", "rs_aligner.cli.configured:train", "Rejection sampling: learn from the best answers."),
    Command("sft", "rs_aligner.cli.configured:sft", "Train on prompts with given answers, as a warm-up."),
    Command("reward-model", "rs_aligner.cli.configured:reward_model", "Train a judge from pairs of answers."),
    Command("serve", "rs_aligner.cli.configured:serve", "Serve a judge, or examine one (check=true)."),
    Command(
        "serve-rollouts",
        "rs_aligner.cli.configured:serve_rollouts",
        "Serve rollouts by vLLM, for engine=vllm.",
    ),
    Command("plan", "rs_aligner.cli.configured:plan", "Before another command: print what it would do."),
    Command("check", "rs_aligner.cli.configured:check", "Before another command: see whether it can work."),
    Command("generate", "rs_aligner.cli.configured:generate", "Write a model's answers into a file."),
    Command("report", "rs_aligner.commands.report:main", "Write the page of a run, to be looked at."),
    Command(
        "compare", "rs_aligner.commands.compare:main", "Compare runs: settings, curves, scores, answers."
    ),
    Command("replay", "rs_aligner.commands.replay:main", "What other settings would have kept of a run."),
    Command("dataset", "rs_aligner.commands.dataset:main", "Write a run's answers as a data set."),
    Command("completion", "rs_aligner.cli.completion:main", "Print what completes commands in bash and zsh."),
)
