"""`rs-aligner init`: a commented config for a model, prompts and a judge, after a look at each of them.

What is missing among the flags is asked for on a terminal. Left out on purpose: every key that has a good
default already (docs/defaults.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rs_aligner.exit_status import FINISHED

if TYPE_CHECKING:
    from rs_aligner.rollout import Prompt

TEMPLATE = """\
# {name}: rejection sampling. Written by rs-aligner init; every other key, with its default: train_rs.yaml
# (rs-aligner train --help says where it is), what each means: docs/config.md.
#   rs-aligner plan train {run}
#   rs-aligner train {run}

defaults:
  - train_rs
  - _self_

exp_manager:
  explicit_log_dir: {folder}    # the run's folder; the same command goes on there

pretrained_checkpoint:
  restore_from_path: {model}    # {about_model}

model:
  global_batch_size: {batch}    # kept answers of an optimizer step
  micro_batch_size: {micro}     # rows at a time; less if memory is short

  data:
    data_prefix:
      train: {prompts}
      validation: {held_out}    # prompts that are never trained on: whether it helps shows on these
    prompt_template: {template} # e.g. "Question: {{question}}\\nAnswer:" for rows without text or messages

  rs:
    num_rollout_samples: {samples}      # prompts of a step, of {about_prompts}
    num_rollouts_per_prompt: 8   # answers to each; more of them find better ones, and cost more
    top_n_rollouts: 1            # kept of these
    min_reward: null             # answers that score less are never trained on, e.g. 0.5
    length_params:
      max_length: {length}      # tokens of an answer, at most

  optim:
    lr: {rate}                  # for a model of this size

trainer:
  devices: 1                     # processes or GPUs
  rs:
    max_epochs: 1                # passes over the prompts
    val_check_interval: {validate}   # steps between looks at the held-out prompts
    save_interval: 10            # steps between checkpoints

