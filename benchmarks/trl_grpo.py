"""The opponent of `learning.py`: TRL's GRPO trainer on the same model, prompts, judge and number of threads.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install -r requirements/benchmarks.txt
    PYTHONPATH=. /tmp/trl/bin/python benchmarks/trl_grpo.py --out runs/trl --seed 1

It needs an environment of its own; nothing else of the project imports TRL. The defaults are the setting
`fast` of `benchmarks/results/README.md`; the options are what was searched. In TRL's favour:
no gradient checkpointing, no reference model, no logging, validation or saving within the time, fp32 (TRL's
default is bf16 by autocast), and no second forward pass where each generation makes one update.

What comes out is `--out`/curve.jsonl, a line for each optimizer step in `--save-at` (step 0 is the start),
and a Hugging Face folder each, to be measured by `measuring.py`:

    {"step": 4, "cpu_seconds": 4.268, "generated_tokens": 16384, "folder": "step_4"}

CPU seconds are user and system time of this process and its children from the first training step on,
without what saving took; imports and loading are left out. Left out on purpose: vLLM, which needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset

from rs_aligner.data import load_prompts
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.reward.judges.sentiment import sentiment
from rs_aligner.rollout import Prompt

DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data"))


def whole_numbers(text: str) -> list[int]:
    """Numbers with commas between."""
    return sorted({int(number) for number in text.split(",")})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-at", type=whole_numbers, default="1,2,3,4,5,6,7,8", help="optimizer steps")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a generation")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--updates", type=int, default=1, help="optimizer steps on one generation")
    parser.add_argument("--micro-batch", type=int, default=64, help="completions of a forward pass")
    parser.add_argument("--loss", default="dr_grpo", help="TRL's loss_type")
    parser.add_argument("--scale", default="group", choices=("group", "batch", "none"), help="scale_rewards")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL term")
    parser.add_argument("--warmup", type=int, default=0, help="optimizer steps")
    parser.add_argument("--beta2", type=float, default=0.999, help="of Adam")
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--continuous", action="store_true", help="transformers' continuous batching")
    args = parser.parse_args()
    num_completions = args.prompts * args.generations
    if num_completions % (args.updates * args.micro_batch):
        parser.error(
            f"--prompts x --generations = {num_completions} completions do not divide into {args.updates} "
            f"updates of whole micro-batches of {args.micro_batch}; change one of the four"
        )
    if not (DATA / "stories260k").is_dir():
        parser.error(f"RS_ALIGNER_TEST_DATA={DATA} has no stories260k/; see CONTRIBUTING.md")
    if args.out.exists():
        parser.error(f"--out {args.out} is there already; name a new folder")
    return args


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Curve(transformers.TrainerCallback):
    """Keeps the weights after the steps asked for, with what was spent up to then."""

    def __init__(self, out: Path, tokenizer: Any, steps: list[int]) -> None:
        self.out, self.tokenizer, self.steps = out, tokenizer, steps
        self.generated_tokens = 0
        self.start = self.saving = 0.0  # CPU seconds
        self.wall_start = self.wall_seconds = 0.0

    def reward(self, prompts: list[str], completions: list[str], **others: Any) -> list[float]:
        """The judge, as TRL calls it; every generated token passes here, end tokens too."""
        self.generated_tokens += sum(map(len, others["completion_ids"]))
        return sentiment(prompts, completions, [{} for _ in prompts])

    def keep(self, step: int, model: Any) -> None:
        began = cpu_seconds()
        spent = began - self.start - self.saving
        folder = self.out / f"step_{step}"
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        row = {
            "step": step,
            "cpu_seconds": round(spent, 3),
            "generated_tokens": self.generated_tokens,
            "folder": folder.name,
        }
        with (self.out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self.saving += cpu_seconds() - began

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.start, self.wall_start = cpu_seconds(), time.perf_counter()
        self.keep(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.wall_seconds = time.perf_counter() - self.wall_start
        if state.global_step in self.steps:
            self.keep(state.global_step, model)


def settings(args: argparse.Namespace) -> trl.GRPOConfig:
    """TRL's config for our options."""
    per_update = args.prompts * args.generations // args.updates // args.micro_batch
    return trl.GRPOConfig(
        output_dir=str(args.out),
        use_cpu=True,
        bf16=False,  # TRL's default is True
        seed=args.seed,
        max_steps=max(args.save_at),
        learning_rate=args.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=args.warmup,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        adam_beta2=args.beta2,
        max_grad_norm=args.max_grad_norm,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=per_update,
        steps_per_generation=per_update * args.updates,
        num_generations=args.generations,
        max_completion_length=64,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=args.beta,
        loss_type=args.loss,
        scale_rewards=args.scale,
        mask_truncated_completions=False,  # nearly all are cut at 64 tokens
        gradient_checkpointing=False,  # TRL's default is True
        use_transformers_continuous_batching=args.continuous,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def check(trainer: trl.GRPOTrainer, prompts: tuple[Prompt, ...], threads: int) -> None:
    """Refuse a comparison of unequal things."""
    theirs = trainer._tokenize_prompts([prompt.text for prompt in prompts])[0]
    if [tuple(ids) for ids in theirs] != [prompt.token_ids for prompt in prompts]:
        raise ValueError("TRL reads the prompts as other tokens than rs_aligner does; the comparison is void")
    ends, pad = list(trainer.eos_token_ids), trainer.processing_class.pad_token_id
    if ends != [1] or pad == 1:
        raise ValueError(
            f"TRL should end completions at [1] and pad with another token, not {ends} and {pad}"
        )
    if torch.get_num_threads() != threads:
        raise ValueError(f"--threads is {threads}, but torch uses {torch.get_num_threads()}")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # of TRL's own calls
    folder, file = DATA / "stories260k", str(DATA / "tinystories" / "prompts_train.jsonl")
    prompts = load_prompts([file], Tokenizer(folder), max_prompt_length=448).prompts
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    curve = Curve(args.out, tokenizer, args.save_at)
    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=curve.reward,
        args=settings(args),
        train_dataset=Dataset.from_dict({"prompt": [prompt.text for prompt in prompts]}),
        processing_class=tokenizer,
        callbacks=[curve],
    )
    check(trainer, prompts, args.threads)
    about = {
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "versions": {module.__name__: module.__version__ for module in (trl, torch, transformers)},
        "load_at_start": os.getloadavg(),
    }
    trainer.train()
    about |= {"load_at_end": os.getloadavg(), "wall_seconds": round(curve.wall_seconds, 1)}
    (args.out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
