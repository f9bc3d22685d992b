"""How much a training step costs: side by side with a plain `transformers` loop, and with products alone.

    python benchmarks/training.py                     all workloads, about half an hour on one core
    python benchmarks/training.py --workloads equal   one of them
    python benchmarks/training.py --profile equal     where our time goes, by torch's profiler

Every side makes the same optimizer steps (AdamW, the gradient clipped to a norm of 1) from the same weights
on the same rows, on one thread; sides take turns, and what counts is the ratio of CPU seconds (user and
system), the median over the turns. Before anything is timed, the loss of the first step is compared.

    equal      27 M parameters (512 wide, 8 layers), 8 rows of 128 tokens, 32 of them the prompt's
    ragged     2 such layers, 64 rows of 27 to 512 tokens
    ragged_stories   the same rows through stories260k
    prompts    the same with a vocabulary of 32,000: 4 rows of a prompt of 384 and a response of 32
    stories    stories260k (heads of 8 numbers), 64 rows of 128 tokens
    bf16       `equal` in bf16, where the processor has AMX (`lscpu`); else it is left out, saying so

The opponents, a plain loop around `AutoModelForCausalLM` and `torch.optim.AdamW`, padded on the right, in
micro-batches of as many rows as ours:

    sorted     rows of similar length together; logits of all positions
    random     rows as they come
    responses  as `sorted`, with the output layer at positions before response tokens only
    products   the matrix products of a step alone, forward and backward, on the shapes that ours has: a floor

Results go to `--out` as JSON beside a table on the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import transformers
from generation import DATA, MEDIUM, cpu_seconds, machine, write
from torch.nn import functional

from rs_aligner.config import OptimConfig
from rs_aligner.model import runtime
from rs_aligner.policy.batches import Split
from rs_aligner.policy.sampler import load_model
from rs_aligner.policy.training import Trainer, adam
from rs_aligner.rollout import TrainingRow

OPTIM = OptimConfig(lr=1e-4)
CLIP = 1.0
IGNORED = -100


@dataclass(frozen=True)
class Work:
    """A workload: a model, rows, micro-batches, opponents with what our seconds may be of theirs."""

    name: str
    folder: Path
    rows: Sequence[TrainingRow]
    micro_batch_size: int
    targets: Mapping[str, float | None]
    max_tokens: int | None = None
    precision: str = "fp32"
    steps: int = 1


def rows_of(
    count: int, vocabulary: int, lengths: Callable[[random.Random], tuple[int, int]]
) -> list[TrainingRow]:
    """Random rows; `lengths` draws a prompt's and a response's."""
    rng = random.Random(3)
    found = []
    for _ in range(count):
        prompt, response = lengths(rng)
        tokens = tuple(rng.randrange(3, vocabulary) for _ in range(prompt + response))
        found.append(TrainingRow(tokens[:prompt], tokens[prompt:]))
    return found


def workloads(scratch: Path) -> list[Work]:
    """All of them; the models are made in `scratch`."""
    changes: dict[str, dict[str, int]] = {
        "medium": {},
        "shallow": {"num_hidden_layers": 2},
        "many_tokens": {"vocab_size": 32000},
    }
    for name, change in changes.items():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**{**MEDIUM, **change})
        transformers.LlamaForCausalLM(config).save_pretrained(scratch / name)

    def ragged(rng: random.Random) -> tuple[int, int]:
        return 16, rng.randint(11, 496)

    equal = rows_of(8, 4096, lambda _: (32, 96))
    long_prompts = rows_of(4, 32000, lambda _: (384, 32))
    by_length = {"sorted": 0.85, "random": 0.5}
    found = [
        Work("equal", scratch / "medium", equal, 8, {"sorted": 0.95, "responses": None, "products": None}),
        Work("ragged", scratch / "shallow", rows_of(64, 4096, ragged), 8, by_length, max_tokens=2048),
        Work("prompts", scratch / "many_tokens", long_prompts, 4, {"sorted": 0.65, "responses": 1.05}),
    ]
    stories = DATA / "stories260k"
    if stories.is_dir():
        rows, other = rows_of(64, 512, lambda _: (32, 96)), rows_of(64, 512, ragged)
        found += [
            Work("stories", stories, rows, 64, {"sorted": 0.8, "products": None}, steps=3),
            Work("ragged_stories", stories, other, 8, by_length, max_tokens=2048, steps=2),
        ]
    else:
        print(f"stories needs {stories}, which is not there: left out", file=sys.stderr)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "amx_bf16" in flags:
        found.append(Work("bf16", scratch / "medium", equal, 8, {"sorted": 0.95}, precision="bf16"))
    else:
        print("bf16 needs a processor with AMX (amx_bf16 in lscpu): left open here", file=sys.stderr)
    return found


class Ours:
    """Steps of our trainer; returns the loss of the first."""

    def __init__(self, work: Work, rt: runtime.Runtime) -> None:
        loaded = load_model(work.folder, rt, work.precision)
        self.work = work
        optimizer = adam(OPTIM, dtype=loaded.dtype, clip_grad=CLIP)
        self.trainer = Trainer(loaded.model, loaded.config, rt, optimizer)

    def __call__(self) -> float:
        work = self.work
        split = Split(work.micro_batch_size, work.max_tokens)
        found = [self.trainer.step(work.rows, split=split, learning_rate=OPTIM.lr) for _ in range(work.steps)]
        return found[0].loss


class Plain:
    """The loop that anybody would write; returns the loss of the first step."""

    def __init__(self, work: Work, *, is_sorted: bool = True, responses_only: bool = False) -> None:
        self.work, self.responses_only = work, responses_only
        dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(work.folder, dtype=dtype).train()
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=OPTIM.lr,
            betas=OPTIM.betas,
            eps=OPTIM.eps,
            weight_decay=OPTIM.weight_decay,
        )
        rows = sorted(work.rows, key=len) if is_sorted else list(work.rows)
        self.batches = [
            self._padded(rows[start : start + work.micro_batch_size])
            for start in range(0, len(rows), work.micro_batch_size)
        ]

    def _padded(self, rows: Sequence[TrainingRow]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        tokens_BS = torch.zeros(len(rows), width, dtype=torch.long)
        labels_BT = torch.full((len(rows), width - 1), IGNORED)
        for i, row in enumerate(rows):
            tokens_BS[i, : len(row)] = torch.tensor(row.prompt + row.response)
            labels_BT[i, len(row.prompt) - 1 : len(row) - 1] = torch.tensor(row.response)
        return tokens_BS, labels_BT

    def __call__(self) -> float:
        losses = [self._step() for _ in range(self.work.steps)]
        return losses[0]

    def _step(self) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for tokens_BS, labels_BT in self.batches:
            # Padded on the right, where a causal model cannot see: no mask, which would slow it down.
            mask_BT = labels_BT != IGNORED
            if self.responses_only:
                hidden_BTH = self.model.model(tokens_BS).last_hidden_state[:, :-1]
                nll = functional.cross_entropy(
                    self.model.lm_head(hidden_BTH[mask_BT]).float(), labels_BT[mask_BT], reduction="none"
                )
                nll_BT = torch.zeros(mask_BT.shape).masked_scatter(mask_BT, nll)
            else:
                logits_BTV = self.model(tokens_BS).logits[:, :-1].float()
                nll_BT = functional.cross_entropy(
                    logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
                )
            loss = (nll_BT.sum(1) / mask_BT.sum(1)).sum() / len(self.work.rows)
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return total


class Products:
    """The matrix products of our step alone: forward, for the input's gradient, for the weight's."""

    def __init__(self, work: Work) -> None:
        config = json.loads((work.folder / "config.json").read_text())
        width, inner, heads = (config[x] for x in ("hidden_size", "intermediate_size", "num_attention_heads"))
        head_dim = config.get("head_dim") or width // heads
        mixed = (heads + 2 * config["num_key_value_heads"]) * head_dim
        tokens = sum(map(len, work.rows))
        responses = sum(len(row.response) for row in work.rows)
        layer = [(tokens, width, mixed), (tokens, heads * head_dim, width)]
        layer += [(tokens, width, 2 * inner), (tokens, inner, width)]
        shapes = layer * config["num_hidden_layers"] + [(responses, width, config["vocab_size"])]
        self.tensors = [
            (torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)) for m, k, n in dict.fromkeys(shapes)
        ]
        self.counts = [shapes.count(shape) * work.steps for shape in dict.fromkeys(shapes)]

    def __call__(self) -> float:
        for (x_MK, w_NK, dy_MN), count in zip(self.tensors, self.counts, strict=True):
            for _ in range(count):
                functional.linear(x_MK, w_NK)
                dy_MN @ w_NK
                dy_MN.t() @ x_MK
        return 0.0


def sides(work: Work, rt: runtime.Runtime) -> dict[str, Callable[[], float]]:
    """Ours, and the opponents of a workload."""
    makers: dict[str, Callable[[], Callable[[], float]]] = {
        "sorted": lambda: Plain(work),
        "random": lambda: Plain(work, is_sorted=False),
        "responses": lambda: Plain(work, responses_only=True),
        "products": lambda: Products(work),
    }
    return {"ours": Ours(work, rt), **{name: makers[name]() for name in work.targets}}


def measure(work: Work, rt: runtime.Runtime, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each side by turn, behind one that is not counted.

    Raises:
        ValueError: the sides do not compute the same loss, so their seconds say nothing.
    """
    competing = sides(work, rt)
    losses = {name: side() for name, side in competing.items() if name != "products"}
    tolerance = 1e-2 if work.precision == "bf16" else 1e-4
    if max(losses.values()) - min(losses.values()) > tolerance * max(losses.values()):
        raise ValueError(f"{work.name}: the sides differ in their first loss: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in competing}
    for _ in range(repeats):
        for name, side in competing.items():
            began = cpu_seconds()
            side()
            seconds[name].append(cpu_seconds() - began)
        print(
            f"    {work.name} { ({name: round(x[-1], 2) for name, x in seconds.items()}) }",
            file=sys.stderr,
            flush=True,
        )
    return seconds


def ratio(seconds: dict[str, list[float]], side: str) -> float:
    """The median of ours over theirs, turn by turn."""
    return median(ours / theirs for ours, theirs in zip(seconds["ours"], seconds[side], strict=True))


def profile(work: Work, rt: runtime.Runtime) -> str:
    """A table of torch's operators, by their own time."""
    ours = Ours(work, rt)
    ours()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        ours()
    return str(
        found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", default="equal,ragged,prompts,stories,ragged_stories,bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", metavar="WORKLOAD")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, runtime.start(accelerator="cpu") as rt:
        for work in workloads(Path(scratch)):
            if args.profile == work.name:
                print(profile(work, rt))
            if args.profile or work.name not in args.workloads.split(","):
                continue
            seconds = measure(work, rt, args.repeats)
            shown = {side: round(ratio(seconds, side), 3) for side in work.targets}
            results[work.name] = {"seconds": seconds, "ours / theirs": shown, "targets": work.targets}
            cells = [
                f"{side} {shown[side]:.2f}" + (f" ({goal})" if goal else "")
                for side, goal in work.targets.items()
            ]
            print(f"{work.name}: ours / theirs  " + "   ".join(cells), flush=True)
    if args.out:
        write(args.out, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