remote_rm:
{judge}
"""
RATES = ((10_000_000, "3e-4"), (100_000_000, "1e-4"), (1_000_000_000, "3e-5"))
"""Up to so many parameters, which rate: docs/defaults.md."""
LARGE_RATE = "1e-5"


def main(arguments: Sequence[str]) -> int:
    """Write a config and show its plan.

    Raises:
        ValueError: model, prompts or judge cannot be used; with what would work.
        ConnectionError: the judge's server does not answer.
    """
    args = _parser().parse_args(arguments)
    asks = sys.stdin.isatty() and not args.yes
    file = Path(args.folder) / f"{args.name}.yaml"
    if file.exists() and not args.overwrite:
        raise ValueError(f"{file} exists: choose another --name, or write over it with --overwrite")

    model = args.model or _ask(asks, "--model", "The model, a Hugging Face folder")
    from rs_aligner.model.folder import read_model_folder
    from rs_aligner.model.tensors import num_parameters

    tokenizer, arch = read_model_folder(model, "--model")
    size = num_parameters(arch)
    about = f"{arch.family}, {size:,} parameters, {arch.max_positions:,} positions"
    print(f"ok  the model: {about}")

    files = args.prompts or _ask(asks, "--prompts", "The prompts, a file of JSON Lines, JSON or parquet")
    length = min(256, arch.max_positions // 2)
    template = args.template or _template(asks, files)
    prompts = _prompts("--prompts", files, tokenizer, template, arch.max_positions - length)
    print(
        f"ok  the prompts: {len(prompts):,}; the first one, as the model reads it:\n    {prompts[0].text!r}"
    )
    held_out = args.held_out or _ask(asks, None, "Prompts to measure on, which are never trained on (none)")
    if held_out:
        number = len(_prompts("--held-out", held_out, tokenizer, template, arch.max_positions - length))
        print(f"ok  the held-out prompts: {number:,}")

    named = args.judge or _ask(asks, "--judge", "The judge: FILE.py:FUNCTION, a judge's name, or HOST:PORT")
    settings = _judge_settings(named)
    print(f"ok  the judge: {_try_judge(settings, prompts[0], tokenizer)}")

    samples = min(64, len(prompts))
    micro = min(8 if size < RATES[-1][0] else 1, samples)
    run = f"--config-dir {args.folder} --config-name {args.name}"
    text = TEMPLATE.format(
        name=args.name,
        run=run,
        folder=_yaml(f"runs/{args.name}"),
        model=_yaml(str(Path(model).absolute())),
        about_model=about,
        batch=samples - samples % micro,
        micro=micro,
        prompts=_yaml(str(Path(files).absolute())),
        held_out=_yaml(str(Path(held_out).absolute())) if held_out else "[]",
        template=_yaml(template),
        samples=samples,
        about_prompts=f"{len(prompts):,}",
        length=length,
        rate=next((rate for most, rate in RATES if size <= most), LARGE_RATE),
        validate=10 if held_out else "null",
        judge=_indented(settings),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"\nwritten: {file}. What it would do (rs-aligner plan train {run}):\n", flush=True)
    from rs_aligner.cli.configured import run as run_command

    status = run_command("train", ["--config-dir", args.folder, "--config-name", args.name], ahead="plan")
    if status == FINISHED:
        print(f"\ntrain with:\n    rs-aligner train {run}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-aligner init",
        description="Write a commented config for rs-aligner train, and try model, prompts and judge.",
        epilog="Example: rs-aligner init --model path/to/model --prompts mine.jsonl --judge judge.py:score",
    )
    parser.add_argument("folder", nargs="?", default=".", help="where the config is written (default: here)")
    parser.add_argument("--name", default="mine", help="of the config and of the run (default: mine)")
    parser.add_argument("--model", help="a Hugging Face folder, or a run's final/")
    parser.add_argument("--prompts", help="rows with text, messages, or what --template reads")
    parser.add_argument("--held-out", help="prompts to measure on, which are never trained on")
    parser.add_argument("--template", help='for rows without text: "Question: {question}\\nAnswer:"')
    parser.add_argument(
        "--judge",
        help="FILE.py:FUNCTION, a judge that comes with it (final_answer, ...), or HOST:PORT of a server",
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing: what is not given has its default")
    parser.add_argument("--overwrite", action="store_true", help="write over a config that is there")
    return parser


def _ask(asks: bool, flag: str | None, what: str) -> str:
    """What the user types; for a flag that must be given, until it is something.

    Raises:
        ValueError: nobody can be asked, and the flag must be given.
    """
    while asks:
        try:
            typed = input(f"{what}: ").strip()
        except EOFError:
            break
        if typed or flag is None:
            return typed
    if flag is not None:
        raise ValueError(f"{flag} must be given: {what[0].lower()}{what[1:]}")
    return ""


def _template(asks: bool, files: str) -> str | None:
    """The template for rows that need one; None for those that do not.

    Raises:
        ValueError: there are no rows, or they need a template and nobody can be asked.
    """
    from rs_aligner.data.rows import read_rows, shown_keys
    from rs_aligner.data.shapes import as_prompt

    if not Path(files).exists():
        raise ValueError(f"--prompts: there is no file {files} (relative to {Path.cwd()})")
    where, row = next(read_rows([files]), ("", {}))
    if not where:
        raise ValueError(f"--prompts: {files} has no rows")
    if {"text", "messages"} & set(as_prompt(where, row)):
        return None
    print(f"    {where} has neither text nor messages, but {shown_keys(row)}")
    return _ask(
        asks, "--template", 'A template over these keys, e.g. "Question: {question}\\nAnswer:"'
    ).replace("\\n", "\n")


def _prompts(flag: str, files: str, tokenizer: Any, template: str | None, most: int) -> Sequence[Prompt]:
    from rs_aligner.data.prompts import load_prompts

    if not Path(files).exists():
        raise ValueError(f"{flag}: there is no file {files} (relative to {Path.cwd()})")
    return load_prompts([files], tokenizer, template=template, max_prompt_length=most).prompts


def _judge_settings(named: str) -> dict[str, Any]:
    """`remote_rm` for a judge by what it is called.

    Raises:
        ValueError: it is none of the three.
    """
    from rs_aligner.config.judge import JudgeName

    if named in get_args(JudgeName):
        return {"in_process": True, "judge": {"name": named}}
    host, colon, port = named.rpartition(":")
    if port.isdigit():
        return {"reward_model": {"ip": host or "localhost", "port": int(port)}}
    if colon and host.endswith(".py"):
        return {"in_process": True, "judge": {"function": f"{Path(host).absolute()}:{port}"}}
    if colon and port.isidentifier():
        return {"in_process": True, "judge": {"function": named}}
    known = ", ".join(get_args(JudgeName))
    raise ValueError(f"--judge {named}: should be FILE.py:FUNCTION, HOST:PORT, or one of {known}")


def _try_judge(settings: dict[str, Any], prompt: Prompt, tokenizer: Any) -> str:
    """Have a made-up answer scored; returns what came of it.

    Raises:
        ValueError: the judge cannot be used, or has no score for the answer.
        ConnectionError: its server does not answer.
    """
    from rs_aligner.config import RemoteRMConfig
    from rs_aligner.config.base import ConfigError, check
    from rs_aligner.reward.client import RemoteGPTRMClient
    from rs_aligner.rollout import Rollout, Score

    asked = RemoteRMConfig.model_validate(settings)
    if problems := list(check(asked, "--judge")):
        raise ConfigError(problems)
    text = "An answer, made up to see whether the judge works."
    rollout = Rollout(0, 0, tuple(tokenizer.encode(text)), text, "stop")
    with RemoteGPTRMClient(asked) as client:
        client.wait_until_ready()
        answer = client.submit(prompt, rollout)
        client.flush()
        found = answer.result()
    if isinstance(found, Score):
        return f"it scores {text!r} with {found.reward:g}"
    return f"it has no score for {text!r} ({found.reason})"


def _yaml(value: Any) -> str:
    """A value as YAML reads it: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _indented(settings: dict[str, Any], depth: int = 1) -> str:
    lines = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * depth}{key}:", _indented(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {_yaml(value)}")
    return "\n".join(lines)
